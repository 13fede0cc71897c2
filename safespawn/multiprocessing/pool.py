"""
`multiprocessing.pool` with the pool of this library; all else of that module is here as it is.

Runs in: application, any thread.
"""

import multiprocessing.pool
from multiprocessing.pool import ApplyResult, AsyncResult, IMapIterator, IMapUnorderedIterator, MapResult, ThreadPool
from typing import Any

from safespawn import pool as ours
from safespawn._workers import WorkerProcess, present

Standard: Any = multiprocessing.pool.Pool


class _Kind(type):
    """
    The class of `Pool`. Whoever derives from the standard pool builds on what it keeps private, so what is derived from
    this one is derived from that one; and the standard module, in which this one has that one's name, finds there what
    it looks for.
    """

    def __new__(cls, name: str, bases: tuple[Any, ...], body: dict[str, Any], **options: Any) -> Any:
        if not any(isinstance(base, _Kind) for base in bases):
            return super().__new__(cls, name, bases, body)
        replaced = tuple([Standard if isinstance(base, _Kind) else base for base in bases])
        return type(Standard)(name, replaced, body, **options)

    def __getattr__(cls, name: str) -> Any:
        return getattr(Standard, name)

    def __instancecheck__(cls, instance: Any) -> bool:
        return type.__instancecheck__(cls, instance) or isinstance(instance, Standard)

    def __subclasscheck__(cls, subclass: Any) -> bool:
        return type.__subclasscheck__(cls, subclass) or issubclass(subclass, Standard)


class Pool(ours.Pool, metaclass=_Kind):
    """
    `safespawn.Pool`, by the name of the standard one.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        if isinstance(self, Standard):  # ThreadPool has been derived from that one, and calls this one
            Standard.__init__(self, *args, **options)
        else:
            super().__init__(*args, **options)

    @property
    def _pool(self) -> list[WorkerProcess]:
        """
        The standard's name, which programs read for the workers' pids. They are started by that, if none was before.
        """
        self._crew.start(main=False)
        return present(self._crew)


def __getattr__(name: str) -> Any:
    return getattr(multiprocessing.pool, name)


__all__ = [
    "ApplyResult",
    "AsyncResult",
    "IMapIterator",
    "IMapUnorderedIterator",
    "MapResult",
    "Pool",
    "ThreadPool",
]
