"""
What expressions give, and the calls in them, in the order in which they happen: the lower half of `walk`.

Runs in: the checker, any thread. Pure; must never import or execute what it reads.
"""

from __future__ import annotations

import ast
import builtins
from typing import TYPE_CHECKING, Literal, TypeAlias

import attrs

from safespawn.check import names
from safespawn.check.names import Attr, Const, Def, Made, Many, Ref, Self, Super
from safespawn.check.summary import Class, Event, Function, Module

if TYPE_CHECKING:
    from collections.abc import Callable

    from safespawn.check.names import Value

Names: TypeAlias = "dict[str, Value | None]"
FunctionNode: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda

_BUILTINS = frozenset(dir(builtins))
_RUNNERS = frozenset({"run", "run_until_complete", "create_task", "ensure_future", "gather", "wait_for"})
_TUPLE_MAKERS = frozenset({"os.pipe", "os.pipe2"})
_COPIES = frozenset({"list", "reversed", "sorted", "tuple"})


@attrs.define(eq=False)
class Scope:
    """
    Where the walk is: *names* of this body, *outer* ones of the functions around it, the function that gets the events.
    """

    function: Function
    names: Names
    outer: tuple[Scope, ...] = ()
    cls: Class | None = None  # the class whose body this is
    owner: Class | None = None  # the class whose method this is, for self and super()
    shared: set[str] = attrs.field(factory=set)  # named in a `global` statement


class Expressions:
    """
    Walks expressions, within the scope that the statements around them set.

    Args:
        module: What is being read.
    """

    handlers: dict[type[ast.AST], Callable[..., Value | None]]

    def __init__(self, module: Module) -> None:
        self.module: Module = module
        self.scope: Scope = Scope(module.body, module.names)
        self.waiting: list[Function] = []
        self.lines: tuple[int, int] = (1, 1)
        self.arms: tuple[tuple[int, int], ...] = ()
        self.conditions: int = 0
        self.branchings: int = 0
        self.guarded = False

    def handle(self, node: ast.AST) -> Value | None:
        """
        Walk any node; of an expression, say what it gives.
        """
        handler = self.handlers.get(type(node))
        if handler is not None:
            return handler(self, node)
        for child in ast.iter_child_nodes(node):
            self.handle(child)
        return None

    expr = handle

    def iterated(self, node: ast.expr) -> Value | None:
        """
        Walk what a loop goes over, and say what each element is.
        """
        if isinstance(node, ast.Call) and len(node.args) == 1 and names.last_name(node.func) in _COPIES:
            return self.iterated(node.args[0])
        value = self.expr(node)
        self.consume(node)
        return value.each if isinstance(value, Many) else None

    def consume(self, node: ast.expr) -> None:
        """
        The coroutine or generator that this call returned is run.
        """
        events = self.scope.function.events
        for event in reversed(events[-8:]):  # the call itself is among the last few; its arguments came before it
            if event.node is node:
                event.consumed = True
                return

    def define(self, node: FunctionNode, name: str) -> Function:
        """
        A function of this file; its body is walked later.
        """
        scope = self.scope
        within = scope.cls.path if scope.cls else scope.function.path
        function = Function(name, f"{within}.{name}", self.module, node, scope.cls)
        if isinstance(node, ast.AsyncFunctionDef):
            function.runs = "awaited"
        self.module.functions.append(function)
        nested = scope.function is not self.module.body
        outer = scope.outer if scope.cls else (*scope.outer, scope) if nested else ()
        self.module.unread[function] = outer
        if nested or isinstance(node, ast.Lambda):
            self.waiting.append(function)  # part of what is being read
        return function

    # --- names --------------------------------------------------------------------------------------------------------
    def put(self, name: str, value: Value | None) -> None:
        """
        A name holds a value from here on.
        """
        if name in self.scope.shared and self.scope.function is not self.module.body:
            held = self.module.names.get(name, names.NOTHING)
            self.module.names[name] = names.either(held, value)
        else:
            self.scope.names[name] = value

    def bind(self, target: ast.expr, value: Value | None) -> None:
        """
        The target of an assignment holds a value from here on.
        """
        if isinstance(target, ast.Name):
            self.put(target.id, value)
        elif isinstance(target, ast.Attribute):
            holder = self.expr(target.value)
            if isinstance(holder, Self):
                fields = holder.cls.fields
                fields[target.attr] = names.either(fields.get(target.attr, names.NOTHING), value)
        elif isinstance(target, ast.Tuple | ast.List):
            pair = value if isinstance(value, Made) and isinstance(value.maker, Ref) else None
            for each in target.elts:
                known = pair is not None and isinstance(pair.maker, Ref) and pair.maker.path in _TUPLE_MAKERS
                self.bind(each, pair if known else None)
        elif isinstance(target, ast.Starred):
            self.bind(target.value, None)
        else:
            self.handle(target)

    def name(self, node: ast.Name) -> Value | None:
        """
        What a name holds here.
        """
        scope, name = self.scope, node.id
        if name in scope.names and name not in scope.shared:
            return scope.names[name]
        for outer in reversed(scope.outer):
            if name in outer.names:
                return outer.names[name]
        found = self.module.names
        if name in found:
            value = found[name]
            return Ref(f"{self.module.name}.{name}") if value in (None, names.NOTHING) else value
        return Ref(f"{self.module.name}.{name}") if self.module.stars and name not in _BUILTINS else None

    # --- expressions --------------------------------------------------------------------------------------------------
    def attribute(self, node: ast.Attribute) -> Value | None:
        """
        ``a.b``.
        """
        return names.attribute(self.expr(node.value), node.attr)

    def constant(self, node: ast.Constant) -> Value | None:
        """
        A literal.
        """
        return Const(node.value) if isinstance(node.value, str | int | None) else None

    def compare(self, node: ast.Compare) -> Value | None:
        """
        A comparison; its value is known where the platform decides it.
        """
        known = names.truth(node)
        if known is not None:
            return Const(known)
        self.expr(node.left)
        for each in node.comparators:
            self.expr(each)
        return None

    def binary(self, node: ast.BinOp) -> Value | None:
        """
        A sum, product and so on.
        """
        left: ast.expr = node
        parts: list[ast.expr] = []
        while isinstance(left, ast.BinOp):  # a long sum is a deep tree
            parts.append(left.right)
            left = left.left
        value = self.expr(left)
        rest = [self.expr(part) for part in reversed(parts)]
        return value if isinstance(value, Many) and len(rest) == 1 and value == rest[0] else None

    def conditional(self, node: ast.IfExp) -> Value | None:
        """
        ``a if b else c``.
        """
        known = names.truth(node.test)
        if known is not None:
            return self.expr(node.body if known else node.orelse)
        self.expr(node.test)
        one, other = self.expr(node.body), self.expr(node.orelse)
        return names.either(one, other)

    def several(self, node: ast.List | ast.Tuple | ast.Set) -> Value | None:
        """
        A list, tuple or set, written out.
        """
        values = [self.expr(each) for each in node.elts]
        if not values:
            return Many(names.NOTHING)
        return Many(values[0] if None not in values else None)

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> Value | None:
        """
        A comprehension; its variables do not outlive it.
        """
        outside = dict(self.scope.names)
        for each in node.generators:
            self.bind(each.target, self.iterated(each.iter))
            for test in each.ifs:
                self.expr(test)
        value = None
        if isinstance(node, ast.DictComp):
            self.expr(node.key)
            self.expr(node.value)
        else:
            value = self.expr(node.elt)
        self.scope.names.clear()
        self.scope.names.update(outside)
        return None if isinstance(node, ast.DictComp) else Many(value)

    def walrus(self, node: ast.NamedExpr) -> Value | None:
        """
        ``a := b``.
        """
        value = self.expr(node.value)
        self.put(node.target.id, value)
        return value

    def awaited(self, node: ast.Await | ast.YieldFrom) -> Value | None:
        """
        ``await a``, ``yield from a``.
        """
        value = self.expr(node.value)
        self.consume(node.value)
        if isinstance(node, ast.YieldFrom):
            self.yields(node)
            return None
        return value

    def yields(self, node: ast.Yield | ast.YieldFrom) -> Value | None:
        """
        ``yield a``: the function is a generator.
        """
        if self.scope.function.runs == "called":
            self.scope.function.runs = "iterated"
        if isinstance(node, ast.Yield) and node.value is not None:
            self.expr(node.value)
        return None

    def function_expression(self, node: ast.Lambda) -> Value | None:
        """
        A lambda.
        """
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.expr(default)
        function = self.define(node, "<lambda>")
        function.cls = None  # in a class body it is a value like any other
        return Def(function)

    def call(self, node: ast.Call) -> Value | None:
        """
        A call: its parts first, then itself.
        """
        func = node.func
        if isinstance(func, ast.Name) and func.id == "super" and self.scope.owner is not None:
            for argument in node.args:
                self.expr(argument)
            return Super(self.scope.owner)
        callee = self.expr(func)
        args = tuple(self.expr(argument) for argument in node.args)
        keywords = {keyword.arg: self.expr(keyword.value) for keyword in node.keywords}
        word = names.last_name(func)
        if word == "getattr" and len(args) > 1 and isinstance(func, ast.Name):
            wanted = args[1]
            if isinstance(wanted, Const) and isinstance(wanted.value, str):
                return names.attribute(args[0], wanted.value)
        if word in _RUNNERS:
            for argument in node.args:
                self.consume(argument)
        elif word == "append" and isinstance(func, ast.Attribute) and isinstance(func.value, ast.Name):
            held = self.scope.names.get(func.value.id)
            if isinstance(held, Many) and len(args) == 1:
                self.put(func.value.id, joined(held, Many(args[0])))
        if callee is None:
            if "preexec_fn" in keywords:
                self.record("call", None, None, node, Made(names.NOTHING, node, args, keywords))
            return None
        made = Made(callee, node, args, keywords)
        receiver = (
            callee.of
            if isinstance(callee, Attr)
            else Ref(callee.path.rpartition(".")[0])
            if isinstance(callee, Ref)
            else made
        )
        self.record("call", callee, receiver, node, made)
        return made

    def record(
        self,
        kind: Literal["call", "decorator"],
        callee: Value | None,
        receiver: Value | None,
        node: ast.expr,
        made: Made | None = None,
    ) -> None:
        """
        Keep an event, if it can matter.
        """
        if callee is None and made is None:
            return
        event = Event(kind, callee, receiver, node, self.lines, self.arms, self.conditions, self.guarded, made=made)
        self.scope.function.events.append(event)


def joined(held: Many, added: Value | None) -> Many:
    """
    A list after another was added to it.
    """
    each = added.each if isinstance(added, Many) else None
    return Many(each if held.each in (names.NOTHING, each) else None)


def span(node: ast.expr | ast.stmt) -> tuple[int, int]:
    """
    The first and the last line of a node.
    """
    return node.lineno, node.end_lineno or node.lineno


_E = Expressions
Expressions.handlers = {
    ast.Name: _E.name, ast.Attribute: _E.attribute, ast.Constant: _E.constant, ast.Compare: _E.compare,
    ast.BinOp: _E.binary, ast.IfExp: _E.conditional, ast.NamedExpr: _E.walrus,
    ast.List: _E.several, ast.Tuple: _E.several, ast.Set: _E.several,
    ast.ListComp: _E.comprehension, ast.SetComp: _E.comprehension, ast.GeneratorExp: _E.comprehension,
    ast.DictComp: _E.comprehension, ast.Await: _E.awaited, ast.YieldFrom: _E.awaited, ast.Yield: _E.yields,
    ast.Lambda: _E.function_expression, ast.Call: _E.call,
}  # fmt: skip
