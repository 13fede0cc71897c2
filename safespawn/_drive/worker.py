"""
One worker as the application sees it: its process, its task socket, its journal.

Runs in: application.
"""

import _socket
import array
import errno
import marshal
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import attrs

from safespawn._core.child import Child, send_request, start_flow, tell
from safespawn._core.connection import close_all
from safespawn._core.explain import spawn_error
from safespawn._core.flow import Flow
from safespawn._core.procfs import birth
from safespawn._core.spec import SpawnSpec
from safespawn._drive.template import Template
from safespawn._worker.arena import Arena
from safespawn._worker.messages import INLINE_BYTES, JOURNAL, LONG, RECEIVE_BYTES, SETUP, read_long, write_long
from safespawn._zygote import wire
from safespawn.errors import BootError, SpawnError

if TYPE_CHECKING:
    from safespawn._drive.ledger import Ledger
    from safespawn._worker.journal import Journal

_FDS_BYTES = _socket.CMSG_SPACE(2 * 4)
LOOKS = 25  # before a wait, about a microsecond each


@attrs.frozen
class Inheritance:
    """
    Descriptors that every worker of a pool gets for its initializer.

    Attributes:
        fds: Owned by the pool.
        has_tracker: The first is that of multiprocessing's resource tracker.
    """

    fds: tuple[int, ...]
    has_tracker: bool

    def close(self) -> None:
        """
        Close them.
        """
        for fd in self.fds:
            os.close(fd)


class Worker:
    """
    A started worker.

    Attributes:
        child: Its process, and the lifeline to the template.
        socket: Our end of the task socket; None when closed.
        journal: What it writes down, once it has been told where; and the number of that place.
        pid: Its process id.
        born: Its time of birth, in clock ticks since the boot of the machine, which tells it from a later process with
            that pid.
        orphan_fd: Its pidfd, once its template has died; else -1.
    """

    __slots__ = (
        "awake", "born", "child", "freed", "journal", "last_words", "orphan_fd", "pid", "place", "socket", "text_from",
    )  # fmt: skip

    def __init__(self, child: Child, socket: _socket.socket) -> None:
        self.child: Child = child
        self.socket: _socket.socket | None = socket
        self.journal: Journal | None = None
        self.place: tuple[Ledger, int] | None = None
        self.pid: int = child.pid
        self.born: int = birth(child.pid)
        self.orphan_fd: int = -1
        self.awake: bool = False  # what it was told to do between messages that follow one another closely
        self.last_words: float = 0.0  # when the last result came in a direct exchange
        self.freed: list[int] = []  # its segments that are not used here any more
        self.text_from: int = 0

    # --- messages ----------------------------------------------------------------------------------------------------
    def send(self, kind: int, body: Any, fd: int = -1) -> None:
        """
        Send one message, without waiting.

        Raises:
            BlockingIOError: It has not read what was sent before.
            BrokenPipeError, ConnectionResetError: It has gone.
        """
        data = bytes((kind,)) + marshal.dumps(body)
        socket = self.socket
        if socket is None:
            raise BrokenPipeError
        try:
            if len(data) > RECEIVE_BYTES:
                long_fd = write_long(data)
                try:
                    _send_fds(socket, bytes((LONG,)), [long_fd] if fd < 0 else [long_fd, fd])
                finally:
                    os.close(long_fd)
            elif fd < 0:
                socket.send(data, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)
            else:
                _send_fds(socket, data, [fd])
        except OSError as error:
            if error.errno == errno.EBADF and self.socket is None:  # it was buried meanwhile, by the pump
                raise BrokenPipeError from None
            raise

    def send_journal(self, slot: int, fd: int, inheritance: Inheritance | None, wake_fd: int = -1) -> None:
        """
        The first words: where the journal is, what is inherited, and the eventfd for log records, if there is one.
        """
        if self.socket is None:
            raise BrokenPipeError
        words = bytes((JOURNAL,)) + marshal.dumps((slot, inheritance is not None))
        _send_fds(self.socket, words, [fd] if wake_fd < 0 else [fd, wake_fd])
        if inheritance is not None:
            words = b"T" if inheritance.has_tracker else b"-"
            if inheritance.fds:
                _send_fds(self.socket, words, list(inheritance.fds))
            else:
                self.socket.send(words, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)

    def receive(self, flags: int = _socket.MSG_DONTWAIT) -> tuple[bytes, int]:
        """
        The next message: its bytes, empty at the end, and its descriptor or -1, which is the caller's.

        Raises:
            BlockingIOError: Nothing has come.
        """
        socket = self.socket
        if socket is None:
            return b"", -1
        flags |= _socket.MSG_CMSG_CLOEXEC
        try:
            data, ancillary, _, _ = socket.recvmsg(RECEIVE_BYTES, _FDS_BYTES, flags)
        except ConnectionResetError:  # it died with messages unread, which is told once, before its own last ones
            data, ancillary, _, _ = socket.recvmsg(RECEIVE_BYTES, _FDS_BYTES, flags)
        if ancillary:
            fds = array.array("i", ancillary[0][2])
            if data[0] != LONG:
                return data, fds[0]
            return read_long(fds[0]), fds[1] if len(fds) > 1 else -1
        return data, -1

    def await_words(self, _want: object = None) -> None:
        """
        Wait until there is something to receive, and leave it there.
        """
        socket = self.socket
        if socket is not None:
            try:
                socket.recv(1, _socket.MSG_PEEK)
            except ConnectionResetError:
                return

    def quick_words(self) -> tuple[bytes, int] | None:
        """
        The next message, if it comes within the blink of an eye. To sleep and be woken takes longer than a short task.
        """
        for _ in range(LOOKS):
            try:
                return self.receive()
            except BlockingIOError:
                os.sched_yield()
        return None

    # --- the process -------------------------------------------------------------------------------------------------
    def signal(self, number: int, *, whole: bool = False) -> None:
        """
        Signal it, or its whole tree.
        """
        if self.orphan_fd >= 0:
            try:
                signal.pidfd_send_signal(self.orphan_fd, number)
            except (ProcessLookupError, PermissionError):
                return
        else:
            tell(self.child, number, whole=whole)

    def become_orphan(self) -> bool:
        """
        The template has died: from now on watch the process itself. Says whether it still lives.
        """
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return False
        if birth(self.pid) != self.born:  # somebody else's by now
            os.close(fd)
            return False
        self.orphan_fd = fd
        return True

    def close(self) -> None:
        """
        Close the task socket and the rest. The lifeline belongs to the template's book-keeping.
        """
        socket, self.socket = self.socket, None
        if socket is not None:
            socket.close()
        if self.journal is not None:
            journal, self.journal = self.journal, None
            journal.close()
        if self.place is not None:
            (ledger, slot), self.place = self.place, None
            ledger.give_back(slot)
        fd, self.orphan_fd = self.orphan_fd, -1
        if fd >= 0:
            os.close(fd)

    def shut(self) -> None:
        """
        Wake whoever waits for the task socket.
        """
        if self.socket is not None:
            try:
                self.socket.shutdown(_socket.SHUT_RDWR)
            except OSError:
                return


def _send_fds(socket: _socket.socket, data: bytes, fds: list[int]) -> None:
    rights = ((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, array.array("i", fds)),)
    socket.sendmsg((data,), rights, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)


def start_error(said: bytes, argv: tuple[bytes, ...]) -> SpawnError:
    """
    The error that a START_FAILED message tells of.
    """
    stage, number, name = said[1:].split(b"\0", 2)
    return spawn_error(int(number), os.fsdecode(name) or None, stage=stage.decode(), argv=argv)


def start_worker_flow(
    engine: Any,
    template: Template,
    spec: SpawnSpec,
    deadline: float | None,
    *,
    keep_pidfd: bool = False,
) -> Flow[Worker]:
    """
    Fork a worker from *template*.

    Raises:
        BootError: The template has gone; another one may do.
        SpawnError: It did not start.
        DeadlinePassed: *deadline* came first.
    """
    connection = template.lease_nowait()
    if connection is None:
        connection = yield from template.lease_flow(deadline)
    if connection is None:
        raise BootError("the template has gone", executable="")
    child = Child(connection, spec, time.monotonic())
    try:
        send_request(connection, spec, engine.look())
        ends = yield from start_flow(child, deadline)
    except (BrokenPipeError, ConnectionResetError):
        template.usable = False
        template.discard(connection)
        raise BootError("the template has gone", executable="") from None
    except BaseException:
        template.discard(connection)
        child.close()
        raise
    if not keep_pidfd:
        child.close()
    if len(ends) != 1:
        close_all(ends)
        child.close()
        template.discard(connection)
        raise BootError("the template started something else", executable="")
    socket = _socket.socket(fileno=ends[0])
    socket.setblocking(True)
    return Worker(child, socket)


def worker_spec(name: bytes, kind: bytes, *, env: dict[bytes, bytes] | None, cwd: bytes | None, cpus: Any) -> SpawnSpec:
    """
    The request for a worker.
    """
    return SpawnSpec(
        (name, kind),
        env=env,
        cwd=cwd,
        streams=(wire.NULL, 1, 2),
        flags=wire.HOLD | wire.TREE,
        group=0,
        credentials=None if cpus is None else (None, None, None, (), None, cpus, None),
    )


def send_setup(worker: Worker, arena: Arena, body: dict[str, Any], initializer: "tuple[bytes, Any] | None") -> None:
    """
    Tell a fresh worker who it is. A large initializer goes by way of *arena*.
    """
    if initializer is None:
        body["initializer"] = None
    elif not initializer[1] and len(initializer[0]) <= INLINE_BYTES:
        body["initializer"] = initializer[0]
    else:
        segment = arena.place([initializer[0], *initializer[1]])
        body["initializer"] = (segment.number, segment.size, segment.spans)
        try:
            worker.send(SETUP, body, segment.fd)
        finally:
            arena.sent(segment)
        return
    worker.send(SETUP, body)
