"""
safespawn: start processes from a clean zygote, so that threads, locks and pipes of this program cannot hang them.

The door. Importing it starts nothing and loads next to nothing; each name is loaded when it is first used.
"""

import sys
from typing import TYPE_CHECKING, Any

from safespawn import _recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from safespawn import asyncio_subprocess as asyncio_subprocess
    from safespawn import errors as errors
    from safespawn import events as events
    from safespawn import futures as futures
    from safespawn import guard as guard
    from safespawn import multiprocessing as multiprocessing
    from safespawn import subprocess as subprocess
    from safespawn._core.restart import Backoff as Backoff
    from safespawn._core.status import CompletedProcess as CompletedProcess
    from safespawn._functions import acheck_output as acheck_output
    from safespawn._functions import arun as arun
    from safespawn._functions import call as call
    from safespawn._functions import check_call as check_call
    from safespawn._functions import check_output as check_output
    from safespawn._functions import run as run
    from safespawn._functions import statistics as statistics
    from safespawn._worker.carried import Returned as Returned
    from safespawn._worker.current import current_worker as current_worker
    from safespawn._worker.within import beat as beat
    from safespawn._worker.within import ready as ready
    from safespawn._worker.within import stop_requested as stop_requested
    from safespawn.apool import AsyncPool as AsyncPool
    from safespawn.aprocess import AsyncProcess as AsyncProcess
    from safespawn.aprocess import aopen_process as aopen_process
    from safespawn.asupervisor import AsyncChild as AsyncChild
    from safespawn.asupervisor import AsyncSupervisor as AsyncSupervisor
    from safespawn.child_errors import ChildFailed as ChildFailed
    from safespawn.child_errors import ChildNotReady as ChildNotReady
    from safespawn.child_errors import ChildrenGaveUp as ChildrenGaveUp
    from safespawn.children import Child as Child
    from safespawn.context import Process as Process
    from safespawn.context import get_context as get_context
    from safespawn.errors import CalledProcessError as CalledProcessError
    from safespawn.errors import OrderError as OrderError
    from safespawn.errors import SafespawnError as SafespawnError
    from safespawn.errors import SpawnError as SpawnError
    from safespawn.errors import SpawnLost as SpawnLost
    from safespawn.errors import ThreadOrderWarning as ThreadOrderWarning
    from safespawn.errors import TimeoutExpired as TimeoutExpired
    from safespawn.executor import Executor as Executor
    from safespawn.installed import install as install
    from safespawn.installed import uninstall as uninstall
    from safespawn.pool import Pool as Pool
    from safespawn.pool import PoolEvent as PoolEvent
    from safespawn.pool_errors import CrashLoop as CrashLoop
    from safespawn.pool_errors import InitializerFailed as InitializerFailed
    from safespawn.pool_errors import MainReentered as MainReentered
    from safespawn.pool_errors import PoolClosed as PoolClosed
    from safespawn.pool_errors import PreloadError as PreloadError
    from safespawn.pool_errors import RemoteError as RemoteError
    from safespawn.pool_errors import TaskCancelled as TaskCancelled
    from safespawn.pool_errors import TaskTimeout as TaskTimeout
    from safespawn.pool_errors import UnpicklableResult as UnpicklableResult
    from safespawn.pool_errors import UnpicklableTask as UnpicklableTask
    from safespawn.pool_errors import WaitInCallback as WaitInCallback
    from safespawn.pool_errors import WorkerDied as WorkerDied
    from safespawn.pool_errors import WorkerMemoryExceeded as WorkerMemoryExceeded
    from safespawn.pool_errors import WrongLoop as WrongLoop
    from safespawn.process import Popen as Popen
    from safespawn.process import open_process as open_process
    from safespawn.supervisor import Supervisor as Supervisor
    from safespawn.supervisor import init as init

__version__ = "0.1.0"

PIPE = -1  # as in subprocess
STDOUT = -2
DEVNULL = -3

_HOMES = {
    "AsyncChild": "asupervisor",
    "AsyncPool": "apool",
    "AsyncProcess": "aprocess",
    "AsyncSupervisor": "asupervisor",
    "Backoff": "_core.restart",
    "CalledProcessError": "errors",
    "Child": "children",
    "ChildFailed": "child_errors",
    "ChildNotReady": "child_errors",
    "ChildrenGaveUp": "child_errors",
    "CompletedProcess": "_core.status",
    "CrashLoop": "pool_errors",
    "Executor": "executor",
    "InitializerFailed": "pool_errors",
    "MainReentered": "pool_errors",
    "OrderError": "errors",
    "Pool": "pool",
    "PoolClosed": "pool_errors",
    "PoolEvent": "pool",
    "Popen": "process",
    "PreloadError": "pool_errors",
    "Process": "context",
    "RemoteError": "pool_errors",
    "Returned": "_worker.carried",
    "SafespawnError": "errors",
    "SpawnError": "errors",
    "SpawnLost": "errors",
    "Supervisor": "supervisor",
    "TaskCancelled": "pool_errors",
    "TaskTimeout": "pool_errors",
    "ThreadOrderWarning": "errors",
    "TimeoutExpired": "errors",
    "UnpicklableResult": "pool_errors",
    "UnpicklableTask": "pool_errors",
    "WaitInCallback": "pool_errors",
    "WorkerDied": "pool_errors",
    "WorkerMemoryExceeded": "pool_errors",
    "WrongLoop": "pool_errors",
    "acheck_output": "_functions",
    "aopen_process": "aprocess",
    "arun": "_functions",
    "beat": "_worker.within",
    "call": "_functions",
    "check_call": "_functions",
    "check_output": "_functions",
    "current_worker": "_worker.current",
    "get_context": "context",
    "init": "supervisor",
    "install": "installed",
    "open_process": "process",
    "ready": "_worker.within",
    "run": "_functions",
    "statistics": "_functions",
    "stop_requested": "_worker.within",
    "uninstall": "installed",
}
_MODULES = ("errors", "events", "guard")
_DROP_INS = ("asyncio_subprocess", "futures", "multiprocessing", "subprocess")  # no `import *` shall bring these

__all__ = [
    "DEVNULL", "PIPE", "STDOUT",
    "AsyncChild", "AsyncPool", "AsyncProcess", "AsyncSupervisor", "Backoff", "CalledProcessError", "Child",
    "ChildFailed", "ChildNotReady", "ChildrenGaveUp", "CompletedProcess", "CrashLoop", "Executor", "InitializerFailed",
    "MainReentered", "OrderError", "Pool", "PoolClosed", "PoolEvent", "Popen", "PreloadError", "Process", "RemoteError",
    "Returned", "SafespawnError", "SpawnError", "SpawnLost", "Supervisor", "TaskCancelled", "TaskTimeout",
    "ThreadOrderWarning", "TimeoutExpired", "UnpicklableResult", "UnpicklableTask", "WaitInCallback", "WorkerDied",
    "WorkerMemoryExceeded", "WrongLoop",
    "acheck_output", "aopen_process", "arun", "beat", "call", "check_call", "check_output", "current_worker", "errors",
    "events", "get_context", "guard", "init", "install", "open_process", "ready", "run", "statistics", "stop_requested",
    "uninstall",
]  # fmt: skip

_recorder.install()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name, name if name in (*_MODULES, *_DROP_INS) else None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _import(f"{__name__}.{home}")
    module = sys.modules[f"{__name__}.{home}"]
    value = module if home == name else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_import: "Callable[[str], Any]" = __import__
