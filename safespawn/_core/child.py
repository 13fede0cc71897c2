"""
One child, from the request to the reaping, as flows over its connection.

    start_flow    SPAWN -> STARTED | FAILED | EXITED
    exit_flow     -> EXITED
    release_flow  RELEASE -> RELEASED
    end_flow      SIGTERM to the tree, grace, SIGKILL to the tree, exit

Whatever the zygote does (answers, dies, is stopped, hangs), each of these ends within a bound of its own with what is
known, and what is not known is not invented.

Runs in: application, any thread.
"""

import contextlib
import errno
import os
import signal
import time
from typing import Any

import attrs

from safespawn._core.connection import Connection, Truncated, close_all
from safespawn._core.explain import spawn_error
from safespawn._core.flow import READ, DeadlinePassed, Flow, earliest
from safespawn._core.procfs import zombie_status
from safespawn._core.spec import SpawnSpec
from safespawn._core.status import Usage, decode_status
from safespawn._zygote import wire
from safespawn.errors import (
    RemoteProtocolError,
    SafespawnError,
    SpawnError,
    SpawnLost,
    Unkillable,
    ZygoteUnresponsive,
)

LATE_SECONDS = 1.0  # no answer to a request: later calls get another zygote; arbitrary, a thousand times the usual
ANSWER_SECONDS = 10.0  # no answer to a request at all; arbitrary, an exec from a slow network file system passes it
UNANSWERED_SECONDS = 0.5  # for the end of a command whose start nobody waits for any more; arbitrary
NEWS_SECONDS = 5.0  # the kernel says that the child has ended, and the zygote does not tell the status
GRACE_SECONDS = 0.25  # between SIGTERM and SIGKILL of a cancelled command; what subprocess grants after Ctrl-C
WORD_SECONDS = 0.1  # for the word of a zygote that is late anyway, about what the kernel has said already
_STANDARD = (0, 1, 2)
KILL_SECONDS = 5.0  # after SIGKILL; a process that is still there sleeps in the kernel


@attrs.define(slots=True, eq=False)
class Child:
    """
    A started process.

    Attributes:
        connection: Its lifeline, leased.
        spec: What was asked.
        pid: Its process id, reserved for it until `reaped`.
        pidfd: Owned; -1 for a child that ended before it had to be announced, and after the end.
        started: Monotonic time of the request.
        ended: Monotonic time at which the exit was seen.
        status: Raw wait status, once it has exited.
        usage: Resources used, once it has been reaped.
        release_asked: RELEASE has been sent.
        outputs: What a quiet child printed, in the order of the streams, if it ended before it was announced.
    """

    connection: Connection
    spec: SpawnSpec
    started: float
    pid: int = 0
    pidfd: int = -1
    ended: float | None = None
    status: int | None = None
    usage: Usage | None = None
    release_asked: bool = False
    outputs: tuple[bytes, ...] | None = None

    @property
    def returncode(self) -> int | None:
        """
        The exit status as subprocess has it: -N for signal N; None while it is not known.
        """
        return None if self.status is None else decode_status(self.status)

    def close(self) -> None:
        """
        Let go of the descriptors. The connection stays open: it is returned or closed by whoever leased it.
        """
        fd, self.pidfd = self.pidfd, -1
        if fd >= 0:
            os.close(fd)

    def lost(self, stage: str, known: "tuple[str, ...]" = ()) -> SpawnLost:
        """
        The error for a zygote that died with this child on it.
        """
        zygote = self.connection.zygote
        return SpawnLost(
            tuple(os.fsdecode(word) for word in self.spec.argv),
            pid=self.pid or None,
            stage=stage,
            zygote_pid=zygote.pid,
            zygote_status=zygote.exit_status(),
            known=(*known, *zygote.last_words()),
        )

    def unresponsive(self, stage: str, seconds: float) -> ZygoteUnresponsive:
        """
        The error for a zygote that does not answer.
        """
        zygote = self.connection.zygote
        state, wchan = zygote.looks()
        return ZygoteUnresponsive(
            tuple(os.fsdecode(word) for word in self.spec.argv),
            pid=self.pid or None,
            stage=stage,
            zygote_pid=zygote.pid,
            seconds=seconds,
            zygote_state=state,
            wchan=wchan,
        )


def request(spec: SpawnSpec, ambient: Any, carried: object) -> tuple[Any, ...]:
    """
    The SPAWN message for *spec*; *carried* is None when the connection has it already.
    """
    first, second, third = spec.streams
    index = 1  # the working directory is descriptor 0 of the message
    if first >= 0:
        first, index = index, index + 1
    if second >= 0:
        second, index = index, index + 1
    if third >= 0:
        third, index = index, index + 1
    return (
        wire.SPAWN,
        spec.argv,
        spec.executable,
        carried,
        spec.env,
        spec.cwd,
        (first, second, third),
        tuple([(index + offset, fd) for offset, fd in enumerate(spec.pass_fds)]) if spec.pass_fds else (),
        spec.input,
        spec.flags,
        spec.group,
        ambient.umask if spec.umask is None else spec.umask,
        ambient.ignored if not spec.ignore else tuple(sorted({*ambient.ignored, *spec.ignore})),
        spec.credentials,
    )


def send_request(connection: Connection, spec: SpawnSpec, ambient: Any) -> None:
    """
    Send SPAWN with the current directory and the streams.

    Raises:
        SpawnError: A descriptor cannot be sent, or there is no current directory.
        BrokenPipeError, ConnectionResetError: No zygote any more; the request was not delivered.
    """
    carried = None if connection.ambient is ambient.carried else ambient.carried
    try:
        directory_fd = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        stage = "fds" if error.errno in (errno.EMFILE, errno.ENFILE) else "cwd"
        raise spawn_error(error.errno or errno.EIO, ".", stage=stage, argv=spec.argv) from None
    try:
        try:
            own = all(map(os.get_inheritable, _STANDARD))
        except OSError:
            own = False  # one is closed: each is looked at
        if not own:
            spec = handed_down(spec)
        streams = spec.streams
        fds = (directory_fd, *streams) if min(streams) >= 0 else (directory_fd, *[fd for fd in streams if fd >= 0])
        connection.send(request(spec, ambient, carried), (*fds, *spec.pass_fds))
    except (BrokenPipeError, ConnectionResetError):
        raise
    except OSError as error:
        raise spawn_error(error.errno or errno.EIO, None, stage="fds", argv=spec.argv) from None
    finally:
        os.close(directory_fd)
    connection.ambient = ambient.carried


def handed_down(spec: SpawnSpec) -> SpawnSpec:
    """
    *spec* with /dev/null in the place of the application's own standard streams that no child would inherit.

    Those are the closed ones; and what took such a number later, a descriptor of this library's own, say: like all
    that Python opens it is not inheritable.
    """
    streams = spec.streams
    for number in (0, 1, 2):
        if streams[number] == number and not is_inheritable(number):
            streams = (*streams[:number], wire.NULL, *streams[number + 1 :])
    return spec if streams is spec.streams else attrs.evolve(spec, streams=streams)


def is_inheritable(fd: int) -> bool:
    """
    Whether *fd* is open, and a child of this process would have it.
    """
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


class Retracted(Exception):  # a signal, not an error
    """
    The zygote is late, and has not read the request: it has been taken back, and nothing has run.
    """


def start_flow(child: Child, deadline: float | None, *, may_retract: bool = False) -> Flow[list[int]]:
    """
    Wait for the answer to the SPAWN that was sent on the child's connection.

    Returns:
        The application's ends of the pipes, owned by the caller, in the order of the streams; with `child.pid` and
        `child.pidfd` set, or for a quiet start that is over, `child.status`.

    Raises:
        SpawnError: The command did not start.
        SpawnLost: The zygote died, or (ZygoteUnresponsive) does not answer.
        DeadlinePassed: *deadline* has passed first.
        Retracted: Another zygote may be asked; only with *may_retract*.
    """
    connection = child.connection
    late: float | None = child.started + LATE_SECONDS
    limit = child.started + ANSWER_SECONDS
    interest = {connection.socket.fileno(): READ}
    while True:
        until = limit if late is None else late
        ready = yield interest, until if deadline is None or deadline > until else deadline
        if not ready:
            now = time.monotonic()
            if now >= child.started + LATE_SECONDS:
                connection.zygote.suspect()
                if may_retract and late is not None and connection.retract():
                    raise Retracted
                late = None
            if deadline is not None and now >= deadline:
                connection.zygote.note_silence(child.started, now)
                raise DeadlinePassed
            if now >= limit:
                raise child.unresponsive("before start", now - child.started)
            continue
        try:
            message, fds = connection.receive()
        except BlockingIOError:
            continue
        except OSError as error:  # Truncated above all
            raise spawn_error(error.errno or errno.EIO, None, stage="fds", argv=child.spec.argv) from None
        connection.zygote.silent_since = None
        if message is None:
            yield from connection.zygote.death_flow()
            raise child.lost("before start")
        kind = message[0]
        if kind == wire.STARTED and fds:
            child.pid, child.pidfd = message[1], fds[0]
            return fds[1:]
        if fds:
            close_all(fds)
        if kind == wire.EXITED:
            note_exit(child, message)
            return []
        if kind == wire.FAILED:
            raise failure(child.spec, *message[1:])
        raise refusal(message)


def unanswered_flow(child: Child) -> Flow[None]:
    """
    The caller's deadline has passed before any answer: SIGKILL for what may have been started, a moment's wait.
    """
    limit = time.monotonic() + UNANSWERED_SECONDS
    try:
        child.connection.send((wire.KILL, int(signal.SIGKILL), True))
    except OSError:
        return  # no zygote, or one that reads nothing
    while True:
        ready = yield {child.connection.fileno(): READ}, limit
        if not ready:
            return
        try:
            message, fds = child.connection.receive()
        except BlockingIOError:
            continue
        except OSError:
            return
        close_all(fds)
        if message is None or message[0] != wire.STARTED:
            return


def failure(spec: SpawnSpec, stage: str, number: int, name: bytes | None) -> SpawnError:
    """
    The exception for FAILED: with subprocess's errno and filename.
    """
    filename: str | None = None
    if stage == "exec":
        filename = spec.name
    elif stage == "cwd":
        filename = "." if name == b"." or spec.cwd is None else os.fsdecode(spec.cwd)
    return spawn_error(number, filename, stage=stage, argv=spec.argv)


def refusal(message: tuple[Any, ...]) -> RemoteProtocolError:
    """
    The exception for an answer that does not fit.
    """
    if message[0] == wire.REFUSED:
        return RemoteProtocolError(message[1])
    return RemoteProtocolError(f"an answer of kind {message[0]} does not fit here")


def note_exit(child: Child, message: tuple[Any, ...]) -> None:
    """
    Take down what EXITED says.
    """
    child.pid = message[1]
    child.ended = time.monotonic()
    child.status = message[2]
    if message[3] is not None:
        child.usage = message[3]
    child.outputs = message[4]


def take_news(child: Child) -> bool:
    """
    Take what has come on the connection, without waiting; says whether the exit is known now.

    STARTED may still come here for a quiet start.

    Raises:
        EOFError: The connection has ended.
    """
    while child.status is None:
        try:
            message, fds = child.connection.receive()
        except BlockingIOError:
            return False
        except Truncated:
            continue  # STARTED, without the pidfd, for which there was no room: the exit will be told all the same
        except OSError as error:
            raise child.lost("running", (f"its connection cannot be read: {error.strerror}",)) from None
        if message is None:
            raise EOFError
        if message[0] == wire.STARTED and fds:
            child.pid, child.pidfd = message[1], fds.pop(0)
            close_all(fds)
            continue
        close_all(fds)
        if message[0] != wire.EXITED:
            raise refusal(message)
        note_exit(child, message)
    return True


def exit_flow(child: Child, deadline: float | None) -> Flow[bool]:
    """
    Wait until the child has exited; False when *deadline* comes first.

    The zygote's word is all that a short command waits for, one wake-up. After `LATE_SECONDS` the kernel's word, the
    pidfd, is waited for as well: it comes even when the zygote is stopped.

    Raises:
        SpawnLost: The zygote died, or does not tell the status of a child that has ended.
    """
    ended_by: float | None = None  # the kernel said that it ended; the zygote's word must come by then
    doubt: float | None = child.started + LATE_SECONDS
    while child.status is None:
        interest = {child.connection.fileno(): READ}
        if child.pidfd >= 0 and ended_by is None and doubt is None:
            interest[child.pidfd] = READ
        ready = yield interest, earliest(deadline, ended_by, doubt)
        now = time.monotonic()
        if doubt is not None and now >= doubt:
            doubt = None
        try:
            if take_news(child):
                return True
        except EOFError:
            yield from lost_flow(child)
            return True
        if ended_by is not None and now >= ended_by:
            child.connection.zygote.suspect()
            raise child.unresponsive("exited, status unknown", NEWS_SECONDS)
        if not ready and deadline is not None and now >= deadline:
            return False
        if child.pidfd in ready:
            ended_by = now + NEWS_SECONDS
    return True


def lost_flow(child: Child) -> Flow[None]:
    """
    The zygote died with this child on it. Its warden ends the child, or if that was killed too, we do; then say what is
    known.

    Raises:
        SpawnLost: Always, but for a child whose status the kernel still tells.
    """
    zygote = child.connection.zygote
    yield from zygote.death_flow()
    if child.pidfd >= 0 and not zygote.keeps:
        with contextlib.suppress(PermissionError):
            tell(child, signal.SIGKILL, whole=False)
    status = kept_status(child.pidfd)
    ours = status is not None and os.WIFSIGNALED(status) and os.WTERMSIG(status) in _OUR_SIGNALS
    if status is not None and (not ours or zygote.exit_status() == 0):  # 0: closed in order, so that is how it ended
        child.status, child.ended = status, time.monotonic()
        return
    raise child.lost("running", ("the child was killed with its zygote",) if status is not None else ())


_OUR_SIGNALS = (signal.SIGKILL, signal.SIGTERM)  # what the warden sends, and a zygote that ends by itself
_PIDFD_GET_INFO = 0xC040FF0B  # _IOWR(0xFF, 11, 64 bytes), Linux >= 6.13
_PIDFD_INFO_EXIT = 1 << 3  # Linux >= 6.15: exit status of a process that has been reaped


def kept_status(pidfd: int) -> int | None:
    """
    The wait status of a reaped process from its pidfd, whoever its parent was; None where the kernel cannot say.

    Source: linux/pidfd.h, struct pidfd_info (mask at 0, exit_code at 60).
    """
    if pidfd < 0:
        return None
    import fcntl

    info = bytearray(64)
    info[0] = _PIDFD_INFO_EXIT
    try:
        fcntl.ioctl(pidfd, _PIDFD_GET_INFO, info)
    except OSError:
        return None
    if not info[0] & _PIDFD_INFO_EXIT:
        return None
    return int.from_bytes(info[60:64], "little", signed=True)


def kernels_word(pid: int, pidfd: int, born: int) -> int | None:
    """
    The wait status of a process whose template has gone: nobody tells it, but the kernel may. While it is a zombie
    /proc does; once somebody has reaped it, its pidfd, since Linux 6.15.

    Source: proc_pid_stat(5), exit_code.
    """
    status = kept_status(pidfd)
    if status is None:
        status = zombie_status(pid, born)
    if status is None:  # reaped, just now perhaps
        status = kept_status(pidfd)
    return status


def tell(child: Child, number: int, *, whole: bool) -> None:
    """
    Signal the child: its tree by way of the zygote, itself by its pidfd.

    Raises:
        PermissionError: The child runs as somebody else now.
    """
    if child.status is not None:
        return
    try:
        if whole or child.pidfd < 0:
            child.connection.send((wire.KILL, int(number), whole))
        else:
            signal.pidfd_send_signal(child.pidfd, number)
    except PermissionError:
        raise
    except OSError:
        return  # the child has ended, or the zygote has and its warden ends the child


def release_flow(child: Child) -> Flow[None]:
    """
    Have an exited child that was held reaped; nothing to do for one that was not.
    """
    if child.usage is not None or child.status is None:
        return
    try:
        if not child.release_asked:  # an interrupted wait has asked: its answer is still to come
            child.connection.send((wire.RELEASE,))
            child.release_asked = True
        limit = time.monotonic() + NEWS_SECONDS
        while child.usage is None:
            ready = yield {child.connection.fileno(): READ}, limit
            if not ready:
                break
            try:
                message, fds = child.connection.receive()
            except BlockingIOError:
                continue
            close_all(fds)
            if message is not None and message[0] == wire.SWEPT:
                continue  # of a SIGKILL that came after the exit
            if message is None or message[0] != wire.RELEASED:
                break
            child.usage = message[1]
    except OSError:
        return  # the zygote died; the warden reaps


def sweep_flow(child: Child) -> Flow[int]:
    """
    Have what is left of an exited child's tree killed; returns how many processes that were.
    """
    try:
        child.connection.send((wire.KILL, int(signal.SIGKILL), True))
        limit = time.monotonic() + NEWS_SECONDS
        while True:
            ready = yield {child.connection.fileno(): READ}, limit
            if not ready:
                return 0
            try:
                message, fds = child.connection.receive()
            except BlockingIOError:
                continue
            close_all(fds)
            if message is None:
                return 0
            if message[0] == wire.SWEPT:
                return int(message[1])
    except OSError:
        return 0


def kill_flow(child: Child, *, whole: bool) -> Flow[None]:
    """
    SIGKILL, and wait for the exit.

    Raises:
        Unkillable: It is still there after `KILL_SECONDS`.
        SpawnLost: As `exit_flow`; ZygoteUnresponsive, if the zygote does not tell how it ended.
    """
    now = time.monotonic()
    tell(child, signal.SIGKILL, whole=whole)
    if (yield from exit_flow(child, now + (WORD_SECONDS if child.connection.zygote.is_stopped() else LATE_SECONDS))):
        return
    child.connection.zygote.suspect()
    if child.pidfd >= 0:  # the zygote is stopped or stuck: neither the child nor the caller must depend on it
        tell(child, signal.SIGKILL, whole=False)
        ready = yield {child.pidfd: READ}, now + KILL_SECONDS
        if not ready:
            raise unkillable(child)
        if (yield from exit_flow(child, time.monotonic() + WORD_SECONDS)):
            return
    elif (yield from exit_flow(child, now + KILL_SECONDS)):
        return
    raise child.unresponsive("killed, status unknown", time.monotonic() - now)


def unkillable(child: Child) -> Unkillable:
    """
    The error for a child that outlived SIGKILL; what /proc says of it.
    """
    from safespawn._core.procfs import looks

    state, wchan = looks(child.pid) if child.pid else (None, None)
    return Unkillable(pid=child.pid, state=state, wchan=wchan, seconds=KILL_SECONDS)


def end_flow(child: Child, *, whole: bool, grace: float = GRACE_SECONDS) -> Flow[None]:
    """
    End the child: SIGTERM (a stopped one is woken), *grace* seconds, SIGKILL; with its tree when *whole*.

    An interruption while it waits skips what is left of the grace, and comes out when the child is gone.

    Raises:
        Unkillable, SpawnLost: As `kill_flow`.
    """
    interruption: BaseException | None = None
    tell(child, signal.SIGTERM, whole=whole)
    tell(child, signal.SIGCONT, whole=whole)
    try:
        yield from exit_flow(child, time.monotonic() + grace)
    except (GeneratorExit, SafespawnError):
        raise
    except BaseException as error:  # noqa: BLE001 - raised below
        interruption = error
    if child.status is None:
        yield from kill_flow(child, whole=whole)
    elif whole:
        yield from sweep_flow(child)
    if interruption is not None:
        raise interruption
