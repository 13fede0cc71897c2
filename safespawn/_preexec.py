"""
Recognises what a preexec_fn does, so that it can be done without running it: in a fork of a threaded program any
Python code may wait for a lock that nobody will release.

A function that is nothing but calls of known system calls with known arguments is read, not run: its bytecode is
followed with the values that its globals and its closure have now. Whatever is not understood makes it unknown: then it
is not for us.

Runs in: application, any thread.
"""

import builtins
import dis
import functools
import os
import resource
import signal
import sys
import types
from collections.abc import Callable
from typing import Any, cast

_UNKNOWN = object()  # a value that may be thrown away, and nothing else
_NULL = object()  # what the interpreter puts beside a function that is no method
_IDLE = frozenset("RESUME NOP PRECALL CACHE COPY_FREE_VARS NOT_TAKEN EXTENDED_ARG MAKE_CELL".split())
_MOST_STEPS = 200  # arbitrary: forty calls
_PR_SET_PDEATHSIG = 1


class _Unknown(Exception):
    """
    It does something that is not known here.
    """


def recognise(function: Any) -> dict[str, Any] | None:
    """
    What *function* does, as options of `safespawn.Popen`; None if that is not known.
    """
    options: dict[str, Any] = {}
    try:
        for called, args in _calls(function):
            _translate(called, args, options)
    except _Unknown:
        return None
    return options


# --- what a function calls --------------------------------------------------------------------------------------------
def _calls(function: Any) -> list[tuple[Any, tuple[Any, ...]]]:
    if isinstance(function, functools.partial):
        if function.keywords:
            raise _Unknown
        if _is_known(function.func):
            return [(function.func, function.args)]
        raise _Unknown
    if isinstance(function, types.FunctionType):
        return _read(function)
    return [(function, ())]


def _is_known(function: Any) -> bool:
    try:
        return function in _TRANSLATIONS or _is_prctl(function)
    except TypeError:
        return False  # not hashable


def _read(function: types.FunctionType) -> list[tuple[Any, tuple[Any, ...]]]:
    """
    Follow the bytecode of a function without arguments.
    """
    code = function.__code__
    if code.co_argcount or code.co_kwonlyargcount or code.co_flags & 0xC:
        raise _Unknown
    if code.co_exceptiontable:  # a call that fails would go on elsewhere: here it would fail the start
        raise _Unknown
    calls: list[tuple[Any, tuple[Any, ...]]] = []
    stack: list[Any] = []
    for count, step in enumerate(dis.get_instructions(code)):
        if count > _MOST_STEPS:
            raise _Unknown
        name = step.opname
        if name in _IDLE:
            continue
        if name in ("RETURN_VALUE", "RETURN_CONST"):
            return calls
        if name == "CALL":
            stack.append(_call(stack, step.arg or 0, calls))
        elif not _push(name, step, stack, function):
            raise _Unknown
    raise _Unknown


def _push(name: str, step: dis.Instruction, stack: list[Any], function: types.FunctionType) -> bool:
    """
    One step that is no call; False if it is not known.
    """
    if name in ("LOAD_CONST", "LOAD_SMALL_INT"):
        stack.append(step.argval)
    elif name == "PUSH_NULL":
        stack.append(_NULL)
    elif name == "LOAD_GLOBAL":
        if "NULL" in step.argrepr:
            stack.append(_NULL)
        stack.append(_global(function, step.argval))
    elif name == "LOAD_DEREF":
        stack.append(_captured(function, step.argval))
    elif name in ("LOAD_ATTR", "LOAD_METHOD"):
        value = _attribute(stack.pop(), step.argval)
        stack += [_NULL, value] if name == "LOAD_METHOD" or "NULL" in step.argrepr else [value]
    elif name == "BUILD_TUPLE":
        size = step.arg or 0
        values = stack[len(stack) - size :]
        del stack[len(stack) - size :]
        stack.append(tuple(values))
    elif name == "POP_TOP":
        stack.pop()
    else:
        return False
    return True


def _call(stack: list[Any], size: int, calls: list[tuple[Any, tuple[Any, ...]]]) -> Any:
    args = tuple(stack[len(stack) - size :])
    del stack[len(stack) - size :]
    pair = [value for value in (stack.pop(), stack.pop()) if value is not _NULL]
    if len(pair) != 1 or not _is_known(pair[0]) or _has_unknown(args):
        raise _Unknown
    calls.append((pair[0], args))
    return _UNKNOWN


def _has_unknown(values: tuple[Any, ...]) -> bool:
    return any(each is _UNKNOWN or (type(each) is tuple and _has_unknown(each)) for each in values)


def _global(function: types.FunctionType, name: str) -> Any:
    try:
        return function.__globals__[name] if name in function.__globals__ else vars(builtins)[name]
    except KeyError:
        raise _Unknown from None


def _captured(function: types.FunctionType, name: str) -> Any:
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=False))
    try:
        return cells[name].cell_contents
    except (KeyError, ValueError):
        raise _Unknown from None


def _attribute(holder: Any, name: str) -> Any:
    """
    An attribute whose reading runs no code of the program's.
    """
    ctypes = sys.modules.get("ctypes")
    if ctypes is not None and isinstance(holder, ctypes.CDLL):
        return getattr(holder, name, _UNKNOWN)
    try:
        found: object = cast("dict[str, object]", vars(holder))[name]
    except (KeyError, TypeError):
        raise _Unknown from None
    if isinstance(holder, types.ModuleType) or not hasattr(type(found), "__get__"):
        return found
    raise _Unknown


# --- what the calls mean ----------------------------------------------------------------------------------------------
def _translate(called: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    try:
        if _is_prctl(called):
            _death_signal(args, options)
            return
        translation = _TRANSLATIONS.get(called)
    except TypeError:
        translation = None
    if translation is None:
        raise _Unknown
    try:
        translation(args, options)
    except (TypeError, ValueError):  # too many arguments, or others
        raise _Unknown from None


def _with_rights(options: dict[str, Any]) -> None:
    """
    What is called behind setuid has the new user's rights; the option of that meaning is carried out before it.
    """
    if "user" in options:
        raise _Unknown


def _session(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    () = args
    if options.pop("process_group", 0) != 0:
        raise _Unknown
    options["start_new_session"] = True


def _own_group(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    () = args
    if not options.get("start_new_session"):
        options["process_group"] = 0


def _group(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    pid, group = args
    if pid != 0 or not isinstance(group, int) or group < 0 or options.get("start_new_session"):
        raise _Unknown
    options["process_group"] = group


def _umask(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    (mask,) = args
    options["umask"] = _number(mask) & 0o777


def _nice(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    (step,) = args
    _with_rights(options)
    options["nice"] = options.get("nice", 0) + _number(step)


def _limit(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    which, (soft, hard) = args
    _with_rights(options)
    if which in options.get("rlimits", ()):  # what the first one took, the second may not give back
        raise _Unknown
    options.setdefault("rlimits", {})[_number(which)] = (_number(soft), _number(hard))


def _disposition(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    number, action = args
    ignored = options.setdefault("ignore_signals", set())
    if action == signal.SIG_IGN:
        ignored.add(_number(number))
    elif action == signal.SIG_DFL:
        ignored.discard(number)
        restored = number in (signal.SIGPIPE, signal.SIGXFSZ)
        if not restored and signal.getsignal(number) is signal.SIG_IGN:
            raise _Unknown  # the child has what the program ignores
    else:
        raise _Unknown


def _user(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    _with_rights(options)
    (options["user"],) = map(_number, args)


def _group_id(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    _with_rights(options)
    (options["group"],) = map(_number, args)


def _death_signal(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    what, number, *rest = args if len(args) > 1 else (0, 0)
    if what != _PR_SET_PDEATHSIG or any(rest):
        raise _Unknown
    options["pdeathsig"] = _number(number)


def _number(value: Any) -> int:
    if not isinstance(value, int):
        raise _Unknown
    return int(value)


def _is_prctl(function: Any) -> bool:
    """
    Whether it is the C library's prctl, as ctypes has it.
    """
    return type(function).__name__ == "_FuncPtr" and getattr(function, "__name__", None) == "prctl"


_TRANSLATIONS: dict[Any, Callable[[tuple[Any, ...], dict[str, Any]], None]] = {
    os.setsid: _session,
    os.setpgrp: _own_group,
    os.setpgid: _group,
    os.umask: _umask,
    os.nice: _nice,
    os.setuid: _user,
    os.setgid: _group_id,
    resource.setrlimit: _limit,
    signal.signal: _disposition,
}
