"""
A call with what goes along with it: the values of context variables, on the way there; what it has printed, on the way
back.

    application: Carried(function, context, capture)  ->  pickled  ->  worker: set the variables, call, mark the output
    worker: Captured(value, number)                   ->  pickled  ->  application: `Returned`, with the text

What a call prints is not sent with its result. It went through the worker's pipes, like all that the worker prints; at
the end of the call the worker writes a mark behind it, so the application knows where it ends (`_drive.outlets`).

Runs in: application (makes `Carried`, reads `Captured`), worker (calls, makes `Captured`).
"""

import contextvars
import importlib
import itertools
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from safespawn._worker.stdio import flush_stdio

TOKEN_BYTES = 16
MARK_BYTES = 1 + TOKEN_BYTES + 8  # a zero byte, the worker's token, the number of the call
_NOTHING = object()


class Returned(NamedTuple):
    """
    The result of a call of a pool with ``output="return"``.

    Attributes:
        value: What the call returned.
        stdout: What it wrote to descriptor 1, itself, in C code, or by processes that it started.
        stderr: The same of descriptor 2.
    """

    value: Any
    stdout: str
    stderr: str


class Variable:
    """
    A context variable, by the module that has it and its name there.
    """

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    def find(self) -> "contextvars.ContextVar[Any]":
        """
        The variable here.
        """
        module = sys.modules.get(self.module) or importlib.import_module(self.module)
        found: contextvars.ContextVar[Any] = getattr(module, self.name)
        return found


class Carrier:
    """
    Makes calls carry what a pool says.

    Args:
        variables: The context variables, and where the other side finds them.
        capture: Whether what calls print comes back.
    """

    def __init__(self, variables: "tuple[tuple[contextvars.ContextVar[Any], Variable], ...]", *, capture: bool) -> None:
        self.variables = variables
        self.capture = capture

    def __call__(self, function: Callable[..., Any]) -> "Carried":
        """
        *function*, with the values that the variables have now, in this thread or task.
        """
        values = tuple(
            (place, value) for variable, place in self.variables if (value := variable.get(_NOTHING)) is not _NOTHING
        )
        return Carried(function, values, self.capture)


class Carried:
    """
    A function with what goes along with it. It looks like a functools.partial to whoever asks for the function in it.
    """

    args = ()

    def __init__(self, func: Callable[..., Any], values: tuple[tuple[Variable, Any], ...], capture: bool) -> None:  # noqa: FBT001 - as it is pickled
        self.func = func
        self.values = values
        self.capture = capture

    def __reduce__(self) -> Any:
        return Carried, (self.func, self.values, self.capture)

    def __call__(self, *args: Any, **kwds: Any) -> Any:
        """
        Call it. In a worker.
        """
        context = contextvars.copy_context()
        for place, value in self.values:
            context.run(place.find().set, value)
        if not self.capture or not capturing:
            return _within(context, context.run(self.func, *args, **kwds))
        try:
            value = context.run(self.func, *args, **kwds)
        except BaseException as error:
            try:
                error.returned = Captured(None, capturing[0].mark())  # type: ignore[attr-defined]
            except AttributeError:
                pass  # it has no room for it
            raise
        if hasattr(value, "__next__") or hasattr(value, "__anext__"):
            return _within(context, value)  # a stream: its items come as they are
        return Captured(value, capturing[0].mark())


def _within(context: contextvars.Context, value: Any) -> Any:
    """
    A generator's steps are run in *context*, as its beginning was.
    """
    return _steps(context, value) if hasattr(value, "send") and hasattr(value, "__next__") else value


def _steps(context: contextvars.Context, generator: Any) -> Iterator[Any]:
    while True:
        try:
            item = context.run(next, generator)
        except StopIteration:
            return
        yield item


# --- the worker's output ---------------------------------------------------------------------------------------------
class Capture:
    """
    The marks in a worker's output.
    """

    def __init__(self, token: bytes) -> None:
        self.token = token
        self.pid = os.getpid()
        self.numbers = itertools.count(1)
        self.flush_c: Any = None
        try:
            import ctypes

            self.flush_c = ctypes.CDLL(None).fflush
        except (ImportError, OSError, AttributeError):
            return  # then what C code has not flushed comes with a later call

    def mark(self) -> tuple[bytes, int]:
        """
        A call ends here. Returns what its output is found by.
        """
        number = next(self.numbers)
        flush_stdio()
        if self.flush_c is not None:
            self.flush_c(None)
        mark = b"\0" + self.token + number.to_bytes(8, "little")
        for fd in (1, 2):
            try:
                os.write(fd, mark)  # no more than a pipe takes at once
            except OSError:
                continue  # the task has closed it
        return self.token, number


capturing: list[Capture] = []  # in a worker of a pool with output="return": its own


class Captured:
    """
    A result on its way back.
    """

    def __init__(self, value: Any, found_by: tuple[bytes, int]) -> None:
        self.value = value
        self.found_by = found_by

    def __reduce__(self) -> Any:
        return claim, (self.value, *self.found_by)


claims: dict[bytes, Callable[[int], tuple[str, str]]] = {}  # in the application: by the worker's token


def claim(value: Any, token: bytes, number: int) -> Any:
    """
    In the application: *value* with the output of its call. Elsewhere, where that is not known, as it came.
    """
    find = claims.get(token)
    if find is None:
        return Captured(value, (token, number))  # passed on by a process in between
    return Returned(value, *find(number))
