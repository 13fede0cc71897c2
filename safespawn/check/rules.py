"""
The rules: their codes, what they are called, how bad a hit is, what helps, and where each is explained.

Nothing is judged here; `imports`, `forks`, `order`, `hooks` and `pipes` do that. A code keeps its meaning for ever.

Runs in: the checker, any thread. Pure: a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import attrs

if TYPE_CHECKING:
    import ast

    from safespawn.check.summary import Event, Function

Severity = Literal["error", "warning", "note"]


@attrs.frozen
class Rule:
    """
    One rule.

    Args:
        code: "SPN" and three digits.
        severity: Of every hit.
        title: What it flags, in a few words.
        help: What to do about it, in one line.
        default: Whether it is reported unless somebody says otherwise; if not, only its whole code selects it.
    """

    code: str
    severity: Severity
    title: str
    help: str
    default: bool = True

    @property
    def page(self) -> str:
        """
        The page that explains it, from the root of the project.
        """
        return f"docs/check/{self.code}.md"


RULES: dict[str, Rule] = {
    rule.code: rule
    for rule in (
        Rule(
            "SPN101", "error", "thread started at import time",
            "start it in a function that the program calls when it is up, after safespawn.init()",
        ),
        Rule(
            "SPN102", "warning", "command run at import time",
            "run it in a function, when the result is needed; keep it with functools.cache",
        ),
        Rule(
            "SPN103", "error", "process or pool started at import time",
            'move it into a function, and call that below `if __name__ == "__main__":`',
        ),
        Rule(
            "SPN104", "error", "import waits for what it started",
            "do not wait during an import: return, and let a function that is called later collect the result",
        ),
        Rule(
            "SPN201", "error", "fork beside threads",
            "use safespawn.Process or safespawn.Pool for Python code, safespawn.run for commands",
        ),
        Rule(
            "SPN202", "error", 'start method "fork" asked for',
            "use safespawn.get_context(), or the start method spawn or forkserver",
        ),
        Rule(
            "SPN203", "warning", "multiprocessing without a start method, which may be fork",
            "use safespawn.Pool, Process or Executor, or name a context: get_context('forkserver')",
        ),
        Rule(
            "SPN204", "error", "preexec_fn",
            "use the options that replace it: process_group=, start_new_session=, user=, group=, umask=; "
            "safespawn.run() has more, such as rlimits= and pdeathsig=",
        ),
        Rule(
            "SPN205", "warning", "descriptors left open for children",
            "leave close_fds alone, and name what a child needs in pass_fds=",
        ),
        Rule(
            "SPN206", "note", "fork in a project that starts threads elsewhere",
            "see to it that no thread runs there, or use safespawn.Process, safespawn.Pool or safespawn.run",
            default=False,
        ),
        Rule(
            "SPN301", "error", "thread started before a fork",
            "start processes and pools first, threads after them; or use safespawn.Pool, where the order is free",
        ),
        Rule(
            "SPN302", "warning", "logging or a lock where the code interrupts itself",
            "set a flag or write a byte there (signal.set_wakeup_fd), and do the work in ordinary code",
        ),
        Rule(
            "SPN303", "warning", "lock taken before each fork",
            "do not fork while threads run, then no such hook is needed; or make the lock anew in after_in_child",
        ),
        Rule(
            "SPN401", "warning", "waits for a process whose output nobody reads",
            "read first: communicate(), or safespawn.run(capture_output=True)",
        ),
    )
}  # fmt: skip


@attrs.frozen
class Finding:
    """
    One hit.

    Args:
        code: The rule.
        path: The file, as it was named.
        line: From 1.
        offset: Of the place in its line, in bytes.
        message: What is wrong there.
        lines: Where a remark `# noqa` silences it.
    """

    code: str
    path: str
    line: int
    offset: int
    message: str
    lines: tuple[int, ...] = attrs.field(default=(), eq=False)

    @property
    def severity(self) -> Severity:
        """
        The rule's.
        """
        return RULES[self.code].severity


def finding(code: str, function: Function, event: Event, message: str) -> Finding:
    """
    A hit at a call of a function.
    """
    return at_node(code, function, event.node, message, event.line, event.lines)


def at_node(code: str, function: Function, node: ast.expr, message: str, line: int, lines: tuple[int, int]) -> Finding:
    """
    A hit at an expression; *line* may be another of its lines than the first.
    """
    offset = node.col_offset if line == node.lineno else 0
    return Finding(code, function.module.source.path, line, offset, message, (*lines, line))
