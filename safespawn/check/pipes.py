"""
SPN401: waiting for a process that itself waits, for somebody to read what it writes.

Three shapes, each within one function: `Popen` with a pipe for its output, then `wait()` with nobody reading before;
`call` and `check_call` with a pipe, which nobody ever can read; a process that is joined before the queue it fills is
emptied. A process that is handed to anybody, returned or stored is left alone: its reader may be there.

Runs in: the checker, any thread. Pure.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from safespawn.check import known
from safespawn.check.names import Const, Made, Ref
from safespawn.check.rules import at_node, finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safespawn.check.graph import Project
    from safespawn.check.rules import Finding
    from safespawn.check.summary import Function

_POPENS = frozenset({"subprocess.Popen", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"})
_CALLS = frozenset({"subprocess.call", "subprocess.check_call"})
_HARMLESS = frozenset("args kill pid poll returncode send_signal stdin terminate wait".split())
_READERS = frozenset({"communicate", "stdout", "stderr"})
_PIPES = (Ref("subprocess.PIPE"), Ref("asyncio.subprocess.PIPE"), Const(-1))

Place = tuple[int, int]


def check(project: Project, function: Function) -> Iterator[Finding]:
    """
    The hits in one function.
    """
    made: dict[int, str] = {}
    for step in project.facts[function].steps:
        call = step.event.made
        if call is None:
            continue
        if step.path in _CALLS and has_pipe(call):
            text = (
                f"{step.path}() waits for the command to end, and nobody can read its pipe: past 64 KiB it never ends"
            )
            yield finding("SPN401", function, step.event, text)
        elif (step.path in _POPENS and has_pipe(call)) or known.kind_of(step.path):
            made[id(call.call)] = step.path
    if made:
        uses = _Uses(function.node, made)
        yield from _unread_output(function, uses)
        yield from _full_queues(function, uses)


def has_pipe(made: Made) -> bool:
    """
    Whether the output of a command goes into a pipe.
    """
    return any(made.keywords.get(name) in _PIPES for name in ("stdout", "stderr"))


class _Uses:
    """How the variables of one function that hold processes and queues are used."""

    def __init__(self, root: ast.AST, made: dict[int, str]) -> None:
        self.made = made
        self.parents: dict[ast.AST, ast.AST] = {}
        self.names: dict[str, list[ast.Name]] = {}
        self.holders: dict[str, tuple[str, ast.Call]] = {}
        self.direct: list[ast.Call] = []
        for node in ast.walk(root):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            if isinstance(node, ast.Name):
                self.names.setdefault(node.id, []).append(node)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1:
                self._hold(node.targets[0], node.value)
            elif isinstance(node, ast.withitem) and node.optional_vars is not None:
                self._hold(node.optional_vars, node.context_expr)
        self.holders = {
            name: held
            for name, held in self.holders.items()
            if sum(isinstance(each.ctx, ast.Store) for each in self.names[name]) == 1
        }

    def _hold(self, target: ast.expr, value: ast.expr) -> None:
        value = value.value if isinstance(value, ast.Await) else value
        if isinstance(target, ast.Name) and isinstance(value, ast.Call) and id(value) in self.made:
            self.holders[target.id] = (self.made[id(value)], value)

    def attributes(self, name: str) -> list[tuple[str, ast.Attribute]] | None:
        """
        The attributes of a variable that are used, in order; None if it is used in any other way.
        """
        found: list[tuple[str, ast.Attribute]] = []
        for node in self.names[name]:
            if isinstance(node.ctx, ast.Store):
                continue
            parent = self.parents[node]
            if not isinstance(parent, ast.Attribute):
                return None
            found.append((parent.attr, parent))
        return sorted(found, key=lambda each: (each[1].lineno, each[1].col_offset))

    def is_bare_call(self, attribute: ast.Attribute) -> bool:
        """
        Whether the method is called without arguments: without a time limit.
        """
        call = self.parents[attribute]
        return isinstance(call, ast.Call) and call.func is attribute and not call.args and not call.keywords


def _unread_output(function: Function, uses: _Uses) -> Iterator[Finding]:
    for name, (path, call) in uses.holders.items():
        used = uses.attributes(name) if path in _POPENS else None
        if not used or any(attr not in _HARMLESS | _READERS for attr, _ in used):
            continue
        for attr, node in used:
            if attr in _READERS:
                break
            if attr == "wait" and uses.is_bare_call(node):
                text = f"waits for {name}, whose output (a pipe since line {call.lineno}) nobody reads before"
                yield at_node(
                    "SPN401", function, node, text, node.lineno, (node.lineno, node.end_lineno or node.lineno)
                )
                break


def _full_queues(function: Function, uses: _Uses) -> Iterator[Finding]:
    queues = [name for name, (path, _) in uses.holders.items() if path.endswith((".Queue", ".JoinableQueue"))]
    for queue in queues:
        gets = [
            _place(node) for node in uses.names[queue] if _attribute_of(uses, node) in ("get", "get_nowait", "empty")
        ]
        if not gets:
            continue
        for name, (path, call) in uses.holders.items():
            if not path.endswith(".Process") or not _is_given(call, queue):
                continue
            for attr, node in uses.attributes(name) or []:
                if attr == "join" and uses.is_bare_call(node) and (node.lineno, node.col_offset) < min(gets):
                    text = (
                        f"joins {name} before the queue that it fills, {queue}, is emptied: what does not fit blocks it"
                    )
                    lines = (node.lineno, node.end_lineno or node.lineno)
                    yield at_node("SPN401", function, node, text, node.lineno, lines)


def _place(node: ast.expr) -> Place:
    return node.lineno, node.col_offset


def _attribute_of(uses: _Uses, node: ast.Name) -> str:
    parent = uses.parents[node]
    return parent.attr if isinstance(parent, ast.Attribute) else ""


def _is_given(call: ast.Call, name: str) -> bool:
    given = next((keyword.value for keyword in call.keywords if keyword.arg == "args"), None)
    return given is not None and any(isinstance(node, ast.Name) and node.id == name for node in ast.walk(given))
