"""
What /proc says of processes that concern us; read only when something went wrong.

Runs in: application, any thread. Source: proc(5).
"""

import os


def looks(pid: int) -> tuple[str | None, str | None]:
    """
    State letter and kernel function of *pid*, each None where it cannot be read.
    """
    state = wchan = None
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b")")[2].split()[0].decode()
        with open(f"/proc/{pid}/wchan", "rb") as file:
            wchan = file.read().decode() or None
    except (OSError, IndexError):
        pass
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
