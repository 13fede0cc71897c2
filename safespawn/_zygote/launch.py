"""
From a checked request to a running program.

Two ways. The plain one is posix_spawn(3): about as cheap as vfork whatever anybody's size, and its errors come back as
an errno. What it cannot do (another user, limits, nice, CPU set, death signal, no-new-privileges) is done in a forked
child of this small process before it execs; that child reports over a CLOEXEC pipe, which is sound here, where no
other thread can fork and keep the write end.

What belongs to the zygote as a whole (working directory, umask, ignored signals, soft limits) is set for the moment
of the start: nobody else is there to see it.

Runs in: zygote, and its forked child before exec.
Never: writes to a terminal, waits for a pipe, leaves a descriptor behind on a failing path.
"""

import errno
import fcntl
import os
import resource
import signal
import time

import system
import wire

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    Handler = Callable[[int, FrameType | None], Any] | int | None  # of a signal

LIMITS = tuple(
    sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_") and type(value) is int})
)
_MISSING = (errno.ENOENT, errno.ENOTDIR)  # of one candidate of several: look on
_BUSY_PAUSES = (
    0.002,
    0.004,
    0.008,
    0.0,
)  # seconds; somebody's fork still holds the file open for writing, about to exec


class LaunchError(Exception):
    """
    The program did not start: at which stage, with which errno, because of which name.
    """

    def __init__(self, stage: str, number: int, name: bytes | None = None) -> None:
        super().__init__(stage, number, name)
        self.stage, self.errno, self.name = stage, number, name


_DEFAULT_PATH = os.defpath.encode()
REPORT_BYTES = 8192  # a stage, a number and a path of at most 4096 bytes


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
        self.limits = {number: resource.getrlimit(number) for number in LIMITS}
        self.nice = os.getpriority(os.PRIO_PROCESS, 0)
        self.cpus = tuple(sorted(os.sched_getaffinity(0)))
        self._compared: tuple[Any, bool, tuple[int, int] | None] = (None, True, None)

    # --- what is asked -----------------------------------------------------------------------------------------------
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
        if ambient is not self._compared[0]:
            self._compare(ambient)
        flags = request[9]
        return (
            request[13] is not None
            or self._compared[1]
            or flags & wire.NO_NEW_PRIVS != 0
            or (flags & wire.NEW_SESSION != 0 and request[10] != wire.GROUP_AUTO)
            or signal.SIGCHLD in request[12]  # ignored here, even for a moment, the kernel would reap in our place
        )

    def _compare(self, ambient: "tuple[Any, ...]") -> None:
        """
        Whether the application's limits, nice and CPU set are such that only the child can take them on; and its
        RLIMIT_NOFILE, the one limit that the zygote may lend (its own is raised as far as it goes), where it differs.
        """
        needs, lent = ambient[2] != self.cpus or ambient[3] != self.nice, None
        for number, soft, hard in ambient[1]:
            own_soft, own_hard = self.limits.get(number, (soft, hard))
            if own_hard != hard or (own_soft != soft and number != resource.RLIMIT_NOFILE):
                needs = True
            elif own_soft != soft:
                lent = (soft, hard)
        self._compared = (ambient, needs, lent)

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

    def enter(self, request: "tuple[Any, ...]", fds: list[int], env: dict[bytes, bytes]) -> list[bytes]:
        """
        Take on the directory and the umask, and say which files may be the program, in order.
        """
        try:
            os.fchdir(fds[0])
        except OSError as error:
            raise LaunchError("cwd", error.errno or errno.EIO, b".") from None
        if request[5] is not None:
            try:
                os.chdir(request[5])
            except OSError as error:
                raise LaunchError("cwd", error.errno or errno.EIO, request[5]) from None
        os.umask(request[11])
        name = request[1][0] if request[2] is None else request[2]
        if b"/" in name:
            return [name]
        directories = env.get(b"PATH", _DEFAULT_PATH).split(b":")
        return [directory + b"/" + name if directory else name for directory in directories]

    # --- the two ways ------------------------------------------------------------------------------------------------
    def spawn(
        self, request: "tuple[Any, ...]", ambient: "tuple[Any, ...]", fds: list[int], ends: Ends, group: int | None
    ) -> int:
        """
        Start the program by posix_spawn; returns its pid. The zygote is left in the child's directory until it tidies.
        """
        env = ambient[0] if request[4] is None else request[4]
        actions = [(os.POSIX_SPAWN_DUP2, *pair) for pair in self.wire_up(request, fds, ends)]
        candidates = self.enter(request, fds, env)
        options: dict[str, Any] = {} if group is None else {"setpgroup": group}
        if request[9] & wire.NEW_SESSION:
            options["setsid"] = True
        lent = self._compared[2]
        if lent is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, lent)
        ignored = ignore(request[12]) if request[12] else ()
        try:
            if system.armed:
                system.failpoint("zygote.before_spawn")
            return try_each(candidates, lambda path: os.posix_spawn(
                path, request[1], env, file_actions=actions, setsigmask=(), **options,
            ))  # fmt: skip
        except OSError as error:
            raise LaunchError(*blame(error, group)) from None
        finally:
            if ignored:
                restore(ignored)
            if lent is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, self.limits[resource.RLIMIT_NOFILE])

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
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
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
            try:
                become(self, request, ambient, fds, pairs, env, group)
            except LaunchError as error:
                os.write(report_w, report(error))
            except BaseException as error:  # noqa: BLE001 - what nobody foresaw is told as well, not an exit code 127
                os.write(report_w, report(LaunchError("fork", getattr(error, "errno", None) or errno.EPROTO)))
            finally:
                os._exit(127)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(report_w)
        os.set_blocking(report_r, False)
        return pid, report_r


def become(  # noqa: PLR0917 - what the server knew at the fork, one by one
    launcher: Launcher,
    request: "tuple[Any, ...]",
    ambient: "tuple[Any, ...]",
    fds: list[int],
    pairs: list[tuple[int, int]],
    env: dict[bytes, bytes],
    group: int | None,
) -> None:
    """
    In the forked child: set everything up, then exec. Comes back only by an exception.

    The order is the kernel's wish: session and group first (they need no right), limits, nice and CPU set while the
    rights are still there, then groups, gid, uid; the death signal behind them, because a change of uid clears it; the
    working directory last of all but exec, as the new user, who may not have the right to it.
    """
    if system.armed:
        system.failpoint("child.before_setup")
    reset_signals(request[12])
    flags = request[9]
    if flags & wire.NEW_SESSION:
        step("session", os.setsid)
    if group is not None:
        step("process_group", os.setpgid, 0, group)
    take_on(launcher, ambient, request[13])
    if flags & wire.NO_NEW_PRIVS:
        step("no_new_privs", system.prctl, system.PR_SET_NO_NEW_PRIVS, 1)
    death_signal = request[13] and request[13][6]
    if death_signal:
        step("pdeathsig", system.prctl, system.PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != launcher.own_pid:  # the zygote died before the line above
            os._exit(127)
    candidates = launcher.enter(request, fds, env)  # before dup2, which may take fds[0]'s number
    for source, number in pairs:
        os.dup2(source, number)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if system.armed:
        system.failpoint("child.before_exec")
    try:
        try_each(candidates, lambda path: os.execve(path, request[1], env))
    except OSError as error:
        raise LaunchError("exec", error.errno or errno.EIO) from None


def reset_signals(ignored: tuple[int, ...]) -> None:
    """
    Default actions for all signals but the *ignored* ones.
    """
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP) and not 32 <= number < signal.SIGRTMIN:
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)


def take_on(launcher: Launcher, ambient: "tuple[Any, ...]", credentials: "tuple[Any, ...] | None") -> None:
    """
    The limits, nice value and CPU set of the application, then what the request asks for itself.
    """
    user, group, groups, rlimits, nice, cpus, _ = credentials or (None, None, None, (), None, None, None)
    for number, soft, hard in ambient[1]:
        if launcher.limits[number] != (soft, hard):
            step("rlimits", resource.setrlimit, number, (soft, hard))
    for number, soft, hard in rlimits:
        step("rlimits", resource.setrlimit, number, (soft, hard))
    wanted = ambient[3] + (nice or 0)
    if wanted != launcher.nice:
        step("nice", os.setpriority, os.PRIO_PROCESS, 0, wanted)
    if (cpus or ambient[2]) != launcher.cpus:
        step("affinity", os.sched_setaffinity, 0, cpus or ambient[2])
    if groups is not None:
        step("extra_groups", os.setgroups, groups)
    if group is not None:
        step("group", os.setresgid, group, group, group)
    if user is not None:
        step("user", os.setresuid, user, user, user)


def step(stage: str, action: "Callable[..., object]", *arguments: object) -> None:
    """
    Do *action*; a failure is told with its *stage*.
    """
    try:
        action(*arguments)
    except OSError as error:
        raise LaunchError(stage, error.errno or errno.EIO) from None
    except (ValueError, OverflowError):  # setrlimit: soft above hard, or above what the kernel allows
        raise LaunchError(stage, errno.EINVAL) from None


def try_each(candidates: list[bytes], start: "Callable[[bytes], int]") -> int:
    """
    Start the first of *candidates* that can be; otherwise the first error that says more than "not there".

    A look is a fiftieth of a failing start. One that may not be looked at (EACCES) counts as not there until all have
    been tried, and then tells by failing.
    """
    telling: OSError | None = None
    looked_at = filter(exists, candidates) if len(candidates) > 1 else ()
    for paths in (looked_at, candidates):
        for path in paths:
            for pause in _BUSY_PAUSES:
                try:
                    return start(path)
                except OSError as error:
                    if telling is None or telling.errno in _MISSING:
                        telling = error
                    if error.errno != errno.ETXTBSY:
                        break
                    time.sleep(pause)
        if telling is not None:
            raise telling
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def exists(path: bytes) -> bool:
    """
    Whether *path* is there and may be looked at.
    """
    return os.access(path, os.F_OK)


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
    Which stage of a posix_spawn an errno speaks of: the kernel does not say, but two of them have one cause only.
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


def ignore(numbers: tuple[int, ...]) -> "list[tuple[int, Handler]]":
    """
    Ignore signals for the moment of a start, since SIG_IGN is what a program inherits; says what was before.
    """
    handlers: list[tuple[int, Handler]] = []
    for number in numbers:
        try:
            handlers.append((number, signal.signal(number, signal.SIG_IGN)))
        except (OSError, ValueError):
            continue  # one that the C library keeps for itself
    return handlers


def restore(handlers: "list[tuple[int, Handler]]") -> None:
    """
    Undo `ignore`.
    """
    for number, handler in handlers:
        signal.signal(number, handler)


def report(error: LaunchError) -> bytes:
    """
    A launch error as bytes for the report pipe, and back by `read_report`.
    """
    return b"%s\0%d\0%s" % (error.stage.encode(), error.errno, error.name or b"")


def read_report(data: bytes) -> LaunchError:
    """
    What the child wrote with `report`.
    """
    stage, number, name = data.split(b"\0", 2)
    return LaunchError(stage.decode(), int(number), name or None)
