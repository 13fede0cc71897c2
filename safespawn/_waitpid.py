"""
`os.waitpid` for programs that wait by it for what `subprocess.Popen` has started: as psutil and asyncio do.

Such a process is the child of the zygote, and its pid stays reserved until its `Popen` has been told how it ended. So
whoever waits until the pid has gone, because waitpid knows no such child, would wait for ever. With the first process
the function is put in the place of the standard one; for every other child it is that.

Runs in: application, any thread.
"""

import os
import weakref
from typing import Any

from safespawn._core.status import encode_status

_standard = os.waitpid
_by_pid: "weakref.WeakValueDictionary[int, Any]" = weakref.WeakValueDictionary()


def know(process: Any) -> None:
    """
    From now on `os.waitpid` knows *process*, as long as somebody holds it and its ``is_unreaped()`` is true.
    """
    _by_pid[process.pid] = process
    if os.waitpid is _standard:  # else it is ours, or somebody's who will call what was there
        os.waitpid = waitpid


def detach() -> None:
    """
    Put the standard function back, until the next start.
    """
    if os.waitpid is waitpid:
        os.waitpid = _standard


def waitpid(pid: int, options: int, /) -> tuple[int, int]:
    """
    Wait for a child: one of the program's own, or a process of `subprocess.Popen` that nobody has waited for.

    Returns:
        As `os.waitpid`.
    """
    process = _by_pid.get(pid)
    if process is None or not process.is_unreaped():
        return _standard(pid, options)
    code: int | None = process.reap(wait=not options & os.WNOHANG)
    return (0, 0) if code is None else (pid, encode_status(code))
