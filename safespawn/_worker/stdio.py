"""
Stdout and stderr of a template and of its workers, as Python's own objects.

Runs in: template, worker.
"""

import io
import os
import sys
from collections.abc import Callable
from typing import Any


def flush_stdio() -> None:
    """
    Bring out what was printed.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError, AttributeError):
            continue  # closed by the task, or nobody reads it


class StderrTee(io.RawIOBase):
    """
    The process's stderr, and a copy of its end for the journal.
    """

    def __init__(self, note: Callable[[bytes], None]) -> None:
        super().__init__()
        self._note = note

    def fileno(self) -> int:
        """
        Stderr's own.
        """
        return 2

    def isatty(self) -> bool:
        """
        Whether that is a terminal.
        """
        return os.isatty(2)

    def writable(self) -> bool:
        """
        Yes.
        """
        return True

    def write(self, data: Any) -> int:
        """
        Write it all.
        """
        data = bytes(data)
        self._note(data)
        view = memoryview(data)
        while view:
            view = view[os.write(2, view) :]
        return len(data)
