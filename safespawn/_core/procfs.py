"""
What /proc says of processes that concern us; read when something went wrong, and once for each worker.

Runs in: application, any thread. Source: proc(5).
"""

import os

_LISTEN = b"0A"  # TCP_LISTEN, as proc_net_tcp(5) has it


def stat_fields(pid: int) -> list[bytes]:
    """
    The fields of /proc/PID/stat from the state letter on, which is the third; none when *pid* is gone.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        return os.read(fd, 4096).rpartition(b")")[2].split()
    except OSError:
        return []
    finally:
        os.close(fd)


def stopped_before_exec(pid: int) -> list[int]:
    """
    The children of the one-threaded process *pid* that somebody has stopped before they became another program.
    """
    try:
        with open(f"/proc/{pid}/task/{pid}/children", "rb") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        return []
    return [each for each in children if stat_fields(each)[:1] in ([b"T"], [b"t"]) and command(each) == command(pid)]


def command(pid: int) -> bytes | None:
    """
    The arguments of *pid*, as they lie in memory; None when it is gone.
    """
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read()
    except OSError:
        return None


def birth(pid: int) -> int:
    """
    When *pid* was born, in clock ticks since the boot of the machine; 0 when it is gone.
    """
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def zombie_status(pid: int, born: int) -> int | None:
    """
    The wait status of *pid*, while it is the zombie of who was born then.
    """
    fields = stat_fields(pid)
    if fields and fields[0] in (b"Z", b"X") and int(fields[19]) == born:
        return int(fields[49])
    return None


def oom_kills() -> int | None:
    """
    How many processes the kernel has killed for want of memory in this control group; None where that cannot be read.

    Source: cgroup-v2, memory.events.
    """
    try:
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as file:  # a group has any name
            path = next((line.strip().partition("::")[2] for line in file if line.startswith("0::")), None)
        if path is None:
            return None
        with open(f"/sys/fs/cgroup{path}/memory.events", encoding="utf-8") as file:
            for line in file:
                name, _, value = line.partition(" ")
                if name == "oom_kill":
                    return int(value)
    except OSError:
        return None
    return None


def looks(pid: int) -> tuple[str | None, str | None]:
    """
    State letter and kernel function of *pid*, each None where it cannot be read.
    """
    fields = stat_fields(pid)
    state = fields[0].decode() if fields else None
    wchan = None
    try:
        with open(f"/proc/{pid}/wchan", "rb") as file:
            wchan = file.read().decode() or None
    except OSError:
        pass  # gone, or not ours to look at
    return state, wchan if wchan != "0" else None


def holders(fds: "tuple[int, ...] | list[int]", *, limit: int = 16) -> tuple[int, ...]:
    """
    The other processes, of those this user may look into, that hold an end of the pipes *fds*.
    """
    wanted = set()
    for fd in fds:
        try:
            wanted.add(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:
            continue
    found: list[int] = []
    own = str(os.getpid())
    if wanted:
        for name in os.listdir("/proc"):
            if name.isdigit() and name != own and _holds(name, wanted):
                found.append(int(name))
                if len(found) == limit:
                    break
    return tuple(sorted(found))


def _holds(name: str, wanted: set[str]) -> bool:
    directory = f"/proc/{name}/fd"
    try:
        for fd in os.listdir(directory):
            try:
                if os.readlink(f"{directory}/{fd}") in wanted:
                    return True
            except OSError:
                continue
    except OSError:
        return False
    return False


def listens(pid: int, port: int) -> bool:
    """
    Whether *pid*, or a process below it, holds a TCP socket that listens at *port*.
    """
    wanted: set[str] = set()
    for name in ("tcp", "tcp6"):
        try:
            with open(f"/proc/{pid}/net/{name}", "rb") as file:
                rows = [line.split() for line in file]
        except OSError:
            continue
        for row in rows[1:]:
            if row[3] == _LISTEN and int(row[1].rpartition(b":")[2], 16) == port:
                wanted.add(f"socket:[{int(row[9])}]")
    return bool(wanted) and any(_holds(str(each), wanted) for each in descendants(pid))


def descendants(pid: int) -> list[int]:
    """
    *pid*, and what it has started, as far as that still hangs together.
    """
    below: dict[int, list[int]] = {}
    try:
        names = os.listdir("/proc")
    except OSError:
        return [pid]
    for name in names:
        if name.isdecimal():
            fields = stat_fields(int(name))
            if fields:
                below.setdefault(int(fields[1]), []).append(int(name))
    found = [pid]
    for each in found:
        found += below.get(each, ())
    return found
