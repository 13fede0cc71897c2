"""
`imap` and `imap_unordered`: an iterator over results, which takes from its input as they are read.

Runs in: application, any thread; `arrive`, and with it `deliver` and `fail`, where the pump runs.
"""

import functools
import itertools
import sys
import time
import weakref
from _thread import RLock, allocate_lock
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from safespawn._core.dispatch import EACH, Task
from safespawn._drive.crew import Crew
from safespawn._results import timeout_error
from safespawn._tasks import pace_key, task_options
from safespawn._worker.payload import Repeated
from safespawn.errors import SafespawnError

FILL_SECONDS = 0.005  # of taking items before results are looked at; arbitrary
SLOW_SECONDS = 0.001  # for taking one item; arbitrary
BUFFER = 1000  # results that an imap may have under way or unread; arbitrary


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
            raise timeout_error(timeout)
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
            self._crew.check_wait()
            self._waiter = waiter
            if self._arrived:  # `arrive` may have looked for a waiter before
                self._waiter = None
                return
        left = -1 if deadline is None else max(0.0, deadline - time.monotonic())
        if not waiter.acquire(timeout=left):
            self._waiter = None
            if not self._arrived:
                raise timeout_error(timeout)

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
            if self._ready_input:
                self._draw_together()
            else:
                self._draw_one_by_one()
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

    def _draw_together(self) -> None:
        tasks: list[Task] = []
        while not self._exhausted and self._outside < self._window and (chunk := self._take_chunk()):
            task = self._make(chunk)
            if task is not None:
                tasks.append(task)
        if tasks:
            self._submit(tasks)

    def _draw_one_by_one(self) -> None:
        began = time.monotonic()
        while not self._exhausted and self._outside < self._window:
            before = time.monotonic()
            chunk = self._take_chunk()
            if not chunk:
                break
            now = time.monotonic()
            self._slow = now - before > SLOW_SECONDS
            task = self._make(chunk)
            if task is not None:
                self._submit([task])
            if now - began > FILL_SECONDS or (self._slow and self._arrived):
                break

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
        else:
            with self._lock:
                if number != self._next:
                    self._early[number] = (ok, value)
                    return
                self._arrived.append((ok, value))
                self._next += 1
                early = self._early
                while self._next in early:
                    self._arrived.append(early.pop(self._next))
                    self._next += 1
        if self._waiter is not None:  # `_wait` looks once more after it has set one
            self._wake()

    def _wake(self) -> None:
        with self._lock:
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
