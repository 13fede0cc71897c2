"""
How a process ended and what it used.

Runs in: application, any thread.
"""

import os
import resource
import subprocess
from typing import Any, NamedTuple

Usage = tuple[float, ...]  # the sixteen fields of getrusage(2), in order


# subprocess's returncode for a raw wait status: the exit code, or -N for signal N.
decode_status = os.waitstatus_to_exitcode


def encode_status(returncode: int) -> int:
    """
    The wait status that `decode_status` makes *returncode* of.
    """
    return returncode << 8 if returncode >= 0 else -returncode


def struct_rusage(usage: Usage | None) -> resource.struct_rusage | None:
    """
    *usage* as the record that `os.wait4` gives.
    """
    return None if usage is None else resource.struct_rusage(usage)


class CompletedProcess(subprocess.CompletedProcess[Any]):
    """
    A command that has ended.

    Attributes:
        args: The command, as it was given.
        returncode: Its exit code, or -N when signal N ended it.
        stdout: What was captured, bytes or str, or None.
        stderr: As stdout.
        pid: The process id that it had.
        duration: Seconds from the request to the exit.
        rusage: Resources used by it and the children that it waited for (`resource.struct_rusage`: ``ru_utime`` and
            ``ru_stime`` in seconds, ``ru_maxrss`` in KiB), or None where nobody could say.
        held_by: Processes that held the output open when the command had ended and its grace was over: what they
            write later is not in stdout or stderr. Empty when the output is complete.
    """

    def __init__(
        self,
        args: Any,
        returncode: int,
        stdout: Any = None,
        stderr: Any = None,
        *,
        pid: int = 0,
        duration: float = 0.0,
        usage: Usage | None = None,
        held_by: tuple[int, ...] = (),
    ) -> None:
        self.args = args
        self.returncode = returncode
        self.stdout = stdout
        self.stderr = stderr
        self.pid = pid
        self.duration = duration
        self.held_by = held_by
        self._usage = usage

    @property
    def rusage(self) -> resource.struct_rusage | None:
        """
        Resources used, or None where nobody could say.
        """
        return struct_rusage(self._usage)

    def __repr__(self) -> str:
        text = super().__repr__()
        if self.held_by:
            return f"{text[:-1]}, held_by={self.held_by!r})"
        return text

    def check_returncode(self) -> None:
        """
        Raise `safespawn.CalledProcessError` if the exit code is not zero.
        """
        if self.returncode:
            from safespawn.errors import CalledProcessError

            raise CalledProcessError(
                self.returncode, self.args, self.stdout, self.stderr,
                pid=self.pid, duration=self.duration, rusage=self.rusage,
            )  # fmt: skip


class Outcome(NamedTuple):
    """
    What a command flow ends with, before the face makes it a `CompletedProcess`.
    """

    returncode: int
    stdout: bytes | None
    stderr: bytes | None
    pid: int
    duration: float
    usage: Usage | None
    held_by: tuple[int, ...] = ()
