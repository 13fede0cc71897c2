"""
The children of a blocking `Supervisor`: the thread that serves them, and who waits for it.

Runs in: application, any thread but that one.
"""

# pyright: reportPrivateUsage=false

import contextlib
import math
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType
from typing import Any, Self

from safespawn._core.child import KILL_SECONDS
from safespawn._core.events import Event
from safespawn._core.terms import STOP_SECONDS, Terms
from safespawn._drive.charge import Charge
from safespawn._drive.interrupts import hold
from safespawn._drive.keeper import Feed, Keeper, new_thread
from safespawn._drive.pump import WAIT_SECONDS
from safespawn._worker.notice import notify
from safespawn.children import Child
from safespawn.errors import BadArgument, ForeignCopy

LATE_SECONDS = 3 * KILL_SECONDS  # beyond the bound: then what is not over is left to the zygote, which kills it


class Family:
    """
    The children of a blocking Supervisor, and the thread that serves them.
    """

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.thread: threading.Thread = new_thread(keeper)
        self.signalled: list[int] = []
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._handlers: dict[int, Any] = {}
        self._lock = threading.Lock()  # of the descriptor: another thread may close while one serves
        self._serving = 0
        self._closed = False
        keeper.on_broken.append(self._wake)
        keeper.on_over.append(self._wake)
        keeper.on_rest.append(self._wake)
        with hold():
            try:
                self.thread.start()
            except BaseException:  # no further thread is allowed
                keeper.pump.close()
                os.close(self._wake_fd)
                raise

    def _wake(self) -> None:
        with contextlib.suppress(OSError):
            os.eventfd_write(self._wake_fd, 1)

    def is_served_here(self) -> bool:
        """
        Whether this is the thread that serves it, in a callback: nobody can wait for the children here.
        """
        return threading.get_ident() == self.thread.ident and self.keeper.pid == os.getpid()

    def check_thread(self) -> None:
        """
        Whether this thread can wait for the family.

        Raises:
            WaitInCallback: It is the one that serves it.
            ForeignCopy: This is a forked copy of the program.
        """
        keeper = self.keeper
        if keeper.pid != os.getpid():
            raise ForeignCopy(f"Supervisor {keeper.name!r}", owner_pid=keeper.pid, pid=os.getpid())
        if self.is_served_here():
            from safespawn.pool_errors import WaitInCallback

            raise WaitInCallback(f"Supervisor {keeper.name!r}")

    def wait(self, event: threading.Event, timeout: float | None, hurry: Callable[[], object]) -> None:
        """
        Wait for *event*. *timeout*, and Ctrl-C, only make it come sooner; Ctrl-C is raised then.
        """
        self.check_thread()
        interruption: BaseException | None = None
        while True:
            try:
                if event.wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX)):
                    break
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption = error
            timeout = None
            self.keeper.call(hurry)
            if not self.thread.is_alive():
                break
        if interruption is not None:
            raise interruption

    def start(self, terms: Terms) -> Child:
        """
        Start a child, and wait until it is ready.
        """
        self.check_thread()
        keeper = self.keeper
        done = threading.Event()
        errors: list[BaseException | None] = []
        charges: list[Charge] = []

        def answer(error: BaseException | None) -> None:
            errors.append(error)
            done.set()

        def begin() -> None:
            charge = keeper.start(terms, answer)
            if charge is not None:
                charges.append(charge)

        try:
            keeper.call(begin)
            while not done.wait(1.0):
                if not self.thread.is_alive():
                    raise keeper.broken or BadArgument("the supervisor is closed", parameter="self")
        except BaseException:
            self._cancel(charges)
            raise
        error = errors[0]
        if error is not None:
            raise error
        child = Child(keeper, charges[0])
        child._family = self  # noqa: SLF001 - the same module's
        return child

    def _cancel(self, charges: list[Charge]) -> None:
        """
        A start that nobody waits for any more: what there is of it ends.
        """
        gone = threading.Event()

        def end() -> None:
            if charges:
                charges[0].stop("cancelled")
                charges[0].when_resting(gone.set)
            else:
                gone.set()

        self.keeper.call(end)
        limit = time.monotonic() + STOP_SECONDS + KILL_SECONDS + LATE_SECONDS
        while self.thread.is_alive() and time.monotonic() < limit and not gone.wait(0.5):
            pass

    # --- signals -----------------------------------------------------------------------------------------------------
    def serve(self, signals: Iterable[int], timeout: float | None) -> int | None:
        """
        Wait for a signal, for the end of all children, or that they are given up.
        """
        self.check_thread()
        with self._lock:
            if self._closed:
                return None
            self._serving += 1
        try:
            return self._serve(signals, timeout)
        finally:
            with self._lock:
                self._serving -= 1
            self._let_go()

    def _serve(self, signals: Iterable[int], timeout: float | None) -> int | None:
        if threading.current_thread() is threading.main_thread():
            for number in signals:
                self._handlers.setdefault(int(number), signal.signal(number, self._on_signal))
        notify("READY=1")
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        look = select.poll()
        look.register(self._wake_fd, select.POLLIN)
        while True:
            if self.keeper.broken is not None:
                raise self.keeper.broken
            if self.signalled:
                return self.signalled[0]
            if self.keeper.is_at_rest() or time.monotonic() >= deadline:
                return None
            left = min(deadline - time.monotonic(), WAIT_SECONDS)
            look.poll(max(0, math.ceil(left * 1000)))
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake_fd)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """
        The handler, while `serve` waits and until all is closed. What it calls takes no lock.
        """
        if self._closed:  # by another thread, which could not put back what was there before
            self._restore()
            signal.raise_signal(number)
            return
        self.signalled.append(number)
        if len(self.signalled) > 1:
            self.keeper.call(self.keeper.hurry)
        self._wake()

    # --- the end -----------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """
        Stop all children. Ctrl-C makes it shorter, and is raised in the end.
        """
        keeper = self.keeper
        if keeper.pid != os.getpid():
            return
        self.check_thread()
        keeper.call(keeper.close)
        limit = time.monotonic() + keeper.bound() + LATE_SECONDS
        interruption: BaseException | None = None
        while self.thread.is_alive():
            try:
                self.thread.join(min(max(0.0, limit - time.monotonic()), threading.TIMEOUT_MAX))
                if time.monotonic() >= limit:
                    break
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption = interruption or error
                keeper.call(keeper.hurry)
        self._closed = not self.thread.is_alive()
        self._restore()
        self._let_go()
        if interruption is not None:
            raise interruption

    def _restore(self) -> None:
        """
        Put back the handlers of signals, which the main thread alone can.
        """
        if threading.current_thread() is threading.main_thread():
            while self._handlers:
                signal.signal(*self._handlers.popitem())

    def _let_go(self) -> None:
        """
        Close the descriptor when nobody needs it any more; and put the handlers back, if that is still to be done.
        """
        if self._closed:
            self._restore()
        with self._lock:
            if self._closed and not self._serving:
                fd, self._wake_fd = self._wake_fd, -1
                if fd >= 0:
                    os.close(fd)

    def events(self) -> "Events":
        """
        What happens from now on.
        """
        return Events(self)


class Events(Iterator[Event]):
    """
    What happens to a Supervisor's children. It ends when the supervisor is left.
    """

    def __init__(self, family: Family) -> None:
        self._woken = threading.Event()
        self._feed = Feed(self._woken.set)
        self._keeper = family.keeper
        self._keeper.feeds.append(self._feed)
        if self._keeper.over:
            self._feed.end()

    @property
    def dropped(self) -> int:
        """
        How many were not read in time, and are lost.
        """
        return self._feed.dropped

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        event = self.get()
        if event is None:
            raise StopIteration
        return event

    def get(self, timeout: float | None = None) -> Event | None:
        """
        The next one; None after *timeout* seconds, or at the end.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._feed.events:
            if self._feed.ended:
                return None
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._woken.wait(None if left is None else min(left, threading.TIMEOUT_MAX))
            self._woken.clear()
        return self._feed.events.popleft()

    def close(self) -> None:
        """
        Collect no more.
        """
        with contextlib.suppress(ValueError):
            self._keeper.feeds.remove(self._feed)
        self._feed.end()
