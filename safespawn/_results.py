"""
Who waits for tasks: results as multiprocessing has them, maps, and iterators over results.

Each is a sink (`_core.dispatch.Sink`): the pump calls `deliver` or `fail`, once, and whoever waits goes on. Waiting is
done on a bare lock that is made by the one who waits, so that a result nobody waits for costs nothing.

Runs in: application; `deliver` and `fail` where the pump runs, the rest in any thread.
"""

import functools
import itertools
import math
import sys
import time
import weakref
from _thread import RLock, allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any, Self, cast

from safespawn._core.dispatch import CALL, EACH, EACH_STAR, STREAM, Pace, Task, describe, unwrapped
from safespawn._core.options import deadline_after
from safespawn._drive.crew import Crew
from safespawn._progress import reporter
from safespawn._worker.payload import Repeated, pack
from safespawn.errors import BadArgument, BadArgumentType, SafespawnError

CHUNK_SECONDS = 0.004  # of work in a chunk of a map; arbitrary, two hundred times what a message costs
FILL_SECONDS = 0.005  # of taking items before results are looked at; arbitrary
SLOW_SECONDS = 0.001  # for taking one item; arbitrary
LEAST_SECONDS = 0.0003  # of work: less is not worth a message
CHUNK_BYTES = 4 * 1024 * 1024
BUFFER = 1000  # results that an imap may have under way or unread; arbitrary


class Waiting:
    """
    Something that is over once.
    """

    __slots__ = ("_waiters", "over")

    def __init__(self) -> None:
        self.over: bool = False
        self._waiters: tuple[Any, ...] = ()

    def finish(self) -> None:
        """
        It is over: wake everybody.
        """
        self.over = True
        for waiter in self._waiters:
            try:
                waiter.release()
            except RuntimeError:
                continue  # woken before

    def wait(self, timeout: float | None = None) -> None:
        """
        Wait until it is over, or *timeout* seconds have passed.
        """
        if self.over:
            return
        self.check_wait()
        waiter = allocate_lock()
        waiter.acquire()
        with _registering:
            self._waiters = (*self._waiters, waiter)
        if not self.over:
            waiter.acquire(timeout=-1 if timeout is None else max(0.0, timeout))

    def check_wait(self) -> None:
        """
        Whether this thread can wait for it.
        """


_registering = RLock()  # a signal's handler may wait as well


class AsyncResult(Waiting):
    """
    The result of one task, as multiprocessing's of that name, and `cancel`.
    """

    __slots__ = ("__weakref__", "_callback", "_crew", "_error_callback", "_ok", "_task", "_value")

    def __init__(
        self,
        crew: Crew,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        super().__init__()
        self._crew = crew
        self._callback = callback
        self._error_callback = error_callback
        self._ok = False
        self._value: Any = None
        self._task: Task | None = None

    def deliver(self, task: Task, value: Any) -> None:
        """
        The pump's.
        """
        del task
        self._ok, self._value = True, value
        self._done(self._callback, value)

    def fail(self, task: Task, error: BaseException) -> None:
        """
        The pump's.
        """
        del task
        self._value = error
        self._done(self._error_callback, error)

    def _done(self, callback: Callable[[Any], object] | None, value: Any) -> None:
        self._callback = self._error_callback = None
        try:
            if callback is not None:
                callback(value)
        finally:
            self.finish()
            self._task = None

    def check_wait(self) -> None:
        """
        Not in a callback of the pool, nor in a forked copy.
        """
        self._crew.check_wait()

    def ready(self) -> bool:
        """
        Whether it is over.
        """
        return self.over

    def successful(self) -> bool:
        """
        Whether it returned.

        Raises:
            ValueError: It is not over.
        """
        if not self.over:
            raise ValueError(f"{self!r} not ready")
        return self._ok

    def get(self, timeout: float | None = None) -> Any:
        """
        What the task returned.

        Raises:
            TimeoutError: *timeout* seconds have passed; the task goes on. It is multiprocessing.TimeoutError too.
            Exception: What the task raised, or what became of it.
        """
        self.wait(timeout)
        if not self.over:
            raise _timeout_error(timeout)
        if self._ok:
            return self._value
        raise self._value

    def cancel(self, *, running: bool = True) -> bool:
        """
        Take the task back: nobody wants its result. `get` raises `TaskCancelled`.

        Args:
            running: Also when it runs: an exception is raised in it, and when that does not end it within 0.2 s its
                worker is ended and replaced.

        Returns:
            Whether it was not over yet (and, without *running*, had not begun).
        """
        task = self._task
        return task is not None and self._crew.cancel(task, running=running)


def _timeout_error(seconds: float | None) -> Exception:
    from multiprocessing import TimeoutError as StandardTimeout

    global _Timeout  # noqa: PLW0603 - made when it is first needed: the import of its base takes milliseconds
    if _Timeout is None:
        _Timeout = type("ResultTimeout", (StandardTimeout, TimeoutError), {"__module__": __name__})
    error: Exception = _Timeout(f"no result within {seconds} s; the task goes on")
    return error


_Timeout: Any = None


class Direct(Waiting):
    """
    The result of a task whose caller waits.
    """

    __slots__ = ("error", "value")

    def __init__(self) -> None:
        super().__init__()
        self.value: Any = None
        self.error: BaseException | None = None

    def deliver(self, task: Task, value: Any) -> None:
        """
        The pump's, or the caller's own.
        """
        del task
        self.value = value
        self.finish()

    def fail(self, task: Task, error: BaseException) -> None:
        """
        The pump's, or the caller's own.
        """
        del task
        self.error = error
        self.finish()

    def get(self) -> Any:
        """
        Wait for it.
        """
        self.wait()
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # a cycle through the traceback
        return self.value


class MapJob:
    """
    A function over many items: chunks are made as the workers want them, large enough to take `CHUNK_SECONDS`.
    """

    def __init__(
        self,
        sink: Any,
        function: Callable[..., Any],
        items: Any,
        *,
        star: bool,
        chunksize: int | None,
        by_value: bool,
        options: dict[str, Any],
        progress: Any = None,
    ) -> None:
        self.sink = sink
        self.function = pace_key(function)
        self.calls = Repeated(function, by_value=by_value)
        self.items = items
        self.total = len(items)
        self.mode = EACH_STAR if star else EACH
        self.chunksize = chunksize
        self.options = task_options(options)
        self.priority: int = options.get("priority", 0)
        self.progress = reporter(progress, describe(function))
        if chunksize is None and options.get("timeout") is not None:
            self.chunksize = 1  # the time is that of one call
        self.counted_out = False
        self.results: list[Any] = [None] * self.total
        self.at = 0
        self.left = self.total
        self.item_bytes = 0
        self.lock = allocate_lock()
        self.failed = False

    def draw(self, pace: Pace | None, share: int) -> Task | None:
        """
        The next chunk.
        """
        with self.lock:
            at = self.at
            left = self.total - at
            if left <= 0 or self.failed:
                return None
            if self.chunksize is not None:
                size = self.chunksize
            elif pace is None:
                size = 1
            else:
                size = min(int(CHUNK_SECONDS / max(pace.average, 1e-7)), -(-left // share))
                size = max(size, int(LEAST_SECONDS / max(pace.average, 1e-7)))
                if self.item_bytes:
                    size = min(size, CHUNK_BYTES // self.item_bytes)
            size = max(1, min(size, left))
            self.at = at + size
        chunk = self.items[at : at + size]
        began = time.monotonic()
        payload, parts, head = self.calls.pack(chunk)
        if not self.item_bytes:
            self.item_bytes = max(1, (len(payload) + sum(part.nbytes for part in parts)) // size)
        task = Task(self.mode, payload, parts, self.function, _Chunk(self, at, size), **self.options)
        task.items, task.head = size, head
        task.pickling = time.monotonic() - began
        return task

    def chunk_done(self, at: int, size: int, value: list[Any]) -> None:
        """
        A chunk's results.
        """
        if self.failed:
            return
        self.results[at : at + size] = value
        self.left -= size
        try:
            if self.progress is not None:
                self.progress(self.total - self.left, self.total)
        finally:
            if not self.left:
                self.sink.deliver(None, self.results)

    def fail(self, error: BaseException) -> None:
        """
        The first error is the map's; nothing more is begun.
        """
        if not self.failed:
            self.failed = True
            self.at = self.total
            self.items = ()
            self.sink.fail(None, error)


class _Chunk:
    __slots__ = ("at", "job", "size")

    def __init__(self, job: MapJob, at: int, size: int) -> None:
        self.job, self.at, self.size = job, at, size

    def deliver(self, task: Task, value: Any) -> None:
        del task
        self.job.chunk_done(self.at, self.size, value)

    def fail(self, task: Task, error: BaseException) -> None:
        del task
        self.job.fail(error)


class ResultIterator(Iterator[Any]):
    """
    Results of an `imap`: as they are read, further items are taken from the input, so memory stays level.
    """

    def __init__(
        self,
        crew: Crew,
        function: Callable[..., Any],
        items: Iterable[Any],
        *,
        ordered: bool,
        chunksize: int,
        buffersize: int | None,
        by_value: bool,
        options: dict[str, Any],
    ) -> None:
        self._crew = crew
        self._calls = Repeated(function, by_value=by_value)
        self._pace_key = pace_key(function)
        self._items = iter(items)
        self._ordered = ordered
        self._chunksize = chunksize
        self._window = max(1, BUFFER if buffersize is None else buffersize)
        self._low = self._window // 2  # so few are outside when more of a sequence is given out
        self._options = task_options(options)
        self._numbers = 0  # chunks given out
        self._next = 0  # the chunk that is read next, when ordered
        self._outside = 0  # items given out and not read
        self._arrived: deque[tuple[bool, Any]] = deque()  # whole chunks, in reading order
        self._early: dict[int, tuple[bool, Any]] = {}  # those that came before their turn
        self._current: deque[Any] = deque()
        self._exhausted = False
        self._input_error: BaseException | None = None
        self._lock = allocate_lock()
        self._waiter: Any = None
        self._ready_input = isinstance(items, (list, tuple, range))  # taking an item cannot block
        self._slow = not self._ready_input
        self._reading = RLock()  # one reader at a time; the input may read, too
        self._filling = False
        self._itself = _Reader(self)  # what the tasks know of it: who forgets it wants no results
        self._itself.is_forgotten = False
        # Without an order all chunks of one size are alike.
        self._sink = _ImapChunk(self._itself, -1, -1 if ordered else chunksize)
        self._key: object = object()
        crew.open_input(self._key, self._itself)
        self._enough = 2 * crew.config.size
        self._fill()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        with self._reading:
            return self._read_one(None, None)

    def next(self, timeout: float | None = None) -> Any:
        """
        The next result.

        Raises:
            StopIteration: That was all.
            TimeoutError: *timeout* seconds have passed; multiprocessing's.
            Exception: What the task raised; the iterator goes on after it.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._reading.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise _timeout_error(timeout)
        try:
            return self._read_one(deadline, timeout)
        finally:
            self._reading.release()

    def _read_one(self, deadline: float | None, timeout: float | None) -> Any:
        while True:
            # Counted first, then taken: Ctrl-C in between must not leave one counted that will never come.
            if self._current:
                self._outside -= 1
                value = self._current.popleft()
            elif self._arrived:
                ok, value = self._arrived[0]
                if not ok:
                    size, error = value
                    self._outside -= size
                    self._arrived.popleft()
                    raise error
                if len(value) != 1:
                    self._current.extend(value)
                    self._arrived.popleft()
                    continue
                self._outside -= 1
                self._arrived.popleft()
                value = value[0]
            else:
                if (
                    not self._exhausted
                    and not self._filling
                    and self._outside < (self._enough if self._slow else self._window)
                ):
                    self._fill()
                    continue
                if self._outside <= 0:
                    if self._input_error is not None:
                        error, self._input_error = self._input_error, None
                        raise error
                    raise StopIteration
                self._wait(deadline, timeout)
                continue
            if self._outside <= self._low and self._ready_input and not self._exhausted:
                self._fill()
            return value

    def _wait(self, deadline: float | None, timeout: float | None) -> None:
        waiter = allocate_lock()
        waiter.acquire()
        with self._lock:
            if self._arrived:
                return
            self._crew.check_wait()
            self._waiter = waiter
            if self._arrived:
                self._waiter = None
                return
        left = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not waiter.acquire(timeout=left):
            self._waiter = None
            if not self._arrived:
                raise _timeout_error(timeout)

    def _fill(self) -> None:
        """
        Give out items until the window is full.

        Items that lie ready go out together. Taking one from anything else may block for as long as it likes, or wait
        for a result of ours: those go out one by one, for `FILL_SECONDS`, and none is taken while a slow input has
        results waiting to be read.
        """
        if self._filling:
            return  # the input itself reads the results
        self._filling = True
        try:
            self._draw()
        finally:
            self._filling = False
            if self._exhausted:
                self._crew.close_input(self._key)

    def drain_input(self) -> None:
        """
        Somebody waits for the end of the pool, and nobody reads: give out all that is left of a sequence. Of anything
        else, which may be endless, what the buffer takes; whoever reads on then hears that the pool has ended.
        """
        with self._reading:
            if self._ready_input:
                self._window = sys.maxsize
            while not self._exhausted and not self._filling and self._outside < self._window:
                self._fill()
            if not self._exhausted:
                from safespawn.pool_errors import PoolClosed

                self._exhausted = True
                self._input_error = PoolClosed(
                    f"pool {self._crew.config.name!r}",
                    known=("more was left in the input of this imap than its buffer takes",),
                    help="read the results before the pool is left, or give a larger buffersize",
                )
                self._crew.close_input(self._key)

    def __del__(self) -> None:
        # The garbage collector may come in any line of any thread: no lock is taken here.
        itself = getattr(self, "_itself", None)
        if itself is not None and (self._outside or not self._exhausted):
            itself.is_forgotten = True  # the reference itself is dead only after this
            self._crew.pump.call_soon(functools.partial(self._crew.close_input, self._key, forgotten=True))

    def _draw(self) -> None:
        began = time.monotonic()
        together: list[Task] = []
        sequence = self._ready_input
        while not self._exhausted and self._outside < self._window:
            before = 0.0 if sequence else time.monotonic()
            chunk = self._take_chunk()
            if not chunk:
                break
            if sequence:
                task = self._make(chunk)
                if task is not None:
                    together.append(task)
                continue
            now = time.monotonic()
            self._slow = now - before > SLOW_SECONDS
            task = self._make(chunk)
            if task is not None:
                self._submit([task])
            if now - began > FILL_SECONDS or (self._slow and self._arrived):
                break
        if together:
            self._submit(together)

    def _submit(self, tasks: list[Task]) -> None:
        try:
            self._crew.submit_many(tasks, late=True)
        except SafespawnError as error:  # the pool has ended: that is what these have for a result
            self._exhausted = True
            for task in tasks:
                task.sink.fail(task, error)

    def _take_chunk(self) -> list[Any]:
        try:
            chunk = list(itertools.islice(self._items, self._chunksize))
        except Exception as error:  # noqa: BLE001 - the input's own
            self._exhausted = True
            self._input_error = error  # raised when all before it has been read
            return []  # as in multiprocessing: a chunk that could not be filled is none
        if len(chunk) < self._chunksize:
            self._exhausted = True
        return chunk

    def _make(self, chunk: list[Any]) -> Task | None:
        """
        The task for *chunk*. One that cannot be sent is that item's result.
        """
        number, self._numbers = self._numbers, self._numbers + 1
        self._outside += len(chunk)
        try:
            payload, parts, head = self._calls.pack(chunk)
        except Exception as error:  # noqa: BLE001 - whatever the item's __reduce__ raises
            self.arrive(number, ok=False, value=(len(chunk), error))
            return None
        size = len(chunk)
        sink = self._sink if size == self._sink.size else _ImapChunk(self._itself, number, size)
        task = Task(EACH, payload, parts, self._pace_key, sink, **self._options)
        task.head = head
        if size > 1:
            task.items = size
        return task

    def arrive(self, number: int, *, ok: bool, value: Any) -> None:
        """
        A chunk is done. Called where the pump runs, or by `_fill`.
        """
        if not self._ordered:
            self._arrived.append((ok, value))
            if self._waiter is None:  # `_wait` looks once more after it has set one
                return
        with self._lock:
            if not self._ordered:
                pass
            elif number == self._next:
                self._arrived.append((ok, value))
                self._next += 1
                early = self._early
                while self._next in early:
                    self._arrived.append(early.pop(self._next))
                    self._next += 1
            else:
                self._early[number] = (ok, value)
                return
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.release()


class _Reader(weakref.ref["ResultIterator"]):
    """
    What the tasks of an imap know of it.
    """

    __slots__ = ("is_forgotten",)
    is_forgotten: bool


class _ImapChunk:
    __slots__ = ("iterator", "number", "size")

    def __init__(self, iterator: _Reader, number: int, size: int) -> None:
        self.iterator, self.number, self.size = iterator, number, size

    @property
    def is_forgotten(self) -> bool:
        return self.iterator.is_forgotten

    def deliver(self, task: Task, value: Any) -> None:
        del task
        iterator = self.iterator()
        if iterator is not None:
            iterator.arrive(self.number, ok=True, value=value)

    def fail(self, task: Task, error: BaseException) -> None:
        del task
        iterator = self.iterator()
        if iterator is not None:
            iterator.arrive(self.number, ok=False, value=(self.size, error))


class WeakSink:
    """
    A sink that does not keep its reader: a stream that is forgotten ends its task.
    """

    __slots__ = ("_reader",)

    def __init__(self, reader: Any) -> None:
        self._reader = weakref.ref(reader)

    def item(self, task: Task, value: Any) -> None:
        """
        The pump's.
        """
        reader = self._reader()
        if reader is not None:
            reader.item(task, value)

    def deliver(self, task: Task, value: Any) -> None:
        """
        The pump's.
        """
        reader = self._reader()
        if reader is not None:
            reader.deliver(task, value)

    def fail(self, task: Task, error: BaseException) -> None:
        """
        The pump's.
        """
        reader = self._reader()
        if reader is not None:
            reader.fail(task, error)


class Stream(Iterator[Any]):
    """
    The items of a generator that runs in a worker. It is never more than *buffersize* items ahead.
    """

    def __init__(self, crew: Crew, buffersize: int) -> None:
        self._crew = crew
        self._reading = allocate_lock()  # one reader at a time
        self._half = max(1, buffersize // 2)
        self._items: deque[Any] = deque()
        self._read = 0
        self._lock = allocate_lock()
        self._waiter: Any = None
        self._over = False
        self._error: BaseException | None = None
        self.task: Task | None = None

    def item(self, task: Task, value: Any) -> None:
        """
        The pump's.
        """
        del task
        self._items.append(value)
        self._wake()

    def deliver(self, task: Task, value: Any) -> None:
        """
        The pump's: the generator has ended.
        """
        del task, value
        self._over = True
        self._wake()

    def fail(self, task: Task, error: BaseException) -> None:
        """
        The pump's.
        """
        del task
        self._error = error
        self._over = True
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            waiter, self._waiter = self._waiter, None
        if waiter is not None:
            waiter.release()

    def __next__(self) -> Any:
        with self._reading:
            return self._next()

    def _next(self) -> Any:
        while not self._items:
            if self._over and not self._items:
                if self._error is not None:
                    error, self._error = self._error, None
                    raise error
                raise StopIteration
            waiter = allocate_lock()
            waiter.acquire()
            with self._lock:
                if self._items or self._over:
                    continue
                self._crew.check_wait()
                self._waiter = waiter
            waiter.acquire()
        value = self._items.popleft()
        self._read += 1
        if self._read >= self._half and self.task is not None and not self._over:
            self._crew.credit(self.task, self._read)
            self._read = 0
        return value

    def close(self) -> None:
        """
        Nobody wants the rest.
        """
        if self.task is not None and not self._over:
            self._crew.cancel(self.task, running=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __del__(self) -> None:
        # The garbage collector may come in any line of any thread: no lock is taken here.
        task = getattr(self, "task", None)
        if task is not None and not self._over:
            self._crew.pump.call_soon(functools.partial(self._crew.cancel, task, running=True))


def pace_key(function: Any) -> Any:
    """
    What the pace of *function* is remembered by, and what names it in messages.

    It is kept for long, so it must hold none of the caller's data: not the variables of a closure, nor the state of an
    object that is called, nor the array of ``array.sum``. And it is the same for each of many that are made alike.
    """
    function = unwrapped(function)  # there may be a new partial each time
    kind = cast("Any", type(function))
    if kind is FunctionType and (function.__closure__ is None or not hasattr(function, "__wrapped__")):
        return function if "<" not in function.__qualname__ else _local(function)
    if isinstance(function, type):
        return cast("Any", function)
    inner = getattr(function, "__func__", None) or getattr(function, "__wrapped__", None)
    if inner is not None:
        return pace_key(inner)
    holder: Any = getattr(function, "__self__", None)
    if holder is not None and not isinstance(holder, (type, ModuleType)):
        return getattr(cast("Any", type(holder)), function.__name__, kind)
    return function if hasattr(function, "__name__") else kind  # of those without a name there may be any number


class _Local:
    """
    The name of a function inside a function, or of a lambda.
    """

    def __init__(self, function: Any) -> None:
        self.__module__ = function.__module__
        self.__qualname__ = function.__qualname__


_LOCALS = 512  # that are known at once; arbitrary
_locals: dict[Any, _Local] = {}


def _local(function: Any) -> _Local:
    """
    What stands for *function*, and for all others that the same line has made.
    """
    found = _locals.get(function.__code__)
    if found is None:
        if len(_locals) >= _LOCALS:
            _locals.clear()
        found = _locals[function.__code__] = _Local(function)
    return found


_OPTIONS = {"timeout", "retries", "priority", "key"}


def task_options(options: dict[str, Any]) -> dict[str, Any]:
    """
    The options of a task, checked.

    Raises:
        BadArgument, BadArgumentType: One that there is not, or a value that cannot be.
    """
    value: Any
    for name, value in options.items():
        if name not in _OPTIONS:
            raise BadArgumentType(
                f"{name!r} is no option of a task", parameter=name, value=value, help=f"there are {sorted(_OPTIONS)}"
            )
        if name == "timeout":
            deadline_after(value, 0.0)
        if name in {"retries", "priority"} and (not isinstance(value, int) or isinstance(value, bool)):
            raise BadArgumentType(f"{name} is a whole number", parameter=name, value=value)
        if name == "retries" and value < 0:
            raise BadArgument("retries is a number from 0 up", parameter=name, value=value)
        if name == "key":
            hash(value)
    if options.get("timeout") == math.inf:
        options = {**options, "timeout": None}
    return options


def call_task(
    function: Callable[..., Any], args: Any, kwds: Any, sink: Any, *, by_value: bool, options: dict[str, Any]
) -> Task:
    """
    The task of one call.

    Raises:
        UnpicklableTask: It cannot be sent.
    """
    began = time.monotonic()
    payload, parts = pack((function, args, kwds), what="task", by_value=by_value)
    task = Task(CALL, payload, parts, pace_key(function), sink, **(task_options(options) if options else {}))
    task.pickling = time.monotonic() - began
    return task


def stream_task(
    function: Callable[..., Any], args: Any, kwds: Any, sink: Any, *, credit: int, by_value: bool, options: Any
) -> Task:
    """
    The task of a generator.
    """
    payload, parts = pack((credit, function, args, kwds), what="task", by_value=by_value)
    return Task(STREAM, payload, parts, pace_key(function), sink, **task_options(options))
