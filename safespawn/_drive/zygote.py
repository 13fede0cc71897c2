"""
One zygote as the application sees it: a generation.

It knows by its warden's pidfd when it is gone, and is closed once.

Runs in: application, any thread.
"""

import _socket
import os
import signal
import time

from safespawn._core.flow import READ, Flow
from safespawn._core.procfs import stopped_before_exec
from safespawn._drive.blocking import is_readable
from safespawn._drive.generation import Generation

DEATH_SECONDS = 3.0  # how long the warden may take to end the children of a dead zygote
REAP_SECONDS = 1.0  # for an end by SIGKILL, which takes less than a millisecond
_WORDS_BYTES = 2000


class Zygote(Generation):
    """
    A running zygote, its warden, and the connections to it.
    """

    def __init__(
        self,
        control: _socket.socket,
        *,
        pid: int,
        warden_pid: int,
        pidfd: int,
        warden_fd: int,
        output_fd: int,
        keeps: bool,
        facts: dict[str, object],
        connections: list[int],
    ) -> None:
        super().__init__(control, pid=pid, facts=facts, connections=connections)
        self.warden_pid = warden_pid
        self.pidfd = pidfd
        self.warden_fd = warden_fd
        self.output_fd = output_fd
        self.keeps: bool = keeps
        self._status: int | None = None
        self._once = [None]  # popped by the thread that releases

    @property
    def gone_fd(self) -> int:
        """
        The warden's pidfd: it ends when it has ended the children of a zygote that died.
        """
        return self.warden_fd

    def death_flow(self) -> Flow[None]:
        """
        The zygote has gone, or its warden: wait, within a bound, until the other one has ended all its children.
        """
        self.died()
        limit = time.monotonic() + DEATH_SECONDS
        for fd in (self.warden_fd, self.pidfd):
            ready = {}
            while not self.closed and fd not in ready:
                ready = yield {fd: READ}, limit
                if not ready:
                    return

    def died(self) -> None:
        """
        It is gone. Its warden may have been stopped before: it is to end the children now.
        """
        super().died()
        self._wake()

    def hang_up(self) -> None:
        """
        Close the control socket. One that was stopped would not see it.
        """
        super().hang_up()
        self._wake()

    def descriptors(self) -> set[int]:
        """
        What it has open here for itself: not the connections that children are on.
        """
        return super().descriptors() | ({self.pidfd, self.warden_fd, self.output_fd} - {-1})

    def exit_status(self) -> int | None:
        """
        How the zygote ended, as its warden tells it; None while that runs, or when somebody else has reaped it.
        """
        if self._status is None and not self.closed and is_readable(self.warden_fd):
            self._status = _zygote_status(reap(self.warden_pid, self.warden_fd, None))
        return self._status

    def is_lost(self) -> bool:
        """
        Whether it has gone, or its warden, which it goes with.
        """
        return self.closed or is_readable(self.pidfd) or is_readable(self.warden_fd)

    def last_words(self) -> tuple[str, ...]:
        """
        What the zygote wrote before it died; it writes nothing unless it crashes.
        """
        if self.closed:
            return ()
        try:
            text = os.pread(self.output_fd, _WORDS_BYTES, 0).decode(errors="replace").strip()
        except OSError:
            return ()
        return (f"it wrote: {text}",) if text else ()

    # --- the end -----------------------------------------------------------------------------------------------------
    def close_flow(self, deadline: float) -> Flow[bool]:
        """
        End it with everything that it started, and reap the warden.

        By *deadline* it is over or was killed: a stopped zygote is woken first, then its warden ends its children.

        Returns:
            Whether everything was seen to end.
        """
        if self.closed or self.owner_pid != os.getpid():
            return True
        self.usable = False
        token = object()
        self._askers.add(token)  # the descriptors stay until we are done, whatever the owners of the children do
        try:
            if not self._once:
                return True  # another thread, who has seen the end, releases
            self.trim()
            for connection in list(self.leased):
                connection.shut()  # whoever waits on it wakes, and closes it
            self.hang_up()
            gone = yield from self._gone_flow(deadline)
            if not gone:
                self._wake()
                _tell(self.pidfd, signal.SIGKILL)
                gone = yield from self._gone_flow(time.monotonic() + DEATH_SECONDS)
            if not gone:
                _tell(self.warden_fd, signal.SIGKILL)
            return gone
        finally:
            self._askers.discard(token)
            self.release_if_gone()

    def _wake(self) -> None:
        """
        Let them go on: whoever stopped the one may have stopped the other.
        """
        if not self.closed and self.owner_pid == os.getpid():
            for fd in (self.warden_fd, self.pidfd):
                _tell(fd, signal.SIGCONT)
            self._wake_children()

    def suspect(self) -> None:
        """
        It is late: new children go to another zygote. A child that somebody has stopped before its exec may be why.
        """
        super().suspect()
        if not self.closed and self.owner_pid == os.getpid():
            self._wake_children()

    def _wake_children(self) -> None:
        """
        Have those go on to their exec that were stopped before it: the zygote waits for that, and hears nothing else.
        One that is another program by now was stopped by whoever had a right to.
        """
        for pid in stopped_before_exec(self.pid):
            try:
                fd = os.pidfd_open(pid)
            except OSError:
                continue
            try:
                if pid in stopped_before_exec(self.pid):  # it is still the one that was seen
                    _tell(fd, signal.SIGCONT)
            finally:
                os.close(fd)

    def _gone_flow(self, deadline: float) -> Flow[bool]:
        for fd in (self.warden_fd, self.pidfd):  # a zygote whose warden was killed ends its children by itself
            ready = {}
            while fd not in ready:
                ready = yield {fd: READ}, deadline
                if not ready:
                    return False
        return True

    def release_if_gone(self) -> None:
        """
        Reap the warden and close our descriptors, if it has ended and nobody is about to look at it.
        """
        if self.leased or self._askers or self.closed:
            return
        if not is_readable(self.warden_fd):
            return
        try:
            self._once.pop()
        except IndexError:
            return  # another thread does it
        if self.leased or self._askers:
            self._once.append(None)  # somebody came between our look and our turn; whoever goes last does it
            return
        self.exit_status()
        self.closed = True
        if not is_readable(self.pidfd):
            _tell(self.pidfd, signal.SIGCONT)  # stopped: once awake it sees that its warden has gone, and ends all
        self.trim()
        self.control.close()
        for fd in (self.pidfd, self.warden_fd, self.output_fd):
            os.close(fd)

    def forget_in_copy(self) -> None:
        """
        In a forked copy of the application: close the copies of our descriptors, and touch nothing else.
        """
        self.usable = False
        if self.closed:
            return
        self.closed = True
        self.control.close()
        while self._idle:
            self._idle.pop().close()
        for fd in (self.pidfd, self.warden_fd, self.output_fd):
            os.close(fd)


def _zygote_status(status: int | None) -> int | None:
    """
    The zygote's exit code, or -N for signal N, from the warden's, which has 128 + N for that.
    """
    return 128 - status if status is not None and status > 128 else status


def _tell(pidfd: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, number)
    except OSError:  # gone; started as a user who this process is no more; or another thread has just closed it
        return


def reap(pid: int, pidfd: int, number: int | None) -> int | None:
    """
    Reap our child *pid*, after sending *number* if it is given.

    Returns:
        Its exit status as subprocess has it; None when it still runs (after SIGKILL only in uninterruptible sleep) or
        when somebody else has reaped it.
    """
    if number is not None:
        _tell(pidfd, number)
        is_readable(pidfd, REAP_SECONDS)
    try:
        done, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return None
    return os.waitstatus_to_exitcode(status) if done else None
