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
from typing import TYPE_CHECKING, Any

from safespawn import _policy
from safespawn import context as _ours
from safespawn.context import START_METHOD

if TYPE_CHECKING:  # what is bound to the context of this module, below
    from multiprocessing import Array as Array
    from multiprocessing import AuthenticationError as AuthenticationError
    from multiprocessing import Barrier as Barrier
    from multiprocessing import BoundedSemaphore as BoundedSemaphore
    from multiprocessing import BufferTooShort as BufferTooShort
    from multiprocessing import Condition as Condition
    from multiprocessing import Event as Event
    from multiprocessing import JoinableQueue as JoinableQueue
    from multiprocessing import Lock as Lock
    from multiprocessing import Manager as Manager
    from multiprocessing import Pipe as Pipe
    from multiprocessing import Pool as Pool
    from multiprocessing import ProcessError as ProcessError
    from multiprocessing import Queue as Queue
    from multiprocessing import RawArray as RawArray
    from multiprocessing import RawValue as RawValue
    from multiprocessing import RLock as RLock
    from multiprocessing import Semaphore as Semaphore
    from multiprocessing import SimpleQueue as SimpleQueue
    from multiprocessing import TimeoutError as TimeoutError  # noqa: A004 - the standard name
    from multiprocessing import Value as Value
    from multiprocessing import active_children as active_children
    from multiprocessing import allow_connection_pickling as allow_connection_pickling
    from multiprocessing import cpu_count as cpu_count
    from multiprocessing import current_process as current_process
    from multiprocessing import freeze_support as freeze_support
    from multiprocessing import get_all_start_methods as get_all_start_methods
    from multiprocessing import get_context as get_context
    from multiprocessing import get_logger as get_logger
    from multiprocessing import get_start_method as get_start_method
    from multiprocessing import log_to_stderr as log_to_stderr
    from multiprocessing import parent_process as parent_process
    from multiprocessing import reducer as reducer
    from multiprocessing import set_executable as set_executable
    from multiprocessing import set_forkserver_preload as set_forkserver_preload
    from multiprocessing import set_start_method as set_start_method

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
        if not isinstance(module_names, str):
            module_names = list(module_names)  # it may be readable only once
        _ours.get_context().set_forkserver_preload(module_names)
        _contexts.BaseContext.set_forkserver_preload(self, list(module_names))


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


for _name in _standard.__all__:
    if _name != "Process":
        globals()[_name] = getattr(_default, _name)


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"{__name__}.{name}")
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
