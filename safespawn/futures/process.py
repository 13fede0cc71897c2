"""
`concurrent.futures.process` with the executor of this library.

Runs in: application, any thread.
"""

import concurrent.futures.process as _standard
from collections.abc import Callable, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from safespawn._worker.initializing import call_logged
from safespawn._workers import WorkerProcess, present
from safespawn.executor import Executor


class ProcessPoolExecutor(Executor):
    """
    `safespawn.Executor`, by the name of the standard one; with those of its private names that programs read.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        **options: Any,
    ) -> None:
        if callable(initializer):
            initializer, initargs = call_logged, (initializer, *initargs)
        super().__init__(
            max_workers, mp_context, initializer, initargs, max_tasks_per_child=max_tasks_per_child, **options
        )

    @property
    def _processes(self) -> dict[int, WorkerProcess]:
        """
        The workers by pid; none before the first call.
        """
        return {worker.pid: worker for worker in present(self._crew)} if self._crew.started else {}

    @property
    def _broken(self) -> str | bool:
        """
        Why nothing more can be submitted; False if it can.
        """
        return False if self._crew.broken is None else str(self._crew.broken)


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)


__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]
