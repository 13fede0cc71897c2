"""
Which files and functions are read: those with a word of interest, and those that lead to them.

Parsing is most of the work, and most of a program has nothing to do with threads and processes. So a file is parsed if
it has one of a few words, and of its functions those are read that have such a word (`known.WORDS`). When it turns out
that a function does something, its name is a word of interest, too: in its own file, in those that import that file,
and under the other names that these give it. Where the meaning of an expression depends on a function that was not
read, it is read then (`Meanings.ask`). So what is left out is what cannot matter.

Runs in: the checker, any thread. Reads files; never imports or executes them.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from safespawn.check import known, names
from safespawn.check.known import Effect
from safespawn.check.names import Attr, Def, Made, Many, Ref, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

    from safespawn.check.graph import Project
    from safespawn.check.names import Value
    from safespawn.check.source import Source
    from safespawn.check.summary import Function, Module

_SPREADING = frozenset({Effect.THREAD, Effect.COMMAND, Effect.PROCESS, Effect.FORKS})  # read further for these
_ROUNDS = 12  # of reading more files: arbitrary; each goes one import further


def read(project: Project) -> None:
    """
    Read what matters, and find what every function does.
    """
    reader = _Reader(project)
    fresh = [source for source in project.sources if source.is_relevant]
    for _ in range(_ROUNDS):
        for source in fresh:
            module = project.load(source)
            if module is not None:
                module.wanted |= known.WORDS
                module.wanted |= {
                    name.encode() for name, value in module.names.items() if known.is_of_interest(names.root(value))
                }
                reader.read_wanted(module)
        project.relink()
        reader.read_callers()
        fresh = [source for source in project.sources if not project.was_tried(source) and reader.may_call(source)]
        if not fresh:
            break
    project.conclude()


class _Reader:
    def __init__(self, project: Project) -> None:
        self.project = project
        self.handles: dict[str, set[bytes]] = {}  # by module, the words by which others can make it do something

    def read_wanted(self, module: Module) -> None:
        """
        Read the functions that have a wanted word.

        Wanted are also the names of what leads on: of a function that returns something wanted, of a field that holds
        it, of a class that is derived from it.
        """
        wanted = module.wanted
        while True:
            for cls in module.classes:
                if any(_is_wanted(module, base) for base in cls.bases):
                    wanted.add(cls.name.encode())
            found = [each for each in module.unread if not wanted.isdisjoint(each.words)]
            if not found:
                return
            for function in found:
                self.project.ask(function)
                if any(_is_wanted(module, value) for value in function.returns):
                    wanted.add(function.name.encode())
                if function.cls is not None:
                    fields = function.cls.fields
                    wanted |= {name.encode() for name, value in fields.items() if _is_wanted(module, value)}

    def read_callers(self) -> None:
        """
        Read, in the files that were parsed, what can call a function that does something, till there is no more.
        """
        importers: dict[str, list[Module]] = defaultdict(list)
        others: dict[str, list[tuple[Module, str]]] = defaultdict(list)
        stars: dict[str, list[Module]] = defaultdict(list)
        for module in self.project.modules.values():
            importers[module.name].append(module)
            for name in module.source.imports:
                importers[name].append(module)
            for star in module.stars:
                stars[star].append(module)
            for name, value in module.names.items():
                if isinstance(value, Ref):
                    others[value.path].append((module, name))
        told: set[tuple[str, str]] = set()
        active: Iterable[Function] = list(self.project.facts)
        classes = [
            (module.name, cls.name)
            for module in self.project.modules.values()
            for cls in module.classes
            if (base := self.project.external_base(cls)) is not None and known.is_started(base.path)
        ]
        while True:
            waiting = classes + [handle for function in active if (handle := self._handle(function)) is not None]
            touched: dict[Module, None] = {}
            while waiting:
                home, word = waiting.pop()
                if (home, word) in told:
                    continue
                told.add((home, word))
                self.handles.setdefault(home, set()).add(word.encode())
                for module in importers[home]:
                    touched[module] = None
                    module.wanted.add(word.encode())
                for module, name in others[f"{home}.{word}"]:
                    module.wanted.add(name.encode())
                    waiting.append((module.name, name))
                waiting += [(module.name, word) for module in stars[home]]
            for module in touched:
                self.read_wanted(module)
            active = self.project.absorb()
            if not active:
                return

    def _handle(self, function: Function) -> tuple[str, str] | None:
        """
        The module and the word by which a function is called, if it does something.
        """
        if function.name in ("<module>", "<lambda>") or _SPREADING.isdisjoint(self.project.facts[function].witness):
            return None
        special = function.name.startswith("__") and function.cls is not None
        return function.module.name, function.cls.name if special and function.cls is not None else function.name

    def may_call(self, source: Source) -> bool:
        """
        Whether a file that was not parsed has a word by which it can make something happen in what it imports.
        """
        for name in source.imports:
            if name.endswith(".*") and name[:-2] in self.handles:
                return True
            if name in self.handles and not self.handles[name].isdisjoint(source.words):
                return True
        return False


def _is_wanted(module: Module, value: Value | None) -> bool:
    while value is not None:
        if isinstance(value, Ref):
            return known.is_of_interest(value.path) or value.path.rpartition(".")[2].encode() in module.wanted
        if isinstance(value, Def):
            return value.item.name.encode() in module.wanted
        if isinstance(value, Self):
            return value.cls.name.encode() in module.wanted
        if isinstance(value, Attr):
            if value.name.encode() in module.wanted:
                return True
            value = value.of
        else:
            value = value.maker if isinstance(value, Made) else value.each if isinstance(value, Many) else None
    return False
