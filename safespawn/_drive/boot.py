"""
From nothing to a zygote that has said hello, as a flow.

The zygote is started by posix_spawn(3): no error pipe that a foreign fork could hold open, nothing run between fork
and exec, so it is as safe from a process full of threads as from an empty one.

Runs in: application, any thread.
Source: posix_spawn(3), pidfd_open(2), memfd_create(2).
"""

import _socket
import errno
import fcntl
import os
import signal
import sys
import time
from collections.abc import Iterable

from safespawn._core.connection import Connection, close_all
from safespawn._core.flow import READ, DeadlinePassed, Flow, earliest
from safespawn._drive.zygote import Zygote, reap
from safespawn._zygote import wire
from safespawn.errors import BootError, RemoteProtocolError

BOOT_SECONDS = 10.0  # twenty milliseconds are usual; a cold disk or a machine out of memory takes seconds
_FIRST_FREE = 10  # our descriptors are moved to here and above, clear of the numbers that the file actions write
_CONTROL = 3
_OUTPUT_BYTES = 8192
_DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_zygote")
# What the zygote itself needs of the environment; everything else is the children's, and travels with requests.
_NAMES = (b"PATH", b"LANG", b"TZ", b"GLIBC_TUNABLES")
_MARK = b"SAFESPAWN_ZYGOTE_OF"  # in a zygote's environment alone: whoever finds it in its own was started as one
_PREFIXES = (b"LD_", b"LC_", b"MALLOC_", b"SAFESPAWN_", b"ASAN_", b"LSAN_")


def boot_flow(*, keeps: bool, deadline: float | None = None) -> Flow[Zygote]:
    """
    Start a zygote and wait for its hello.

    Args:
        keeps: Its children outlive the application (`detach=True`).
        deadline: When the caller gives up, in monotonic seconds, or None.

    Raises:
        DeadlinePassed: *deadline* came first.
        BootError: It did not come up; with what it wrote, and how it ended.
        OSError: This process has no descriptors left (EMFILE), or cannot start any process (EAGAIN).
    """
    started = time.monotonic()
    owned: list[int] = []
    control: _socket.socket | None = None
    pid = pidfd = -1
    own_pid = os.getpid()
    executable = sys.executable
    try:
        if not executable:
            raise BootError("Python does not know its own executable", executable="", help=_EMBEDDED)
        if getattr(sys, "frozen", False) or _MARK in os.environb:
            raise BootError("this program is its own sys.executable", executable=executable, help=_FROZEN)
        output_fd = _keep(owned, os.memfd_create("safespawn-output", os.MFD_CLOEXEC))
        control, far = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        far_fd = _keep(owned, far.detach())
        pid = _spawn(executable, far_fd, output_fd, keeps=keeps)
        os.close(far_fd)
        owned.remove(far_fd)
        pidfd = _open_pidfd(pid)
        line = Connection(control, None)
        limit = started + BOOT_SECONDS
        while True:
            ready = yield {line.fileno(): READ, pidfd: READ}, earliest(deadline, limit)
            if line.fileno() in ready:
                try:
                    message, fds = line.receive()
                except BlockingIOError:
                    continue
                if message is not None:
                    zygote = _greet(line, message, fds, pid, pidfd, output_fd, keeps=keeps)
                    owned.clear()
                    control, pidfd, pid = None, -1, -1
                    return zygote
            took = time.monotonic() - started
            if not ready and took < BOOT_SECONDS:
                raise DeadlinePassed
            if not ready:
                raise BootError("no hello came", executable=executable, seconds=took, output=_text(output_fd))
            status, pid = reap(pid, pidfd, signal.SIGKILL), -1
            raise BootError(executable=executable, exit_status=status, output=_text(output_fd), seconds=took)
    except RemoteProtocolError as error:
        raise BootError(str(error).partition("\n")[0], executable=executable) from error
    finally:
        if pid > 0 and pidfd >= 0 and os.getpid() == own_pid:  # a forked copy that drops this flow ends nothing
            reap(pid, pidfd, signal.SIGKILL)
        if control is not None:
            control.close()
        if pidfd >= 0:
            os.close(pidfd)
        close_all(owned)


_FROZEN = "a frozen program must not start itself: set sys.executable to a Python of the same version"
_EMBEDDED = "an embedded interpreter: set sys.executable to a Python of the same version before the first command"


def _keep(owned: list[int], fd: int) -> int:
    """
    Move *fd* above the numbers that the file actions use; it is owned from now on.
    """
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FIRST_FREE)
    finally:
        os.close(fd)
    owned.append(moved)
    return moved


def _spawn(executable: str, control_fd: int, output_fd: int, *, keeps: bool) -> int:
    flags = ["-I", "-S", *(["-B"] if sys.dont_write_bytecode else [])]
    mode = "keep" if keeps else "own"
    return os.posix_spawn(
        executable,
        [executable, *flags, _DIRECTORY, str(_CONTROL), str(os.getpid()), mode],
        {**_environment(os.environb.items()), _MARK: str(os.getpid()).encode()},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, output_fd, 2),
            (os.POSIX_SPAWN_DUP2, control_fd, _CONTROL),
        ],
        setsigmask=(),
        setsigdef=[number for number in signal.valid_signals() if number not in (signal.SIGKILL, signal.SIGSTOP)],
    )


def _environment(items: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    return {key: value for key, value in items if key in _NAMES or key.startswith(_PREFIXES)}


def _open_pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ESRCH:  # ended at once, and somebody else reaped it, or SIGCHLD is ignored
            raise BootError("it ended at once", executable=sys.executable) from None
        os.kill(pid, signal.SIGKILL)  # still our unreaped child, or ESRCH would have been the answer
        raise


def _text(fd: int) -> str:
    return os.pread(fd, _OUTPUT_BYTES, max(0, os.fstat(fd).st_size - _OUTPUT_BYTES)).decode(errors="replace")


def _greet(
    line: Connection, message: tuple[object, ...], fds: list[int], pid: int, pidfd: int, output_fd: int, *, keeps: bool
) -> Zygote:
    """
    Check the hello and make the record of the zygote.
    """
    if message[0] != wire.HELLO or len(fds) != 1 + int(message[5]):  # type: ignore[call-overload]
        count = len(fds)
        close_all(fds)
        raise RemoteProtocolError(f"a hello was expected, not kind {message[0]} with {count} descriptors")
    if message[2] != sys.version:
        close_all(fds)
        raise BootError(f"it runs Python {message[2]}", executable=sys.executable)
    return Zygote(
        line.socket,
        pid=message[3],  # type: ignore[arg-type]
        warden_pid=pid,
        pidfd=fds[0],
        warden_fd=pidfd,
        output_fd=output_fd,
        keeps=keeps,
        facts=message[6],  # type: ignore[arg-type]
        connections=fds[1:],
    )
