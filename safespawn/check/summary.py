"""
What one file says: its functions and classes, and for each function the calls that it makes, in order.

A module's body is a function as well, the one that an import calls. Each call is an `Event`: what is called, as a
value of `names`, where, and under which conditions. What a call *does* is not decided here, but in `graph`, when
all files are known.

Runs in: the checker, any thread. Pure; must never import or execute what it reads.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
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

    @property
    def line(self) -> int:
        """
        Where it is defined.
        """
        return getattr(self.node, "lineno", 1)

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
    """

    source: Source
    tree: ast.Module
    body: Function = attrs.field(init=False)
    names: dict[str, Value | None] = attrs.field(factory=dict)
    stars: list[str] = attrs.field(factory=list)
    functions: list[Function] = attrs.field(factory=list)
    classes: list[Class] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.body = Function("<module>", self.source.module, self, self.tree)
        self.functions.append(self.body)

    @property
    def name(self) -> str:
        """
        Its dotted name.
        """
        return self.source.module
