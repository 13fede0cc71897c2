"""
SPN302 and SPN303: logging and locks in code that runs in the middle of other code.

A signal handler and a `__del__` interrupt whatever the main thread does, perhaps while it holds that very lock. A hook
of `os.register_at_fork` runs in every fork of the program. A lock that its own thread may take again (RLock) is not
counted, nor is an attempt that gives up (`acquire(False)`, a time limit).

Runs in: the checker, any thread. May have more files read; never imports or executes them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safespawn.check import known
from safespawn.check.known import Effect
from safespawn.check.meaning import External
from safespawn.check.names import root
from safespawn.check.rules import finding
from safespawn.check.summary import Function

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safespawn.check.graph import Project, Step
    from safespawn.check.meaning import Meaning
    from safespawn.check.rules import Finding
    from safespawn.check.source import Source

_ROUNDS = 6  # of reading more files: arbitrary
_SAID = {Effect.LOGS: "logs", Effect.LOCKS: "takes a lock"}


def read_more(project: Project) -> None:
    """
    Read the files that hooks reach and that may log or take a lock.
    """
    for _ in range(_ROUNDS):
        asked, sources = _reached(project)
        fresh = [project.load(source) for source in sources]
        if not asked and not any(fresh):
            return
        project.link()


def _reached(project: Project) -> tuple[bool, list[Source]]:
    """
    Follow the hooks: whether functions were read for the first time, and the files to read.
    """
    asked = False
    seen: set[Function] = set()
    waiting = [meaning for _, _, _, meaning in _hooks(project) if isinstance(meaning, Function)]
    found: dict[Source, None] = {}
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        asked = project.ask(function) or asked
        for event in function.events:
            path, callees = project.callees(event)
            waiting += callees
            source = None if path or callees else project.unread(root(event.callee))
            if source is not None and source.may_log_or_lock:
                found[source] = None
    return asked, list(found)


def _hooks(project: Project) -> Iterator[tuple[str, Function, Step | None, Meaning | None]]:
    """
    Each hook: what it is, where it is set and by which step, and what it runs.
    """
    for module in project.modules.values():
        for function in module.functions:
            if function.name == "__del__" and function.cls is not None and function.runs == "called":
                yield "__del__", function, None, function
            for step in project.facts[function].steps if function in project.facts else ():
                made = step.event.made
                if made is None:
                    continue
                if step.path == "signal.signal":
                    yield "a signal handler", function, step, project.resolve(made.argument(1, "handler")[1])
                elif step.path == "os.register_at_fork":
                    for name in ("before", "after_in_parent", "after_in_child"):
                        if made.keywords.get(name) is not None:
                            yield name, function, step, project.resolve(made.keywords[name])


def check(project: Project) -> Iterator[Finding]:
    """
    The hits in the whole project.
    """
    done: set[tuple[Function, str]] = set()
    for kind, function, step, meaning in _hooks(project):
        if kind == "before" and step is not None and _locks(project, meaning):
            text = "takes a lock before every fork, so each fork waits for it, or for ever"
            yield finding("SPN303", function, step.event, text)
        if not isinstance(meaning, Function) or meaning not in project.facts or (meaning, kind) in done:
            continue
        done.add((meaning, kind))
        held = project.facts[meaning].witness
        effects = [effect for effect in (Effect.LOGS, Effect.LOCKS) if effect in held]
        if kind == "before":
            effects = [effect for effect in effects if effect is Effect.LOGS]
        if effects:
            cause = held[effects[0]]
            what = kind if kind in ("__del__", "a signal handler") else f"a fork hook ({kind})"
            text = f"{what} {_SAID[effects[0]]}: {project.chain(cause, effects[0], meaning)}"
            yield finding("SPN302", meaning, cause.event, text)


def _locks(project: Project, meaning: Meaning | None) -> bool:
    if isinstance(meaning, External):
        return Effect.LOCKS in known.effects_of(meaning.path)
    return isinstance(meaning, Function) and meaning in project.facts and Effect.LOCKS in project.facts[meaning].witness
