"""
The engine of a pool: its workers, and what its faces ask of it.

Everything that waits is done by one pump, in a thread (`Pool`) or in a task (`AsyncPool`). Whoever submits a task sends
it to an idle worker himself, so a task costs no wake-up of the pump; the pump takes the results and keeps the workers
supplied. Decisions are made by `_core.dispatch` under a short lock; what comes of them is done after it.

What is done is told in modules of their own, whose functions take the crew: `muster`, the workers come; `outbox`, what
they are sent; `inbox`, what they say; `loan`, a caller talks to one directly; `doom`, a task is ended before its time;
`fate`, a worker goes; `ending`, the pool ends.

Runs in: application.
"""

import copy
import functools
import os
import sys
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from safespawn._core import dispatch
from safespawn._core.dispatch import BUSY, LENT, STREAM, Dispatcher, Seat, Source, Task
from safespawn._core.flow import Flow
from safespawn._drive import doom, ending, inbox, muster, outbox
from safespawn._drive.interrupts import hold
from safespawn._drive.ledger import Ledger
from safespawn._drive.post import CrewConfig, Doom, PoolEvent, Post
from safespawn._drive.pump import Pump
from safespawn._drive.relay import report
from safespawn._drive.tempo import Tempo
from safespawn._worker import current
from safespawn._worker import journal as cells
from safespawn._worker.arena import Arena
from safespawn.errors import ForeignCopy

if TYPE_CHECKING:
    from collections.abc import Callable

    from safespawn._drive.board import Row


class Crew:
    """
    The workers of one pool.
    """

    def __init__(self, engine: Any, config: CrewConfig) -> None:
        self.engine = engine
        self.config = config
        self.pid: int = os.getpid()
        self.lock: threading.RLock = threading.RLock()
        self.dispatcher: Dispatcher = Dispatcher(config.size)
        self.pump: Pump = Pump(functools.partial(ending.on_trouble, self))
        self.arena: Arena = Arena()
        self.tempo: Tempo = Tempo()
        self.ledgers: list[Ledger] = []
        self.posts: set[Post] = set()
        self.spares: list[Post] = []
        self.closing: bool = False  # no new tasks
        self.terminating: bool = False
        self.started: bool = False
        self.broken: BaseException | None = None
        self.thread = 0  # that of the pump, if it has one of its own
        self.gone: bool = False  # that one has ended
        self.inputs: dict[object, Any] = {}  # iterators whose tasks are not all there yet, by weak references
        self.ended: threading.Event = threading.Event()
        self.on_ended: list[Callable[[], object]] = []
        self.events: deque[PoolEvent] = deque(maxlen=1000)
        self.completed = 0
        self.counts: dict[str, int] = {
            "failed": 0, "died": 0, "timed_out": 0, "cancelled": 0, "retried": 0,
            "started": 0, "recycled": 0,
        }  # fmt: skip
        self.seconds: dict[str, float] = {"queued": 0.0, "running": 0.0, "pickling": 0.0}
        self.template: Any = None  # the one that the workers come from
        self.main_wanted: bool = False
        self.main_refused: bool = False
        self.main_tries: int = 0
        self.boot_failures: int = 0  # of the template, in a row
        self._announced = False
        self.wake_fd: int = -1  # the process's eventfd for log records, while this crew has hold of it
        self.waits: dict[Any, None] = {}  # for log records to be handled
        self.row: Row | None = None
        self.histories: dict[int, tuple[int, str]] = {}  # by seat: how often it was filled again, and why
        self.booting = False  # a template is on its way
        self.failures = 0
        self.oom_kills: int | None = None  # in this control group, as last seen
        self.crashes: deque[float] = deque()
        engine.crews.add(self)

    # --- from the faces, any thread ----------------------------------------------------------------------------------
    def check(self) -> None:
        """
        Whether a task may be submitted.

        Raises:
            PoolClosed, ForeignCopy, BrokenError: No.
        """
        if self.pid != os.getpid():
            raise ForeignCopy(f"pool {self.config.name!r}", owner_pid=self.pid, pid=os.getpid())
        if self.broken is not None:
            raise copy.copy(self.broken) from self.broken.__cause__
        if self.closing:
            from safespawn.pool_errors import PoolClosed

            raise PoolClosed(f"pool {self.config.name!r}")

    def warm(self) -> None:
        """
        Have the template started: the workers come with the first task.

        Not for a pool that a module makes as it is imported for a task: few of these have a task of their own.
        """
        if current.unpacking and threading.get_ident() == threading.main_thread().ident:
            return
        self.pump.call_soon(functools.partial(muster.boot, self))

    def start(self, *, main: bool) -> None:
        """
        Have the workers started, if that was not done before. *main*: something of `__main__` will be needed.
        """
        if main:
            self.main_wanted = True
        if not self.started:
            self.check_import()
            self.started = True
            self.pump.call_soon(functools.partial(muster.begin, self))

    def check_import(self) -> None:
        """
        Whether this pool may have its first task here.

        Raises:
            MainReentered: A module uses it as it is imported for a worker's task. The pool's workers would import it as
                well, and theirs, without end.
        """
        if not self._announced:
            sys.audit("safespawn.Pool", self.config.name)  # the guard may refuse it
            self._announced = True
        if not current.unpacking or threading.get_ident() != threading.main_thread().ident:
            return
        frame: Any = sys._getframe(1)
        while frame is not None and frame.f_code.co_name != "<module>":
            frame = frame.f_back
        if frame is None:
            return  # what unpickles uses a pool without an import
        from safespawn.pool_errors import MainReentered

        raise MainReentered(
            f"pool {self.config.name!r}", filename=frame.f_code.co_filename, lineno=frame.f_lineno,
            module=str(frame.f_globals.get("__name__", "")),
        )  # fmt: skip

    def check_wait(self) -> None:
        """
        Whether this thread can wait for a task.

        Raises:
            ForeignCopy, WaitInCallback: It would wait for ever.
        """
        if self.pid != os.getpid():
            raise ForeignCopy(f"pool {self.config.name!r}", owner_pid=self.pid, pid=os.getpid())
        if self.thread == threading.get_ident():
            from safespawn.pool_errors import WaitInCallback

            raise WaitInCallback(f"pool {self.config.name!r}")

    def submit(self, task: Task, *, late: bool = False) -> None:
        """
        A new task; an idle worker gets it at once. *late*: it belongs to an input that was opened before `close`.
        Ctrl-C comes before or after: a worker that was picked would be lost in between.
        """
        if (self.closing and not late) or self.broken is not None or self.pid != os.getpid():
            self.check()
        if not self.started:
            self.check_import()
        with hold():
            self._submit(task, late=late)

    def _submit(self, task: Task, *, late: bool) -> None:
        now = time.monotonic()
        idle = False
        seat: Seat | None = None
        post: Post | None = None
        with self.lock:
            closed = self.terminating or (self.closing and not late)  # meanwhile
            if not closed:
                dispatcher = self.dispatcher
                idle = bool(dispatcher.idle)
                if idle and not dispatcher.waiting and task.key is None:  # nobody is before it
                    seat = dispatcher.idle.pop()
                    seat.state = BUSY
                    task.id = dispatcher.number()
                    task.submitted = now
                    dispatcher.unfinished += 1
                    dispatcher.send(seat, [task], dispatcher.expected(task), now)
                    post = seat.worker
                else:
                    dispatcher.submit(task, now)
        if closed:
            self.check()
        if seat is not None and post is not None:
            outbox.carry_out(self, seat, post, [task])
            return
        if not self.started:
            self.start(main=muster.is_main(task.function))
        elif idle:
            self.supply_idle()

    def submit_many(self, tasks: list[Task], *, late: bool = False) -> None:
        """
        New tasks, of one function: all, or with an exception none.
        """
        if not late:
            self.check()
        if not self.started:
            self.check_import()
        now = time.monotonic()
        with hold():
            with self.lock:
                closed = self.terminating or (self.closing and not late)
                if not closed:
                    for task in tasks:
                        self.dispatcher.submit(task, now)
            if closed:
                self.check()
            if not self.started:
                self.start(main=muster.is_main(tasks[0].function))
            else:
                self.supply_idle()

    def open_input(self, key: object, reader: Any) -> None:
        """
        An iterator makes tasks as its results are read: until it has made the last one, or is forgotten, the pool is
        not through.

        Args:
            key: For `close_input`.
            reader: A weak reference to it.
        """
        self.check()
        with hold(), self.lock:
            self.dispatcher.unfinished += 1
            self.inputs[key] = reader

    def close_input(self, key: object, *, forgotten: bool = False) -> None:
        """
        It makes no more. *forgotten*: nor does anybody read what it has made.
        """
        with hold(), self.lock:  # Ctrl-C between the two would leave one that is never through
            if self.inputs.pop(key, None) is not None:
                self.dispatcher.unfinished -= 1
            queued = self.dispatcher.queued() if forgotten else ()
        for task in queued:
            if getattr(task.sink, "is_forgotten", False):
                self.cancel(task, running=False)
        self.maybe_over()

    def end_streams(self) -> None:
        """
        Nobody will read the rest of the generators that run or wait.
        """
        with self.lock:
            tasks = [task for seat in self.dispatcher.seats for task in seat.tasks.values()] + self.dispatcher.queued()
        for task in tasks:
            if task.mode == STREAM:
                self.cancel(task, running=True)

    def add_source(self, source: Source) -> None:
        """
        A new source of tasks.
        """
        self.check()
        if not self.started:
            self.check_import()
        with hold():
            with self.lock:
                closed = self.closing or self.terminating
                if not closed:
                    self.dispatcher.add_source(source)
                    self.dispatcher.unfinished += 1
            if closed:
                self.check()
            if not self.started:
                self.start(main=muster.is_main(getattr(source, "function", None)))
            else:
                self.supply_idle()

    def drop_source(self, source: Source) -> None:
        """
        Nobody wants what it makes, nor what it has made.
        """
        with hold(), self.lock:
            self.dispatcher.remove_source(source)
            self.dispatcher.count_out(source)
            sent = [task for seat in self.dispatcher.seats for task in seat.tasks.values()]
        for task in sent:
            if getattr(task.sink, "job", None) is source:
                self.cancel(task, running=True)
        self.maybe_over()

    # --- cancelling --------------------------------------------------------------------------------------------------
    def cancel(self, task: Task, *, running: bool) -> bool:
        """
        Take *task* back: out of the queue, or with *running* out of the worker's hands. Says whether it will not be
        delivered in the usual way.
        """
        if self.pid != os.getpid():
            return False
        seat: Seat | None = None
        done = False
        with hold(), self.lock:
            done = self.dispatcher.cancel(task)
            if done:
                self.counts["cancelled"] += 1
            else:
                seat = next((seat for seat in self.dispatcher.seats if task.id in seat.tasks), None)
        if done:
            from safespawn.pool_errors import TaskCancelled

            task.sink.fail(task, TaskCancelled(task=task.label, task_id=task.id))
            self.maybe_over()
            return True
        if not running or seat is None or seat.worker is None or task.state is not dispatch.SENT:
            return False
        self.pump.call_soon(functools.partial(doom.doom_task, self, seat.worker, task, Doom("cancel")))
        return True

    def cancel_queued(self) -> None:
        """
        Take back everything that no worker has.
        """
        from safespawn.pool_errors import TaskCancelled

        tasks, sources = self.drain()
        self.counts["cancelled"] += len(tasks)
        for source in sources:
            source.fail(TaskCancelled(task=dispatch.describe(source.function)))
        for task in tasks:
            inbox.fail(self, task, TaskCancelled(task=task.label, task_id=task.id))
        self.maybe_over()

    def drain(self, *, sent: bool = False) -> tuple[list[Task], list[Any]]:
        """
        Take the tasks and the sources out of the queues; with *sent* the tasks of the workers as well.
        """
        with self.lock:
            entries = self.dispatcher.drain()
            tasks = [entry for entry in entries if type(entry) is Task]
            sources = [entry for entry in entries if type(entry) is not Task]
            for seat in self.dispatcher.seats if sent else ():
                if seat.state is not LENT:
                    tasks += seat.tasks.values()
                    seat.tasks = {}
            for task in tasks:
                self.dispatcher.over(task)
            for source in sources:
                self.dispatcher.count_out(source)
        return tasks, sources

    # --- the end -----------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """
        No more tasks; the workers go when all is done.
        """
        with self.lock:
            self.closing = True
        if self.row is not None:
            self.row.update(state="closing")
        self.pump.call_soon(self.check_end)

    def terminate(self) -> None:
        """
        End everything now.
        """
        with self.lock:
            self.closing = True
        self.pump.call_soon(functools.partial(ending.terminate, self))

    def disband(self, error: BaseException) -> bool:
        """
        The engine is being closed: end everything now, with *error* for whoever waits. Says whether there was anything.
        """
        if self.pid != os.getpid() or self.ended.is_set():
            return False
        with self.lock:
            self.broken = self.broken or error
            self.closing = self.terminating = True
        self.pump.call_soon(functools.partial(ending.terminate, self))
        return True

    def is_gone(self) -> bool:
        """
        Whether nothing of it is left, as far as this thread can wait for that.
        """
        if self.thread:
            return self.gone or self.thread == threading.get_ident()
        return self.ended.is_set()

    # --- facts -------------------------------------------------------------------------------------------------------
    def note_event(self, kind: str, post: Post | None, detail: str) -> None:
        """
        Keep an event for the statistics, and tell `on_event`.
        """
        index = -1 if post is None or post.seat is None else post.seat.index
        event = PoolEvent(kind, index, 0 if post is None else post.worker.pid, time.time(), detail)
        self.events.append(event)
        if self.row is not None and kind != "ready":
            where = f"worker {index} " if index >= 0 else ""
            self.row.note(f"{where}{kind} {detail}".rstrip())
        if self.config.on_event is not None:
            try:
                self.config.on_event(event)
            except BaseException as error:  # noqa: BLE001 - as any callback
                report(error)

    def statistics(self) -> dict[str, Any]:
        """
        Figures.
        """
        now = time.monotonic()
        workers = []
        with self.lock:
            for seat in self.dispatcher.seats:
                post = seat.worker
                journal = None if post is None else post.worker.journal
                running = 0 if journal is None else journal.cells[cells.RUNNING]
                task = seat.tasks.get(running)
                workers.append(
                    {
                        "index": seat.index,
                        "pid": None if post is None else post.worker.pid,
                        "state": seat.state,
                        "finished": seat.finished,
                        "task": None if task is None else task.label,
                        "seconds": None if task is None or journal is None
                        else round(max(0.0, now - journal.cells[cells.SINCE_NS] * 1e-9), 6),
                    }
                )  # fmt: skip
            figures: dict[str, Any] = {
                "name": self.config.name,
                "size": len(self.dispatcher.seats),
                "submitted": self.dispatcher.submitted,
                "waiting": self.dispatcher.waiting,
                "unfinished": self.dispatcher.unfinished,
                "completed": self.completed,
                **self.counts,
                **{f"{name}_seconds": round(value, 6) for name, value in self.seconds.items()},
                "spares": len(self.spares),
                "workers": workers,
            }
        figures["arena"] = self.arena.statistics()
        return figures

    def resize(self, size: int) -> None:
        """
        Another number of workers. Only where the pump runs.
        """
        muster.resize(self, size)

    def stacks_flow(self) -> Flow[dict[int, str]]:
        """
        What each worker runs now, by index.
        """
        return doom.stacks_flow(self)

    def ledger(self) -> Ledger:
        """
        Memory with room for a journal.
        """
        if not self.ledgers or self.ledgers[-1].is_full:
            self.ledgers.append(Ledger(2 * (self.config.size + self.config.spares) + 8))  # some die, others come
        return self.ledgers[-1]

    def forget_in_copy(self) -> None:
        """
        In a forked copy of the application: everything here is the original's.
        """
        self.closing = True
        self.lock = threading.RLock()  # a thread that is not here may hold the other one
        for post in self.posts:
            if post.worker.socket is not None:
                post.worker.socket.close()
                post.worker.socket = None
        self.posts = set()
        self.wake_fd = -1
        try:
            self.pump.forget_in_copy()
        except OSError:
            pass  # it was being closed at the fork

    # --- what one module asks of another by the crew ------------------------------------------------------------------
    def supply(self, post: Post) -> None:
        """
        Give a busy or just idle worker what waits for it.
        """
        outbox.supply(self, post)

    def supply_idle(self) -> None:
        """
        Give what waits to the idle workers.
        """
        outbox.supply_idle(self)

    def credit(self, task: Task, count: int) -> None:
        """
        Let a streaming task send *count* items more.
        """
        outbox.credit(self, task, count)

    def maybe_over(self) -> None:
        """
        After close, when no task is left: have the pump look whether this is the end.
        """
        ending.maybe_over(self)

    def check_end(self) -> None:
        """
        After close: the workers go when all is done; the pump when they have gone.
        """
        ending.check_end(self)

    def end_error(self) -> BaseException:
        """
        What a task gets that comes too late, or was under way when the pool ended.
        """
        return ending.end_error(self)

    def fail_all(self, make: "Callable[[], BaseException]") -> None:
        """
        Every task that is queued or runs has no result.
        """
        ending.fail_all(self, make)

    def break_down(self, error: BaseException) -> None:
        """
        The pool cannot go on.
        """
        ending.break_down(self, error)
