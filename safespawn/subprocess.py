"""
The standard library's `subprocess`, whose processes are the zygote's: change the import, and nothing else.

Every name of that module is here, the private ones too; what starts nothing is the very object. What differs on purpose
is told in docs/dropin.md.

Runs in: application, any thread.
"""

import subprocess as _standard
import typing  # and no name from it: what has no underscore here is public, as in the standard module
from subprocess import (
    DEVNULL,
    PIPE,
    STDOUT,
    CalledProcessError,
    CompletedProcess,
    SubprocessError,
    TimeoutExpired,
)

from safespawn._popen import Popen
from safespawn._subprocess import call, check_call, check_output, getoutput, getstatusoutput, run


def __getattr__(name: str) -> typing.Any:
    return getattr(_standard, name)


__all__ = [
    "DEVNULL",
    "PIPE",
    "STDOUT",
    "CalledProcessError",
    "CompletedProcess",
    "Popen",
    "SubprocessError",
    "TimeoutExpired",
    "call",
    "check_call",
    "check_output",
    "getoutput",
    "getstatusoutput",
    "run",
]
