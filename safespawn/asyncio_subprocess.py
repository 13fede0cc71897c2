"""
The standard library's `asyncio.subprocess`, whose processes are the zygote's; on asyncio's loops and uvloop.

asyncio's own classes stand in front: its `Process`, its streams, its transport. Replaced is what starts the process,
and how its end is known: by a pidfd that the loop reads, so there is no child watcher, no thread and no signal handler.

Runs in: application, a task.
"""

# A transport of asyncio's is a subclass of what it keeps private; that has been the same since CPython 3.4.
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false

import os
from asyncio import base_subprocess, events, streams
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process, SubprocessStreamProtocol
from typing import Any

from safespawn._subprocess import popen_class
from safespawn.errors import SpawnLost

_LIMIT: int = getattr(streams, "_DEFAULT_LIMIT", 2**16)
_UNKNOWN_CODE = 255  # what asyncio's own watchers say of a process whose end nobody can tell
_base: Any = base_subprocess.BaseSubprocessTransport


class Transport(base_subprocess.BaseSubprocessTransport):
    """
    A process and its pipes, in an event loop.
    """

    _pidfd = -1
    _proc: Any
    _loop: Any

    def _start(self, **options: Any) -> None:  # type: ignore[override]  # by keyword, as it is called
        self._proc = popen_class()(universal_newlines=False, **options)
        self._pidfd = os.pidfd_open(self._proc.pid)
        self._loop.add_reader(self._pidfd, self._ended)

    def _ended(self) -> None:
        self._forget_pidfd()
        try:
            code = self._proc.wait()
        except SpawnLost as error:
            code = _UNKNOWN_CODE
            self._loop.call_exception_handler({"message": "how a process ended is unknown", "exception": error})
        self._process_exited(code)

    def _forget_pidfd(self) -> None:
        fd, self._pidfd = self._pidfd, -1
        if fd >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(fd)
            os.close(fd)

    def send_signal(self, signal: int) -> None:
        """
        Signal the process; nothing happens when it has ended.
        """
        self._check_proc()
        self._proc.send_signal(signal)

    def __del__(self) -> None:
        if self._loop is not None and self._pidfd >= 0 and self._loop.is_closed():
            os.close(self._pidfd)
            self._pidfd = -1
        _base.__del__(self)


async def make_transport(  # noqa: PLR0917 - as asyncio calls it
    loop: Any, protocol: Any, args: Any, shell: bool, stdin: Any, stdout: Any, stderr: Any,  # noqa: FBT001 - as asyncio
    bufsize: int, extra: Any = None, **options: Any,
) -> Any:  # fmt: skip
    """
    Start a process; what `loop.subprocess_exec` and `loop.subprocess_shell` of asyncio's loops are built on.
    """
    waiter = loop.create_future()
    transport: Any = Transport(
        loop, protocol, args, shell, stdin, stdout, stderr, bufsize, waiter=waiter, extra=extra, **options
    )
    try:
        await waiter
    except (SystemExit, KeyboardInterrupt):
        raise
    except BaseException:
        transport.close()
        await transport._wait()
        raise
    return transport


def _check(options: dict[str, Any], *, shell: bool) -> dict[str, Any]:
    """
    Streams of asyncio are bytes, and unbuffered.
    """
    wanted = {"universal_newlines": False, "shell": shell, "bufsize": 0, "text": None, "encoding": None, "errors": None}
    for name, value in wanted.items():
        if name in options and (options[name] or None) != (value or None):
            raise ValueError(f"{name} must be {value}")
    return {name: value for name, value in options.items() if name not in wanted}


async def _create(args: Any, limit: int, options: dict[str, Any], *, shell: bool) -> Process:
    loop = events.get_running_loop()
    checked = _check(options, shell=shell)
    protocol = SubprocessStreamProtocol(limit=limit, loop=loop)
    ends = [checked.pop(name, None) for name in ("stdin", "stdout", "stderr")]
    transport = await make_transport(loop, protocol, args, shell, ends[0], ends[1], ends[2], 0, **checked)
    return Process(transport, protocol, loop)


async def create_subprocess_exec(
    program: Any,
    *args: Any,
    stdin: Any = None,
    stdout: Any = None,
    stderr: Any = None,
    limit: int = _LIMIT,
    **kwds: Any,
) -> Process:
    """
    Start a program; as `asyncio.create_subprocess_exec`.
    """
    return await _create(
        (program, *args), limit, {"stdin": stdin, "stdout": stdout, "stderr": stderr, **kwds}, shell=False
    )


async def create_subprocess_shell(
    cmd: Any, stdin: Any = None, stdout: Any = None, stderr: Any = None, limit: int = _LIMIT, **kwds: Any
) -> Process:
    """
    Have a shell execute a command; as `asyncio.create_subprocess_shell`.
    """
    if not isinstance(cmd, (str, bytes)):
        raise ValueError("cmd must be a string")  # noqa: TRY004 - as asyncio
    return await _create(cmd, limit, {"stdin": stdin, "stdout": stdout, "stderr": stderr, **kwds}, shell=True)  # noqa: S604 - asked for


__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "Process",
    "SubprocessStreamProtocol",
    "create_subprocess_exec",
    "create_subprocess_shell",
]
