"""
Ctrl-C, held back while something is in hand that only a local variable knows of.

A KeyboardInterrupt comes between any two steps of the main thread: also between the system call that gives a descriptor
and the line that keeps it. What is lost so is lost for the life of the process. So while a flow is driven in the main
thread, Python's own handler of SIGINT is replaced by one that raises only where the driver waits, which is nearly all
of the time; elsewhere it takes note, and the next wait raises. Another Ctrl-C some time later that finds the first one
still noted raises at once: somebody's callback is at work.

A handler of the application's own is left alone, and so is an event loop's.

Runs in: application, any thread; does something in the main thread only. Measured: 1 us a flow.
"""

import threading
import time
from _signal import SIGINT, default_int_handler, getsignal, signal  # type: ignore[import-not-found]  # no stubs
from _thread import get_ident
from types import TracebackType
from typing import Any, Self

PATIENCE_SECONDS = 0.5  # from then on Ctrl-C raises wherever it comes; arbitrary, a thousand times what a step takes


class Held:
    """
    SIGINT in the main thread while something is in hand.
    """

    __slots__ = ("_handler", "_pending", "_waiting")

    def __init__(self) -> None:
        self._waiting = False
        self._pending = 0.0  # since when, monotonic; 0: nothing is
        self._handler: Any = self._handle  # a cycle: those that are not in use are kept for the next, in `_idle`

    def _handle(self, number: int, frame: Any) -> None:
        del number, frame
        now = time.monotonic()
        if self._waiting or (self._pending and now - self._pending > PATIENCE_SECONDS):
            self._pending = 0.0
            raise KeyboardInterrupt
        self._pending = self._pending or now

    def __enter__(self) -> Self:
        signal(SIGINT, self._handler)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if getsignal(SIGINT) is self._handler:  # else somebody's callback has set another one
            signal(SIGINT, default_int_handler)
        pending, self._pending = self._pending, 0.0
        _idle.append(self)
        if pending:
            raise KeyboardInterrupt

    def wait(self, wait: Any, want: Any) -> Any:
        """
        ``wait(want)``, interruptible.
        """
        before = self._waiting
        try:
            if self._pending:
                self._pending = 0.0
                raise KeyboardInterrupt
            self._waiting = True
            return wait(want)
        finally:
            self._waiting = before


_idle: list[Held] = []  # as many as were ever in use at once, inside of each other
_main = [threading.main_thread().ident]  # looked up for every command


class _Elsewhere:
    """
    What `hold` gives where there is nothing to do.
    """

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None


_ELSEWHERE = _Elsewhere()


class _Within:
    """
    What `hold` gives inside of another one: a signal handler that itself runs a command, above all.
    """

    def __init__(self, held: Held) -> None:
        self._held = held

    def __enter__(self) -> Held:
        return self._held

    def __exit__(self, *error: object) -> None:
        return None


def forget_in_copy() -> None:
    """
    In a forked copy: what was in hand is the original's, and Ctrl-C is the copy's own again.
    """
    _main[0] = get_ident()  # whoever forked is the main thread there
    if type(getattr(getsignal(SIGINT), "__self__", None)) is Held:
        signal(SIGINT, default_int_handler)


def hold() -> "Held | _Within | _Elsewhere":
    """
    A context manager that holds Ctrl-C back; what it gives has `wait`, or is None where there is nothing to do.
    """
    if get_ident() != _main[0]:
        return _ELSEWHERE
    handler = getsignal(SIGINT)
    if handler is default_int_handler:
        try:
            return _idle.pop()
        except IndexError:
            return Held()
    owner = getattr(handler, "__self__", None)
    return _Within(owner) if type(owner) is Held else _ELSEWHERE
