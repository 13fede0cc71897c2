"""
How it is found out that a child is ready, where the child's own word does not come by its task socket.

    port    a TCP connection is tried until one is taken
    probe   a function of the user's is called until it returns something true; in a thread, because it may block
    notify  a command sends READY=1 to the socket whose name is in its NOTIFY_SOCKET, as for systemd

Runs in: application, where the pump runs; the user's function in a thread of its own.
Source: sd_notify(3), unix(7) ("autobind"), connect(2).
"""

import _socket
import errno
import functools
import os
import struct
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from safespawn._core import upkeep
from safespawn._core.flow import WRITE, Flow
from safespawn._core.procfs import listens
from safespawn._core.spec import SpawnSpec
from safespawn._core.terms import Program
from safespawn._worker.notice import VARIABLES
from safespawn._zygote import wire

if TYPE_CHECKING:
    from safespawn._drive.run import Run

PROBE_SECONDS = (0.01, 0.25)  # from one try to the next: at first, and at most
CONNECT_SECONDS = 1.0  # for one try
_NOTICE_BYTES = 4096


class Probe(Protocol):
    """
    One way to find out.
    """

    def start(self) -> None:
        """
        The process runs.
        """

    def close(self) -> None:
        """
        It is not of interest any more.
        """


def probe_for(run: "Run") -> Probe | None:
    """
    What finds out when *run* is ready; None where it says so by itself.
    """
    ready = run.terms.ready
    if ready.kind == "port":
        return PortProbe(run, *ready.what)
    if ready.kind == "probe":
        return FunctionProbe(run, ready.what)
    if ready.kind == "notify" and isinstance(run.terms.what, Program):
        return NoticeProbe(run)
    return None


def with_notice(spec: SpawnSpec, probe: Probe | None, mark: bytes) -> SpawnSpec:
    """
    *spec* with the environment for its notices: its own socket's name, or none, but never that of this process; and
    with the mark by which its descendants are known.
    """
    name = probe.name if isinstance(probe, NoticeProbe) else b""
    given = os.environb if spec.env is None else spec.env
    env = {key: value for key, value in given.items() if spec.env is not None or key.decode("latin-1") not in VARIABLES}
    if name:
        env[b"NOTIFY_SOCKET"] = name
    env[wire.MARK] = mark
    return attrs.evolve(spec, env=env)


class PortProbe:
    """
    Somebody listens. Where somebody did so already before the child was started (a stranger, a sibling that shares the
    port, the process whose place this one is to take), a connection says nothing: then it must be the child itself.

    Attributes:
        was_taken: Whether that is so.
    """

    def __init__(self, run: "Run", host: str, port: int) -> None:
        self.run = run
        self.place = (host, port)
        self.over = False
        self.was_taken = False

    def first_flow(self, start: Flow[Any]) -> Flow[Any]:
        """
        *start*, after a look whether somebody listens there already. Only this machine's own places are looked at.
        """
        if self.place[0].startswith("127.") or self.place[0] in ("::1", "localhost"):
            self.was_taken = yield from self._try_flow()
        return (yield from start)

    def start(self) -> None:
        """
        Try, and try again.
        """
        self.run.keeper.pump.spawn(self._flow(), self._done)

    def close(self) -> None:
        """
        Try no more.
        """
        self.over = True

    def _flow(self) -> Flow[bool]:
        pause = PROBE_SECONDS[0]
        while not self.over:
            if not (yield from self._try_flow()):
                self.was_taken, self.run.doubts = False, ()
            elif not self.was_taken or listens(self.run.pid or 0, self.place[1]):
                return True
            else:
                self.run.doubts = ("another process listens there, and did before this one was started",)
            yield {}, time.monotonic() + pause
            pause = min(2 * pause, PROBE_SECONDS[1])
        return False

    def _try_flow(self) -> Flow[bool]:
        family = _socket.AF_INET6 if ":" in self.place[0] else _socket.AF_INET
        try:
            socket = _socket.socket(family, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK)
        except OSError:
            return False  # no descriptor is left just now
        try:
            code = socket.connect_ex(self.place)
            if code == errno.EINPROGRESS:
                yield {socket.fileno(): WRITE}, time.monotonic() + CONNECT_SECONDS
                code = socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR) or _not_connected(socket)
            return code == 0 and not _is_itself(socket)
        except OSError:
            return False
        finally:
            socket.close()

    def _done(self, found: bool | None, error: BaseException | None) -> None:  # noqa: FBT001 - as a flow's end is told
        if error is not None:
            self.run.keeper.report(error)
        elif found and not self.over:
            self.run.value = self.place[1]
            self.run.send(upkeep.READY)


def _not_connected(socket: _socket.socket) -> int:
    try:
        socket.getpeername()
    except OSError as error:
        return error.errno or errno.ENOTCONN
    return 0


def _is_itself(socket: _socket.socket) -> bool:
    """
    Whether a port of the ephemeral range, where nobody listens, was connected to itself: TCP's simultaneous open.
    """
    return bool(socket.getsockname() == socket.getpeername())


class FunctionProbe:
    """
    A function of the user's says so.
    """

    def __init__(self, run: "Run", function: Callable[[], Any]) -> None:
        self.run = run
        self.function = function
        self.over = threading.Event()

    def start(self) -> None:
        """
        Ask it, and ask again.
        """
        name = f"safespawn ready {self.run.terms.name}"
        threading.Thread(target=self._ask, name=name, daemon=True).start()

    def close(self) -> None:
        """
        Ask no more. A call that does not return goes on in its thread.
        """
        self.over.set()

    def _ask(self) -> None:
        pause = PROBE_SECONDS[0]
        soon = self.run.keeper.pump.call_soon
        while not self.over.is_set():
            try:
                value = self.function()
            except BaseException as error:  # noqa: BLE001 - it is why the child is not ready, also if it wants to exit
                soon(functools.partial(self._broken, error))
                return
            if value:
                soon(functools.partial(self._found, value))
                return
            self.over.wait(pause)
            pause = min(2 * pause, PROBE_SECONDS[1])

    def _found(self, value: Any) -> None:
        if not self.over.is_set():
            self.run.value = value
            self.run.send(upkeep.READY)

    def _broken(self, error: BaseException) -> None:
        if not self.over.is_set():
            self.run.error = error
            self.run.charge.on_unusable(self.run)


class NoticeProbe:
    """
    A command says so itself. The socket stays for its life: STATUS=, WATCHDOG=1, STOPPING=1.

    Attributes:
        name: For its NOTIFY_SOCKET.
    """

    def __init__(self, run: "Run") -> None:
        self.run = run
        kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC | _socket.SOCK_NONBLOCK
        self.socket: _socket.socket | None = _socket.socket(_socket.AF_UNIX, kind)
        try:
            self.socket.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
            self.socket.bind("")  # the kernel finds a name
        except OSError:
            self.socket.close()
            raise
        self.name: bytes = b"@" + bytes(self.socket.getsockname())[1:]
        self.watched = False

    def start(self) -> None:
        """
        Listen.
        """
        if self.socket is not None:
            self.watched = True
            self.run.keeper.pump.watch(self.socket.fileno(), self._heard)

    def close(self) -> None:
        """
        Listen no more.
        """
        socket, self.socket = self.socket, None
        if socket is not None:
            if self.watched:
                self.run.keeper.pump.unwatch(socket.fileno())
            socket.close()

    def _heard(self, _events: int) -> None:
        if self.socket is None:
            return
        try:
            data, ancillary, _, _ = self.socket.recvmsg(_NOTICE_BYTES, _socket.CMSG_SPACE(12))
        except OSError:
            return
        uid = next((struct.unpack("3i", row)[1] for _, kind, row in ancillary if kind == _socket.SCM_CREDENTIALS), -1)
        if uid not in (os.getuid(), 0) and not self._is_of_child(ancillary):
            return  # the names of these sockets are open to all
        for line in data.decode(errors="replace").splitlines():
            if line == "READY=1":
                self.run.send(upkeep.READY)
            elif line == "WATCHDOG=1":
                self.run.beat_at = time.monotonic()
            elif line.startswith("STATUS="):
                self.run.status_text = line.partition("=")[2]

    def _is_of_child(self, ancillary: Any) -> bool:
        """
        Whether the process itself, which may run as another user, has sent it.
        """
        return any(
            kind == _socket.SCM_CREDENTIALS and struct.unpack("3i", row)[0] == self.run.pid
            for _, kind, row in ancillary
        )
