"""
What an expression of the checked code may be, as far as its text tells: the values that the checker reckons with.

A value is symbolic and has no scope: locals were replaced when it was made, so it means the same in every file. It is
turned into something known (a function of the project, `threading.Thread.start`) later, by `graph.Project.resolve`,
when all files that matter have been read. None, in place of a value, is "not known": nothing is ever said about it.

Runs in: the checker, any thread. Must never import or execute what it is told of.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, TypeAlias

import attrs

if TYPE_CHECKING:
    from safespawn.check.summary import Class, Function


@attrs.frozen
class Ref:
    """A dotted name, absolute: `threading.Thread`, `app.plugin.start`."""

    path: str


@attrs.frozen
class Def:
    """A function or class of the checked files, by its summary."""

    item: Function | Class = attrs.field(eq=id)


@attrs.frozen
class Made:
    """What a call returns."""

    maker: Value
    call: ast.Call = attrs.field(eq=id)
    args: tuple[Value | None, ...] = attrs.field(eq=False)
    keywords: dict[str | None, Value | None] = attrs.field(eq=False)

    def argument(self, position: int, name: str) -> tuple[bool, Value | None]:
        """
        One argument: whether it may have been given, and its value.
        """
        if name in self.keywords:
            return True, self.keywords[name]
        if position < len(self.args):
            return True, self.args[position]
        starred = None in self.keywords or any(isinstance(arg, ast.Starred) for arg in self.call.args)
        return starred, None


@attrs.frozen
class Attr:
    """An attribute of a value that is no plain dotted name."""

    of: Value
    name: str


@attrs.frozen
class Self:
    """The first argument of a method: an instance of the class, or of a class derived from it."""

    cls: Class = attrs.field(eq=id)


@attrs.frozen
class Super:
    """What `super()` gives in a method of the class."""

    cls: Class = attrs.field(eq=id)


@attrs.frozen
class Const:
    """A literal: text, number, True, False, None."""

    value: object


@attrs.frozen
class Many:
    """A list or tuple whose elements are alike, as far as is known."""

    each: Value | None


Value: TypeAlias = Ref | Def | Made | Attr | Self | Super | Const | Many

NOTHING = Const(None)


def attribute(of: Value | None, name: str) -> Value | None:
    """
    The value of ``of.name``.
    """
    if of is None or isinstance(of, Const):
        return None
    if isinstance(of, Ref):
        return Ref(f"{of.path}.{name}")
    return Attr(of, name)


def either(one: Value | None, other: Value | None) -> Value | None:
    """
    What a name holds after two branches. None, the literal, gives way; two different values are not known.
    """
    if other in (one, NOTHING):
        return one
    return other if one == NOTHING else None


def root(value: Value | None) -> str:
    """
    The dotted name that a value begins with; "" if there is none.
    """
    while value is not None:
        if isinstance(value, Ref):
            return value.path
        value = value.of if isinstance(value, Attr) else value.maker if isinstance(value, Made) else None
    return ""


# --- what is decided before the program runs --------------------------------------------------------------------------
_FOREIGN = frozenset({"win32", "cygwin", "darwin", "nt", "Windows", "Darwin", "java"})
_HOST = frozenset({"linux", "posix", "Linux"})


def truth(test: ast.expr) -> bool | None:
    """
    Whether a condition holds on Linux in a running program, if its text alone decides that.
    """
    if isinstance(test, ast.Constant):
        return bool(test.value)
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = truth(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.BoolOp):
        parts = [truth(part) for part in test.values]
        decisive = isinstance(test.op, ast.Or)
        if decisive in parts:
            return decisive
        return None if None in parts else not decisive
    if isinstance(test, ast.Name | ast.Attribute):
        return False if last_name(test) == "TYPE_CHECKING" else None
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        return _platform(test.left, test.ops[0], test.comparators[0])
    if isinstance(test, ast.Call) and len(test.args) == 1 and dotted(test.func) == "sys.platform.startswith":
        return _platform_word(test.args[0], prefix=True)
    return None


def _platform(left: ast.expr, operator: ast.cmpop, right: ast.expr) -> bool | None:
    text = dotted(left.func) if isinstance(left, ast.Call) else dotted(left)
    if text not in ("sys.platform", "os.name", "platform.system"):
        return None
    if isinstance(operator, ast.Eq | ast.NotEq):
        found = _platform_word(right, prefix=False)
    elif isinstance(operator, ast.In | ast.NotIn) and isinstance(right, ast.Tuple | ast.List | ast.Set):
        words = [_platform_word(each, prefix=False) for each in right.elts]
        found = True if True in words else None if None in words else False
    else:
        return None
    if found is None:
        return None
    return found == isinstance(operator, ast.Eq | ast.In)


def _platform_word(node: ast.expr, *, prefix: bool) -> bool | None:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
        return None
    word = node.value
    if prefix:
        return True if word and "linux".startswith(word) else False if word in ("win", "cygwin", "darwin") else None
    return True if word in _HOST else False if word in _FOREIGN else None


def is_main_guard(test: ast.expr) -> bool:
    """
    Whether a condition is ``__name__ == "__main__"``, either way round, alone or joined to others by `and`.
    """
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return any(is_main_guard(part) for part in test.values)
    if not isinstance(test, ast.Compare) or len(test.ops) != 1:
        return False
    sides = (test.left, test.comparators[0])
    if not any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides):
        return False
    if isinstance(test.ops[0], ast.In):
        return True  # in ("__main__", "__mp_main__"): on purpose
    words = [side.value for side in sides if isinstance(side, ast.Constant)]
    return isinstance(test.ops[0], ast.Eq) and "__main__" in words


def is_first_time(test: ast.expr) -> bool:
    """
    Whether a condition asks if something was not done yet: ``x is None``, ``not x``, ``key not in x``.
    """
    if isinstance(test, ast.UnaryOp):
        return isinstance(test.op, ast.Not)
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        right = test.comparators[0]
        nothing = isinstance(right, ast.Constant) and right.value is None
        return isinstance(test.ops[0], ast.NotIn) or (nothing and isinstance(test.ops[0], ast.Is))
    return False


def dotted(node: ast.expr) -> str:
    """
    ``a.b.c`` as text; "" for anything else.
    """
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return ""
    return ".".join([node.id, *reversed(names)])


def last_name(node: ast.expr) -> str:
    """
    The last word of a name or attribute; "" for anything else.
    """
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
