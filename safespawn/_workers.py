"""
The workers of a pool, for programs that look into what the standard pools keep private.

Nobody should; many do, to count the workers, to know their pids, or to end one: by ``pool._pool`` and
``executor._processes``. So what these hold has the methods of a process that such programs use. It is a picture of the
moment at which it was asked for.

Runs in: application, any thread.
"""

import errno
import os
import select
import signal
import time

from safespawn._core.procfs import birth
from safespawn._drive.crew import Crew

START_SECONDS = 10.0  # for all workers to have come; then those that have
LOOK_SECONDS = 0.002


class WorkerProcess:
    """
    One worker.

    Attributes:
        name: As in messages: "pool-1-0".
        pid: Its process id.
    """

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self._born = birth(pid)

    def __repr__(self) -> str:
        return f"<WorkerProcess {self.name!r} pid={self.pid} {'started' if self.is_alive() else 'stopped'}>"

    @property
    def ident(self) -> int:
        """
        The process id.
        """
        return self.pid

    def is_alive(self) -> bool:
        """
        Whether it runs.
        """
        return not self._wait(0)

    def join(self, timeout: float | None = None) -> None:
        """
        Wait for its end, *timeout* seconds at most.
        """
        self._wait(None if timeout is None else max(0, int(timeout * 1000)))

    def terminate(self) -> None:
        """
        Send SIGTERM. The pool goes on with a new worker; the task that it ran fails with `WorkerDied`.
        """
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """
        Send SIGKILL; otherwise as `terminate`.
        """
        self._signal(signal.SIGKILL)

    def _wait(self, milliseconds: int | None) -> bool:
        """
        Wait for its end; whether it has come.
        """
        fd = self._open()
        if fd < 0:
            return True
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(milliseconds))
        finally:
            os.close(fd)

    def _signal(self, number: int) -> None:
        fd = self._open()
        if fd >= 0:
            try:
                signal.pidfd_send_signal(fd, number)
            except ProcessLookupError:
                pass  # it has just ended
            finally:
                os.close(fd)

    def _open(self) -> int:
        """
        Its pidfd; -1 when it has gone, also if somebody else has its pid by now.
        """
        try:
            fd = os.pidfd_open(self.pid)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                raise  # that says nothing of the worker
            return -1
        if birth(self.pid) not in (self._born, 0):  # 0: it has just ended, which its pidfd tells
            os.close(fd)
            return -1
        return fd


def present(crew: Crew) -> list[WorkerProcess]:
    """
    The workers of *crew*, once all of them have come.
    """
    limit = time.monotonic() + START_SECONDS
    while True:
        rows = crew.statistics()["workers"]
        if all(row["pid"] for row in rows) or crew.closing or crew.broken is not None or time.monotonic() > limit:
            return [WorkerProcess(f"{crew.config.name}-{row['index']}", row["pid"]) for row in rows if row["pid"]]
        time.sleep(LOOK_SECONDS)
