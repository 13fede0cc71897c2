"""
What a child shall see of the application as it is now, and whether the zygote still is of the same world.

The zygote was started earlier and knows nothing of what the application did since: another directory, variable, umask,
limit, CPU set or ignored signal goes along with each request (the larger part only when it has changed). What a child
of the zygote could not take on (another user, dropped capabilities, a new root or namespace) calls for a new zygote,
started from the application as it is: `Ambient.world` says when.

Runs in: application, any thread. Measured: 11 us a call, 6 without the right to change namespaces.
Source: proc_pid_status(5), namespaces(7).
"""

import functools
import os
import resource
import signal
from typing import NamedTuple

_LIMITS = tuple(
    sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_") and isinstance(value, int)})
)
_NAMESPACES = ("mnt", "net", "pid_for_children", "user", "uts", "ipc", "cgroup")
# What Python itself ignores at its start is put back for a child, as subprocess does.
_RESTORED = (1 << 12) | (1 << 24)  # SIGPIPE 13, SIGXFSZ 25
# What the C library keeps for itself cannot be told to a child; a program that was started by posix_spawn(3) of glibc
# has those ignored (32 and 33).
_TELLABLE = sum(1 << (number - 1) for number in signal.valid_signals()) & ~_RESTORED
Carried = tuple[dict[bytes, bytes], tuple[tuple[int, int, int], ...], tuple[int, ...], int, int]


class Ambient(NamedTuple):
    """
    One look at the application.

    Attributes:
        carried: Environment, limits, CPUs, nice, process group: sent when it is not the very object sent before.
        umask: The mode bits that new files shall not have.
        ignored: Numbers of the ignored signals.
        world: Equal as long as the same zygote will do.
    """

    carried: Carried
    umask: int
    ignored: tuple[int, ...]
    world: tuple[object, ...]


class Observer:
    """
    Looks at this process; keeps what it saw last, so that what has not changed is the same object.

    Any number of threads may use one: a lost update costs a message a little longer, no more.
    """

    def __init__(self) -> None:
        self._status_fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._namespaces_fd = os.open("/proc/self/ns", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self._namespaces_fd = -1
        self._read_namespace = functools.partial(os.readlink, dir_fd=self._namespaces_fd)
        self._namespaces = tuple([name for name in _NAMESPACES if self._can_read(name)])
        self._carried: Carried | None = None
        self._limits: list[tuple[int, int]] = []
        self._marks: tuple[tuple[bytes, ...], bool] = ((), True)
        self._cpus: tuple[set[int], tuple[int, ...]] = (set(), ())

    def _can_read(self, name: str) -> bool:
        """
        Whether this kernel has that kind of namespace, and this process the right to look.
        """
        try:
            self._read_namespace(name)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """
        Close the two descriptors into /proc.
        """
        for fd in (self._status_fd, self._namespaces_fd):
            if fd >= 0:
                os.close(fd)
        self._status_fd = self._namespaces_fd = -1

    def look(self) -> Ambient:
        """
        The application as it is now.
        """
        umask, ignored, marks = self._status()
        environ = getattr(os.environ, "_data", None)
        if type(environ) is not dict:  # replaced by something else: what counts is what it says
            environ = {os.fsencode(key): os.fsencode(value) for key, value in os.environ.items()}
        limits = list(map(resource.getrlimit, _LIMITS))
        rest = (self._cpu_set(), os.getpriority(os.PRIO_PROCESS, 0), os.getpgrp())
        carried = self._carried
        if carried is None or self._limits != limits or carried[0] != environ or carried[2:] != rest:
            rows = tuple([(number, *pair) for number, pair in zip(_LIMITS, limits, strict=True)])
            carried = self._carried = (dict(environ), rows, *rest)
            self._limits = limits
        return Ambient(carried, umask, ignored, self._world(marks))

    def _cpu_set(self) -> tuple[int, ...]:
        cpus = os.sched_getaffinity(0)
        known, ordered = self._cpus
        if cpus != known:
            ordered = tuple(sorted(cpus))
            self._cpus = (cpus, ordered)
        return ordered

    def _status(self) -> tuple[int, tuple[int, ...], tuple[bytes, ...]]:
        """
        Umask, ignored signals, and all that says with whose rights this process runs.

        Cut out by position, in the order in which the kernel writes the lines: a quarter of a regular expression's time.
        """
        text = os.pread(self._status_fd, 8192, 0)
        umask = text.find(b"\nUmask:\t")
        ids = text.find(b"\nUid:", umask)
        size = text.find(b"\nFDSize:", ids)
        groups = text.find(b"\nGroups:", size)
        ignored = text.find(b"\nSigIgn:\t", groups)
        rights = text.find(b"\nCapInh:", ignored)
        rest = text.find(b"\nSpeculation", rights)
        if not 0 <= umask < ids < size < groups < ignored < rights < rest:
            return _status_slowly(text)
        marks = (text[ids:size], text[groups : text.find(b"\n", groups + 1)], text[rights:rest])
        mask = int(text[umask + 8 : text.find(b"\n", umask + 8)], 8)
        return mask, _signals(int(text[ignored + 9 : text.find(b"\n", ignored + 9)], 16)), marks

    def _world(self, marks: tuple[bytes, ...]) -> tuple[object, ...]:
        """
        All that makes a zygote of another time unfit. Only who may change root or namespaces is asked about those:
        without the capability, a change of them shows as a change of the capabilities.
        """
        known, may_move = self._marks
        if known != marks:
            may_move = _may_move(marks)
            self._marks = (marks, may_move)
        if not may_move:
            return (*marks, os.getsid(0))
        root = os.stat("/")
        return (*marks, os.getsid(0), root.st_dev, root.st_ino, *map(self._read_namespace, self._namespaces))


_MOVERS = (1 << 18) | (1 << 21)  # CAP_SYS_CHROOT, CAP_SYS_ADMIN


def _may_move(marks: tuple[bytes, ...]) -> bool:
    """
    Whether this process has the right to change its root or its namespaces.
    """
    for line in b"\n".join(marks).splitlines():
        name, _, value = line.partition(b":")
        if name == b"CapEff":
            return bool(int(value, 16) & _MOVERS)
    return True


def _signals(mask: int) -> tuple[int, ...]:
    mask &= _TELLABLE
    return tuple([number for number in range(1, 65) if mask >> (number - 1) & 1]) if mask else ()


def _status_slowly(text: bytes) -> tuple[int, tuple[int, ...], tuple[bytes, ...]]:
    """
    As `Observer._status`, for a kernel or an emulation that orders or names the lines otherwise.
    """
    fields = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
    umask = fields.get(b"Umask")
    if umask is None:
        mask = os.umask(0o077)  # the only other way to read it; for a moment stricter, never laxer
        os.umask(mask)
    else:
        mask = int(umask, 8)
    marks = tuple([fields.get(name, b"") for name in (b"Uid", b"Gid", b"Groups", b"CapEff", b"NoNewPrivs", b"Seccomp")])
    return mask, _signals(int(fields.get(b"SigIgn", b"0"), 16)), marks
