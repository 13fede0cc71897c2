"""
Notices starts of processes that this library does not make, and keeps who ran when one forked.

An audit hook sees `os.fork`, `os.forkpty`, `os.system`, `os.popen`, `subprocess.Popen` with its preexec_fn, and the
starts of our own, with the frames of whoever asked; `_policy` says what is done about each. A hook can never be
removed, so it is added once, when the first policy is laid down, and does nothing when there is none.

The flight recorder: before a fork of this process with threads alive, who they are and where they stand is kept. The
child has a copy of it: the last record is how it came about.

Runs in: application, in whatever thread starts something. Measured: 0.1 to 0.2 us for an event that is none of ours.
"""

import os
import sys
import threading
import time
from collections import deque
from types import CodeType, FrameType
from typing import Any

import attrs

from safespawn import _policy, _recorder, errors

RECORDS = 16  # forks remembered; arbitrary
FRAMES = 4  # of each thread: what it does and who wants that

_IMPORTER = "<frozen importlib._bootstrap>"
_POPEN_CODE: CodeType = vars(os)["popen"].__code__
# Modules that ask a command of the system once, mostly while they or others are imported: nobody could change that.
_ASKS_THE_SYSTEM = frozenset({"ctypes.util", "platform", "uuid", "locale", "webbrowser", "_osx_support", "sysconfig"})
_installed: list[int] = []


# --- what is being imported -------------------------------------------------------------------------------------------
def imports(frame: FrameType | None) -> list[str]:
    """
    The modules that the callers of *frame* are importing, the innermost first, each with the line that imports it.
    """
    found: list[str] = []
    while frame is not None:
        code = frame.f_code
        if code.co_name == "_find_and_load" and code.co_filename == _IMPORTER:
            place = _recorder.user_place(frame.f_back)
            at = "" if place is None else f" ({place[0]}:{place[1]})"
            found.append(f"{frame.f_locals.get('name', '?')}{at}")
        frame = frame.f_back
    return found


def _imports_of_starter() -> list[str]:
    """
    As `imports`, for the import of another thread whose module has started this one: it may be waiting for it.
    """
    ident = threading.get_ident()
    known: dict[int, threading.Thread] = vars(threading)["_active"]  # current_thread() may make one up
    thread = known.get(ident)
    place = None if thread is None else _recorder.started_at(thread)
    if place is None:
        return []
    for other, stack in sys._current_frames().items():  # pyright: ignore[reportPrivateUsage]
        frame: FrameType | None = stack
        while other != ident and frame is not None:
            if frame.f_code.co_filename == place[0]:
                return imports(frame)
            frame = frame.f_back
    return []


def _check_import(what: str, frame: FrameType) -> None:
    if _policy.layers[-1].policies["import"] != "off":
        under_way = imports(frame) or _imports_of_starter()
        if under_way:
            _policy.meet("import", what, imports=under_way)


# --- the events -------------------------------------------------------------------------------------------------------
def _on_fork(_args: tuple[Any, ...], frame: FrameType) -> None:
    what = "os.fork()"
    if frame.f_globals.get("__name__") == "multiprocessing.popen_fork":
        what = 'a process of multiprocessing\'s start method "fork"'
    _policy.meet("fork", what)
    _check_import(what, frame)


def _on_forkpty(_args: tuple[Any, ...], frame: FrameType) -> None:
    _policy.meet("fork", "pty.fork()" if frame.f_globals.get("__name__") == "pty" else "os.forkpty()")


def _on_system(args: tuple[Any, ...], frame: FrameType) -> None:
    what = f"os.system({_short(os.fsdecode(args[0]))})"
    _policy.meet("shell", what)
    _check_import(what, frame)


def _on_popen(args: tuple[Any, ...], frame: FrameType) -> None:
    own = str(frame.f_globals.get("__name__")).startswith("safespawn.")
    what = f"{'the command' if own else 'subprocess.Popen of'} {_short(args[1])}"
    preexec = None
    if frame.f_globals.get("__name__") == "subprocess":
        preexec = frame.f_locals.get("preexec_fn")
        caller: FrameType | None = frame
        while caller is not None and caller.f_globals.get("__name__") == "subprocess":
            caller = caller.f_back
        if caller is not None and str(caller.f_globals.get("__name__")) in _ASKS_THE_SYSTEM:
            return
        if caller is not None and caller.f_code is _POPEN_CODE:
            what = f"os.popen({_short(args[1][-1])})"
            _policy.meet("shell", what)
    if preexec is not None:
        what = f"subprocess.Popen(preexec_fn={_name(preexec)})"
        _policy.meet("preexec", what)
    _check_import(what, frame)


def _on_own(kind: str) -> Any:
    def see(args: tuple[Any, ...], frame: FrameType) -> None:
        _check_import(f"{kind} {args[0]!r}", frame)

    return see


_HANDLERS: dict[str, Any] = {
    "os.fork": _on_fork,
    "os.forkpty": _on_forkpty,
    "os.system": _on_system,
    "subprocess.Popen": _on_popen,
    "safespawn.Pool": _on_own("the first use of pool"),
    "safespawn.Process": _on_own("process"),
}


def _hook(event: str, args: tuple[Any, ...]) -> None:
    handler = _HANDLERS.get(event)
    if handler is None or not _policy.layers or sys.is_finalizing() or not sys.meta_path:
        return  # at the interpreter's end nothing can be imported, and nobody reads a warning
    try:
        handler(args, sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
    except (errors.UnsafeStart, errors.UnsafeStartWarning):
        raise
    except Exception:  # noqa: BLE001 - an odd frame, odd arguments: to watch must not make the start fail
        return


def _short(command: Any) -> str:
    text = repr(command)
    return text if len(text) <= 60 else text[:57] + "..."


def _name(function: Any) -> str:
    module = getattr(function, "__module__", None) or type(function).__module__
    return f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"


# --- the flight recorder ----------------------------------------------------------------------------------------------
@attrs.frozen
class Standing:
    """
    One thread at a fork.

    Attributes:
        name: Its `threading` name, or its number.
        forked: Whether it is the one that forked, which is the one that the child has.
        started_at: The line that started it, if that is on record.
        frames: Where it stood: file, line and function, the innermost first.
    """

    name: str
    forked: bool
    started_at: tuple[str, int] | None
    frames: tuple[tuple[str, int, str], ...]


class ForkRecord:
    """
    A fork of a process that had several threads.

    Attributes:
        pid: Who forked.
        time: When, in seconds since the epoch.
    """

    __slots__ = ("_forked", "_known", "_seen", "pid", "time")

    def __init__(self, forked: int, known: dict[int, Any], seen: list[Any]) -> None:
        self.pid: int = os.getpid()
        self.time: float = time.time()
        self._forked = forked  # who forked, by thread ident
        self._known = known  # the Thread objects by ident
        self._seen = seen  # for each thread its ident, then the code of each frame and where in it

    @property
    def threads(self) -> tuple[Standing, ...]:
        """
        Who was alive.
        """
        stacks: dict[int, list[tuple[CodeType, int]]] = {}
        rest = iter(self._seen)
        stack: list[tuple[CodeType, int]] = []
        for each in rest:
            if isinstance(each, CodeType):
                stack.append((each, next(rest)))
            else:
                stack = stacks[each] = []
        return tuple(self._standing(ident, frames) for ident, frames in stacks.items())

    def _standing(self, ident: int, frames: list[tuple[CodeType, int]]) -> Standing:
        thread = self._known.get(ident)
        return Standing(
            str(ident) if thread is None else thread.name,
            ident == self._forked,
            None if thread is None else _recorder.started_at(thread),
            tuple((code.co_filename, _line(code, at), code.co_qualname) for code, at in frames),
        )

    def __str__(self) -> str:
        threads = self.threads
        lines = [f"process {self.pid} forked with {len(threads)} threads"]
        for each in threads:
            at = "" if not each.frames else " at {}:{} in {}".format(*each.frames[0])
            lines.append(f"  {each.name}{' (forked)' if each.forked else ''}{at}")
        return "\n".join(lines)


def _line(code: CodeType, at: int) -> int:
    """
    The line of the instruction at byte *at* of *code*.
    """
    return next((line for start, end, line in code.co_lines() if start <= at < end and line), code.co_firstlineno)


records: deque[ForkRecord] = deque(maxlen=RECORDS)


def _record() -> None:
    """
    Before a fork. No lock is taken: whoever holds it may be the one who forks.
    """
    if not _policy.layers:
        return
    stacks = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    try:
        if len(stacks) == 1:
            return
        own = threading.get_ident()
        private: Any = threading
        known: dict[int, Any] = private._active.copy()  # noqa: SLF001 - enumerate() takes a lock
        seen: list[Any] = []  # one flat list: most of the time goes into making objects
        add = seen.append
        for ident, top in stacks.items():
            add(ident)
            frame: FrameType | None = top.f_back if ident == own else top  # not this function
            left = FRAMES
            while left and frame is not None:
                add(frame.f_code)
                add(frame.f_lasti)  # its line is found when somebody asks
                frame = frame.f_back
                left -= 1
        records.append(ForkRecord(own, known, seen))
    finally:
        stacks.clear()  # a kept frame keeps its local variables alive


# --- on and off -------------------------------------------------------------------------------------------------------
def begin(layer: _policy.Layer, *, first: bool = False) -> None:
    """
    The boot phase is over, if it was not before: *layer* counts from here on; with *first*, below those of Supervisors.
    """
    _policy.layers.insert(0 if first else len(_policy.layers), layer)
    if not _installed:
        _installed.append(os.getpid())
        sys.addaudithook(_hook)
        os.register_at_fork(before=_record)


def end(layer: _policy.Layer) -> None:
    """
    *layer* does not count any more; a second call changes nothing.
    """
    for index, each in enumerate(_policy.layers):
        if each is layer:
            del _policy.layers[index]
            return
