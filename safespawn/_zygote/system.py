"""
The system calls of the zygote that Python's `os` lacks, what /proc says of a process tree, and the failpoints.

`prctl` is reached through `_ctypes`, the C half of ctypes: the Python half costs more to import than the rest of the
zygote together. A build without it has no subreaper and no death signals; the hello says so.

Runs in: zygote, warden, and a forked child before exec.
Never: imports anything but C modules; waits.
"""

import os
import signal
import time

try:
    import _ctypes

    _PRCTL = _ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl")  # type: ignore[arg-type]  # None: this very program
except ImportError:  # a build of Python without libffi
    _ctypes = None  # type: ignore[assignment]
    _PRCTL = 0

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38


def has_prctl() -> bool:
    """
    Whether this Python can reach prctl(2).
    """
    return _ctypes is not None


def prctl(option: int, value: int) -> None:
    """
    Set an attribute of this process; all other arguments are 0.

    Raises:
        OSError: The kernel refuses, or this Python cannot reach prctl (ENOSYS).

    Source: prctl(2).
    """
    if _ctypes is None:
        raise OSError(38, "this Python is built without libffi")
    if _ctypes.call_function(_PRCTL, (option, value, 0, 0, 0)) != 0:
        raise OSError(22, f"prctl({option}, {value}) is refused")


def signal_quietly(pid: int, number: int) -> bool:
    """
    Send *number* to the child or the group (negative) *pid*; gone, or not ours to signal (setuid), is an answer.
    """
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


# --- the process tree ------------------------------------------------------------------------------------------------
def children(pid: int) -> list[int]:
    """
    The direct children of *pid*, zombies included; of a process that is gone, none.

    Source: proc_pid_children(5), which is exact while the children do not exit; where the kernel lacks it, a walk
    over every process.
    """
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    found: list[int] = []
    for task in tasks:
        text = _read(f"/proc/{pid}/task/{task}/children")
        if text is None:
            if os.path.exists("/proc/self/task") and not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
                return _children_by_walk(pid)
            continue
        found.extend(map(int, text.split()))
    return found


def _children_by_walk(parent: int) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            facts = stat(int(name))
            if facts is not None and facts[1] == parent:
                found.append(int(name))
    return found


def descendants(pid: int) -> dict[int, int]:
    """
    Everybody below *pid*, and when each was born.
    """
    found: dict[int, int] = {}
    frontier = [pid]
    while frontier:
        for child in children(frontier.pop()):
            facts = stat(child)
            if facts is not None and child not in found:
                found[child] = facts[5]
                frontier.append(child)
    return found


def stat(pid: int) -> tuple[str, int, int, int, int, int] | None:
    """
    State letter, parent, process group, session, controlling terminal (0: none) and time of birth (clock ticks) of
    *pid*; None when it is gone.

    Source: proc_pid_stat(5).
    """
    text = _read(f"/proc/{pid}/stat")
    if text is None:
        return None
    fields = text[text.rindex(b")") + 2 :].split(None, 20)
    return fields[0].decode(), int(fields[1]), int(fields[2]), int(fields[3]), int(fields[4]), int(fields[19])


def has_in_environment(pid: int, entry: bytes) -> bool:
    """
    Whether *pid* was exec'ed with *entry*, NAME=value, in its environment, or forked from somebody who was.

    Source: proc_pid_environ(5).
    """
    text = _read(f"/proc/{pid}/environ")
    return text is not None and b"\0" + entry + b"\0" in b"\0" + text + b"\0"


def _read(path: str) -> bytes | None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(fd, 65536):
            parts.append(part)
        return b"".join(parts)
    except OSError:  # ESRCH: it ended between open and read
        return None
    finally:
        os.close(fd)


def kill_tree(leader: int) -> int:
    """
    SIGKILL *leader*, an unreaped child of this process, and all its descendants; returns how many.

    A stopped parent neither forks nor reaps, so its children stay where they are and their pids stay theirs. So:
    stop from the top down until nothing new appears, then kill all that was stopped.
    """
    stopped: list[int] = []
    seen = {leader}
    frontier = [leader]
    while frontier:
        pid = frontier.pop()
        signal_quietly(pid, signal.SIGSTOP)
        stopped.append(pid)
        frontier += [child for child in children(pid) if child not in seen]
        seen.update(frontier)
        if not frontier:  # a fork may have been under way while its parent was told to stop
            frontier = [child for parent in stopped for child in children(parent) if child not in seen]
            seen.update(frontier)
    for pid in stopped:
        signal_quietly(pid, signal.SIGKILL)
    return len(stopped)


def kill_all_children(own_pid: int, deadline: float) -> None:
    """
    SIGKILL and reap until nobody is left below *own_pid*, or *deadline* (monotonic) has passed.
    """
    while pids := children(own_pid):
        for pid in pids:
            kill_tree(pid)
        for pid in pids:
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.001)  # SIGKILL takes effect within microseconds, or not at all


# --- failpoints ------------------------------------------------------------------------------------------------------
# SAFESPAWN_FAILPOINTS="zygote.after_spawn=kill,zygote.before_pipes=errno:24" makes the named step fail, so that tests
# can put a fault exactly there. Actions: kill, stop, exit, sleep:SECONDS, errno:NUMBER. With "#3" behind the action
# only the third passage fails. The names of those that did fail are written to the file SAFESPAWN_FAILPOINTS_LOG.
FAILPOINTS = (
    "zygote.booted", "zygote.got_spawn", "zygote.before_pipes", "zygote.before_spawn", "zygote.after_spawn",
    "zygote.before_started", "zygote.after_started", "zygote.before_exited", "zygote.after_exited",
    "zygote.before_reap", "zygote.after_reap", "child.before_setup", "child.before_exec",
)  # fmt: skip
WORKER_FAILPOINTS = (
    "worker.before_ready", "worker.after_ready", "worker.got_tasks", "worker.before_run", "worker.after_run",
    "worker.before_flush", "worker.after_flush", "worker.before_exit",
)  # fmt: skip
CLIENT_FAILPOINTS = ("client.before_send", "client.after_send", "client.before_recv", "client.after_recv")
armed: dict[str, tuple[str, int]] = {}  # empty: callers do not even call
_passages: dict[str, int] = {}


def arm_failpoints(text: str, points: tuple[str, ...] = FAILPOINTS) -> None:
    """
    Read the failpoints from *text*, the value of SAFESPAWN_FAILPOINTS; arm those of *points*, this side's.

    Raises:
        ValueError: A name that neither side has.
    """
    for item in filter(None, text.split(",")):
        name, _, action = item.partition("=")
        action, _, passage = action.partition("#")
        if name in points:
            armed[name] = (action, int(passage or 0))
        elif name not in FAILPOINTS + WORKER_FAILPOINTS + CLIENT_FAILPOINTS:
            raise ValueError(f"no failpoint {name!r}")


def failpoint(name: str) -> None:
    """
    Fail here, if SAFESPAWN_FAILPOINTS says so.
    """
    if name in armed:
        action, passage = armed[name]
        _passages[name] = _passages.get(name, 0) + 1
        if not passage or passage == _passages[name]:
            if path := os.environ.get("SAFESPAWN_FAILPOINTS_LOG"):
                fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                os.write(fd, name.encode() + b"\n")
                os.close(fd)
            fail(action)


def fail(action: str) -> None:
    """
    Carry out a failpoint's *action*.
    """
    verb, _, argument = action.partition(":")
    if verb == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif verb == "exit":
        os._exit(int(argument or 3))
    elif verb == "sleep":
        time.sleep(float(argument))
    elif verb == "errno":
        raise OSError(int(argument), os.strerror(int(argument)))
    else:
        raise ValueError(f"no failpoint action {action!r}")
