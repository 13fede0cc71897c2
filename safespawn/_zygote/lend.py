"""
What the zygote takes on for the moment of a start, because a child inherits it, and then gives back.

Ignored signals, soft limits and the CPU set can be lent: the way back is open, and nobody else is in this process to
see it. What has no way back (a lower hard limit, a lower priority) or could hit the zygote itself in that moment (CPU
time, memory) is for the child to set, after a fork.

Runs in: zygote; `limits`, `nice` and `cpus` are read by its forked child too.
Source: setrlimit(2), sched_setaffinity(2), execve(2) on inherited attributes.
"""

import os
import resource
import signal

import system
from program import step

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

    Handler = Callable[[int, FrameType | None], Any] | int | None  # of a signal
    Identity = tuple[int | None, int | None, tuple[int, ...] | None]  # user, group, supplementary groups
    Undo = list[tuple[Callable[..., object], tuple[object, ...]]]

LIMITS = tuple(
    sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_") and type(value) is int})
)
_DANGEROUS = (
    resource.RLIMIT_CPU,
    resource.RLIMIT_AS,
    resource.RLIMIT_DATA,
    resource.RLIMIT_STACK,
    resource.RLIMIT_NPROC,  # would refuse the very start
)
UNCHANGEABLE = frozenset((signal.SIGKILL, signal.SIGSTOP, *range(32, signal.SIGRTMIN)))  # nobody's, and the C library's


def changed_signals() -> tuple[int, ...]:
    """
    The signals whose action in this process is not the default one; all of them where that cannot be read.

    Source: proc_pid_status(5), SigIgn and SigCgt.
    """
    mine = [number for number in range(1, signal.NSIG) if number not in UNCHANGEABLE]
    try:
        fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = dict(line.split(b":\t", 1) for line in os.read(fd, 65536).split(b"\n") if b":\t" in line)
        finally:
            os.close(fd)
        mask = int(fields[b"SigIgn"], 16) | int(fields[b"SigCgt"], 16)
    except (OSError, KeyError, ValueError):
        return tuple(mine)
    return tuple([number for number in mine if mask >> (number - 1) & 1])


class Lender:
    """
    What the zygote itself has, against what a child shall have.
    """

    def __init__(self) -> None:
        self.own_pid = os.getpid()
        self.limits = {number: resource.getrlimit(number) for number in LIMITS}
        self.nice = os.getpriority(os.PRIO_PROCESS, 0)
        self.cpus = tuple(sorted(os.sched_getaffinity(0)))
        self.signals = changed_signals()
        self.users, self.group_ids, self.groups = os.getresuid(), os.getresgid(), os.getgroups()
        self._ambient: object = None  # the one that the next two are about
        self._only_by_fork = True
        self._rows: list[tuple[int, int, int]] = []

    def needs_fork(self, ambient: "tuple[Any, ...]", credentials: "tuple[Any, ...] | None") -> bool:
        """
        Whether the child must set something itself.
        """
        if ambient is not self._ambient:
            self._compare(ambient)
        if self._only_by_fork:
            return True
        if credentials is None:
            return False
        rows, nice, death_signal = credentials[3], credentials[4], credentials[6]
        return not (nice is death_signal is None and all(self._lendable(*row) for row in rows))

    def identity(self, credentials: "tuple[Any, ...] | None") -> "Identity | None":
        """
        Who the child shall be, as user, group and groups, each None where that does not change; None if nothing does.
        """
        if credentials is None:
            return None
        user, group, groups = credentials[:3]
        if user is not None and self.users == (user, user, user):
            user = None
        if group is not None and self.group_ids == (group, group, group):
            group = None
        return None if user is group is groups is None else (user, group, groups)

    def act_as(self, identity: "Identity") -> "Undo":
        """
        Have the rights of *identity*, and no more, until the undo. Only effectively: signals and traces of that user do
        not reach this process.

        Raises:
            LaunchError: This process has not the right to become that.
        """
        user, group, groups = identity
        undo: Undo = []
        try:
            if groups is not None:
                step("extra_groups", os.setgroups, list(groups))
                undo.append((os.setgroups, (self.groups,)))
            if group is not None:
                step("group", os.setresgid, -1, group, -1)
                undo.append((os.setresgid, (-1, self.group_ids[1], -1)))
            if user is not None:
                step("user", os.setresuid, -1, user, -1)
                undo.append((stay_visible, ()))
                undo.append((os.setresuid, (-1, self.users[1], -1)))
        except BaseException:
            give_back(undo)
            raise
        return undo

    def files(self, ambient: "tuple[Any, ...]", credentials: "tuple[Any, ...] | None") -> tuple[int, int]:
        """
        The limit of descriptors, soft and hard, that the child shall have.
        """
        found = self.limits[resource.RLIMIT_NOFILE]
        for number, soft, hard in (*ambient[1], *(() if credentials is None else credentials[3])):
            if number == resource.RLIMIT_NOFILE:
                found = soft, hard
        return found

    def _compare(self, ambient: "tuple[Any, ...]") -> None:
        rows = [row for row in ambient[1] if self.limits.get(row[0], row[1:]) != row[1:]]
        self._rows = rows
        self._only_by_fork = ambient[3] != self.nice or not all(self._lendable(*row) for row in rows)
        self._ambient = ambient

    def _lendable(self, number: int, soft: int, hard: int) -> bool:
        """
        Whether the zygote can take on this limit and be rid of it again.
        """
        own = self.limits.get(number)
        return own is not None and own[1] == hard and (own[0] == soft or number not in _DANGEROUS)

    def lends(
        self, ambient: "tuple[Any, ...]", credentials: "tuple[Any, ...] | None", ignored: tuple[int, ...]
    ) -> bool:
        """
        Whether `lend` has anything to do, for the ambient state that `needs_fork` was asked about.
        """
        return bool(self._rows or ignored) or credentials is not None or ambient[2] != self.cpus

    def lend(
        self, ambient: "tuple[Any, ...]", credentials: "tuple[Any, ...] | None", ignored: tuple[int, ...]
    ) -> "Undo":
        """
        Take on what the child shall inherit; returns what gives it back, to be done in reverse.

        Raises:
            LaunchError: A limit or CPU that does not exist; what was taken on before it has been given back.
        """
        undo: Undo = []
        try:
            for number, soft, hard in (*self._rows, *credentials[3]) if credentials is not None else self._rows:
                step("rlimits", resource.setrlimit, number, (soft, hard))
                undo.append((resource.setrlimit, (number, self.limits[number])))
            cpus = ambient[2] if credentials is None or credentials[5] is None else credentials[5]
            if cpus != self.cpus:
                step("affinity", os.sched_setaffinity, 0, cpus)
                undo.append((os.sched_setaffinity, (0, self.cpus)))
            for number in ignored:
                undo.append((signal.signal, (number, signal.signal(number, signal.SIG_IGN))))
        except BaseException:
            give_back(undo)
            raise
        return undo


def stay_visible() -> None:
    """
    Let /proc show this process to its user again: a change of the effective user has ended that.
    """
    if system.has_prctl():
        system.prctl(system.PR_SET_DUMPABLE, 1)


def give_back(undo: "Undo") -> None:
    """
    Be as before `Lender.lend`.
    """
    for action, arguments in reversed(undo):
        action(*arguments)
