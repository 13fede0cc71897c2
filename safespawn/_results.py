"""
Who waits for a task: its result as multiprocessing has it, or that of a caller who does nothing else meanwhile.

Each is a sink (`_core.dispatch.Sink`): the pump calls `deliver` or `fail`, once, and whoever waits goes on. Waiting is
done on a bare lock that is made by the one who waits, so that a result nobody waits for costs nothing.

Runs in: application; `deliver` and `fail` where the pump runs, the rest in any thread.
"""

from _thread import RLock, allocate_lock
from collections.abc import Callable
from typing import Any

from safespawn._core.dispatch import Task
from safespawn._drive.crew import Crew


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
            raise timeout_error(timeout)
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


def timeout_error(seconds: float | None) -> Exception:
    """
    What a wait of *seconds* that was too short raises: both multiprocessing's and the usual one.
    """
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
