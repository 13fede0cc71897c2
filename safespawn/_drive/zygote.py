"""
One zygote as the application sees it: a generation.

It lends connections, knows by its pidfd when it is gone, and is closed once. Connections that are asked for on the
control socket are all alike, so whoever asked may take any that comes: no lock, no order, no reader thread.

Runs in: application, any thread.
"""

import _socket
import os
import signal
import time
from collections import deque

from safespawn._core.connection import Connection, close_all
from safespawn._core.explain import spawn_error
from safespawn._core.flow import READ, DeadlinePassed, Flow, earliest
from safespawn._core.procfs import looks
from safespawn._drive.blocking import is_readable
from safespawn._zygote import wire
from safespawn.errors import SpawnError

IDLE_LIMIT = 64  # connections kept for later, two descriptors each in all; arbitrary, a loop's usual fan-out
LATE_SECONDS = 1.0
DEATH_SECONDS = 3.0  # how long the warden may take to end the children of a dead zygote
REAP_SECONDS = 1.0  # for an end by SIGKILL, which takes less than a millisecond
_WORDS_BYTES = 2000


class Zygote:
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
        self.control = Connection(control, self)
        self.pid = pid
        self.warden_pid = warden_pid
        self.pidfd = pidfd
        self.warden_fd = warden_fd
        self.output_fd = output_fd
        self.keeps = keeps
        self.facts = facts
        self.owner_pid = os.getpid()
        self.booted = time.monotonic()
        self.usable = True  # False: no new children; it serves those it has
        self.world: tuple[object, ...] | None = None
        self.closed = False
        self.silent_since: float | None = None  # when the first of the requests was sent that nobody waits for any more
        self.leased: set[Connection] = set()
        self._idle: deque[Connection] = deque(self._connection(fd) for fd in connections)
        self._status: int | None = None
        self._askers: set[object] = set()  # who waits at the control socket, or for the end
        self._once = [None]  # popped by the thread that releases

    def _connection(self, fd: int) -> Connection:
        return Connection(_socket.socket(fileno=fd), self)

    # --- lending -----------------------------------------------------------------------------------------------------
    def lease_nowait(self) -> Connection | None:
        """
        An idle connection for one child, if there is one.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            return None
        self.leased.add(connection)
        return connection

    def lease_flow(self, deadline: float | None) -> Flow[Connection | None]:
        """
        A new connection for one child; None when this zygote has turned out not to be usable.

        Raises:
            DeadlinePassed: *deadline* has passed.
            SpawnError: No descriptors left, here or there.
        """
        token = object()
        self._askers.add(token)
        try:
            connection = yield from self._ask_flow(deadline)
            if connection is not None:
                self.leased.add(connection)
            return connection
        finally:
            self._askers.discard(token)

    def _ask_flow(self, deadline: float | None) -> Flow[Connection | None]:
        try:
            self.control.send((wire.CONNECT,))
        except OSError:  # it is gone, or has hundreds of unread messages: stuck
            self.usable = False
            return None
        limit = time.monotonic() + LATE_SECONDS
        while True:
            ready = yield {self.control.fileno(): READ, self.warden_fd: READ}, earliest(deadline, limit)
            if not ready:
                self.suspect()
                if deadline is not None and time.monotonic() >= deadline:
                    raise DeadlinePassed
                return None
            try:
                message, fds = self.control.receive()
            except BlockingIOError:  # another asker took it; ours is still to come
                if self.warden_fd in ready:
                    self.died()
                    return None
                continue
            except OSError as error:
                raise spawn_error(error.errno or 0, None, stage="fds") from None
            if message is None:
                self.died()
                return None
            if message[0] == wire.CONNECTED and len(fds) == 1:
                return self._connection(fds[0])
            close_all(fds)
            if message[0] == wire.REFUSED:
                raise _refused(str(message[1]))

    def give_back(self, connection: Connection) -> None:
        """
        Keep an idle connection for the next child, or close it when there are enough or it is the last of its kind.
        """
        self.leased.discard(connection)
        if self.usable and len(self._idle) < IDLE_LIMIT:
            self._idle.append(connection)
        else:
            connection.close()
            self._close_when_idle()

    def discard(self, connection: Connection) -> None:
        """
        Close a connection, which ends whatever is on it.
        """
        self.leased.discard(connection)
        connection.close()
        self._close_when_idle()

    def trim(self) -> None:
        """
        Close the idle connections.
        """
        while self._idle:
            try:
                self._idle.pop().close()
            except IndexError:
                return

    # --- doubts ------------------------------------------------------------------------------------------------------
    def suspect(self) -> None:
        """
        It is late: new children go to another zygote, those it has stay.
        """
        self.retire()

    def note_silence(self, since: float, now: float) -> None:
        """
        A request of the time *since* had no answer when its own short limit came. That alone says nothing of the
        zygote; that it is stopped does, and that nobody has had an answer for a while.
        """
        if self.silent_since is None:
            self.silent_since = since
        if now - self.silent_since >= LATE_SECONDS or self.is_stopped():
            self.suspect()

    def is_stopped(self) -> bool:
        """
        Whether somebody has stopped it, by a signal or as a debugger.
        """
        return self.looks()[0] in ("T", "t")

    def retire(self) -> None:
        """
        No new children; closed when the last one is over.
        """
        self.usable = False
        self.trim()
        self._close_when_idle()

    def died(self) -> None:
        """
        It is gone.
        """
        self.usable = False

    def _close_when_idle(self) -> None:
        if not self.usable and not self.leased:
            self.hang_up()
            self.release_if_gone()

    def death_flow(self) -> Flow[None]:
        """
        The zygote has gone: wait, within a bound, until its warden has ended all its children.
        """
        self.usable = False
        limit = time.monotonic() + DEATH_SECONDS
        while not self.closed:
            ready = yield {self.warden_fd: READ}, limit
            if self.warden_fd in ready or not ready:
                break

    def exit_status(self) -> int | None:
        """
        How the zygote ended, as its warden tells it; None while that runs, or when somebody else has reaped it.
        """
        if self._status is None and not self.closed and is_readable(self.warden_fd):
            self._status = _zygote_status(reap(self.warden_pid, self.warden_fd, None))
        return self._status

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

    def looks(self) -> tuple[str | None, str | None]:
        """
        State letter and kernel function of the zygote.
        """
        return looks(self.pid)

    # --- facts -------------------------------------------------------------------------------------------------------
    def census_flow(self, deadline: float) -> Flow[dict[str, object]]:
        """
        The zygote's own figures; empty when it does not answer by *deadline*.
        """
        token = object()
        self._askers.add(token)
        try:
            self.control.send((wire.CENSUS,))
            while True:
                ready = yield {self.control.fileno(): READ}, deadline
                if not ready:
                    return {}
                try:
                    message, fds = self.control.receive()
                except BlockingIOError:
                    continue
                if message is not None and message[0] == wire.COUNTED:
                    return dict(message[1])
                if message is not None and message[0] == wire.CONNECTED:  # of an asker that was interrupted
                    self._idle.append(self._connection(fds[0]))
                    continue
                close_all(fds)
                if message is None:
                    return {}
        except OSError:
            return {}
        finally:
            self._askers.discard(token)

    @property
    def idle(self) -> int:
        """
        Connections waiting for a child.
        """
        return len(self._idle)

    # --- the end -----------------------------------------------------------------------------------------------------
    def hang_up(self) -> None:
        """
        Close the control socket: the zygote ends all that it still has, and itself. Not waited for.
        """
        self.control.shut()

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
            if self.is_stopped():
                self._wake()
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
        for fd in (self.warden_fd, self.pidfd):
            _tell(fd, signal.SIGCONT)

    def _gone_flow(self, deadline: float) -> Flow[bool]:
        while True:
            ready = yield {self.warden_fd: READ}, deadline
            if self.warden_fd in ready:
                return True
            if not ready:
                return False

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
    except (ProcessLookupError, PermissionError):  # gone; or started as a user who this process is no more
        return


def _refused(reason: str) -> SpawnError:
    """
    A connection was refused: for want of descriptors in the zygote, which is the only reason it has.
    """
    return spawn_error(24, None, stage="connection", known=(reason,))


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
