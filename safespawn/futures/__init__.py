"""
The standard library's `concurrent.futures`, whose `ProcessPoolExecutor` is this library's: change the import.

Runs in: application, any thread.
"""

import concurrent.futures as _standard
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
    TimeoutError,  # noqa: A004 - the standard name
    as_completed,
    wait,
)
from typing import Any

from safespawn.context import START_METHOD, get_context
from safespawn.futures.process import ProcessPoolExecutor


def __getattr__(name: str) -> Any:
    return getattr(_standard, name)  # of a Python that is newer than this module


__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "START_METHOD",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "get_context",
    "wait",
]
