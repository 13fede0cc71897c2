"""
SPN201 to SPN206: calls that copy a process with its locks, or leave its descriptors open for children.

Runs in: the checker, any thread. Pure.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from safespawn.check import known
from safespawn.check.known import Effect
from safespawn.check.names import NOTHING, Const, Made, Many, Ref, dotted, last_name
from safespawn.check.rules import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safespawn.check.graph import Project, Step
    from safespawn.check.names import Value
    from safespawn.check.rules import Finding
    from safespawn.check.summary import Function
    from safespawn.check.threads import Threads

_STARTERS = frozenset({"mp:default.Pool", "mp:default.Process", "mp:default.Manager", "mp:default.BaseManager().start"})


def check(project: Project, function: Function, threads: Threads) -> Iterator[Finding]:
    """
    The hits in one function.
    """
    for step in project.facts[function].steps:
        event = step.event
        if event.made is None:
            continue
        if step.path in known.FORKS and not _becomes_daemon(function, event.node):
            place = threads.beside(function, step)
            if place:
                yield finding("SPN201", function, event, f"{step.path}() copies locks that threads may hold; {place}")
            elif threads.elsewhere(function):
                text = f"{step.path}() in a project that starts threads, for one at {threads.elsewhere(function)}"
                yield finding("SPN206", function, event, text)
        elif step.path.endswith((".set_start_method", ".get_context")):
            if event.made.argument(0, "method")[1] == Const("fork"):
                name = known.display(step.path)
                yield finding("SPN202", function, event, f"{name}('fork') copies locks that threads may hold")
        elif _takes_default(project, step) and project.forks_by_default(function):
            name = known.display(step.path)
            text = f"{name} without a start method forks on Linux up to Python 3.13, with all locks that threads hold"
            yield finding("SPN203", function, event, text)
        if "preexec_fn" in event.made.keywords and _has_preexec(function, step, event.made):
            text = "preexec_fn runs Python in a forked copy of this process, where another thread may have held a lock"
            yield finding("SPN204", function, event, text)
        text = _leak(step, event.made)
        if text:
            yield finding("SPN205", function, event, text)


def _becomes_daemon(function: Function, fork: ast.expr) -> bool:
    """
    Whether the parent does nothing after this fork but leave: a daemon's start, before there are threads.

    If threads are started before it in the same function, SPN301 says so.
    """
    names: set[str] = set()
    for node in ast.walk(function.node):
        if isinstance(node, ast.Assign | ast.NamedExpr) and node.value is fork:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names.update(target.id for target in targets if isinstance(target, ast.Name))
    for node in ast.walk(function.node):
        if isinstance(node, ast.If):
            asked = any(
                part is fork or (isinstance(part, ast.Name) and part.id in names) for part in ast.walk(node.test)
            )
            alone = any(len(arm) == 1 and _exits(arm[0]) for arm in (node.body, node.orelse))
            if asked and (alone or (_asks_for_parent(node.test) and _exits(node.body[-1]))):
                return True
    return False


def _asks_for_parent(test: ast.expr) -> bool:
    """
    Whether a condition on a fork's result holds in the parent: ``pid``, ``pid > 0``, ``pid != 0``.
    """
    if isinstance(test, ast.Compare) and len(test.ops) == 1:
        zero = test.comparators[0]
        return isinstance(test.ops[0], ast.Gt | ast.NotEq) and isinstance(zero, ast.Constant) and zero.value == 0
    return isinstance(test, ast.Name | ast.Call | ast.NamedExpr)


def _exits(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Raise):
        cause = statement.exc
        return cause is not None and dotted(cause.func if isinstance(cause, ast.Call) else cause) == "SystemExit"
    call = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(call, ast.Call) and dotted(call.func) in ("os._exit", "sys.exit", "exit")


def _takes_default(project: Project, step: Step) -> bool:
    if step.path == "concurrent.futures.ProcessPoolExecutor" and step.event.made is not None:
        return project.executor_kind(step.event.made) == "default"
    if step.path == "mp:default.Pool":
        return Effect.FORKS in step.own  # not if it was given a context
    return step.path in _STARTERS


def _has_preexec(function: Function, step: Step, made: Made) -> bool:
    if step.path.startswith(("safespawn.", "mp:")) or made.keywords["preexec_fn"] == NOTHING:
        return False
    node = next(keyword.value for keyword in made.call.keywords if keyword.arg == "preexec_fn")
    if made.keywords["preexec_fn"] is None and last_name(node) == "preexec_fn":
        return False  # it is only handed on; what gives it is flagged
    return not (isinstance(node, ast.Name) and node.id in _parameters(function))


def _parameters(function: Function) -> frozenset[str]:
    node = function.node
    if isinstance(node, ast.Module):
        return frozenset()
    every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return frozenset(each.arg for each in every)


def _leak(step: Step, made: Made) -> str:
    if step.path in known.STARTS_COMMAND and not step.path.startswith("safespawn."):
        if made.keywords.get("close_fds") == Const(value=False):
            return "close_fds=False: the command gets every inheritable descriptor, and keeps others' pipes open"
        passed = made.keywords.get("pass_fds")
        pipe = passed.each if isinstance(passed, Many) else None
        if isinstance(pipe, Made) and pipe.maker == Ref("os.pipe2") and _is_inheritable(pipe):
            return "pass_fds of a pipe made without O_CLOEXEC: every other child inherits its ends as well"
    position = {"os.set_inheritable": 1, "socket.socket().set_inheritable": 0}.get(step.path)
    if position is not None and made.argument(position, "inheritable")[1] == Const(value=True):
        if made.args and _is_null_device(made.args[0]):
            return ""  # nobody waits for its end
        return "an inheritable descriptor goes to every child that any thread starts meanwhile"
    return ""


def _is_null_device(opened: Value | None) -> bool:
    path = opened.args[0] if isinstance(opened, Made) and opened.maker == Ref("os.open") and opened.args else None
    return path in (Ref("os.devnull"), Const("/dev/null"))


def _is_inheritable(pipe: Made) -> bool:
    flags = pipe.args[0] if pipe.args else None
    return flags == Const(0) or (isinstance(flags, Ref) and flags.path != "os.O_CLOEXEC")
