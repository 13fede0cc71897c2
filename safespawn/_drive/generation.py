"""
A process that starts children for this one, and the connections to it: what a zygote and a template have in common.

It lends connections, one for each child. Connections that are asked for on the control socket are all alike, so
whoever asked may take any that comes: no lock, no order, no reader thread.

Runs in: application, any thread.
"""

import _socket
import os
import time
from collections import deque
from collections.abc import Iterable

from safespawn._core.connection import Connection, close_all
from safespawn._core.explain import spawn_error
from safespawn._core.flow import READ, DeadlinePassed, Flow, earliest
from safespawn._core.procfs import looks
from safespawn._zygote import wire
from safespawn.errors import SpawnError

LATE_SECONDS = 1.0  # without an answer: a thousand times what one takes, and short enough for whoever waits
SHARED_SECONDS = 0.05  # between looks whether another asker has taken what was ours; arbitrary


class Generation:
    """
    One that runs.

    Attributes:
        pid: Its process id.
        usable: Whether it takes new children; when not, it serves those that it has.
        world: What the application was when it was started (`Ambient.world`).
        closed: Its descriptors are gone.
    """

    keeps: bool = True  # its children live on when it dies
    idle_limit = 64  # connections kept for later, two descriptors each in all; arbitrary, a loop's usual fan-out

    def __init__(
        self, control: _socket.socket, *, pid: int, facts: dict[str, object], connections: Iterable[int]
    ) -> None:
        self.control: Connection = Connection(control, self)
        self.pid = pid
        self.facts = facts
        self.owner_pid: int = os.getpid()
        self.usable: bool = True
        self.world: tuple[object, ...] | None = None
        self.closed: bool = False
        self.is_busy: bool = False  # with something that takes its time, so that no answer means nothing
        self.silent_since: float | None = None  # when the first of the requests was sent that nobody waits for any more
        self.leased: set[Connection] = set()
        self.starting: set[Connection] = set()  # those of them whose request has no answer yet
        self._idle: deque[Connection] = deque(self._connection(fd) for fd in connections)
        self._askers: set[object] = set()  # who waits at the control socket, or for the end

    def _connection(self, fd: int) -> Connection:
        return Connection(_socket.socket(fileno=fd), self)

    def take_connections(self, fds: Iterable[int]) -> None:
        """
        Take descriptors that are idle connections.
        """
        self._idle.extend([self._connection(fd) for fd in fds])

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

    def _take_idle(self) -> Connection | None:
        try:
            return self._idle.pop()
        except IndexError:
            return None

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
            look_again = time.monotonic() + SHARED_SECONDS
            ready = yield {self.control.fileno(): READ, self.gone_fd: READ}, earliest(deadline, limit, look_again)
            if not ready:
                now = time.monotonic()
                if deadline is not None and now >= deadline:
                    self.suspect()
                    raise DeadlinePassed
                if self._idle and (connection := self._take_idle()) is not None:
                    return connection
                if now < limit:
                    continue
                if self.is_busy and self.usable:
                    limit = now + LATE_SECONDS
                    continue
                self.suspect()
                return None
            try:
                message, fds = self.control.receive()
            except BlockingIOError:  # another asker took it; ours is still to come
                if self.gone_fd in ready:
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
            self.on_stray(message)

    def give_back(self, connection: Connection) -> None:
        """
        Keep an idle connection for the next child, or close it when there are enough or it is the last of its kind.
        """
        self.leased.discard(connection)
        if self.usable and len(self._idle) < self.idle_limit:
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

    # --- what differs ------------------------------------------------------------------------------------------------
    @property
    def gone_fd(self) -> int:
        """
        Readable when it has gone.
        """
        raise NotImplementedError

    def death_flow(self) -> Flow[None]:
        """
        It has gone: wait, within a bound, for what comes of that.
        """
        raise NotImplementedError

    def on_stray(self, message: "tuple[object, ...]") -> None:
        """
        An answer on the control socket that is somebody else's.
        """

    def exit_status(self) -> int | None:
        """
        How it ended; None while it runs, or when nobody can say.
        """
        raise NotImplementedError

    def last_words(self) -> tuple[str, ...]:
        """
        What it wrote before it died.
        """
        return ()

    def hang_up(self) -> None:
        """
        Close the control socket: it ends all that it still has, and itself. Not waited for.
        """
        self.control.shut()

    def release_if_gone(self) -> None:
        """
        Let go of what belongs to it, if it has ended and nobody is about to look at it.
        """
        raise NotImplementedError

    def looks(self) -> tuple[str | None, str | None]:
        """
        State letter and kernel function of the zygote.
        """
        return looks(self.pid)

    def forget_in_copy(self) -> None:
        """
        In a forked copy of the application: close the copies of our descriptors, and touch nothing else.
        """
        raise NotImplementedError

    # --- facts -------------------------------------------------------------------------------------------------------
    def descriptors(self) -> set[int]:
        """
        What it has open here for itself: not the connections that children are on.
        """
        return {self.control.fileno(), self.gone_fd, *(connection.fileno() for connection in list(self._idle))} - {-1}

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
                if message is not None and message[0] == wire.CONNECTED:  # of another asker
                    self._idle.append(self._connection(fds[0]))
                    continue
                close_all(fds)
                if message is None:
                    return {}
                self.on_stray(message)
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


def _refused(reason: str) -> SpawnError:
    """
    A connection was refused: for want of descriptors in the zygote, which is the only reason it has.
    """
    return spawn_error(24, None, stage="connection", known=(reason,))
