"""
What a child shall see of the application as it is now, and whether the zygote still is of the same world.

The zygote was started earlier and knows nothing of what the application did since: another directory, variable, umask,
limit, CPU set or ignored signal goes along with each request (the larger part only when it has changed). What a child
of the zygote could not take on (another user, dropped capabilities, a new root or namespace) calls for a new zygote,
started from the application as it is: `Ambient.world` says when.

Runs in: application, any thread. Measured: 32 us a call when hot, most of it in the kernel;
21 without the right to change namespaces.
Source: proc_pid_status(5), namespaces(7).
"""

import functools
import os
import resource
import signal
from typing import Any, NamedTuple

_LIMITS = tuple(
    sorted({value for name, value in vars(resource).items() if name.startswith("RLIMIT_") and isinstance(value, int)})
)
_READ_BYTES = 8192
# The cgroup namespace shows in what /proc/self/cgroup says: where that is the same, both are rooted at the same place.
_NAMESPACES = (b"mnt", b"net", b"pid_for_children", b"user", b"uts", b"ipc")
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

    Any number of threads may use one: a lost update costs a message a little longer, no more. Its descriptors into
    /proc are closed with it, when the last thread is through with it.
    """

    def __init__(self) -> None:
        self._status_fd = self._namespaces_fd = self._cgroup_fd = -1  # for __del__, if one of these fails
        self._status_fd = os.open("/proc/self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._namespaces_fd = os.open("/proc/self/ns", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):
            pass  # no namespaces here; want of descriptors is another thing: they would never be looked at again
        try:
            self._cgroup_fd = os.open("/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, PermissionError):
            pass  # a kernel without control groups
        self._read_namespace = functools.partial(os.readlink, dir_fd=self._namespaces_fd)
        self._namespaces = tuple([name for name in _NAMESPACES if self._can_read(name)])
        self._asked: tuple[bytes, ...] = self._namespaces
        self._may_move = True
        self._is_told = b"\nNSsid:" in _whole(self._status_fd)  # of the process group and the session
        self._last: tuple[tuple[object, ...], Ambient] | None = None

    def _can_read(self, name: bytes) -> bool:
        """
        Whether this kernel has that kind of namespace, and this process the right to look.
        """
        try:
            self._read_namespace(name)
        except OSError:
            return False
        return True

    def __del__(self) -> None:
        for fd in (self._status_fd, self._namespaces_fd, self._cgroup_fd):
            if fd >= 0:
                os.close(fd)

    def descriptors(self) -> set[int]:
        """
        What it has open.
        """
        return {self._status_fd, self._namespaces_fd, self._cgroup_fd} - {-1}

    def look(self) -> Ambient:
        """
        The application as it is now; the very object of the last look, if nothing has changed since.
        """
        text = _whole(self._status_fd)
        # The stretches that matter: all before the memory's figures but the state of the main thread, which may be
        # another one's; and from the ignored signals to the seccomp mode.
        start = text.find(b"\nSigIgn:")
        seen = (
            text[: text.find(b"\nState:")],
            text[text.find(b"\nTgid:") : text.find(b"\nVmPeak:")],
            text[start : text.find(b"\nSpeculation", start)],
            list(map(resource.getrlimit, _LIMITS)),
            os.sched_getaffinity(0),
            os.getpriority(os.PRIO_PROCESS, 0),
            b"" if self._cgroup_fd < 0 else _whole(self._cgroup_fd),
            () if self._is_told else (os.getpgrp(), os.getsid(0)),
            *map(self._read_namespace, self._asked),
        )
        root = os.stat("/")[1:3] if self._may_move else ()
        environ = getattr(os.environ, "_data", None)
        if type(environ) is not dict:  # replaced by something else: what counts is what it says
            environ = {os.fsencode(key): os.fsencode(value) for key, value in os.environ.items()}
        last = self._last
        if last is not None and last[0] == (seen, root) and last[1].carried[0] == environ:
            return last[1]
        return self._learn(seen, root, environ, text)

    def _learn(self, seen: tuple[Any, ...], root: tuple[int, ...], environ: dict[bytes, bytes], text: bytes) -> Ambient:
        """
        Something has changed: read it all.

        Namespaces and root are asked about only while this process has the right to change them; without it, a change
        of them shows as a change of the capabilities.
        """
        umask, ignored, marks = _parse(text)
        before = self._may_move, self._asked
        self._may_move = _has(marks, _MOVERS)
        self._asked = self._namespaces if _has(marks, _CAP_SYS_ADMIN) else ()
        if (self._may_move, self._asked) != before:  # look at what it has the right to now, and no more
            return self.look()
        limits, cpus, nice, cgroup = seen[3:7]
        group, session = os.getpgrp(), os.getsid(0)
        rows = tuple([(number, *pair) for number, pair in zip(_LIMITS, limits, strict=True)])
        carried: Carried = (dict(environ), rows, tuple(sorted(cpus)), nice, group)
        last = None if self._last is None else self._last[1]
        if last is not None and last.carried == carried:
            carried = last.carried
        world = (*marks, session, cgroup, seen[8:], root)
        ambient = Ambient(carried, umask, ignored, world)
        self._last = ((seen, root), ambient)
        return ambient


_MARKS = (
    b"Uid", b"Gid", b"Groups", b"CapInh", b"CapPrm", b"CapEff", b"CapBnd", b"CapAmb", b"NoNewPrivs", b"Seccomp",
    b"Seccomp_filters",
)  # fmt: skip
_CAP_SYS_ADMIN = 1 << 21  # the right to change namespaces
_MOVERS = (1 << 18) | _CAP_SYS_ADMIN  # CAP_SYS_CHROOT: the right to change the root


def _has(marks: tuple[bytes, ...], capabilities: int) -> bool:
    """
    Whether this process has one of *capabilities*, or nobody can say.
    """
    effective = marks[_MARKS.index(b"CapEff")]
    return not effective or bool(int(effective, 16) & capabilities)


def _signals(mask: int) -> tuple[int, ...]:
    mask &= _TELLABLE
    return tuple([number for number in range(1, 65) if mask >> (number - 1) & 1]) if mask else ()


def _whole(fd: int) -> bytes:
    """
    All that a file of /proc says now; one read, unless there are hundreds of supplementary groups.
    """
    text = os.pread(fd, _READ_BYTES, 0)
    while len(text) and len(text) % _READ_BYTES == 0:
        more = os.pread(fd, _READ_BYTES, len(text))
        if not more:
            break
        text += more
    return text


def _parse(text: bytes) -> tuple[int, tuple[int, ...], tuple[bytes, ...]]:
    """
    Umask, ignored signals, and all that says with whose rights this process runs, from /proc/self/status.
    """
    fields = dict(line.split(b":", 1) for line in text.splitlines() if b":" in line)
    umask = fields.get(b"Umask")
    if umask is None:  # an emulation of Linux
        mask = os.umask(0o077)  # the only other way to read it; for a moment stricter, never laxer
        os.umask(mask)
    else:
        mask = int(umask, 8)
    return mask, _signals(int(fields.get(b"SigIgn", b"0"), 16)), tuple([fields.get(name, b"") for name in _MARKS])
