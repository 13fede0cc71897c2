"""
The application's end of one connection to the zygote, and the rules for descriptors that a fork may copy.

A connection serves one child at a time and is its lifeline: closing it ends the child. It is closed by shutdown(2)
first, which reaches the zygote even while a foreign forked copy of this process holds the descriptor too; and in such
a copy it is closed without, so that the copy cannot cut the original's line.

Runs in: application, any thread. Never waits.
"""

import _socket
import errno
import os
from struct import pack
from typing import Any

from safespawn._zygote import wire
from safespawn.errors import RemoteProtocolError

MOST_FDS = 16  # of a message: a pidfd and three streams, or the first connections of a template
_RIGHTS_BYTES = _socket.CMSG_SPACE(4 * MOST_FDS)
_MESSAGE_BYTES = 4096  # no answer is longer; one that is would say so by MSG_TRUNC
_INT_BYTES = 4


class Truncated(OSError):
    """
    Descriptors were sent and did not fit: this process has no numbers left for them.
    """


class Connection:
    """
    A non-blocking SEQPACKET socket that speaks `wire`.
    """

    __slots__ = ("ambient", "owner_pid", "socket", "zygote")

    def __init__(self, socket: _socket.socket, zygote: Any) -> None:
        socket.setblocking(False)
        self.socket: _socket.socket = socket
        self.zygote: Any = zygote  # whose generation this is; opaque here
        self.owner_pid: int = os.getpid()
        self.ambient: object = None  # the last one that was sent here

    def fileno(self) -> int:
        """
        The descriptor, or -1 when closed.
        """
        return self.socket.fileno()

    def retract(self) -> bool:
        """
        Take back what was sent here, if it has not been read. Says whether that is so: then it never will be.

        The order decides: what lies unread is looked at once more after this end was closed. Whoever reads it after
        that finds the end closed, and throws it away (`server.on_message`). Read between the two looks, in a
        microsecond of many seconds, it is lost: the zygote ends what it has just begun.

        Source: unix(7), tcp(7) on SIOCOUTQ.
        """
        import fcntl
        import termios

        try:
            if not any(fcntl.ioctl(self.socket.fileno(), termios.TIOCOUTQ, bytes(4))):
                return False
            self.socket.shutdown(_socket.SHUT_WR)
            return any(fcntl.ioctl(self.socket.fileno(), termios.TIOCOUTQ, bytes(4)))
        except (OSError, ValueError):
            return False  # it has gone, or was closed here, and has no number any more

    def send(self, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        """
        Send one message.

        Raises:
            BlockingIOError: The zygote has a full queue of unread messages: it is stopped or stuck.
            BrokenPipeError, ConnectionResetError: There is no zygote any more; the message was not delivered.
            OSError: EBADF for a descriptor that is not open, ETOOMANYREFS.
        """
        data = wire.encode(message)
        if len(data) > wire.INLINE_BYTES:
            if len(data) > wire.MEMFD_BYTES:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
            header, body_fd = wire.to_memfd(data)
            try:
                rights = pack(f"{len(fds) + 1}i", body_fd, *fds)
                self.socket.sendmsg(
                    (header,), ((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights),), _socket.MSG_NOSIGNAL
                )
            finally:
                os.close(body_fd)
        elif fds:
            rights = pack(f"{len(fds)}i", *fds)
            self.socket.sendmsg((data,), ((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights),), _socket.MSG_NOSIGNAL)
        else:
            self.socket.send(data, _socket.MSG_NOSIGNAL)

    def receive(self, *, peek: bool = False) -> tuple[tuple[Any, ...] | None, list[int]]:
        """
        Take the next message, if there is one.

        Args:
            peek: Leave it where it is. Its descriptors, which would be duplicates, are then not taken.

        Returns:
            The message and its descriptors (CLOEXEC), which are the caller's; None for the message at the end of the
            connection.

        Raises:
            BlockingIOError: Nothing has come.
            Truncated: Descriptors were lost; those that came are closed again.
            RemoteProtocolError: Not a message.
        """
        flags = _socket.MSG_CMSG_CLOEXEC | (_socket.MSG_PEEK if peek else 0)
        room = 0 if peek else _RIGHTS_BYTES
        try:
            data, ancillary, got, _ = self.socket.recvmsg(_MESSAGE_BYTES, room, flags)
        except ConnectionResetError:  # it died with messages unread, which is told once, before its own last ones
            data, ancillary, got, _ = self.socket.recvmsg(_MESSAGE_BYTES, room, flags)
        fds: list[int] = []
        for level, kind, value in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds += memoryview(value[: len(value) // _INT_BYTES * _INT_BYTES]).cast("i")
        if got & _socket.MSG_CTRUNC and not peek:
            close_all(fds)
            raise Truncated(24, os.strerror(24))
        if not data:
            close_all(fds)
            return None, []
        try:
            return wire.decode(data), fds
        except wire.WireError as error:
            close_all(fds)
            raise RemoteProtocolError(str(error)) from None

    def shut(self) -> None:
        """
        End the connection, and with it the child on it; the descriptor stays, for whoever waits on it.
        """
        if self.owner_pid == os.getpid():
            try:
                self.socket.shutdown(_socket.SHUT_RDWR)
            except OSError:
                return  # closed by us before, or reset by the zygote's death

    def close(self) -> None:
        """
        End the connection and close the descriptor.
        """
        self.shut()
        self.socket.close()


def close_all(fds: list[int]) -> None:
    """
    Close owned descriptors; the list is empty afterwards, so a second call closes nothing.
    """
    while fds:
        os.close(fds.pop())


# --- write ends in forked copies --------------------------------------------------------------------------------------
# A child that reads its stdin to the end waits until the last copy of the write end is closed. A forked copy of this
# process holds one and knows nothing of it. So in the copy /dev/null takes its place: the number stays valid for
# whatever object holds it there, and nothing can be closed twice.
_write_ends: set[int] = set()


def track_write_end(fd: int) -> None:
    """
    Give *fd*, the application's end of a child's stdin, up in forked copies of this process.
    """
    _write_ends.add(fd)


def untrack_write_end(fd: int) -> None:
    """
    *fd* is about to be closed.
    """
    _write_ends.discard(fd)


def give_up_write_ends() -> None:
    """
    In a forked copy: put /dev/null in the place of every tracked write end.
    """
    if _write_ends:
        null_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for fd in _write_ends:
            os.dup2(null_fd, fd, inheritable=False)
        os.close(null_fd)
        _write_ends.clear()


if "SAFESPAWN_FAILPOINTS" in os.environ:  # in tests
    from safespawn._core.failpoints import arm

    arm(Connection)
