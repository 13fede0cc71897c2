"""
What the program wants done about a start of a process that can hang: an error, a warning, nothing.

A policy for each kind of start, and the modules that may do it all the same, are a layer. `safespawn.init()` puts the
first one down and entering a Supervisor another one, until it is left; the last one counts. Without any the program is
still in its boot phase, and nothing is met.

Runs in: application, any thread; in an audit hook above all, so it waits for nothing and starts nothing.
"""

import fnmatch
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, Literal, cast

import attrs

from safespawn import _recorder, errors

Policy = Literal["error", "warn", "off"]
Setting = Policy | Mapping[str, Policy]
POLICIES: tuple[Policy, ...] = ("error", "warn", "off")
KINDS = ("thread", "fork", "preexec", "shell", "start-method", "import")  # "thread": one that runs at the line

DANGER = {
    "fork": "the child has one thread and a copy of every lock: one that another thread holds is never released there",
    "preexec": "it runs between fork and exec, where a lock that another thread holds is never released",
    "shell": "it forks from this process, with all its threads, and waits without a limit",
    "start-method": "every process of that method is a bare fork",
    "import": "the module's import lock is held: a child or a thread that imports it as well waits for it, for ever",
}
CURE = {
    "fork": "use safespawn.Process(target=...) for a function, safespawn.run([...]) for a command; or fork before "
    "safespawn.init()",
    "preexec": "the options start_new_session, process_group, umask, user, group, rlimits, nice, ignore_signals of "
    "safespawn.run and safespawn.Popen do it without code of yours",
    "shell": "use safespawn.run(command, shell=True)",
    "start-method": 'use the default, which is safespawn.get_context(); "forkserver" and "spawn" are safe as well',
    "import": 'start it in a function that the program calls, or below if __name__ == "__main__":',
}


@attrs.frozen
class Layer:
    """
    Attributes:
        policies: By kind.
        allow: Patterns of modules that may.
    """

    policies: dict[str, Policy]
    allow: tuple[str, ...] = ()


layers: list[Layer] = []  # the last one counts
sink: "Callable[[str, str, tuple[str, int], int, Sequence[str]], object] | None" = None  # `safespawn check --run`
_told: dict[tuple[str, tuple[str, int]], str] = {}  # the text of a warning, by kind and place: so that it comes once


def resolve(setting: Any) -> dict[str, Policy]:
    """
    A policy for each kind.

    Args:
        setting: One for all; or by kind, with "off" for those that are not named.

    Raises:
        BadArgument: No such policy, or no such kind.
    """
    table: dict[str, Any]
    if isinstance(setting, str):
        table = dict.fromkeys(KINDS, setting)
    elif isinstance(setting, Mapping):
        table = {**dict.fromkeys(KINDS, "off"), **cast("Mapping[str, Any]", setting)}
    else:  # not every caller's code has been checked for types
        table = {"thread": cast("object", setting)}
    for kind, policy in table.items():
        if kind not in KINDS:
            known = ", ".join(map(repr, KINDS))
            raise errors.BadArgument(f"guard has no kind {kind!r}; there are {known}", parameter="guard", value=table)
        check(policy)
    return table


def check(policy: object) -> None:
    """
    Refuse what is no policy.

    Raises:
        BadArgument: It is not.
    """
    if policy not in POLICIES:
        allowed = ", ".join(map(repr, POLICIES))
        raise errors.BadArgument(f"guard must be one of {allowed}", parameter="guard", value=policy)


def make_layer(setting: Any, allow: Any) -> Layer:
    """
    A layer of what a user gave.

    Raises:
        BadArgument, BadArgumentType: Not a setting; *allow* is no sequence of str.
    """
    table = resolve(setting)
    given: Any = () if isinstance(allow, (str, bytes)) else allow
    names = cast("list[object]", list(cast("Iterable[object]", given)) if isinstance(given, Iterable) else [None])
    if isinstance(allow, (str, bytes)) or not all(isinstance(each, str) for each in names):
        raise errors.BadArgumentType(
            "allow is a sequence of module names", parameter="allow", value=allow, help='give a list: ["gunicorn.*"]'
        )
    return Layer(table, tuple(map(str, names)))


def meet(kind: str, what: str, *, imports: Sequence[str] = (), default: Policy = "off") -> None:
    """
    A process is about to be started in a way of this *kind*: say so, or refuse it, as the program wants.

    Args:
        kind: One of `KINDS`.
        what: The call, as the start of a sentence: "os.fork()".
        imports: The modules that are being imported.
        default: The policy of a program that has laid down none.

    Raises:
        UnsafeStart: The policy is "error".

    Warns:
        UnsafeStartWarning: The policy is "warn"; at the user's line, once per line under Python's usual filters.
    """
    layer = layers[-1] if layers else Layer({kind: default})
    policy = layer.policies[kind]
    if policy == "off":
        return
    frame, passed = _user(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in layer.allow for name in passed):
        return
    place: tuple[str, int] = ("<unknown>", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    if sink is not None:
        sink(kind, what, place, len(sys._current_frames()) - 1, imports)  # pyright: ignore[reportPrivateUsage]
        return
    text = _told.get((kind, place)) if policy == "warn" else None
    if text is None:
        from safespawn.guard import census

        error = errors.UnsafeStart(
            what,
            kind=kind,
            place=None if frame is None else place,
            threads=[str(fact) for fact in census()],
            imports=imports,
            is_late=bool(layers),
            known=(DANGER[kind],),
            help=CURE[kind],
        )
        if policy == "error":
            raise error
        text = _told[kind, place] = str(error)
    names: dict[str, Any] = {} if frame is None else frame.f_globals
    warnings.warn_explicit(
        text, errors.UnsafeStartWarning, *place,
        module=str(names.get("__name__", "")), registry=names.setdefault("__warningregistry__", {}),
    )  # fmt: skip


def tell(text: str) -> None:
    """
    Warn at the user's line.

    Warns:
        UnsafeStartWarning: Of *text*.
    """
    frame, _ = _user(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
    file, line = ("<unknown>", 0) if frame is None else (frame.f_code.co_filename, frame.f_lineno)
    warnings.warn_explicit(text, errors.UnsafeStartWarning, file, line)


def _user(frame: FrameType | None) -> tuple[FrameType | None, set[str]]:
    """
    The innermost frame of the user's, and the names of the modules from here up to it.
    """
    passed: set[str] = set()
    while frame is not None:
        passed.add(str(frame.f_globals.get("__name__", "")))
        if not _recorder.is_library(frame.f_code.co_filename):
            return frame, passed
        frame = frame.f_back
    return None, passed
