"""
What a supervised child says of itself, and is told: `safespawn.ready`, `safespawn.beat`, `safespawn.stop_requested`.

The same functions may be called in any process. In one that no Supervisor has started as a function they speak the
protocol of sd_notify(3) to whoever has set NOTIFY_SOCKET: a Supervisor that has started this program as a command, or
systemd. Where there is neither, nothing happens. So a function can be run, and tested, without a supervisor.

Runs in: supervised child, application; any thread.
"""

import threading
from typing import Any, Protocol

from safespawn._worker.notice import notify


class Ward(Protocol):
    """
    The supervised child that this process is.
    """

    def say_ready(self, value: Any) -> None:
        """
        Tell the supervisor, once.
        """

    def note_beat(self) -> None:
        """
        Write down that it lives.
        """

    def await_stop(self, timeout: float | None) -> bool:
        """
        Wait until it is to stop.
        """
        ...


ward: Ward | None = None


def ready(value: Any = None) -> None:
    """
    Say that this child can be used: `Supervisor.start` returns, and the next child is started.

    Args:
        value: For whoever started it, `Child.value`: a port number, say. It must be picklable.

    A second call does nothing.

    Raises:
        UnpicklableTask: *value* cannot be sent.
    """
    if ward is not None:
        ward.say_ready(value)
    else:
        notify("READY=1")


def beat() -> None:
    """
    Say that this child makes progress, for ``heartbeat=``. Costs a microsecond: a number in shared memory.
    """
    if ward is not None:
        ward.note_beat()
    else:
        notify("WATCHDOG=1")


def stop_requested(timeout: float | None = 0.0) -> bool:
    """
    Whether this child is to stop; waits for that up to *timeout* seconds, None for ever. From the first True on it is
    always True.

        while not safespawn.stop_requested(1.0):
            work()

    A child that has called this once ends by itself: the SIGTERM that comes with the request does nothing to it. In
    another one SIGTERM raises `SystemExit` in the main thread. So call it before `ready`, if that shall never be.

    It also returns True when the application has gone. In a process that is no supervised function it is never True.
    """
    if ward is not None:
        return ward.await_stop(timeout)
    if timeout is None or timeout > 0:
        threading.Event().wait(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))
    return False
