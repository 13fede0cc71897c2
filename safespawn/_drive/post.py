"""
The records of a pool: what it is made of, what happened, who sits where, why a task is ended.

Runs in: application.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import attrs

from safespawn._core.dispatch import Seat
from safespawn._drive.worker import Inheritance, Worker

if TYPE_CHECKING:
    from safespawn._drive.board import Row
    from safespawn._drive.levels import Levels
    from safespawn._drive.outlets import Outlet
    from safespawn._drive.relay import Source


class PoolEvent(NamedTuple):
    """
    Something that happened to a worker of a pool.

    Attributes:
        kind: "started", "ready", "died", "recycled", "stopped", "broken".
        worker: Its index, or -1.
        pid: Its process id, or 0.
        time: Seconds since the epoch.
        detail: In words.
    """

    kind: str
    worker: int
    pid: int
    time: float
    detail: str


@attrs.define(eq=False)
class CrewConfig:
    """
    What a pool is made of.

    Attributes:
        name: For messages.
        size: Workers.
        preload: Modules that the template imports.
        main: How `__main__` can be loaded.
        initializer, finalizer: Pickled calls, or None.
        inheritance: What the initializer's pickle refers to, or None.
        env: The workers' whole environment, or None for the application's at their start.
        cwd: Their directory, or None for the application's at their start.
        cpus: Their CPU sets, by index modulo the number of sets; empty for the application's.
        max_tasks: Tasks after which a worker is replaced, or None.
        max_rss_bytes: Resident memory at which a worker's task is ended, or None.
        spares: Workers kept ready to take a seat.
        grace: Seconds that a stopping worker has to finish by itself.
        library_threads: Threads of BLAS and OpenMP in a worker.
        logging: "relay": log records of the workers come to the application's handlers; "inherit": they have its
            levels; "off": neither.
        remote_traceback: Class of the `__cause__` of a task's exception.
        output: What becomes of the workers' output: "inherit", "prefix", "log", "return", or an absolute path.
        on_event: Called with each `PoolEvent`.
    """

    name: str
    size: int
    preload: tuple[str, ...] = ()
    main: "tuple[str, str] | None" = None
    initializer: "tuple[bytes, Any] | None" = None
    inheritance: "Inheritance | None" = None
    finalizer: bytes | None = None
    env: dict[bytes, bytes] | None = None
    cwd: bytes | None = None
    cpus: tuple[tuple[int, ...], ...] = ()
    max_tasks: int | None = None
    max_rss_bytes: int | None = None
    spares: int = 0
    grace: float = 5.0
    library_threads: int = 1
    logging: str = "relay"
    output: str = "inherit"
    remote_traceback: type[Exception] | None = None
    on_event: Callable[[PoolEvent], object] | None = None


@attrs.define(eq=False)
class Doom:
    """
    Why a running task is ended.

    Attributes:
        why: "timeout", "cancel", "memory".
        stack: What the worker ran, if it was asked.
        size: Resident bytes, for "memory".
        ended_by: What ended it.
    """

    why: str
    stack: str = ""
    size: int = 0
    ended_by: str = ""


class Post:
    """
    A worker and what the crew knows of it.
    """

    __slots__ = (
        "ended", "eof", "going", "held", "is_spare", "items", "levels", "limit", "outlets", "ready", "row", "seat",
        "segments", "source", "start_error", "stopping", "token", "watched", "worker",
    )  # fmt: skip

    def __init__(self, worker: Worker, seat: Seat | None) -> None:
        self.worker: Worker = worker
        self.seat: Seat | None = seat  # None: a spare, or one that has left its seat
        self.ready: bool = False
        self.stopping: bool = False
        self.eof: bool = False
        self.ended: bool = False
        self.watched: bool = False
        self.is_spare: bool = False  # it was started for no seat
        self.going: bool = False  # a flow sees to its end, and has its lifeline
        self.start_error: Exception | None = None  # why it could not be set up
        self.limit: float = 0.0  # when its tasks' time limits are looked at next
        self.items: int = 0  # records of streams that have come
        self.segments: set[int] = set()  # of ours, that it may still use
        self.source: Source | None = None  # of its log records
        self.held: tuple[bytes, int] | None = None  # a message of its that is read, and waits for the records before it
        self.levels: Levels | None = None  # of loggers, as it was told them last
        self.token: bytes = b""  # that marks the ends of calls in there
        self.outlets: list[Outlet] = []  # of its output
        self.row: Row | None = None  # what `safespawn ps` shows
