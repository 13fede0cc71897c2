"""
Where a project starts threads, and whether one of them may run where it forks.

A fork and the start of a thread somewhere in the same files are two facts. They are one danger if some thread can be
there when the fork happens, and of that there are four signs: the fork runs in a thread itself; its function is handed
on by one that starts threads (order unknown); another function of the module starts one; or one of the two modules
imports the other. What is known to start after the fork, in the same function, is no sign: there the order is right.

Runs in: the checker, any thread. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from safespawn.check.graph import group
from safespawn.check.known import Effect
from safespawn.check.names import Attr, Made
from safespawn.check.order import follows
from safespawn.check.summary import Function

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safespawn.check.graph import Project, Step
    from safespawn.check.source import Source


class Threads:
    """
    All starts of threads in a project, and who calls and hands on what.

    Args:
        project: What was read.
    """

    def __init__(self, project: Project) -> None:
        self.project: Project = project
        self.starts: dict[Source, list[tuple[Function, Step]]] = defaultdict(list)
        self.first: dict[str, str] = {}
        for function, facts in project.facts.items():
            own = [step for step in facts.steps if Effect.THREAD in step.own]
            if own:
                source = function.module.source
                self.starts[source].append((function, own[0]))
                self.first.setdefault(group(source), _place(function, own[0]))
        self._callers: dict[Function, list[tuple[Function, Step]]] | None = None
        self._givers: dict[Function, list[Function]] = defaultdict(list)

    def elsewhere(self, function: Function) -> str:
        """
        A place where the project of this function starts a thread; "" if it starts none.
        """
        return self.first.get(group(function.module.source), "")

    def beside(self, function: Function, fork: Step) -> str:
        """
        What tells that a thread may be there when this step of a function forks, in a sentence; "" if nothing does.
        """
        if not self.elsewhere(function):
            return ""
        source = function.module.source
        return (
            self._in_a_thread(function)
            or self._among(source, function, fork, "this module starts threads, for one at")
            or self._imported(source, function, fork)
        )

    def _in_a_thread(self, function: Function) -> str:
        """
        Whether a caller of the function is what a thread runs, or is handed on by somebody who starts threads.
        """
        callers = self._link()
        seen = {function}
        waiting = [function]
        while waiting:
            current = waiting.pop()
            if current.name == "run" and current.cls is not None:
                base = self.project.external_base(current.cls)
                if base is not None and base.path in ("threading.Thread", "threading.Timer"):
                    return f"it runs in a thread, by {current.path}"
            for giver in self._givers[current]:
                held = self.project.facts[giver].witness.get(Effect.THREAD)
                if held is not None:
                    return f"{current.path} is handed on at {_base(giver)}, which starts threads, for one at " + _place(
                        giver, held
                    )
            for caller, _ in callers[current]:
                if caller not in seen:
                    seen.add(caller)
                    waiting.append(caller)
        return ""

    def _among(self, source: Source, function: Function, fork: Step, said: str) -> str:
        for starter, step in self.starts.get(source, ()):
            if starter is function:
                # In the order of the text; what comes after the fork is the child's, or in the right order.
                before = any(
                    Effect.THREAD in each.own and follows(function, each.event, fork.event)
                    for each in _before(self.project, function, fork)
                )
                if not before:
                    continue
            elif self._only_after(function, fork, starter):
                continue
            return f"{said} {_place(starter, step)}"
        return ""

    def _only_after(self, function: Function, fork: Step, starter: Function) -> bool:
        """
        Whether all calls of *starter* that are known stand behind the fork: the child's own threads, mostly.
        """
        calls = self._link()[starter]
        steps = self.project.facts[function].steps
        return bool(calls) and all(
            caller is function and steps.index(step) > steps.index(fork) for caller, step in calls
        )

    def _imported(self, source: Source, function: Function, fork: Step) -> str:
        imports = self.project.imports
        for other in self.starts:
            if other is source or group(other) != group(source):
                continue
            said = ""
            if other in imports(source):
                said = "a module that this one imports starts threads, for one at"
            elif source in imports(other):
                said = "a module that imports this one starts threads, for one at"
            place = self._among(other, function, fork, said) if said else ""
            if place:
                return place
        return ""

    def _link(self) -> dict[Function, list[tuple[Function, Step]]]:
        if self._callers is None:
            self._callers = defaultdict(list)
            for function, facts in self.project.facts.items():
                for step in facts.steps:
                    for callee in step.callees:
                        self._callers[callee].append((function, step))
                    for given in self._given(step):
                        self._givers[given].append(function)
        return self._callers

    def _given(self, step: Step) -> Iterator[Function]:
        """
        The functions of the project that a call is given; of `Thread(target=f).start()`, what the thread was given.
        """
        callee = step.event.callee
        started = callee.of if isinstance(callee, Attr) else None
        for made in (step.event.made, started):
            if isinstance(made, Made):
                for value in (*made.args, *made.keywords.values()):
                    meaning = self.project.resolve(value)
                    if isinstance(meaning, Function):
                        yield meaning


def _before(project: Project, function: Function, fork: Step) -> list[Step]:
    steps = project.facts[function].steps
    return steps[: steps.index(fork)]


def _base(function: Function) -> str:
    return f"{function.module.source.path}:{function.line}"


def _place(function: Function, step: Step) -> str:
    return f"{function.module.source.path}:{step.event.line}"
