"""
Tasks as the faces make them: a call or a generator, pickled, with the options that it was given.

Runs in: application, any thread.
"""

import math
import time
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any, cast

from safespawn._core.dispatch import CALL, STREAM, Task, unwrapped
from safespawn._core.options import deadline_after
from safespawn._worker.payload import pack
from safespawn.errors import BadArgument, BadArgumentType


def pace_key(function: Any) -> Any:
    """
    What the pace of *function* is remembered by, and what names it in messages.

    It is kept for long, so it must hold none of the caller's data: not the variables of a closure, nor the state of an
    object that is called, nor the array of ``array.sum``. And it is the same for each of many that are made alike.
    """
    function = unwrapped(function)  # there may be a new partial each time
    kind = cast("Any", type(function))
    if kind is FunctionType and (function.__closure__ is None or not hasattr(function, "__wrapped__")):
        return function if "<" not in function.__qualname__ else _local(function)
    if isinstance(function, type):
        return cast("Any", function)
    inner = getattr(function, "__func__", None) or getattr(function, "__wrapped__", None)
    if inner is not None:
        return pace_key(inner)
    holder: Any = getattr(function, "__self__", None)
    if holder is not None and not isinstance(holder, (type, ModuleType)):
        return getattr(cast("Any", type(holder)), function.__name__, kind)
    return function if hasattr(function, "__name__") else kind  # of those without a name there may be any number


class _Local:
    """
    The name of a function inside a function, or of a lambda.
    """

    def __init__(self, function: Any) -> None:
        self.__module__ = function.__module__
        self.__qualname__ = function.__qualname__


_LOCALS = 512  # that are known at once; arbitrary
_locals: dict[Any, _Local] = {}


def _local(function: Any) -> _Local:
    """
    What stands for *function*, and for all others that the same line has made.
    """
    found = _locals.get(function.__code__)
    if found is None:
        if len(_locals) >= _LOCALS:
            _locals.clear()
        found = _locals[function.__code__] = _Local(function)
    return found


_OPTIONS = {"timeout", "retries", "priority", "key"}


def task_options(options: dict[str, Any]) -> dict[str, Any]:
    """
    The options of a task, checked.

    Raises:
        BadArgument, BadArgumentType: One that there is not, or a value that cannot be.
    """
    value: Any
    for name, value in options.items():
        if name not in _OPTIONS:
            raise BadArgumentType(
                f"{name!r} is no option of a task", parameter=name, value=value, help=f"there are {sorted(_OPTIONS)}"
            )
        if name == "timeout":
            deadline_after(value, 0.0)
        if name in {"retries", "priority"} and (not isinstance(value, int) or isinstance(value, bool)):
            raise BadArgumentType(f"{name} is a whole number", parameter=name, value=value)
        if name == "retries" and value < 0:
            raise BadArgument("retries is a number from 0 up", parameter=name, value=value)
        if name == "key":
            hash(value)
    if options.get("timeout") == math.inf:
        options = {**options, "timeout": None}
    return options


def call_task(
    function: Callable[..., Any], args: Any, kwds: Any, sink: Any, *, by_value: bool, options: dict[str, Any]
) -> Task:
    """
    The task of one call.

    Raises:
        UnpicklableTask: It cannot be sent.
    """
    began = time.monotonic()
    payload, parts = pack((function, args, kwds), what="task", by_value=by_value)
    task = Task(CALL, payload, parts, pace_key(function), sink, **(task_options(options) if options else {}))
    task.pickling = time.monotonic() - began
    return task


def stream_task(
    function: Callable[..., Any], args: Any, kwds: Any, sink: Any, *, credit: int, by_value: bool, options: Any
) -> Task:
    """
    The task of a generator.
    """
    payload, parts = pack((credit, function, args, kwds), what="task", by_value=by_value)
    return Task(STREAM, payload, parts, pace_key(function), sink, **task_options(options))
