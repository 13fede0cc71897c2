"""
Which worker gets which task: a table of seats and queues, and decisions on it.

Theory of operation. A pool has a fixed number of *seats*; on each sits a worker, or nobody while one is started. Tasks
wait in queues, by priority; a task with a key waits at its own seat. `pick` says what a seat shall be sent next. Tasks
that have shown to be short go in batches of about `BATCH_SECONDS`, and a second batch while the first one runs, so
that the worker never waits for us. A task of which nothing is known goes alone. So a task waits behind another one of
the same worker only if both are calls of one function that has been quick so far.

A *source* stands in a queue for many tasks, which it makes as they are wanted: a map over a million items is one entry.

    seat        the worker
    EMPTY       none
    STARTING    being forked
    PREPARING   runs its initializer
    IDLE        waits
    BUSY        has tasks
    LENT        a caller's thread talks to it directly
    ENDING      shall take no more tasks

Runs in: application, under the pool's lock; pure.
Never: waits, calls anything of the user's.
"""

import heapq
from collections import deque
from collections.abc import Hashable
from typing import Any, Protocol

BATCH_SECONDS = 0.002  # of work in one message; arbitrary, a hundred times what a message costs
AHEAD_SECONDS = 0.004  # of work that may wait in a worker
QUICK_SECONDS = 0.005  # a function of which a call took longer lately is never batched
BULK_SECONDS = 0.05  # the same for items of a map: nobody waits for one of them alone
BATCH_BYTES = 40 * 1024  # below what a datagram takes
_PACES = 512  # functions whose pace is remembered
_FORGET = 0.97  # of the slowest call, per call: after a hundred quick ones a slow one is forgotten

EMPTY, STARTING, PREPARING, IDLE, BUSY, LENT, ENDING = (
    "empty", "starting", "preparing", "idle", "busy", "lent", "ending",
)  # fmt: skip
QUEUED, SENT, OVER = "queued", "sent", "over"

# How a task is run: func(*args, **kwargs); [func(x)]; [func(*x)]; the items of func(*args).
CALL, EACH, EACH_STAR, STREAM = range(4)


class Sink(Protocol):
    """
    Who waits for a task.
    """

    def deliver(self, task: "Task", value: object) -> None:
        """
        It returned *value*.
        """
        ...

    def fail(self, task: "Task", error: BaseException) -> None:
        """
        It has no value, because of *error*.
        """
        ...


class Task:
    """
    One task.

    Attributes:
        id: Unique in its pool, from 1 up.
        mode: How it is run: CALL, EACH, EACH_STAR, STREAM.
        payload: The pickled call.
        parts: Its large buffers.
        head: The pickled function, when the payload is the items alone; else empty.
        function: Whose pace it has.
        items: How many calls it is.
        sink: Who waits for it.
        timeout: Seconds that it may run, or None.
        retries: How often it may be run again after its worker died.
        priority: The larger, the sooner.
        key: Tasks with equal keys go to the same seat, or None.
        submitted, sent: Monotonic times.
        pickling: Seconds that its pickling took.
        deaths: Workers that died of it.
        doom: Why it is to be ended, while it runs.
        seat, thread: What its caller was lent, and that caller.
        state: QUEUED, SENT, OVER.
    """

    # Most tasks differ from these in nothing: what is not set costs nothing.
    id = 0
    items = 1
    timeout: float | None = None
    retries = 0
    priority = 0
    key: Hashable = None
    submitted: float = 0.0
    sent: float = 0.0
    pickling: float = 0.0
    deaths = 0
    doom: Any = None
    state = QUEUED
    head = b""
    seat: Any = None  # the one that its caller was lent
    thread = 0  # that caller's

    def __init__(self, mode: int, payload: Any, parts: Any, function: Any, sink: Any, **options: Any) -> None:
        self.mode = mode
        self.payload = payload
        self.parts = parts
        self.function = function
        self.sink = sink
        if options:
            self.__dict__.update(options)

    @property
    def is_plain(self) -> bool:
        """
        Whether it may share a message, and a worker's patience, with others.
        """
        return self.timeout is None and not self.parts and not self.deaths and self.mode != STREAM

    @property
    def is_bulk(self) -> bool:
        """
        Whether it is a part of a map.
        """
        return self.mode in (EACH, EACH_STAR)

    @property
    def label(self) -> str:
        """
        What to call it in a message.
        """
        return describe(self.function)


def unwrapped(function: Any) -> Any:
    """
    The function that a functools.partial, or one of such a one, calls.
    """
    while hasattr(function, "func") and hasattr(function, "args"):
        function = function.func
    return function


def describe(function: Any) -> str:
    """
    A function's name for people.
    """
    function = unwrapped(function)
    name = getattr(function, "__qualname__", None) or type(function).__qualname__
    module = getattr(function, "__module__", None)
    return f"{module}.{name}" if module else name


class Source(Protocol):
    """
    Makes tasks.
    """

    priority: int
    function: Any
    counted_out: bool  # of the tasks that are not over

    def fail(self, error: BaseException) -> None:
        """
        It has no results, because of *error*.
        """
        ...

    def draw(self, pace: "Pace | None", share: int) -> Task | None:
        """
        The next task, for a function of that *pace*, with at most 1/*share* of what is left; None at the end. May run
        code of the user's: not under the lock.
        """
        ...


class Pace:
    """
    How long one call of a function takes: on average, and at most of late, in seconds.
    """

    __slots__ = ("average", "slowest")

    def __init__(self, seconds: float) -> None:
        self.average: float = seconds
        self.slowest: float = seconds

    def note(self, seconds: float) -> None:
        """
        One more.
        """
        self.average += (seconds - self.average) * 0.125
        slowest = self.slowest * _FORGET
        self.slowest = seconds if seconds > slowest else slowest  # noqa: FURB136 - every task comes by here


class Seat:
    """
    One place for a worker.
    """

    __slots__ = ("ahead", "finished", "index", "lender", "own", "state", "tasks", "worker")

    def __init__(self, index: int) -> None:
        self.index: int = index
        self.state: str = EMPTY
        self.worker: Any = None
        self.tasks: dict[int, Task] = {}  # sent, in this order
        self.own: deque[Task] = deque()  # tasks with a key, for this seat alone
        self.ahead: float = 0.0  # seconds of work that it is expected to have
        self.finished: int = 0  # tasks of this worker
        self.lender: Task | None = None  # for whose caller it is, or was, LENT


class Dispatcher:
    """
    The seats and the queues.
    """

    def __init__(self, size: int) -> None:
        self.seats: list[Seat] = [Seat(index) for index in range(size)]
        self.idle: list[Seat] = []  # the last one to become so comes first: its caches are warm
        self.queues: dict[int, deque[Any]] = {0: deque()}
        self.levels: list[int] = [0]  # priorities with a queue, the highest first
        self.waiting: int = 0  # tasks in the queues; a source counts as one
        self.unfinished: int = 0  # tasks submitted and not over, sources included
        self.paces: dict[Any, Pace] = {}
        self.submitted: int = 0  # tasks, ever

    # --- queues ------------------------------------------------------------------------------------------------------
    def number(self) -> int:
        """
        The number of a new task.
        """
        self.submitted += 1
        return self.submitted

    def submit(self, task: Task, now: float) -> None:
        """
        A new task, at the end of its queue.
        """
        task.id = self.submitted = self.submitted + 1
        task.submitted = now
        self.unfinished += 1
        if task.key is None and task.priority == 0:
            self.waiting += 1
            self.queues[0].append(task)  # last: the handler of a signal may raise after a call
        else:
            self.enqueue(task)

    def enqueue(self, task: Task, *, first: bool = False) -> None:
        """
        Put *task* into its queue; *first*: it was sent before, to a worker that died.
        """
        task.state = QUEUED
        if task.key is not None and self.seats:
            queue = self.seats[hash(task.key) % len(self.seats)].own
        else:
            queue = self._level(task.priority)
        queue.appendleft(task) if first else queue.append(task)
        self.waiting += 1

    def add_source(self, source: Source) -> None:
        """
        A new source.
        """
        self._level(source.priority).append(source)
        self.waiting += 1

    def remove_source(self, source: Source) -> None:
        """
        *source* has nothing left.
        """
        try:
            self.queues[source.priority].remove(source)
        except (KeyError, ValueError):
            return
        self.waiting -= 1

    def count_out(self, source: Source) -> None:
        """
        *source* makes no more tasks: it is not waited for any longer. A second time changes nothing.
        """
        if not source.counted_out:
            source.counted_out = True
            self.unfinished -= 1

    def _level(self, priority: int) -> deque[Any]:
        queue = self.queues.get(priority)
        if queue is None:
            queue = self.queues[priority] = deque()
            self.levels = heapq.nlargest(len(self.queues), self.queues)
        return queue

    def queued(self) -> list[Task]:
        """
        The tasks in the queues.
        """
        queues = [*self.queues.values(), *(seat.own for seat in self.seats)]
        return [entry for queue in queues for entry in queue if type(entry) is Task]

    def drain(self) -> list[Any]:
        """
        Take everything out of the queues.
        """
        found = [entry for seat in self.seats for entry in seat.own]
        for seat in self.seats:
            seat.own.clear()
        for queue in self.queues.values():
            found.extend(queue)
            queue.clear()
        self.waiting = 0
        return found

    def cancel(self, task: Task) -> bool:
        """
        Take a queued task out; False when it is not queued any more.
        """
        if task.state is not QUEUED:
            return False
        # One with a key stands where its key belonged when it came: there may have been another number of seats.
        for queue in [seat.own for seat in self.seats] if task.key is not None else [self._level(task.priority)]:
            try:
                queue.remove(task)
            except ValueError:
                continue
            break
        else:
            return False
        self.waiting -= 1
        self.over(task)
        return True

    # --- what is sent ------------------------------------------------------------------------------------------------
    def expected(self, task: Task) -> float:
        """
        Seconds that *task* will take, as far as its function's pace tells; infinite when that is not known, or is too
        uneven to tell.
        """
        pace = self.paces.get(task.function)
        if pace is None or pace.slowest > (BULK_SECONDS if task.is_bulk else QUICK_SECONDS) or not task.is_plain:
            return float("inf")
        return pace.average * task.items

    def pick(self, seat: Seat, now: float) -> "list[Task] | Source | None":
        """
        What *seat* shall be sent now: tasks, which count as sent; or a source to draw a task from, to be told to
        `send`; or None.
        """
        queue: deque[Any] = seat.own
        if not queue:
            for level in self.levels:
                queue = self.queues[level]
                if queue:
                    break
            else:
                return None
        first = queue[0]
        busy = bool(seat.tasks)
        if type(first) is not Task:
            if busy and seat.ahead >= AHEAD_SECONDS:
                return None
            queue.rotate(-1)  # another map gets its turn as well
            source: Source = first
            return source
        seconds = self.expected(first)
        if busy and seat.ahead + seconds > AHEAD_SECONDS:
            return None
        batch = [queue.popleft()]
        if seconds < BATCH_SECONDS:
            size = len(first.payload)
            function = first.function
            most = min(int(BATCH_SECONDS / max(seconds, 1e-6)), len(queue) // (2 * len(self.seats)))
            while most > 0 and queue:
                task = queue[0]
                if type(task) is not Task or task.function is not function or not task.is_plain:
                    break
                size += len(task.payload)
                if size > BATCH_BYTES:
                    break
                batch.append(queue.popleft())
                most -= 1
        self.waiting -= len(batch)
        self.send(seat, batch, seconds * len(batch), now)
        return batch

    def send(self, seat: Seat, batch: list[Task], seconds: float, now: float) -> None:
        """
        Count *batch* as sent to *seat*.
        """
        tasks = seat.tasks
        for task in batch:
            task.state = SENT
            task.sent = now
            tasks[task.id] = task
        seat.ahead += seconds
        if seat.state is IDLE:
            seat.state = BUSY

    # --- what comes back ---------------------------------------------------------------------------------------------
    def finish(self, seat: Seat, number: int, seconds: float) -> Task | None:
        """
        The task *number* of *seat* is through, after *seconds*; None if it was not waited for.
        """
        task = seat.tasks.pop(number, None)
        if task is None:
            return None
        seat.finished += 1
        pace = self.paces.get(task.function)
        if pace is None:
            self._first_pace(task, seconds)
        else:
            pace.note(seconds if task.items == 1 else seconds / task.items)
        if not seat.tasks:
            seat.ahead = 0.0
        elif seat.ahead > seconds:
            seat.ahead -= seconds
        self.over(task)
        return task

    def _first_pace(self, task: Task, seconds: float) -> None:
        if len(self.paces) >= _PACES:
            self.paces.clear()
        self.paces[task.function] = Pace(seconds / task.items)

    def over(self, task: Task) -> None:
        """
        *task* is not waited for any more.
        """
        task.state = OVER
        task.payload = task.parts = None
        self.unfinished -= 1

    def rest(self, seat: Seat) -> None:
        """
        *seat* has nothing to do.
        """
        seat.state = IDLE
        self.idle.append(seat)

    def leave(self, seat: Seat) -> None:
        """
        *seat* takes no more tasks.
        """
        if seat.state is IDLE:
            self.idle.remove(seat)
        seat.state = ENDING

    def clear(self, seat: Seat, running: int) -> tuple[Task | None, list[Task]]:
        """
        The worker of *seat* has died.

        Args:
            seat: Where it worked.
            running: The task that it ran, or 0.

        Returns:
            That task, which is its victim, and those that it had not begun, which are in the queue again.
        """
        if seat.state is IDLE:
            self.idle.remove(seat)
        victim = seat.tasks.pop(running, None)
        again = list(seat.tasks.values())
        for task in reversed(again):
            self.enqueue(task, first=True)
        seat.tasks = {}
        seat.ahead = 0.0
        seat.finished = 0
        seat.state = EMPTY
        seat.worker = None
        return victim, again
