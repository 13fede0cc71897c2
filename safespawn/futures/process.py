"""
`concurrent.futures.process` with the executor of this library.

Runs in: application, any thread.
"""

import concurrent.futures.process as _standard
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from safespawn.executor import Executor


class ProcessPoolExecutor(Executor):
    """
    `safespawn.Executor`, by the name of the standard one.
    """


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)


__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]
