"""
`os.system` and `os.popen` for programs that know nothing of this library.

Runs in: application, any thread.
"""

# ruff: noqa: S604 - a shell is what is asked for

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

from safespawn._core.status import encode_status
from safespawn._subprocess import popen_class

_NOT_EXECUTED = 127  # what a shell that could not be executed would have said


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """
    Ignore SIGINT and SIGQUIT, as system(3) does while it waits: they are for the command. Only the main thread can.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGQUIT)
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # else C code has set it, and nobody can put it back from here
                signal.signal(number, handler)


def system(command: Any) -> int:
    """
    Have a shell execute *command*; the streams are the program's own.

    Returns:
        The wait status (`os.waitstatus_to_exitcode` reads it); -1 if no process could be started.
    """
    text = os.fsdecode(command)
    try:
        process = popen_class()(text, shell=True)
    except FileNotFoundError:
        return _NOT_EXECUTED << 8
    except OSError:
        return -1
    with _deaf():
        return encode_status(process.wait())


class PopenStream:
    """
    The text stream that `popen` gives: of a process whose end `close` waits for.
    """

    def __init__(self, stream: Any, process: Any) -> None:
        self._stream = stream
        self._process = process

    def close(self) -> int | None:
        """
        Close the stream and wait for the command's end; returns None if all is well, else its exit code times 256.
        """
        self._stream.close()
        code: int = self._process.wait()
        return code << 8 if code else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._stream)


def popen(cmd: str, mode: str = "r", buffering: int | None = -1) -> PopenStream:
    """
    Have a shell execute *cmd*, and read what it prints or write what it reads.
    """
    given: Any = cmd
    if not isinstance(given, str):
        raise TypeError(f"invalid cmd type ({type(given)}, expected string)")
    if mode not in ("r", "w"):
        raise ValueError(f"invalid mode {mode!r}")
    if not buffering:
        raise ValueError("popen() does not support unbuffered streams")
    end = "stdout" if mode == "r" else "stdin"
    process = popen_class()(cmd, bufsize=buffering, shell=True, text=True, **{end: subprocess.PIPE})
    return PopenStream(getattr(process, end), process)
