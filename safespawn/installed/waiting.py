"""
`os.waitpid` for programs that wait by it for what `subprocess.Popen` has started: as psutil does.

Such a process is the child of the zygote, and its pid stays reserved until its `Popen` has been told how it ended. So
whoever waits until the pid has gone, because waitpid knows no such child, would wait for ever.

Runs in: application, any thread.
"""

import os

from safespawn._core.status import encode_status
from safespawn.installed.popen import find

_standard = os.waitpid


def waitpid(pid: int, options: int, /) -> tuple[int, int]:
    """
    Wait for a child: one of the program's own, or a process of `subprocess.Popen` that nobody has waited for.

    Returns:
        As `os.waitpid`.
    """
    process = find(pid)
    if process is None:
        return _standard(pid, options)
    code = process.poll() if options & os.WNOHANG else process.wait()
    if code is None:
        return 0, 0
    return pid, encode_status(code)
