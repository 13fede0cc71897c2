"""
What a forked child of the zygote does until it is the program: the options that C does not carry out for it.

It reports a failure over a CLOEXEC pipe, which exec closes: nothing read from it means that the program runs.

Runs in: the zygote's forked child before exec; `read_report` in the zygote.
Never: returns into the server.
"""

import errno
import os
import resource
import signal

import lend
import system
import wire
from program import LaunchError, enter, start_from, step, try_each

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from typing import Any

REPORT_BYTES = 512  # a stage, a number and the beginning of a name
REPORT_NAME_BYTES = 255


def become(  # noqa: PLR0917 - what the server knew at the fork, one by one
    lender: lend.Lender,
    request: "tuple[Any, ...]",
    ambient: "tuple[Any, ...]",
    fds: list[int],
    pairs: list[tuple[int, int]],
    env: dict[bytes, bytes],
    group: int | None,
) -> None:
    """
    In the forked child: set everything up, then exec. Comes back only by an exception.
    """
    candidates = settle(lender, request, ambient, fds, pairs, env, group)
    if system.armed:
        system.failpoint("child.before_exec")
    try:
        try_each(candidates, lambda path: os.execve(path, request[1], env))
    except OSError as error:
        raise LaunchError("exec", error.errno or errno.EIO) from None


def settle(  # noqa: PLR0917 - as above
    lender: lend.Lender,
    request: "tuple[Any, ...]",
    ambient: "tuple[Any, ...]",
    fds: list[int],
    pairs: list[tuple[int, int]],
    env: dict[bytes, bytes],
    group: int | None,
) -> list[bytes]:
    """
    In the forked child: all but the exec; returns the files that may be the program.

    The order is the kernel's wish: session and group first (they need no right), limits, nice and CPU set while the
    rights are still there, and the application's directory, which the new user may have no right to; then groups, gid,
    uid; the death signal behind them, because a change of uid clears it; the directory that is asked for late, as the
    new user, who must have the right to it. The limit of descriptors comes last, since one may have a number above it;
    to raise its hard part takes a right, so that is done with the other limits.
    """
    if system.armed:
        system.failpoint("child.before_setup")
    reset_signals(lender.signals, request[12])
    flags = request[9]
    if flags & wire.NEW_SESSION:
        step("session", os.setsid)
    if group is not None:
        step("process_group", os.setpgid, 0, group)
    start_from(request, fds)
    take_on(lender, ambient, request[13])
    if flags & wire.NO_NEW_PRIVS:
        step("no_new_privs", system.prctl, system.PR_SET_NO_NEW_PRIVS, 1)
    death_signal = request[13] and request[13][6]
    if death_signal:
        step("pdeathsig", system.prctl, system.PR_SET_PDEATHSIG, death_signal)
        if os.getppid() != lender.own_pid:  # the zygote died before the line above
            os._exit(127)
    candidates = enter(request, env)
    for source, number in pairs:
        os.dup2(source, number)
    files = lender.files(ambient, request[13])
    if files != lender.limits[resource.RLIMIT_NOFILE]:
        step("rlimits", resource.setrlimit, resource.RLIMIT_NOFILE, files)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    return candidates


def reset_signals(changed: tuple[int, ...], ignored: tuple[int, ...]) -> None:
    """
    Default actions for all signals but the *ignored* ones; *changed* are those which have another one here.
    """
    for number in changed:
        if number not in ignored:
            signal.signal(number, signal.SIG_DFL)
    for number in ignored:
        if number not in lend.UNCHANGEABLE:
            signal.signal(number, signal.SIG_IGN)


def take_on(lender: lend.Lender, ambient: "tuple[Any, ...]", credentials: "tuple[Any, ...] | None") -> None:
    """
    The limits, nice value and CPU set of the application, then what the request asks for itself.
    """
    user, group, groups, rlimits, nice, cpus, _ = credentials or (None, None, None, (), None, None, None)
    for number, soft, hard in ambient[1]:
        if lender.limits[number] != (soft, hard) and number != resource.RLIMIT_NOFILE:
            step("rlimits", resource.setrlimit, number, (soft, hard))
    for number, soft, hard in rlimits:
        if number != resource.RLIMIT_NOFILE:
            step("rlimits", resource.setrlimit, number, (soft, hard))
    _, most = lender.files(ambient, credentials)
    own = lender.limits[resource.RLIMIT_NOFILE][1]
    if own >= 0 and not 0 <= most <= own:
        step("rlimits", resource.setrlimit, resource.RLIMIT_NOFILE, (most, most))
    wanted = ambient[3] + (nice or 0)
    if wanted != lender.nice:
        step("nice", os.setpriority, os.PRIO_PROCESS, 0, wanted)
    if (cpus or ambient[2]) != lender.cpus:
        step("affinity", os.sched_setaffinity, 0, cpus or ambient[2])
    if groups is not None:
        step("extra_groups", os.setgroups, groups)
    if group is not None:
        step("group", os.setresgid, group, group, group)
    if user is not None:
        step("user", os.setresuid, user, user, user)


def report(error: LaunchError) -> bytes:
    """
    A launch error as bytes for the report pipe, and back by `read_report`.
    """
    return b"%s\0%d\0%s" % (error.stage.encode(), error.errno, (error.name or b"")[:REPORT_NAME_BYTES])


def read_report(data: bytes) -> LaunchError:
    """
    What the child wrote with `report`.
    """
    stage, number, name = data.split(b"\0", 2)
    return LaunchError(stage.decode(), int(number), name or None)
