"""
safespawn: start processes from a clean zygote, so that threads, locks and pipes of this program cannot hang them.

The door. Importing it starts nothing and loads next to nothing; each name is loaded when it is first used.
"""

import sys
from typing import TYPE_CHECKING, Any

from safespawn import _recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from safespawn import errors as errors
    from safespawn import guard as guard
    from safespawn._core.status import CompletedProcess as CompletedProcess
    from safespawn._functions import acheck_output as acheck_output
    from safespawn._functions import arun as arun
    from safespawn._functions import call as call
    from safespawn._functions import check_call as check_call
    from safespawn._functions import check_output as check_output
    from safespawn._functions import run as run
    from safespawn._functions import statistics as statistics
    from safespawn.aprocess import AsyncProcess as AsyncProcess
    from safespawn.aprocess import aopen_process as aopen_process
    from safespawn.errors import CalledProcessError as CalledProcessError
    from safespawn.errors import OrderError as OrderError
    from safespawn.errors import SafespawnError as SafespawnError
    from safespawn.errors import SpawnError as SpawnError
    from safespawn.errors import SpawnLost as SpawnLost
    from safespawn.errors import ThreadOrderWarning as ThreadOrderWarning
    from safespawn.errors import TimeoutExpired as TimeoutExpired
    from safespawn.process import Popen as Popen
    from safespawn.process import open_process as open_process
    from safespawn.supervisor import Supervisor as Supervisor
    from safespawn.supervisor import init as init

__version__ = "0.1.0"

PIPE = -1  # as in subprocess
STDOUT = -2
DEVNULL = -3

_HOMES = {
    "AsyncProcess": "aprocess",
    "CalledProcessError": "errors",
    "CompletedProcess": "_core.status",
    "OrderError": "errors",
    "Popen": "process",
    "SafespawnError": "errors",
    "SpawnError": "errors",
    "SpawnLost": "errors",
    "Supervisor": "supervisor",
    "ThreadOrderWarning": "errors",
    "TimeoutExpired": "errors",
    "acheck_output": "_functions",
    "aopen_process": "aprocess",
    "arun": "_functions",
    "call": "_functions",
    "check_call": "_functions",
    "check_output": "_functions",
    "init": "supervisor",
    "open_process": "process",
    "run": "_functions",
    "statistics": "_functions",
}
_MODULES = ("errors", "guard")

__all__ = [
    "DEVNULL", "PIPE", "STDOUT",
    "AsyncProcess", "CalledProcessError", "CompletedProcess", "OrderError", "Popen", "SafespawnError", "SpawnError",
    "SpawnLost", "Supervisor", "ThreadOrderWarning", "TimeoutExpired",
    "acheck_output", "aopen_process", "arun", "call", "check_call", "check_output", "errors", "guard", "init",
    "open_process", "run", "statistics",
]  # fmt: skip

_recorder.install()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name, name if name in _MODULES else None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _import(f"{__name__}.{home}")
    module = sys.modules[f"{__name__}.{home}"]
    value = module if name in _MODULES else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_import: "Callable[[str], Any]" = __import__
