"""
Reads a syntax tree once, statement by statement, into a `summary.Module`.

It keeps what each name holds at each point: branches are walked apart and joined, loops are walked once. A function's
body is walked after the body that holds it, with the names as they are at the end of that one; a function or method
of the top level when it is asked for.

Runs in: the checker, any thread. Pure; must never import or execute what it reads.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from safespawn.check import known, names
from safespawn.check.expressions import Expressions, Scope, joined, span
from safespawn.check.names import Def, Many, Ref, Self
from safespawn.check.summary import Class, Event, Function, Module

if TYPE_CHECKING:
    from collections.abc import Sequence

    from safespawn.check.expressions import Names
    from safespawn.check.names import Value
    from safespawn.check.source import Source

_LEAVING = frozenset(
    {"sys.exit", "os._exit", "exit", "quit", "os.abort", "os.execv", "os.execve", "os.execvp", "os.execvpe"}
)


def summarise(source: Source) -> Module:
    """
    Parse one file and say what its body does; its functions are listed, and read on request.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: As `Source.parse`.
    """
    module = Module(source, source.parse(known.WORDS))
    walker = _Walker(module)
    walker.walk()
    module.reader = walker.read
    return module


class _Walker(Expressions):
    """The walk over one file."""

    def walk(self) -> None:
        self.body(self.module.tree.body)
        self.walk_waiting()

    def read(self, function: Function) -> list[Function]:
        function.node = self.module.source.body_of(function.line) or function.node
        self.waiting.append(function)
        return self.walk_waiting()

    def walk_waiting(self) -> list[Function]:
        done: list[Function] = []
        while self.waiting:
            function = self.waiting.pop(0)
            done.append(function)
            outer = self.module.unread.pop(function)
            self.scope = Scope(function, {}, outer, owner=function.cls)
            self.arms, self.conditions, self.guarded = (), 0, False
            self.function_body(function)
        return done

    def function_body(self, function: Function) -> None:
        node = function.node
        if isinstance(node, ast.Module):
            return
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.scope.names.update((each.arg, None) for each in (*arguments, node.args.vararg, node.args.kwarg) if each)
        if function.cls is not None and arguments and "staticmethod" not in function.decorators:
            bound = function.decorators[:1] == ("classmethod",) or function.name == "__new__"
            self.scope.names[arguments[0].arg] = Def(function.cls) if bound else Self(function.cls)
        elif function.cls is None and self.scope.outer:
            self.scope.owner = self.scope.outer[-1].owner
        if isinstance(node, ast.Lambda):
            self.lines = span(node)
            function.returns.append(self.expr(node.body))
        else:
            self.body(node.body)

    # --- statements ---------------------------------------------------------------------------------------------------
    def body(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            self.lines = _head(statement)
            self.handle(statement)

    def branch(
        self, before: Names, number: int, arm: int, statements: Sequence[ast.stmt], *, first_time: bool = False
    ) -> Names | None:
        """
        Walk one of several branches; None if nothing goes on after it.
        """
        outside, conditions = self.arms, self.conditions
        self.arms = (*outside, (number, arm))
        self.conditions += not first_time
        self.scope.names = dict(before)
        self.body(statements)
        self.arms, self.conditions = outside, conditions
        if leaves(statements):
            self.scope.function.ended.add((number, arm))
            return None
        return self.scope.names

    def join(self, before: Names, ends: list[Names | None]) -> None:
        living = [each for each in ends if each is not None] or [before]
        merged = living[0]
        for other in living[1:]:
            for name, value in other.items():
                merged[name] = names.either(merged[name], value) if name in merged else value
        # The module's own dictionary must stay the same object: functions look names up in it later.
        before.clear()
        before.update(merged)
        self.scope.names = before

    def walk_if(self, node: ast.If) -> None:
        while True:
            known = names.truth(node.test)
            if known is not None:
                self.body(node.body if known else node.orelse)
                return
            if names.is_main_guard(node.test):
                was, self.guarded = self.guarded, self.scope.function is self.module.body or self.guarded
                self.body(node.body)
                self.guarded = was
                self.body(node.orelse)
                return
            break
        self.expr(node.test)
        self.branchings += 1
        number, before = self.branchings, self.scope.names
        start = dict(before)
        first_time = names.is_first_time(node.test)
        ends = [
            self.branch(start, number, 0, node.body, first_time=first_time),
            self.branch(start, number, 1, node.orelse),
        ]
        self.join(before, ends)

    def walk_match(self, node: ast.Match) -> None:
        self.expr(node.subject)
        self.branchings += 1
        number, before = self.branchings, self.scope.names
        start = dict(before)
        ends: list[Names | None] = [dict(before)]
        for arm, case in enumerate(node.cases):
            for part in ast.walk(case.pattern):
                bound = getattr(part, "name", None) or getattr(part, "rest", None)
                if isinstance(bound, str):
                    start[bound] = None
            ends.append(self.branch(start, number, arm, case.body))
        self.join(before, ends)

    def walk_try(self, node: ast.Try | ast.TryStar) -> None:
        self.branchings += 1
        number, before = self.branchings, self.scope.names
        start = dict(before)
        self.body(node.body)
        self.body(node.orelse)
        done: Names = dict(self.scope.names)
        for arm, handler in enumerate(node.handlers, 1):
            if handler.type is not None:
                self.expr(handler.type)
            if handler.name:
                start[handler.name] = None
            end = self.branch(start, number, arm, handler.body)
            for name, value in (end or {}).items():
                # `except ImportError: something = None`, or a substitute for it: what the try block bound counts.
                if done.get(name) in (None, names.NOTHING):
                    done[name] = value if name not in done or value is not None else done[name]
        before.clear()
        before.update(done)
        self.scope.names = before
        self.body(node.finalbody)

    def walk_for(self, node: ast.For | ast.AsyncFor) -> None:
        many = self.iterated(node.iter)
        self.bind(node.target, many)
        self.body(node.body)
        self.body(node.orelse)

    def walk_with(self, node: ast.With | ast.AsyncWith) -> None:
        lines = self.lines
        opened: list[tuple[Value | None, ast.expr]] = []
        for item in node.items:
            value = self.expr(item.context_expr)
            self.consume(item.context_expr)
            if isinstance(node, ast.With):
                self.record("call", names.attribute(value, "__enter__"), value, item.context_expr)
            if item.optional_vars is not None:
                self.bind(item.optional_vars, value)
            opened.append((value, item.context_expr))
        self.body(node.body)
        self.lines = lines
        for value, expression in reversed(opened):
            if value is not None:
                self.scope.function.events.append(
                    Event("end", None, value, expression, lines, self.arms, self.conditions, self.guarded)
                )

    def walk_function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        head = self.lines
        decorators = [(each, self.expr(each)) for each in node.decorator_list]
        for default in (*node.args.defaults, *node.args.kw_defaults):
            if default is not None:
                self.expr(default)
        function = self.define(node, node.name)
        function.decorators = tuple(names.dotted(each) for each in node.decorator_list)
        if any("contextmanager" in name for name in function.decorators):
            function.runs = "iterated"
        for expression, value in decorators:
            self.lines = head
            self.record("decorator", value, None, expression)
        self.put(node.name, Def(function))

    def walk_class(self, node: ast.ClassDef) -> None:
        for expression in node.decorator_list:
            self.record("decorator", self.expr(expression), None, expression)
        within = self.scope.cls.path if self.scope.cls else self.scope.function.path
        cls = Class(node.name, f"{within}.{node.name}", self.module, node)
        cls.bases = [self.expr(base) for base in node.bases]
        for keyword in node.keywords:
            self.expr(keyword.value)
        self.module.classes.append(cls)
        self.put(node.name, Def(cls))
        outside = self.scope
        nested = outside.function is not self.module.body and outside.cls is None
        outer = (*outside.outer, outside) if nested else outside.outer
        self.scope = Scope(outside.function, {}, outer, cls)
        self.body(node.body)
        cls.members = self.scope.names
        self.scope = outside

    def walk_assign(self, node: ast.Assign) -> None:
        if isinstance(node.value, ast.Tuple) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Tuple):
            values = [self.expr(each) for each in node.value.elts]
            targets = node.targets[0].elts
            same = len(targets) == len(values) and not any(isinstance(each, ast.Starred) for each in targets)
            for index, target in enumerate(targets):
                self.bind(target, values[index] if same else None)
            return
        value = self.expr(node.value)
        for target in node.targets:
            self.bind(target, value)

    def walk_annotated(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.bind(node.target, self.expr(node.value))

    def walk_augmented(self, node: ast.AugAssign) -> None:
        added = self.expr(node.value)
        if isinstance(node.target, ast.Name):
            held = self.scope.names.get(node.target.id)
            self.put(node.target.id, joined(held, added) if isinstance(held, Many) else None)

    def walk_return(self, node: ast.Return) -> None:
        if node.value is not None:
            self.scope.function.returns.append(self.expr(node.value))

    def walk_global(self, node: ast.Global) -> None:
        self.scope.shared.update(node.names)

    def walk_import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.asname:
                self.put(alias.asname, Ref(alias.name))
            else:
                top = alias.name.partition(".")[0]
                self.put(top, Ref(top))

    def walk_import_from(self, node: ast.ImportFrom) -> None:
        base = self.module.source.absolute("." * node.level + (node.module or ""))
        for alias in node.names:
            if alias.name == "*":
                self.module.stars.append(base)
            else:
                self.put(alias.asname or alias.name, Ref(f"{base}.{alias.name}" if base else alias.name))


def _head(statement: ast.stmt) -> tuple[int, int]:
    """
    The first and last line of a statement; of one that has a body, of what stands before it.
    """
    inner: list[ast.expr] = []
    if isinstance(statement, ast.If | ast.While):
        inner = [statement.test]
    elif isinstance(statement, ast.For | ast.AsyncFor):
        inner = [statement.iter]
    elif isinstance(statement, ast.With | ast.AsyncWith):
        inner = [item.context_expr for item in statement.items]
    elif isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        first = min([statement.lineno, *(each.lineno for each in statement.decorator_list)])
        return first, max(first, statement.body[0].lineno - 1)
    elif isinstance(statement, ast.Try | ast.TryStar | ast.Match):
        return statement.lineno, statement.lineno
    if not inner:
        return span(statement)
    return statement.lineno, max(each.end_lineno or each.lineno for each in inner)


def leaves(statements: Sequence[ast.stmt]) -> bool:
    """
    Whether nothing goes on after these statements.
    """
    last = statements[-1] if statements else None
    if isinstance(last, ast.Return | ast.Raise):
        return True
    if isinstance(last, ast.If):
        return leaves(last.body) and leaves(last.orelse)
    if isinstance(last, ast.Try | ast.TryStar):
        bodies = [last.orelse or last.body, *(handler.body for handler in last.handlers)]
        return leaves(last.finalbody) or all(map(leaves, bodies))
    if isinstance(last, ast.With):
        return leaves(last.body)
    return isinstance(last, ast.Expr) and isinstance(last.value, ast.Call) and names.dotted(last.value.func) in _LEAVING


_W = _Walker
_Walker.handlers = {
    **Expressions.handlers,
    ast.If: _W.walk_if, ast.Match: _W.walk_match, ast.Try: _W.walk_try, ast.TryStar: _W.walk_try,
    ast.For: _W.walk_for, ast.AsyncFor: _W.walk_for, ast.With: _W.walk_with, ast.AsyncWith: _W.walk_with,
    ast.FunctionDef: _W.walk_function, ast.AsyncFunctionDef: _W.walk_function, ast.ClassDef: _W.walk_class,
    ast.Assign: _W.walk_assign, ast.AnnAssign: _W.walk_annotated, ast.AugAssign: _W.walk_augmented,
    ast.Return: _W.walk_return, ast.Global: _W.walk_global,
    ast.Import: _W.walk_import, ast.ImportFrom: _W.walk_import_from,
}  # fmt: skip
