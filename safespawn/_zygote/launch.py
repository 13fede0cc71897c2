"""
From a checked request to a running program.

Three ways. The plain one is vfork in C, by the function that subprocess uses: as cheap whatever anybody's size, and it
tries every directory of PATH in one child. For another user or group that function forks, and C sets them. What it
cannot do (lower hard limits, nice, death signal, no-new-privileges) is done by Python in a forked child of this small
process before it execs. Each reports over a CLOEXEC pipe, which is sound here, where no other thread can fork and keep
the write end.

What belongs to the zygote as a whole (working directory, umask, ignored signals, soft limits) is set for the moment
of the start: nobody else is there to see it.

Runs in: zygote, and its forked child before exec.
Never: writes to a terminal, waits for a pipe, leaves a descriptor behind on a failing path.
"""

import errno
import fcntl
import os
import signal
import sys
import time
from _posixsubprocess import fork_exec

import system
import wire
from become import become, report
from lend import Lender, give_back
from program import BUSY_PAUSES, LaunchError, enter, start_from, try_each

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lend import Identity, Undo

    Way = tuple[int | None, bool, Identity | None, bool]


# No preexec_fn; and vfork, which newer ones take anyway.
_NO_HOOK = (None,) if sys.version_info >= (3, 14) else (None, True)
STREAMS = 3
_MOST = 2**31 - 1  # in a pid_t
_ERROR_BYTES = 512  # of what a child of fork_exec writes that cannot exec: "OSError:<errno, hexadecimal>:<stage>"


class Ends:
    """
    The descriptors of one start: the child's ends, which close whatever happens, and the application's ends.
    """

    __slots__ = ("child", "given", "mask")

    def __init__(self) -> None:
        self.child: list[int] = []
        self.given: list[int] = []
        self.mask = 0  # which streams the application gets an end of

    def pipe(self, number: int) -> tuple[int, int]:
        """
        A fresh pipe for stream *number*: the child's end, then the application's.
        """
        read_fd, write_fd = os.pipe()
        child, given = (write_fd, read_fd) if number else (read_fd, write_fd)
        self.child.append(child)
        self.given.append(given)
        self.mask |= 1 << number
        return child, given

    def close_child(self) -> None:
        """
        Close the child's ends.
        """
        while self.child:
            os.close(self.child.pop())

    def close_given(self) -> None:
        """
        Close the application's ends.
        """
        while self.given:
            os.close(self.given.pop())


class Launcher:
    """
    Starts programs for the server; holds what the zygote knows of its own state.
    """

    def __init__(self) -> None:
        self.own_pid = os.getpid()
        facts = system.stat(self.own_pid)
        self.has_terminal = facts is not None and facts[4] != 0
        self.null_fd = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        self.lender = Lender()
        self._known: tuple[Any, ...] = ()
        self._env: dict[bytes, bytes] = {}  # the one that the next is made of
        self._words: list[bytes] = []
        self._form: tuple[Any, ...] = ()  # of the last request, and how that is carried out
        self._way: Way = (None, False, None, False)

    # --- what is asked -----------------------------------------------------------------------------------------------
    def way(self, request: "tuple[Any, ...]", ambient: "tuple[Any, ...]", fds: list[int]) -> "Way":
        """
        How a request is carried out: which process group the child joins; whether it takes a fork, for Python to set it
        up; who it shall be, if somebody else; and whether the zygote must lend it something. All but the argv of one
        command is mostly that of the last one, and then so is the answer.

        Raises:
            LaunchError: It cannot be carried out as it stands.
        """
        form = (ambient, len(fds), *request[4:])
        if form == self._form and request[1]:
            return self._way
        check(request, fds)
        forks = self.needs_fork(request, ambient)
        identity = None if forks else self.lender.identity(request[13])
        lends = not forks and self.lender.lends(ambient, request[13], request[12])
        self._form, self._way = form, (self.group(request, ambient), forks, identity, lends)
        return self._way

    def known(self, ambient: "tuple[Any, ...]") -> "tuple[Any, ...]":
        """
        *ambient*, or the one before if it is the same: each connection brings its own copy.
        """
        if ambient != self._known:
            self._known = ambient
        return self._known

    def words(self, env: dict[bytes, bytes]) -> list[bytes]:
        """
        *env* as exec takes it; made once for each.
        """
        if env is not self._env:
            self._words = [name + b"=" + value for name, value in env.items()]
            self._env = env
        return self._words

    def group(self, request: "tuple[Any, ...]", ambient: "tuple[Any, ...]") -> int | None:
        """
        The process group the child joins: 0 is its own, None that of whoever starts it (a new session's leader).
        """
        wanted: int = request[10]
        if wanted != wire.GROUP_AUTO:
            return wanted
        if request[9] & wire.NEW_SESSION:
            return None
        return ambient[4] if self.has_terminal else 0

    def needs_fork(self, request: "tuple[Any, ...]", ambient: "tuple[Any, ...]") -> bool:
        """
        Whether something is asked that only the child itself can do.
        """
        flags = request[9]
        return (
            self.lender.needs_fork(ambient, request[13])
            or flags & wire.NO_NEW_PRIVS != 0
            or (flags & wire.NEW_SESSION != 0 and request[10] != wire.GROUP_AUTO)
            or (bool(request[7] or request[10] > 0) and self.lender.identity(request[13]) is not None)
            or self._outside(request, ambient)
            or signal.SIGCHLD in request[12]  # ignored here, even for a moment, the kernel would reap in our place
        )

    def _outside(self, request: "tuple[Any, ...]", ambient: "tuple[Any, ...]") -> bool:
        """
        Whether a descriptor is to have a number above the child's own limit, as one may that was opened before the
        limit was lowered, and a stream if that is below three. It must be there before the limit.
        """
        soft, _ = self.lender.files(ambient, request[13])
        highest: int = max([STREAMS - 1, *(number for _, number in request[7])])
        return 0 <= soft <= highest

    def wire_up(self, request: "tuple[Any, ...]", fds: list[int], ends: Ends) -> list[tuple[int, int]]:
        """
        Make the pipes; returns (descriptor here, number in the child), to be duplicated in this order.
        """
        pairs: list[tuple[int, int]] = []
        try:
            if system.armed:
                system.failpoint("zygote.before_pipes")
            for number, wanted in enumerate(request[6]):
                if wanted >= 0:
                    source = fds[wanted]
                elif wanted == wire.PIPE:
                    source, given = ends.pipe(number)
                    if number == 0 and request[8] is not None:
                        prefill(request[8], given, ends)
                elif wanted == wire.STDOUT:
                    source = pairs[1][0]
                else:
                    source = self.null_fd
                pairs.append((source, number))
            if request[7]:
                pairs += above_targets(request[7], fds, ends)
        except OSError as error:
            raise LaunchError("pipe", error.errno or errno.EIO) from None
        return pairs

    # --- the ways -----------------------------------------------------------------------------------------------------
    def spawn(
        self,
        request: "tuple[Any, ...]",
        ambient: "tuple[Any, ...]",
        fds: list[int],
        ends: Ends,
        group: int | None,
        identity: "Identity | None",
        *,
        lends: bool,
    ) -> int:
        """
        Start the program in C, by vfork or as another *identity* by fork; returns its pid.

        The directory is entered here, one that is asked for with the rights that the child will have; the zygote stays
        there until it tidies.
        """
        env = ambient[0] if request[4] is None else request[4]
        pairs = self.wire_up(request, fds, ends)
        start_from(request, fds)
        acting = None if identity is None else self.lender.act_as(identity)
        try:
            candidates = enter(request, env)
        finally:
            if acting:
                give_back(acting)
        if system.armed:
            system.failpoint("zygote.before_spawn")
        lend = (lambda: self.lender.lend(ambient, request[13], request[12])) if lends else None
        session = request[9] & wire.NEW_SESSION != 0
        try:
            if len(pairs) == STREAMS:
                return start(request[1], candidates, self.words(env), pairs, group, identity, lend, session=session)
            undo = lend() if lend else []
            try:
                return start_with(request[1], candidates, env, pairs, group, session=session)
            finally:
                give_back(undo)
        except OSError as error:
            raise LaunchError(*blame(error, group)) from None

    def fork(
        self, request: "tuple[Any, ...]", ambient: "tuple[Any, ...]", fds: list[int], ends: Ends, group: int | None
    ) -> tuple[int, int]:
        """
        Fork a child that sets itself up and execs; returns its pid and the pipe on which it reports.
        """
        env = ambient[0] if request[4] is None else request[4]
        pairs = self.wire_up(request, fds, ends)
        try:
            report_r, report_w = report_pipe(above=max(number for _, number in pairs))
        except OSError as error:
            raise LaunchError("pipe", error.errno or errno.EIO) from None
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            if system.armed:
                system.failpoint("zygote.before_spawn")
            pid = os.fork()
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(report_r)
            os.close(report_w)
            raise LaunchError("fork", error.errno or errno.EIO) from None
        if pid == 0:
            os.close(report_r)
            try:
                self.in_child(report_w, request, ambient, fds, pairs, env, group)
            except LaunchError as error:
                os.write(report_w, report(error))
                os._exit(127)
            except Exception as error:  # noqa: BLE001 - what nobody foresaw is told as well, not an exit code 127
                os.write(report_w, report(LaunchError("fork", getattr(error, "errno", None) or errno.EPROTO)))
                os._exit(127)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(report_w)
        os.set_blocking(report_r, False)
        return pid, report_r

    def in_child(  # noqa: PLR0917 - what the server knew at the fork, one by one
        self,
        report_w: int,
        request: "tuple[Any, ...]",
        ambient: "tuple[Any, ...]",
        fds: list[int],
        pairs: list[tuple[int, int]],
        env: dict[bytes, bytes],
        group: int | None,
    ) -> None:
        """
        What the forked child does; it comes back only by an exception. The exec closes *report_w*.
        """
        del report_w
        become(self.lender, request, ambient, fds, pairs, env, group)


def check(request: "tuple[Any, ...]", fds: list[int]) -> None:
    """
    What the codec cannot know: the message against this connection and its descriptors.

    Raises:
        LaunchError: It cannot be carried out as it stands.
    """
    trouble = None
    passed = request[7]
    if not fds or not request[1]:
        trouble = b"no working directory, or no argv"
    elif max(request[6]) >= len(fds) or (passed and not all(fits(row, len(fds)) for row in passed)):
        trouble = b"a descriptor is missing"
    elif wire.STDOUT in request[6][:2]:
        trouble = b"only stderr can go where stdout goes"
    elif request[10] > _MOST or request[11] > _MOST:
        raise LaunchError("fork", errno.EINVAL)  # fork_exec of Python 3.12 would take it, and cut it
    if trouble is not None:
        raise LaunchError("protocol", errno.EPROTO, trouble)


def fits(row: tuple[int, ...], count: int) -> bool:
    """
    Whether a row of pass_fds names one of *count* descriptors, and a number for it.
    """
    return len(row) == 2 and 0 <= row[0] < count and row[1] >= 0


def start(  # noqa: PLR0917 - what `fork_exec` takes
    argv: tuple[bytes, ...],
    candidates: list[bytes],
    words: list[bytes],
    pairs: list[tuple[int, int]],
    group: int | None,
    identity: "Identity | None",
    lend: "Callable[[], Undo] | None",
    *,
    session: bool,
) -> int:
    """
    Start the first of *candidates* that can be, with the three streams of *pairs*; returns its pid.

    What *lend* takes on is there for the fork alone: under the child's limit of descriptors no pipe could be made here,
    where more are open.

    Raises:
        LaunchError: No pipe; or the child could not become *identity*.
        OSError: None can be started; the first errno that says more than "not there".
    """
    user, gid, groups = (None, None, None) if identity is None else identity
    number = errno.ETXTBSY
    for pause in BUSY_PAUSES:
        try:
            report_r, report_w = os.pipe()
        except OSError as error:
            raise LaunchError("pipe", error.errno or errno.EIO) from None
        try:
            undo = lend() if lend else None
            try:
                pid = fork_exec(
                    argv, candidates, False, (), None, words,  # type: ignore[arg-type]  # typeshed wants a directory
                    pairs[0][0], -1, -1, pairs[1][0], -1, pairs[2][0], report_r, report_w,
                    False, session, -1 if group is None else group,
                    gid, None if groups is None else list(groups), user, -1, *_NO_HOOK,
                )  # fmt: skip
            finally:
                if undo:
                    give_back(undo)
        except BaseException:
            os.close(report_w)
            os.close(report_r)
            raise
        os.close(report_w)
        said = piece = os.read(report_r, _ERROR_BYTES)  # nothing, once it has exec'ed
        while piece:
            piece = os.read(report_r, _ERROR_BYTES)
            said += piece
        os.close(report_r)
        if not said:
            return pid
        os.waitpid(pid, 0)
        _, code, stage = said.split(b":", 2)
        number = int(code, 16)
        if identity is not None and stage.startswith(b"noexec"):
            raise LaunchError("user", number)
        if number != errno.ETXTBSY:
            break
        time.sleep(pause)
    raise OSError(number, os.strerror(number))


def start_with(
    argv: tuple[bytes, ...],
    candidates: list[bytes],
    env: dict[bytes, bytes],
    pairs: list[tuple[int, int]],
    group: int | None,
    *,
    session: bool,
) -> int:
    """
    As `start`, for a child that shall have more descriptors than its streams, under numbers of their own.
    """
    actions = [(os.POSIX_SPAWN_DUP2, *pair) for pair in pairs]
    options: dict[str, Any] = {} if group is None else {"setpgroup": group}
    if session:
        options["setsid"] = True
    return try_each(
        candidates,
        lambda path: os.posix_spawn(path, argv, env, file_actions=actions, setsigmask=(), **options),
    )


def report_pipe(above: int) -> tuple[int, int]:
    """
    A CLOEXEC pipe whose write end has a number over *above*.
    """
    report_r, low_w = os.pipe()
    try:
        return report_r, fcntl.fcntl(low_w, fcntl.F_DUPFD_CLOEXEC, above + 1)
    except BaseException:
        os.close(report_r)
        raise
    finally:
        os.close(low_w)


def blame(error: OSError, group: int | None) -> tuple[str, int]:
    """
    Which stage of a start an errno speaks of: the kernel does not say, but two of them have one cause only.
    """
    number = error.errno or errno.EIO
    if number == errno.EPERM and group:
        return "process_group", number
    if number in (errno.EAGAIN, errno.ENOMEM):
        return "fork", number
    return "exec", number


def prefill(data: bytes, fd: int, ends: Ends) -> None:
    """
    Write *data* into a pipe that nobody reads yet and close it, if it fits: then no writer ever exists elsewhere.
    """
    size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
    if len(data) > size:
        try:
            size = fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, len(data))
        except OSError:  # over the user's share of pipe pages, or over the limit: the application feeds it
            return
    if len(data) > size:
        return
    os.set_blocking(fd, False)
    if data and os.write(fd, data) != len(data):
        raise OSError(errno.EIO, "a fresh pipe took less than its size")
    ends.given.remove(fd)
    ends.mask &= ~1
    os.close(fd)


def above_targets(passed: tuple[tuple[int, int], ...], fds: list[int], ends: Ends) -> list[tuple[int, int]]:
    """
    Descriptors to pass, moved above every number they shall get, so that no dup2 overwrites a later one's source.
    """
    if not passed:
        return []
    highest = max(number for _, number in passed)
    moved = []
    for index, number in passed:
        source = fcntl.fcntl(fds[index], fcntl.F_DUPFD_CLOEXEC, max(highest + 1, 3))
        ends.child.append(source)
        moved.append((source, number))
    return moved
