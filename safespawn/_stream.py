"""
`Pool.stream`: the items of a generator that runs in a worker.

Runs in: application, any thread; `item`, `deliver` and `fail` where the pump runs.
"""

import functools
import weakref
from _thread import allocate_lock
from collections import deque
from collections.abc import Iterator
from typing import Any, Self

from safespawn._core.dispatch import Task
from safespawn._drive.crew import Crew


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
