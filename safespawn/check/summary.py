"""
What one file says: its functions and classes, and for each function the calls that it makes, in order.

A module's body is a function as well, the one that an import calls. Each call is an `Event`: what is called, as a
value of `names`, where, and under which conditions. What a call *does* is not decided here, but in `graph`, when
all files are known. Most functions have nothing to do with processes and threads: the body of one is read when it has
a word of interest, or when somebody asks for it (`Module.unread`).

Runs in: the checker, any thread. Pure; must never import or execute what it reads.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Literal

import attrs

from safespawn.check.outline import words_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from safespawn.check.expressions import Scope
    from safespawn.check.names import Made, Value
    from safespawn.check.source import Source

Arm = tuple[int, int]  # which branching statement, by a number, and which of its branches


@attrs.define(eq=False)
class Event:
    """
    One step of a function.

    Args:
        kind: A call; the application of a decorator; or the end of a `with` block, which has no callee.
        callee: What is called; None if not known.
        receiver: The object whose method it is, or the one that is made; by it, start and join are paired.
        node: The expression, for its place.
        lines: The first and last line of the statement (of its head, if it has a body), where a remark may stand.
        arms: The branches in which it stands, from outside in.
        conditions: How many conditions it depends on, not counting "if not yet".
        guarded: Whether it stands below `if __name__ == "__main__":`.
        consumed: Whether a coroutine or generator that is returned is also run: awaited, iterated.
        made: The call with its arguments; None for a decorator and the end of a block.
    """

    kind: Literal["call", "decorator", "end"]
    callee: Value | None
    receiver: Value | None
    node: ast.expr
    lines: tuple[int, int]
    arms: tuple[Arm, ...]
    conditions: int
    guarded: bool
    consumed: bool = False
    made: Made | None = None

    @property
    def line(self) -> int:
        """
        The line where the call begins; for a chain over several lines, that of the name before the bracket.
        """
        if isinstance(self.node, ast.Call) and isinstance(self.node.func, ast.Attribute):
            return self.node.func.end_lineno or self.node.lineno
        return self.node.lineno


@attrs.define(eq=False)
class Function:
    """
    A function, method, lambda, or the body of a module.

    Args:
        name: Its own name; "<module>" for a body.
        path: Its dotted name, with the module.
        module: Where it stands.
        node: Its definition.
        cls: The class that it is a method of.
        events: What it does, in order.
        returns: What it returns, as far as known.
        ended: The branches that do not go on after their last statement.
        runs: When its body runs: at a call, or when what the call returned is awaited or iterated.
    """

    name: str
    path: str
    module: Module
    node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
    cls: Class | None = None
    decorators: tuple[str, ...] = ()
    events: list[Event] = attrs.field(factory=list)
    returns: list[Value | None] = attrs.field(factory=list)
    ended: set[Arm] = attrs.field(factory=set)
    runs: Literal["called", "awaited", "iterated"] = "called"
    _words: frozenset[bytes] | None = attrs.field(default=None, init=False)

    @property
    def line(self) -> int:
        """
        Where it is defined.
        """
        return getattr(self.node, "lineno", 1)

    @property
    def text(self) -> bytes:
        """
        Its source, without decorators.
        """
        cut = self.module.source.cut.get(self.line)
        if cut is not None:
            return cut
        lines = self.module.source.lines
        return b"" if isinstance(self.node, ast.Module) else b"".join(lines[self.line - 1 : self.node.end_lineno])

    @property
    def words(self) -> frozenset[bytes]:
        """
        All words of its text.
        """
        if self._words is None:
            self._words = words_of(self.text)
        return self._words

    @property
    def is_property(self) -> bool:
        """
        Whether reading the attribute calls it.
        """
        return any(name.rpartition(".")[2] in ("property", "cached_property") for name in self.decorators)


@attrs.define(eq=False)
class Class:
    """
    A class.

    Args:
        bases: What it is derived from, in order.
        members: What its body binds: methods, constants.
        fields: What its methods assign to attributes of their first argument.
    """

    name: str
    path: str
    module: Module
    node: ast.ClassDef
    bases: list[Value | None] = attrs.field(factory=list)
    members: dict[str, Value | None] = attrs.field(factory=dict)
    fields: dict[str, Value | None] = attrs.field(factory=dict)


@attrs.define(eq=False)
class Module:
    """
    One parsed file.

    Args:
        source: The file.
        tree: Its syntax tree.
        body: What an import of it does.
        names: What its top level binds, at its end.
        stars: Modules of which it imports everything.
        functions: All of its functions, at any depth, the body first.
        classes: All of its classes.
        unread: Functions whose bodies were not read yet, with the scopes around them.
        wanted: The words of interest: what has one is read.
    """

    source: Source
    tree: ast.Module
    body: Function = attrs.field(init=False)
    names: dict[str, Value | None] = attrs.field(factory=dict)
    stars: list[str] = attrs.field(factory=list)
    functions: list[Function] = attrs.field(factory=list)
    classes: list[Class] = attrs.field(factory=list)
    unread: dict[Function, tuple[Scope, ...]] = attrs.field(factory=dict)
    wanted: set[bytes] = attrs.field(factory=set)
    reader: Callable[[Function], list[Function]] | None = None

    def __attrs_post_init__(self) -> None:
        self.body = Function("<module>", self.source.module, self, self.tree)
        self.functions.append(self.body)

    @property
    def name(self) -> str:
        """
        Its dotted name.
        """
        return self.source.module

    def read(self, function: Function) -> list[Function]:
        """
        Read the body of a function, and of those in it; returns them, and none if that was done before.
        """
        return self.reader(function) if function in self.unread and self.reader is not None else []
