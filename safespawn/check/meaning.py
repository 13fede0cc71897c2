"""
From what is written to what is meant: what a value of `names` is, when all files are known that matter.

Runs in: the checker, any thread. Pure; must never import or execute what it is told of.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, TypeAlias

import attrs

from safespawn.check import known, names
from safespawn.check.names import Attr, Def, Made, Ref, Self, Super
from safespawn.check.summary import Class, Function, Module

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from safespawn.check.names import Value
    from safespawn.check.source import Source

_DEEPEST = 25  # steps from a name to what it means: arbitrary, far above what people write


@attrs.frozen
class External:
    """Something of another's, by the name that `known` has for it."""

    path: str
    made: Made | None = attrs.field(default=None, eq=False)


@attrs.frozen
class Instance:
    """An object of one of the project's classes."""

    cls: Class = attrs.field(eq=id)


Meaning: TypeAlias = External | Instance | Function | Class | Module


class Meanings:
    """
    Knows all files by their names, and those that were read by what they bind.

    Args:
        sources: The files.
    """

    def __init__(self, sources: Iterable[Source]) -> None:
        self.sources: list[Source] = list(sources)
        self.modules: dict[Source, Module] = {}
        self._by_name: dict[str, list[Source]] = defaultdict(list)
        for source in self.sources:
            self._by_name[source.module].append(source)
            if source.other_name:
                self._by_name[source.other_name].append(source)
        self._tops = {name.partition(".")[0] for name in self._by_name}
        self._tried: set[Source] = set()
        self._imports: dict[Source, frozenset[Source]] = {}
        self._meanings: dict[int, tuple[Value, Meaning | None]] = {}
        self._lineages: dict[Class, list[Class | External | None]] = {}
        self._fields_asked: set[tuple[Class, str]] = set()
        self.asked: list[Function] = []
        self.failures: list[tuple[Source, Exception]] = []

    def ask(self, function: Function) -> bool:
        """
        Read the body of a function of the project, because somebody needs to know; False if that was done before.
        """
        try:
            read = function.module.read(function)
            self.asked += read
            return bool(read)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            if all(source is not function.module.source for source, _ in self.failures):
                self.failures.append((function.module.source, error))
            function.module.unread.pop(function, None)
            return True

    def forget(self) -> None:
        """
        Another file was read: what was not known may be known now. What was known stays so.
        """
        self._meanings = {key: each for key, each in self._meanings.items() if each[1] is not None}
        self._lineages.clear()

    def resolve(self, value: Value | None, depth: int = 0) -> Meaning | None:
        """
        What a value means; None if that is not known.
        """
        if value is None or depth > _DEEPEST:
            return None
        found = self._meanings.get(id(value))
        if found is not None:
            return found[1]
        meaning = self._resolve(value, depth + 1)
        if depth < 3:  # deeper, the answer may be "not known" only for lack of steps
            self._meanings[id(value)] = (value, meaning)
        return meaning

    def _resolve(self, value: Value, depth: int) -> Meaning | None:
        if isinstance(value, Ref):
            return self.find(value.path, depth)
        if isinstance(value, Def):
            return value.item
        if isinstance(value, Self):
            return Instance(value.cls)
        if isinstance(value, Attr):
            if isinstance(value.of, Super):
                return self._member(value.of.cls, value.name, depth, above=True, bound=True)
            return self._attribute(self.resolve(value.of, depth), value.name, depth)
        if isinstance(value, Made):
            return self._made(value, self.resolve(value.maker, depth), depth)
        return None

    def _made(self, value: Made, maker: Meaning | None, depth: int) -> Meaning | None:
        if isinstance(maker, External):
            return External(known.result_of(maker.path, value), value)
        if isinstance(maker, Class):
            return Instance(maker)
        if isinstance(maker, Function):
            self.ask(maker)
            if maker.runs != "called":
                return None
            known_results = [each for each in maker.returns if each != names.NOTHING]
            if len(known_results) == 1:
                return self.resolve(known_results[0], depth)
        return None

    def _attribute(self, holder: Meaning | None, name: str, depth: int) -> Meaning | None:
        if isinstance(holder, External):
            return External(known.canonical(f"{holder.path}.{name}"), holder.made)
        if isinstance(holder, Module):
            return self._in_module(holder, name, depth)
        if isinstance(holder, Class):
            return self._member(holder, name, depth, above=False, bound=False)
        if isinstance(holder, Instance):
            return self._member(holder.cls, name, depth, above=False, bound=True)
        return None

    def lineage(self, cls: Class) -> list[Class | External | None]:
        """
        A class and what it is derived from, nearest first; None for a base that is not known.
        """
        found = self._lineages.get(cls)
        if found is None:
            found = self._lineages[cls] = list(self._ancestors(cls))
        return found

    def _ancestors(self, cls: Class) -> Iterator[Class | External | None]:
        waiting: list[Class | External | None] = [cls]
        seen: set[Class] = set()
        while waiting:
            current = waiting.pop(0)
            if isinstance(current, Class):
                if current in seen:
                    continue
                seen.add(current)
                bases = [self.resolve(base) for base in current.bases]
                waiting[:0] = [base if isinstance(base, Class | External) else None for base in bases]
            yield current

    def _member(self, cls: Class, name: str, depth: int, *, above: bool, bound: bool) -> Meaning | None:
        for each in self.lineage(cls):
            if each is cls and above:
                continue
            if isinstance(each, External):
                path = known.canonical(f"{each.path}{'()' if bound else ''}.{name}")
                if known.is_relevant(path) and (known.effects_of(path) or path.startswith("mp:")):
                    return External(path)
            elif each is None:
                return None  # it may be defined there
            elif name in each.members:
                found = self.resolve(each.members[name], depth)
                if isinstance(found, Function) and found.is_property and bound:
                    self.ask(found)
                    return self.resolve(found.returns[0], depth) if len(found.returns) == 1 else None
                return found
            elif bound and self._has_field(each, name):
                return self.resolve(each.fields[name], depth)
        return None

    def _has_field(self, cls: Class, name: str) -> bool:
        """
        Whether methods of a class assign to this attribute; those that may, by their text, are read for it.
        """
        if (cls, name) not in self._fields_asked:
            self._fields_asked.add((cls, name))
            word = name.encode()
            for function in [each for each in cls.module.unread if each.cls is cls and word in each.words]:
                if re.search(rb"\.%b\s*(?:[=:,)]|[^\w\s.(\[]=)" % re.escape(word), function.text):
                    self.ask(function)
        return name in cls.fields

    def _in_module(self, module: Module, name: str, depth: int) -> Meaning | None:
        if name in module.names:
            value = module.names[name]
            if value == Ref(f"{module.name}.{name}"):  # `from . import name`: the module of that name
                return self._module(f"{module.name}.{name}", module.source)
            return self.resolve(value, depth)
        submodule = self._module(f"{module.name}.{name}", module.source)
        if submodule is not None:
            return submodule
        for star in module.stars:
            found = self.find(f"{star}.{name}", depth)
            if found is not None and (not isinstance(found, External) or known.is_relevant(found.path)):
                return found
        return None

    def find(self, path: str, depth: int = 0) -> Meaning | None:
        """
        What an absolute dotted name means.
        """
        words = path.split(".")
        if words[0] not in self._tops or words[0] in sys.stdlib_module_names:
            return External(known.canonical(path))
        if depth > _DEEPEST:
            return None
        for count in range(len(words), 0, -1):
            name = ".".join(words[:count])
            if name in self._by_name:
                meaning: Meaning | None = self._module(name, None)
                for word in words[count:]:
                    meaning = self._attribute(meaning, word, depth + 1)
                return meaning
        return None

    def _module(self, name: str, beside: Source | None) -> Module | None:
        found = self._by_name.get(name, [])
        if len(found) > 1 and beside is not None:
            found = [source for source in found if source.root == beside.root]
        return self.modules.get(found[0]) if len(found) == 1 else None

    def imports(self, source: Source) -> frozenset[Source]:
        """
        The files that the import statements of a file name, by its text.
        """
        found = self._imports.get(source)
        if found is None:
            # One that two files go by leads to the one beside it, as in `_module`.
            # A file os.py in the folder that was given is not what `import os` means, as in `find`.
            named = {
                name: self._by_name[name]
                for name in source.imports
                if name in self._by_name and name.partition(".")[0] not in sys.stdlib_module_names
            }
            found = self._imports[source] = frozenset(
                each
                for several in named.values()
                for each in several
                if each is not source and (len(several) == 1 or each.root == source.root)
            )
        return found

    def unread(self, path: str) -> Source | None:
        """
        The file that a dotted name leads to, if it was not read yet.
        """
        words = path.split(".") if path else []
        for count in range(len(words), 0, -1):
            found = self._by_name.get(".".join(words[:count]), [])
            if len(found) == 1:
                return None if found[0] in self._tried else found[0]
        return None
