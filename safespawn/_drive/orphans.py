"""
Orphans that the kernel gives to this process: as the first process of a container, or as a subreaper.

Somebody must reap them, and nobody in the application does. But the application may ask for the status of what it has
started itself, today or in an hour, so a child of its own is never touched. How they are told apart: a child is born
in the session of its parent, and can leave it only by becoming the leader of a session of its own. A zombie that is in
another session, and does not lead it, was started by somebody else, and came here when that one ended.

    this process's own session          may be its child: left alone
    leader of a session of its own      may be its child: left alone
    any other                           an orphan: reaped

The sessions of this process itself are known: one that leads none has never changed it; one that does can change it
no more, and was in another one before at the most. For the first process of a container that is one outside, which is
seen as 0. For any other leader it is unknown, so there only what was born later is reaped.

A zombie is reaped at the second look that finds it: who knows it by its number, and reads its status in /proc, has
that long. It is held by its pidfd meanwhile, so that no other process can be meant.

Runs in: application, where the pump runs.
Source: credentials(7), setsid(2), proc_pid_stat(5), waitid(2), PR_GET_CHILD_SUBREAPER.
"""

import os
import time
from collections.abc import Collection

import attrs

from safespawn._core.procfs import stat_fields

LOOK_SECONDS = 5.0  # between two looks; a zombie costs a number of a process, and nothing else
_PR_GET_CHILD_SUBREAPER = 37
_ANY_TIME = -1


@attrs.frozen
class Zombie:
    """
    A child of this process that has ended.

    Attributes:
        pid: Its process id.
        session: The leader of its session; 0: outside of this namespace.
        born: In clock ticks since the boot of the machine.
    """

    pid: int
    session: int
    born: int


@attrs.frozen
class Kin:
    """
    By what a child of this process's own may be known.

    Attributes:
        sessions: Those that this process is in, or was.
        since: Whoever was born at this time (clock ticks) or before may be in another one.
    """

    sessions: frozenset[int]
    since: int

    @classmethod
    def of(cls, pid: int, session: int, now: int) -> "Kin":
        """
        What is known of the process *pid*, at the first look, at the time *now*.
        """
        if pid == 1:
            return cls(frozenset((0, session)), _ANY_TIME)
        return cls(frozenset((session,)), now if session == pid else _ANY_TIME)


def is_adopted(zombie: Zombie, kin: Kin, session: int) -> bool:
    """
    Whether *zombie* cannot have been started by this process, which is in *session* now.
    """
    mine = zombie.session == session or zombie.session in kin.sessions or zombie.session == zombie.pid
    return not mine and zombie.born > kin.since


def inherits_orphans() -> bool:
    """
    Whether the kernel gives orphans to this process.
    """
    if os.getpid() == 1:
        return True
    try:
        import ctypes

        found = ctypes.c_int()
        return bool(ctypes.CDLL(None).prctl(_PR_GET_CHILD_SUBREAPER, ctypes.byref(found), 0, 0, 0) == 0 and found.value)
    except (ImportError, OSError, AttributeError):  # a Python without libffi
        return False


class Orphanage:
    """
    The looks.

    Attributes:
        reaped: How many were.
    """

    def __init__(self) -> None:
        ticks = int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))
        self.kin: Kin = Kin.of(os.getpid(), os.getsid(0), ticks)
        self.reaped: int = 0
        self._seen: frozenset[Zombie] = frozenset()

    def look(self) -> None:
        """
        Reap the orphans that were there at the last look already.
        """
        session = os.getsid(0)
        found = frozenset(each for each in zombies() if is_adopted(each, self.kin, session))
        self.reaped += sum(reap(each) for each in found & self._seen)
        self._seen = found


def zombies() -> list[Zombie]:
    """
    The children of this process that have ended.
    """
    own = str(os.getpid()).encode()
    found = []
    for pid in children():
        fields = stat_fields(pid)
        if fields and fields[0] == b"Z" and fields[1] == own:
            found.append(Zombie(pid, int(fields[3]), int(fields[19])))
    return found


def children() -> Collection[int]:
    """
    The children of all threads of this process; of a kernel that does not list them, all processes.
    """
    found: set[int] = set()
    try:
        for task in os.listdir("/proc/self/task"):
            try:
                with open(f"/proc/self/task/{task}/children", "rb") as file:
                    found.update(map(int, file.read().split()))
            except (FileNotFoundError, ProcessLookupError):
                if task == str(os.getpid()):  # not a thread that has just ended
                    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return found  # no descriptor left, or no /proc: the next look will do
    return found


def reap(zombie: Zombie) -> bool:
    """
    Reap *zombie*, and nobody who has its number by now. Says whether that was done.
    """
    try:
        pidfd = os.pidfd_open(zombie.pid)
    except OSError:
        return False
    try:
        fields = stat_fields(zombie.pid)  # of the process that the descriptor means, or of one that came later
        if not fields or int(fields[19]) != zombie.born:
            return False
        return os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG) is not None
    except ChildProcessError:
        return False  # somebody else was quicker
    finally:
        os.close(pidfd)
