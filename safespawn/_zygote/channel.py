"""
Messages on the zygote's sockets: received with proof of the sender, sent without ever waiting.

Every message carries the kernel's word on who sent it (SO_PASSCRED). A forked copy of the application, which holds the
same sockets, and an application that has changed its user since, are told so and not obeyed.

Runs in: zygote.
Source: unix(7), SCM_RIGHTS, SCM_CREDENTIALS.
"""

import _socket
import os
from _struct import pack, unpack

import wire

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from typing import Any

BUFFER_BYTES = wire.INLINE_BYTES + 1024  # a longer message would have come in a memfd, and is cut off
_SOCKET, _RIGHTS, _CREDENTIALS = _socket.SOL_SOCKET, _socket.SCM_RIGHTS, _socket.SCM_CREDENTIALS
_CUT = _socket.MSG_CTRUNC | _socket.MSG_TRUNC
_CONTROL_BYTES = _socket.CMSG_SPACE(12) + _socket.CMSG_SPACE(4 * wire.MAX_FDS)
_NO_FDS: tuple[int, ...] = ()


class Refusal(Exception):
    """
    A message that must not be obeyed, and why; the connection is closed.
    """


class NoRoom(Exception):
    """
    A message whose descriptors did not fit in this process.
    """


class Receiver:
    """
    Receives messages of one application.
    """

    def __init__(self, application_pid: int) -> None:
        self.pid = application_pid
        self.uid = os.getuid()
        self.proof = pack("iI", application_pid, self.uid)  # how the kernel names the application
        self.buffer = bytearray(BUFFER_BYTES)  # a fresh one for each message would cost its page faults
        self.view = (memoryview(self.buffer),)

    def receive(self, connection: _socket.socket, fds: list[int]) -> "tuple[Any, ...] | None":
        """
        One message, its descriptors appended to *fds* whatever else happens; None at the end of the connection.

        Raises:
            BlockingIOError: Nothing has come.
            Refusal, NoRoom: Not to be obeyed.
        """
        try:
            size, ancillary, flags, _ = connection.recvmsg_into(self.view, _CONTROL_BYTES, _socket.MSG_CMSG_CLOEXEC)
        except ConnectionResetError:
            return None
        proof = b""
        for level, kind, value in ancillary:
            if level == _SOCKET:
                if kind == _RIGHTS:
                    fds += memoryview(value[: len(value) // 4 * 4]).cast("i")
                elif kind == _CREDENTIALS:
                    proof = value[:8]
        if not size and not fds:
            return None
        if flags & _CUT:
            raise NoRoom
        if proof != self.proof:
            raise self.refusal(proof)
        data: bytes | memoryview = self.view[0][:size]
        try:
            if fds and wire.is_in_memfd(data):
                body_fd = fds.pop(0)
                try:
                    data = wire.from_memfd(data, body_fd)
                finally:
                    os.close(body_fd)
            return wire.decode(data)
        except wire.WireError as error:
            raise Refusal(str(error)) from None

    def refusal(self, proof: bytes) -> Refusal:
        """
        Why a message with these credentials is not obeyed.
        """
        sender, uid = unpack("iI", proof) if proof else (-1, -1)
        if sender != self.pid:
            return Refusal(f"this connection belongs to process {self.pid}; {sender} is a copy of it")
        return Refusal(f"the application now runs as user {uid}, its zygote as {self.uid}")


def pair() -> tuple[_socket.socket, int]:
    """
    A connection: this side's socket, ready for use, and the descriptor of the other side.
    """
    near, far = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
    prepare(near)
    return near, far.detach()


def prepare(near: _socket.socket) -> None:
    """
    Never wait on *near*, and have the kernel name the senders.
    """
    near.setblocking(False)
    near.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)


def send(connection: _socket.socket, message: "tuple[Any, ...]", fds: tuple[int, ...] = _NO_FDS) -> None:
    """
    One datagram, with descriptors.

    Raises:
        OSError: The peer has gone, or reads nothing.
    """
    data = wire.encode(message)
    if fds:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(fds)}i", *fds))
        connection.sendmsg((data,), (rights,), _socket.MSG_NOSIGNAL)
    else:
        connection.send(data, _socket.MSG_NOSIGNAL)


def close_all(fds: list[int]) -> None:
    """
    Close owned descriptors; neighbours, which those of one message mostly are, by one call.
    """
    if len(fds) > 1 and fds[-1] - fds[0] == len(fds) - 1 and sorted(fds) == fds:
        os.closerange(fds[0], fds[-1] + 1)
        fds.clear()
    while fds:
        os.close(fds.pop())
