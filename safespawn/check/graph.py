"""
The project: all files together. Turns what is written into what is meant, and finds what each function does in the end.

Three steps. Files that have a word of interest are read. What each of their functions does by itself is known from
tables (`known`); what it does through others is found by a fix-point over the calls. Files that were not read, but
import a module that does something, are read as well, and the fix-point is run again, until there is none left.

Every effect has a witness, the call by which it came; following the witnesses gives the chain that a message shows.

Runs in: the checker, any thread. Reads files; never imports or executes them.
"""

from __future__ import annotations

import os
from collections import defaultdict
from typing import TYPE_CHECKING

import attrs

from safespawn.check import known, names, walk
from safespawn.check.known import Effect
from safespawn.check.meaning import External, Instance, Meanings
from safespawn.check.names import Attr, Const, Made, Ref
from safespawn.check.summary import Class, Event, Function, Module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from safespawn.check.source import Source


@attrs.frozen
class Step:
    """An event, and what it does: by itself (*own*), or through functions of the project (*callees*)."""

    event: Event
    own: frozenset[Effect]
    path: str
    callees: tuple[Function, ...]


@attrs.define(eq=False)
class Facts:
    """
    What a function does in the end.

    Args:
        steps: What it does, in order, as far as it matters.
        witness: By effect, the step by which it comes: of several, the one under the fewest conditions.
        doubt: By effect, under how many conditions it comes, in this function and those that it calls.
        lasting: The step that starts a thread which goes on.
    """

    steps: list[Step] = attrs.field(factory=list)
    witness: dict[Effect, Step] = attrs.field(factory=dict)
    doubt: dict[Effect, int] = attrs.field(factory=dict)
    lasting: Step | None = None

    def note(self, effect: Effect, step: Step, doubt: int) -> bool:
        """
        A step has an effect under so many conditions; whether that is news.
        """
        doubt += step.event.conditions
        if doubt >= self.doubt.get(effect, doubt + 1):
            return False
        self.witness[effect], self.doubt[effect] = step, doubt
        return True


class Project(Meanings):
    """
    All files that are checked.

    Args:
        sources: The files.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        super().__init__(sources)
        self.facts: dict[Function, Facts] = {}
        self.safe: set[Source] = set()
        self._safe_setters: frozenset[tuple[Source, bool]] = frozenset()
        self._pruned: set[Function] = set()
        self._steps: dict[Event, Step] = {}  # what was found out about an event stays so
        self._setters: list[tuple[Source, Event]] = []
        self._callers: dict[Function, list[tuple[Function, Step]]] = defaultdict(list)

    def load(self, source: Source) -> Module | None:
        """
        Parse one file, once; what went wrong is kept in *failures*.
        """
        if source in self._tried:
            return self.modules.get(source)
        self._tried.add(source)
        try:
            module = walk.summarise(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            self.failures.append((source, error))
            return None
        self.modules[source] = module
        return module

    def was_tried(self, source: Source) -> bool:
        """
        Whether a file was parsed, or could not be.
        """
        return source in self._tried

    def _may_matter(self, event: Event) -> bool:
        """
        False for a call of what is certainly another's and of no interest.
        """
        top = names.root(event.callee).partition(".")[0]
        wanted = event.made is not None and "preexec_fn" in event.made.keywords
        return not top or top in self._tops or top in known.PACKAGES or wanted

    # --- from calls to effects ----------------------------------------------------------------------------------------
    def link(self) -> None:
        """
        Find what each function does: by itself, then through the others.
        """
        self.relink()
        self.conclude()

    def relink(self) -> None:
        """
        Begin anew, since more files are known, and names may mean something now that meant nothing before.
        """
        self.facts = {}
        self._callers.clear()
        self.forget()
        self.asked.clear()
        functions = [each for module in self.modules.values() for each in module.functions if each.events]
        for function in functions:
            self._prune(function)
        setters = frozenset(
            (source, event.guarded) for source, event in self._setters if self._sets_safe_default(event)
        )
        if setters != self._safe_setters:
            self._safe_setters = setters
            self.safe = self._programs_of(setters)
            self._steps.clear()
        self._add(functions)
        self.absorb()

    def absorb(self) -> list[Function]:
        """
        Take in the functions that were read meanwhile.

        Returns:
            Those that are known to do something since, or to do more.
        """
        changed: dict[Function, None] = {}
        while self.asked:
            functions = list(self.asked)
            self.asked.clear()
            for function in functions:
                self._prune(function)
            changed.update(self._add(functions))
        return list(changed)

    def _add(self, functions: Iterable[Function]) -> dict[Function, None]:
        waiting: dict[Function, None] = {}  # in order, each once
        for function in functions:
            if function in self.facts:
                continue
            steps = self._steps_of(function)
            if not steps:
                continue
            facts = self.facts[function] = Facts(steps)
            for step in steps:
                for effect in step.own:
                    facts.note(effect, step, 0)
                for callee in step.callees:
                    self._callers[callee].append((function, step))
                    held = self.facts.get(callee)
                    if held is not None and held is not facts:
                        for effect, doubt in held.doubt.items():
                            facts.note(effect, step, doubt)
            if facts.witness:
                waiting[function] = None
        return self._spread(waiting)

    def _steps_of(self, function: Function) -> list[Step]:
        forks = self.forks_by_default(function)
        steps: list[Step] = []
        for event in function.events:
            step = self._steps.get(event)
            if step is None:
                step = self._step(event, forks)
                if step is None:
                    continue
                if all(callee not in callee.module.unread for callee in step.callees):
                    self._steps[event] = step
            steps.append(step)
        return steps

    def _spread(self, waiting: dict[Function, None]) -> dict[Function, None]:
        """
        Tell the callers of these functions what they do, and the callers of those; returns all that did change.
        """
        changed = dict(waiting)
        while waiting:
            callee = next(iter(waiting))
            del waiting[callee]
            held = list(self.facts[callee].doubt.items())
            for caller, step in self._callers[callee]:
                facts = self.facts[caller]
                news = [facts.note(effect, step, doubt) for effect, doubt in held]
                if any(news):
                    waiting[caller] = changed[caller] = None
        return changed

    def conclude(self) -> None:
        """
        Find what depends on all steps of a function: who waits for what it started, and whose threads go on.
        """
        waiting: dict[Function, None] = {}
        for function, facts in self.facts.items():
            pair = next(self.waits(function), None) if Effect.ENDS in facts.witness else None
            if pair is not None and facts.note(Effect.WAITS, pair[1], 0):
                waiting[function] = None
        self._spread(waiting)
        self._spread_lasting()

    def _sets_safe_default(self, event: Event) -> bool:
        meaning = self.resolve(event.callee)
        if event.made is None or not isinstance(meaning, External) or not meaning.path.endswith(".set_start_method"):
            return False
        return event.made.argument(0, "method")[1] != Const("fork")

    def _programs_of(self, setters: Iterable[tuple[Source, bool]]) -> set[Source]:
        """
        The files of the programs in which one of these files sets a safe start method.

        A program is a file and all that it imports, by its text. Below `if __name__ == "__main__":` the call is the
        file's own; elsewhere it is that of every file that imports it, too.
        """
        found: set[Source] = set()
        for setter, guarded in setters:
            peers = [source for source in self.sources if group(source) == group(setter)]
            known_files = set(peers)
            programs = {setter}
            while not guarded:
                above = {each for each in peers if each not in programs and not programs.isdisjoint(self.imports(each))}
                if not above:
                    break
                programs |= above
            waiting = list(programs)
            while waiting:
                source = waiting.pop()
                if source in known_files and source not in found:
                    found.add(source)
                    waiting += self.imports(source)
        return found

    def forks_by_default(self, function: Function) -> bool:
        """
        Whether the program of this function leaves the start method of multiprocessing as it is, or makes it fork.
        """
        return function.module.source not in self.safe

    def _prune(self, function: Function) -> None:
        """
        Forget the calls of which it is certain that they are another's and of no interest.
        """
        if function not in self._pruned and function not in function.module.unread:
            self._pruned.add(function)
            function.events = [
                event for event in function.events if self._may_matter(event) and not self._is_stranger(event)
            ]
            self._setters += [(function.module.source, event) for event in function.events if _may_set_default(event)]

    def _is_stranger(self, event: Event) -> bool:
        if event.kind == "end" or (event.made is not None and "preexec_fn" in event.made.keywords):
            return False
        meaning = self.resolve(event.callee)
        return isinstance(meaning, External) and not known.is_relevant(meaning.path)

    def _step(self, event: Event, forks: bool) -> Step | None:  # noqa: FBT001 - one caller
        if event.kind == "end":
            return Step(event, known.NONE, "", ())
        path, callees = self.callees(event)
        own = known.effects_of(path) if path else known.NONE
        if event.made is not None and path:
            own = self._refine(path, own, event.made)
            if not forks and path.startswith(("mp:default", "concurrent.")):
                own -= {Effect.FORKS}
        if not path and not callees and (event.made is None or "preexec_fn" not in event.made.keywords):
            return None
        return Step(event, own, path, callees)

    def callees(self, event: Event) -> tuple[str, tuple[Function, ...]]:
        """
        What an event calls: something known by name (relevant to a rule, else ""), or functions of the project.
        """
        meaning = self.resolve(event.callee)
        if isinstance(meaning, External):
            return meaning.path if known.is_relevant(meaning.path) else "", ()
        if isinstance(meaning, Class):
            return self._constructor(meaning)
        if isinstance(meaning, Function):
            if meaning in meaning.module.unread and b"yield" in meaning.words:
                self.ask(meaning)  # is it a generator? then a call alone does nothing
            runs = meaning.runs == "called" or event.consumed
            return "", (meaning,) if runs else ()
        return "", ()

    def _constructor(self, cls: Class) -> tuple[str, tuple[Function, ...]]:
        found: list[Function] = []
        for name in ("__new__", "__init__", "__post_init__", "__attrs_post_init__"):
            member = self._member(cls, name, 0, above=False, bound=True)
            if isinstance(member, Function):
                found.append(member)
        external = self.external_base(cls)
        path = external.path if external is not None and known.is_relevant(external.path) else ""
        return path, tuple(found)

    def external_base(self, cls: Class) -> External | None:
        """
        The first class of another's that a class is derived from; None also if a base before it is not known.
        """
        for each in self.lineage(cls):
            if not isinstance(each, Class):
                return each
        return None

    def executor_kind(self, made: Made) -> str:
        """
        How a `ProcessPoolExecutor` starts its workers.
        """
        given, value = made.argument(1, "mp_context")
        if not given or value == names.NOTHING:
            return "default"
        meaning = self.resolve(value)
        return known.kind_of(meaning.path) or "unknown" if isinstance(meaning, External) else "unknown"

    def _refine(self, path: str, own: frozenset[Effect], made: Made) -> frozenset[Effect]:
        """
        Add what the arguments say to what the name says.
        """
        if path in ("concurrent.futures.ProcessPoolExecutor().submit", "concurrent.futures.ProcessPoolExecutor().map"):
            holder = self.resolve(made.maker.of) if isinstance(made.maker, Attr) else None
            maker = holder.made if isinstance(holder, External) else None
            forks = maker is not None and self.executor_kind(maker) in ("default", "fork")
            return frozenset({Effect.PROCESS, Effect.FORKS} if forks else {Effect.PROCESS})
        if path in known.STARTS_COMMAND and not path.startswith("safespawn."):
            value = made.keywords.get("preexec_fn", names.NOTHING)
            return own if value == names.NOTHING or value is None else own | {Effect.FORKS}
        if Effect.LOCKS in own and (made.args or made.keywords):
            return known.NONE  # acquire(False), acquire(timeout=1)
        if path == "mp:default.Pool":
            given, context = made.argument(4, "context")
            return own - {Effect.FORKS} if given and context != names.NOTHING else own
        return own

    def _spread_lasting(self) -> None:
        active = [(f, facts) for f, facts in self.facts.items() if Effect.THREAD in facts.witness]
        changed = True
        while changed:
            changed = False
            for function, facts in active:
                if facts.lasting is None:
                    facts.lasting = next(self.lasting_threads(function), None)
                    changed = changed or facts.lasting is not None

    def does(self, step: Step, effect: Effect) -> bool:
        """
        Whether a step has an effect, by itself or through the functions that it calls.
        """
        return effect in step.own or any(effect in self.facts[f].witness for f in step.callees if f in self.facts)

    def waits(self, function: Function) -> Iterator[tuple[Step, Step]]:
        """
        The pairs of steps of a function of which the second waits, without a limit, for what the first started.
        """
        steps = self.facts[function].steps
        for index, later in enumerate(steps):
            if later.event.made is None or later.event.made.args or later.event.made.keywords:
                continue
            if not self.does(later, Effect.ENDS):
                continue
            for start in steps[:index]:
                starts = self.does(start, Effect.THREAD) or self.does(start, Effect.PROCESS)
                if starts and start.event.kind == "call" and self.ends(start, later):
                    yield start, later
                    break

    def surely(self, step: Step, effect: Effect) -> bool:
        """
        Whether a step has an effect, under no conditions in the functions that it calls but "if not yet".
        """
        found = [self.facts[f].doubt[effect] for f in step.callees if f in self.facts and effect in self.facts[f].doubt]
        return effect in step.own or bool(found and min(found) == 0)

    def lasting_threads(self, function: Function) -> Iterator[Step]:
        """
        The steps of a function that start a thread which still runs when the function has returned.
        """
        steps = self.facts[function].steps
        for index, step in enumerate(steps):
            if self.starts_lasting(step) and not any(self.ends(step, later) for later in steps[index + 1 :]):
                yield step

    def starts_lasting(self, step: Step) -> bool:
        """
        Whether a thread runs on when a step is done.
        """
        if Effect.THREAD in step.own:
            return True
        return any(self.facts[f].lasting is not None for f in step.callees if f in self.facts)

    def ends(self, start: Step, later: Step) -> bool:
        """
        Whether a later step waits for, or ends, what an earlier one started.
        """
        mine = start.event.receiver
        meaning = self.resolve(mine)
        made = isinstance(meaning, External) and meaning.path.endswith("()")
        if mine is None or not (made or isinstance(meaning, Instance)):
            mine = start.event.made  # it is no object: a module, or not known
        if later.event.kind == "end":
            return later.event.receiver in (mine, start.event.made)
        return self.does(later, Effect.ENDS) and later.event.receiver in (mine, start.event.made)

    def chain(self, step: Step, effect: Effect, function: Function) -> str:
        """
        How an effect comes about, from a step of a function to the call that has it, with places.
        """
        callee = self._through(step, effect)
        place = f"{_base(function)}:{step.event.line}"
        if callee is None:
            name = known.display(step.path) if step.path else step.callees[0].path
            return f"{name}() at {place}"
        parts = [f"{callee.path}() at {place}"]
        seen = {callee}
        while True:
            step = self.facts[callee].witness[effect]
            following = self._through(step, effect)
            if following is None or following in seen:
                name = known.display(step.path) if step.path else step.callees[0].path
                parts.append(f"{name} at {_base(callee)}:{step.event.line}")
                return " -> ".join(parts)
            callee = following
            seen.add(callee)
            parts.append(f"{callee.path} at {_base(callee)}:{callee.line}")

    def _through(self, step: Step, effect: Effect) -> Function | None:
        if effect in step.own:
            return None
        return next((f for f in step.callees if f in self.facts and effect in self.facts[f].witness), None)


def _may_set_default(event: Event) -> bool:
    callee = event.callee
    name = callee.path if isinstance(callee, Ref) else callee.name if isinstance(callee, Attr) else ""
    return name.endswith("set_start_method")


def _base(function: Function) -> str:
    return os.path.basename(function.module.source.path)


def group(source: Source) -> str:
    """
    The project that a file belongs to: all of them are one, but in an environment each package is its own.
    """
    if os.path.basename(source.root) in ("site-packages", "dist-packages"):
        return source.module.partition(".")[0]
    return ""
