"""
The standard library's `multiprocessing`, whose processes are forked from a clean template: change the import.

Locks, queues, shared memory and managers are the standard ones, made for such processes; `Pool` is this library's. The
default start method of this module is "safespawn", whatever the standard module's is: setting one here does not touch
that, nor the other way round.

Runs in: application, any thread; processes, which may start processes of their own.
"""

# What multiprocessing keeps private is what its own module is made of.
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false

import multiprocessing as _standard
import multiprocessing.context as _contexts
import multiprocessing.process as _processes
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

from safespawn import _policy
from safespawn import context as _ours
from safespawn.context import START_METHOD

_SUBMODULES = frozenset(
    "connection context dummy managers pool process queues reduction "
    "shared_memory sharedctypes synchronize util".split()
)
_concrete: Any = vars(_contexts)["_concrete_contexts"]


class Process(_processes.BaseProcess):
    """
    `multiprocessing.Process`, by this module's start method.
    """

    _start_method = None

    @staticmethod
    def _Popen(process_obj: _processes.BaseProcess) -> Any:  # noqa: N802 - multiprocessing's name
        return _kind()._Popen(process_obj)

    @staticmethod
    def _after_fork() -> None:
        _kind()._after_fork()


class Context(_ours.SafespawnContext):
    """
    `safespawn.get_context()` with this library's pool.
    """

    def Pool(  # noqa: N802 - multiprocessing's name
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> Any:
        """
        Make a pool of worker processes: a `safespawn.Pool`.
        """
        from safespawn.multiprocessing.pool import Pool

        return Pool(processes, initializer, initargs, maxtasksperchild, context=self)

    def set_forkserver_preload(self, module_names: Iterable[str]) -> None:
        """
        Import these modules once, in the template that the processes are forked from, instead of in each of them.
        """
        names = list(module_names)
        _ours.get_context().set_forkserver_preload(names)
        _contexts.BaseContext.set_forkserver_preload(self, names)


class _Default(_contexts.DefaultContext):
    """
    The context that the names of this module belong to. Its start method can be set once, as the standard one's.
    """

    Process = Process  # type: ignore[assignment]  # as the standard one has its own

    def Pool(  # noqa: N802 - multiprocessing's name
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> Any:
        """
        Make a pool of worker processes: a `safespawn.Pool`, unless another start method was chosen.
        """
        return self.get_context().Pool(processes, initializer, initargs, maxtasksperchild)

    def get_context(self, method: str | None = None) -> Any:
        """
        The context of a start method; by default that of this module.

        Warns:
            UnsafeStartWarning: It is "fork", and the guard has no other policy for that.
        """
        if method == START_METHOD:
            return _context
        if method == "fork":  # chosen by name it is to be had
            _policy.meet("start-method", 'multiprocessing\'s start method "fork" is asked for', default="warn")
            return _concrete[method]
        return super().get_context(method)

    def set_forkserver_preload(self, module_names: Iterable[str]) -> None:
        """
        Import these modules once, where processes are forked from.
        """
        _context.set_forkserver_preload(module_names)

    def get_all_start_methods(self) -> list[str]:
        """
        The start methods that there are, the default first.
        """
        return [START_METHOD, *(name for name in super().get_all_start_methods() if name != START_METHOD)]


_context = Context()
_default = _Default(_context)


def _kind() -> Any:
    """
    The class of the processes that are started now.
    """
    return _default.get_context().Process


Array = _default.Array
AuthenticationError = _default.AuthenticationError
Barrier = _default.Barrier
BoundedSemaphore = _default.BoundedSemaphore
BufferTooShort = _default.BufferTooShort
Condition = _default.Condition
Event = _default.Event
JoinableQueue = _default.JoinableQueue
Lock = _default.Lock
Manager = _default.Manager
Pipe = _default.Pipe
Pool = _default.Pool
ProcessError = _default.ProcessError
Queue = _default.Queue
RLock = _default.RLock
RawArray = _default.RawArray
RawValue = _default.RawValue
Semaphore = _default.Semaphore
SimpleQueue = _default.SimpleQueue
TimeoutError = _default.TimeoutError  # noqa: A001 - the standard name
Value = _default.Value
active_children = _default.active_children
allow_connection_pickling = _default.allow_connection_pickling
cpu_count = _default.cpu_count
current_process = _default.current_process
freeze_support = _default.freeze_support
get_all_start_methods = _default.get_all_start_methods
get_context = _default.get_context
get_logger = _default.get_logger
get_start_method = _default.get_start_method
log_to_stderr = _default.log_to_stderr
parent_process = _default.parent_process
reducer = _default.reducer
set_executable = _default.set_executable
set_forkserver_preload = _default.set_forkserver_preload
set_start_method = _default.set_start_method


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
    if name in _standard.__all__:  # of a Python that is newer than this module
        return getattr(_default, name)
    return getattr(_standard, name)


_ours.preloaded.append(__name__)  # its Process is unpickled in each process

__all__ = [
    "START_METHOD",
    "Array",
    "AuthenticationError",
    "Barrier",
    "BoundedSemaphore",
    "BufferTooShort",
    "Condition",
    "Event",
    "JoinableQueue",
    "Lock",
    "Manager",
    "Pipe",
    "Pool",
    "Process",
    "ProcessError",
    "Queue",
    "RLock",
    "RawArray",
    "RawValue",
    "Semaphore",
    "SimpleQueue",
    "TimeoutError",
    "Value",
    "active_children",
    "allow_connection_pickling",
    "cpu_count",
    "current_process",
    "freeze_support",
    "get_all_start_methods",
    "get_context",
    "get_logger",
    "get_start_method",
    "log_to_stderr",
    "parent_process",
    "reducer",
    "set_executable",
    "set_forkserver_preload",
    "set_start_method",
]
