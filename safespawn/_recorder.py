"""
Remembers where each `threading.Thread` was started, so that the guard can say it.

Runs in the application. `import safespawn` installs it, so it is part of the door's cost: it loads `sys` and
`threading` and nothing else, starts nothing, and adds about a microsecond to the start of a thread. It must
never make a start fail or behave differently: what it cannot find out it leaves out.

How it works: `threading.Thread.start` is replaced, once, by a function that writes the caller's file and line
into the thread object and then calls what was there before. Audit hooks would need no replacement, but Python
3.11 raises none for threads, and a hook can never be removed and is called for every event of the process.

`threading` is imported here rather than watched for: it costs 0.2 to 3 ms (in a bare interpreter of 3.11 to
3.13), nearly every program has it anyway, and the other way, an import hook that waits for it, would be a
second thing to go wrong.
"""

from __future__ import annotations

import sys
import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any

Place = tuple[str, int]
"""A file and a line in it."""

_ATTRIBUTE = "_safespawn_started_at"

# Code objects know the directory they were compiled from, which is what frames show; `__file__` may be
# another (a zip, a .pyc).
_STDLIB = threading.current_thread.__code__.co_filename.rpartition("/")[0] + "/"
_OURS = __file__.rpartition("/")[0] + "/"
_OURS_OR_FROZEN = (_OURS, "<frozen ")
_REMEMBERED = 1000  # files; arbitrary, more than most programs have that start threads
_answers: dict[str, bool] = {}


def is_library(file: str) -> bool:
    """
    Whether *file* is the standard library's or ours, so that naming it would tell the user nothing.

    Third-party packages count as user code: which package starts a thread is just what is asked.
    """
    answer = _answers.get(file)
    if answer is None:
        answer = file.startswith(_OURS_OR_FROZEN) or (
            file.startswith(_STDLIB) and "/site-packages/" not in file and "/dist-packages/" not in file
        )
        if len(_answers) < _REMEMBERED:
            _answers[file] = answer
    return answer


def user_place(frame: FrameType | None) -> Place | None:
    """
    Find the innermost line of user code.

    Args:
        frame: Where to begin; its callers are looked at next.

    Returns:
        The first place outside the standard library and this package; if there is none (`python -m
        http.server`), the first outside `threading`; None without any.

    Runs in: application, any thread.
    """
    fallback: Place | None = None
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_library(file):
            return (file, frame.f_lineno)
        if fallback is None and frame.f_globals.get("__name__") != "threading" and not file.startswith(_OURS):
            fallback = (file, frame.f_lineno)
        frame = frame.f_back
    return fallback


def started_at(thread: threading.Thread) -> Place | None:
    """
    Tell where *thread* was started.

    Returns:
        The place, or None if nobody was recording then, or if no Python code asked for the start.

    Runs in: application, any thread.
    """
    place: Place | None = thread.__dict__.get(_ATTRIBUTE)
    return place


class _Recorder:
    """The one replacement of `Thread.start`, and what it replaced."""

    def __init__(self) -> None:
        self.wrapper: Callable[..., Any] | None = None
        self.inner: Callable[..., Any] | None = None


_recorder = _Recorder()
observer: Callable[[threading.Thread, FrameType | None], object] | None = None
"""Called before each start of a thread with the frame that starts it; by `safespawn check --run`."""


def _skip_wrappers(frame: FrameType | None) -> FrameType | None:
    """
    Step over the frames of those who wrapped `Thread.start` after us.

    They did not start the thread, their caller did. They are recognised by their code, from `Thread.start`
    down to us along `__wrapped__`; whoever does not set `__wrapped__` hides those below and us.
    """
    codes: list[object] = []
    wrapper: Any = threading.Thread.start
    while wrapper is not None and wrapper is not _recorder.wrapper:
        codes.append(getattr(wrapper, "__code__", None))
        wrapper = getattr(wrapper, "__wrapped__", None)
    while frame is not None and frame.f_code in codes:
        frame = frame.f_back
    return frame


def _wrap(inner: Callable[..., Any]) -> Callable[..., Any]:
    def start(self: threading.Thread, *args: Any, **kwargs: Any) -> Any:
        try:
            # A thread that has run keeps its first place (its second start fails); one whose start failed has
            # no ident yet.
            if self.ident is None:
                frame: FrameType | None = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
                if threading.Thread.start is not start:
                    frame = _skip_wrappers(frame)
                self.__dict__[_ATTRIBUTE] = user_place(frame)
                if observer is not None:
                    observer(self, frame)
        except Exception:  # noqa: BLE001 - no frame below us, or no whole Thread: start() itself will say so
            pass
        return inner(self, *args, **kwargs)

    # By hand: `functools` is not loaded by a bare interpreter, and is not worth loading for this.
    for name in ("__module__", "__name__", "__qualname__", "__doc__", "__annotations__"):
        try:
            setattr(start, name, getattr(inner, name))
        except (AttributeError, TypeError):
            pass
    start.__wrapped__ = inner  # type: ignore[attr-defined]
    return start


def install() -> None:
    """
    Begin to record; a second call changes nothing.

    If somebody replaced `Thread.start` after us, we take it that they call what they found, which is us; if
    somebody put back what we had wrapped, we wrap it again.

    Runs in: application, any thread; normally at `import safespawn`.
    """
    current = threading.Thread.start
    if _recorder.wrapper is not None and current is not _recorder.inner:
        return
    _recorder.inner = current
    _recorder.wrapper = _wrap(current)
    threading.Thread.start = _recorder.wrapper  # type: ignore[method-assign]


def uninstall() -> bool:
    """
    Stop recording, if nobody has wrapped us meanwhile; what was recorded stays.

    Returns:
        Whether `Thread.start` is now what it was before; if not, taking us out would have taken out others as
        well.

    Runs in: application, any thread.
    """
    if _recorder.wrapper is None:
        return True
    if threading.Thread.start not in (_recorder.wrapper, _recorder.inner):
        return False
    threading.Thread.start = _recorder.inner  # type: ignore[assignment,method-assign]
    _recorder.wrapper = _recorder.inner = None
    return True
