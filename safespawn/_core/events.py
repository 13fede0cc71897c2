"""
What happens to supervised children, as records: of `Supervisor.events`, and for ``on_event``.

Runs in: application; pure.
"""

import resource

import attrs

from safespawn._core.status import struct_rusage


@attrs.frozen(kw_only=True)
class Event:
    """
    The root; never made itself.

    Attributes:
        child: The name that it was started under.
        pid: Of the process that is meant; None where there is none.
        time: Seconds since the epoch, for people. Nothing is measured by it.
    """

    child: str
    pid: int | None = None
    time: float = 0.0


@attrs.frozen(kw_only=True)
class Starting(Event):
    """
    A process is being started.

    Attributes:
        run: How many there have been, this one with them.
    """

    run: int


@attrs.frozen(kw_only=True)
class Ready(Event):
    """
    It can be used.

    Attributes:
        seconds: From the start to this.
    """

    seconds: float


@attrs.frozen(kw_only=True)
class Exited(Event):
    """
    It has ended.

    Attributes:
        end: How: "ok", "error" (it raised, or exited with another code than 0), "signal" (one that the supervisor did
            not send), "late" (ended, because it was not ready in time), "hung" (ended, because it hung), "failed" (not
            started), "lost" (nobody can say), "outgrown" (ended, because it and those before it were larger than
            memory_max as soon as they were ready), "stopped" (as it was asked), "recycled" (another one has its place).
        returncode: Its exit code, -N for signal N; None where nobody can say.
        duration: Seconds that it ran.
        error: What it raised, or why it did not start; None otherwise.
        stderr: The last lines of it, for a Python child.
        oom: Whether the kernel killed it for want of memory, as far as that can be told; None: perhaps.
        usage: The fields of getrusage(2), or None.
    """

    end: str
    returncode: int | None
    duration: float
    error: BaseException | None = None
    stderr: str = ""
    oom: bool | None = False
    usage: tuple[float, ...] | None = attrs.field(default=None, repr=False)

    @property
    def rusage(self) -> resource.struct_rusage | None:
        """
        Resources used, or None where nobody could say.
        """
        return struct_rusage(self.usage)


@attrs.frozen(kw_only=True)
class Restarting(Event):
    """
    It will be started again.

    Attributes:
        delay: In so many seconds; 0.0: at once.
        because_of: The child whose failure is the reason: itself, or another one that takes it along.
    """

    delay: float
    because_of: str


@attrs.frozen(kw_only=True)
class GaveUp(Event):
    """
    It has failed too often, and is not started again.

    Attributes:
        restarts: So many there were,
        per: in so many seconds.
    """

    restarts: int
    per: float


@attrs.frozen(kw_only=True)
class Hung(Event):
    """
    It seems to make no progress. Nothing was done to it, unless ``on_hung="restart"`` wants that.

    Attributes:
        seconds: For so long.
        evidence: What was looked at, one fact each.
        stacks: What its threads do, for a Python child; for a command the kernel function that it sleeps in.
    """

    seconds: float
    evidence: tuple[str, ...]
    stacks: str


@attrs.frozen(kw_only=True)
class Stopping(Event):
    """
    It is asked to end.

    Attributes:
        why: "stop", "restart", "late", "hung", "memory", "recycled", "shutdown".
        seconds: That it has for it.
    """

    why: str
    seconds: float


@attrs.frozen(kw_only=True)
class Killed(Event):
    """
    It did not end in the time that it had, and got SIGKILL, with its tree.

    Attributes:
        seconds: That it had.
        stacks: What it did instead, as `Hung.stacks`.
    """

    seconds: float
    stacks: str


@attrs.frozen(kw_only=True)
class Leaked(Event):
    """
    It has left processes behind.

    Attributes:
        count: So many were found and killed.
        stuck: SIGKILL has not ended the process itself: it sleeps in the kernel.
    """

    count: int
    stuck: bool = False
