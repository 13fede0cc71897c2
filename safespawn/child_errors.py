"""
Errors of supervised children; apart from errors.py because few programs have any.

They keep to what errors.py says of every error, and are reached through it: `safespawn.errors.ChildFailed`.

Runs in: application, any thread; imported when the first child is started.
Never: starts anything, or waits.
"""

# SafespawnError
# ├── ChildError                     a supervised child of yours
# │   ├── ChildFailed                                      it ended before it was ready
# │   └── ChildNotReady              (TimeoutError)        it did not get ready in time
# └── BrokenError
#     └── ChildrenGaveUp             (ExceptionGroup)      it failed too often

# pyright: reportPrivateUsage=false

from __future__ import annotations

import signal

from safespawn.errors import BrokenError, SafespawnError, _signal_name

TYPE_CHECKING = False  # as in typing, which would take time to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

_LINES = 5  # arbitrary: enough for the last complaint of most programs
_CHARS = 200  # arbitrary: keeps a log readable that has an error in it
_OTHER_ENDS = {"failed": "could not be started", "outgrown": "needs more memory than its memory_max"}
_CRASHES = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT))


def how_it_ended(returncode: int | None, pid: int | None) -> str:
    """
    In words: "was killed by SIGKILL", "exited with code 3".
    """
    who = "it" if pid is None else f"process {pid}"
    if returncode is None:
        return f"{who} ended, and nobody can say how"
    if returncode < 0:
        return f"{who} was killed by {_signal_name(-returncode)}"
    return f"{who} exited with code {returncode}"


class ChildError(SafespawnError):
    """The root of what may happen to a supervised child. Never raised itself."""

    slug = "child-error"


class ChildFailed(ChildError):
    """
    A child ended, or could not be started. Where it is known what it raised, that is the `__cause__`.

    Args:
        child: Its name.
        pid: Its process id; None if there was no process.
        returncode: Its exit code, -N for signal N; None where nobody can say.
        end: How it ended, as `events.Exited.end`.
        seconds: How long it had run.
        stderr: The end of what it wrote there.
        oom: Whether the kernel killed it for want of memory; None: perhaps.
    """

    slug = "child-failed"
    _facts = ("child", "pid", "returncode", "end", "seconds", "stderr", "oom")

    def __init__(
        self, *, child: str, pid: int | None = None, returncode: int | None = None, end: str = "error",
        seconds: float = 0.0, stderr: str = "", oom: bool | None = False, known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        what = _OTHER_ENDS.get(end) or f"failed: {how_it_ended(returncode, pid)}"
        facts = [] if end == "failed" else [f"it ran {seconds:.1f} s"]
        lines = [line[:_CHARS] for line in stderr.strip().splitlines()[-_LINES:]]
        facts += ["the last that it wrote to stderr:\n" + "\n".join(lines)] if lines else []
        if oom:
            facts.append("the kernel killed a process of this control group for want of memory meanwhile")
        super().__init__(f"child {child!r} {what}", known=(*facts, *known), help=help or _advice(returncode, end, oom))
        self.child = child
        self.pid = pid
        self.returncode = returncode
        self.end = end
        self.seconds = seconds
        self.stderr = stderr
        self.oom = oom


class ChildNotReady(ChildError, TimeoutError):
    """
    A child did not say in time that it is ready, and was ended.

    Args:
        child: Its name.
        pid: Its process id; None if the start itself took too long.
        seconds: The time that it had.
        ready: What was waited for: "notify", "port 8080", "a line like 'listening'".
        stacks: What it did instead, if that could be seen.
    """

    slug = "child-not-ready"
    _facts = ("child", "pid", "seconds", "ready", "stacks")
    _advice = "look what it waits for; give it more time with ready_timeout="

    def __init__(
        self, *, child: str, pid: int | None = None, seconds: float, ready: str, stacks: str = "",
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts = [f"what was waited for: {ready}"]
        if ready == "notify":
            help = help or (
                "let it call safespawn.ready() when it can be used, or send READY=1 as sd_notify does; more time: "
                "ready_timeout="
            )
        if stacks.strip():
            facts.append("what it did instead:\n" + "\n".join(stacks.strip().splitlines()[:12]))
        super().__init__(
            f"child {child!r} was not ready within {seconds:g} s", known=(*facts, *known), help=help
        )  # fmt: skip
        self.child = child
        self.pid = pid
        self.seconds = seconds
        self.ready = ready
        self.stacks = stacks


class ChildrenGaveUp(BrokenError, ExceptionGroup[Exception]):
    """
    A child failed more often than its supervisor allows; all children were stopped. Its last failures are in it, as in
    any exception group.

    Args:
        message: What happened.
        excs: The last failures.
        supervisor: Its name.
        child: The name of the child that failed last.
        restarts: So many were allowed,
        per: in so many seconds.
    """

    slug = "children-gave-up"
    _facts = ("supervisor", "child", "restarts", "per")
    _advice = (
        "cure the failure below; for a child that the program can do without, Supervisor(give_up='degrade') goes on"
    )
    supervisor: str
    child: str
    restarts: int
    per: float

    def __new__(cls, message: str, excs: Sequence[Exception], **facts: object) -> Self:  # noqa: D102 - as the class says
        del facts
        return super().__new__(cls, message, excs)

    def __init__(  # pyright: ignore[reportInconsistentConstructor]
        self, message: str, excs: Sequence[Exception], *, supervisor: str = "", child: str = "", restarts: int = 0,
        per: float = 0.0, known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        super().__init__(message, excs, known=known, help=help)
        self.supervisor = supervisor
        self.child = child
        self.restarts = restarts
        self.per = per

    def derive(self, excs: Sequence[Exception]) -> ChildrenGaveUp:  # type: ignore[override]
        """
        A part of it, as `split` makes one.
        """
        return ChildrenGaveUp(
            self.message, excs, supervisor=self.supervisor, child=self.child, restarts=self.restarts, per=self.per
        )


def _advice(returncode: int | None, end: str, oom: object) -> str:
    if oom:
        return "the kernel ran out of memory: give the child less to do, or recycle it with memory_max="
    if end == "failed":
        return "the cause below says why"
    if end == "outgrown":
        return "memory_max= is for a process that grows: give it well above what the child needs when it is ready"
    if returncode is not None and -returncode in _CRASHES:
        return "a crash in C code: look at the last lines of its stderr, and for a core file"
    if returncode == -signal.SIGKILL:
        return "somebody killed it: a person, a container's limit, or the kernel for want of memory"
    return "the cause below, or its own output, says why"
