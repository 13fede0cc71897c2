"""
The life of a supervised child, as two tables.

Theory of operation. A child is a name under which processes run, one after the other. Each of these is a *run*, with a
table of its own that knows how a process comes and goes: the ladder. The child's table knows what its owner wants, and
what becomes of it when a run is over. The state says what is true; the cell says the next state, and what the keeper
does, in order. An event that has no cell changes nothing, and is told by `Machine.send` to have been none.

A run:

    state      the process
    BORN       was asked of the zygote; nothing is known of it
    UNWANTED   as BORN, and nobody wants it any more
    STARTING   runs, and has not said that it is ready
    UP         is ready
    ASKED      was asked to end: message, SIGTERM, SIGCONT; its time runs
    DUMPED     has not ended in time: its stacks are asked for
    KILLED     was sent SIGKILL, with its tree
    BURYING    has exited: what it left is swept up
    GONE       none

A child:

    state      what is wanted, and what there is
    IDLE       nothing yet
    STARTING   a run that is to get ready
    UP         a run that is ready
    STOPPING   its run is to end, and no other comes
    REPLACING  its run is to end, and another one comes
    DOWN       its run is over; what becomes of it is being decided
    WAITING    another run comes when its delay is over, and the others have gone that must
    DONE       it ended, and is not to come again
    GIVEN_UP   it failed too often

Runs in: application; pure, so that a test may walk every cell.
Never: makes a system call, knows the time.
"""

from collections.abc import Mapping

# --- a run ------------------------------------------------------------------------------------------------------------
BORN, UNWANTED, STARTING, UP, ASKED, DUMPED, KILLED, BURYING, GONE = RUN_STATES = (
    "born", "unwanted", "starting", "up", "asked", "dumped", "killed", "burying", "gone",
)  # fmt: skip

STARTED = "started"  # the process runs
FAILED = "failed"  # there is none, and will be none
READY = "ready"  # it can be used
STOP = "stop"  # it is to end, in order
HURRY = "hurry"  # whoever waits has no more patience: one rung further
GRACE_OVER = "grace-over"  # it has had its time
STACKS = "stacks"  # they have come, or will not
EXITED = "exited"  # the kernel says so
BURIED = "buried"  # its status is known as far as it can be, nothing of its tree is left that could be found
STUCK = "stuck"  # SIGKILL has not ended it
UNANSWERED = "unanswered"  # nobody wants it, and the zygote has not said in time whether there is one
RUN_EVENTS = (STARTED, FAILED, READY, STOP, HURRY, GRACE_OVER, STACKS, EXITED, BURIED, STUCK, UNANSWERED)

RUN_TABLE: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    (BORN, STARTED): (STARTING, ("watch", "probe")),
    (BORN, FAILED): (GONE, ("report_failed",)),
    (BORN, STOP): (UNWANTED, ("start_patience",)),
    (BORN, HURRY): (UNWANTED, ("start_patience",)),

    (UNWANTED, STARTED): (ASKED, ("watch", "ask", "start_grace")),
    (UNWANTED, FAILED): (GONE, ("report_failed",)),
    (UNWANTED, UNANSWERED): (GONE, ("cancel_start", "report_failed")),

    (STARTING, READY): (UP, ("report_ready",)),
    (STARTING, STOP): (ASKED, ("ask", "start_grace")),
    (STARTING, HURRY): (ASKED, ("ask", "start_grace")),
    (STARTING, EXITED): (BURYING, ("bury",)),

    (UP, STOP): (ASKED, ("ask", "start_grace")),
    (UP, HURRY): (ASKED, ("ask", "start_grace")),
    (UP, EXITED): (BURYING, ("bury",)),

    (ASKED, GRACE_OVER): (DUMPED, ("dump",)),
    (ASKED, HURRY): (DUMPED, ("dump",)),
    (ASKED, EXITED): (BURYING, ("bury",)),

    (DUMPED, STACKS): (KILLED, ("say_verdict", "kill", "start_doubt")),
    (DUMPED, HURRY): (KILLED, ("say_verdict", "kill", "start_doubt")),
    (DUMPED, EXITED): (BURYING, ("bury",)),

    (KILLED, EXITED): (BURYING, ("bury",)),
    (KILLED, STUCK): (GONE, ("report_stuck",)),

    (BURYING, BURIED): (GONE, ("report_over",)),
}  # fmt: skip

ALIVE = frozenset({STARTING, UP, ASKED, DUMPED, KILLED})  # there is a process, as far as is known

# --- a child ----------------------------------------------------------------------------------------------------------
IDLE, STOPPING, REPLACING, DOWN, WAITING, DONE, GIVEN_UP = (
    "idle", "stopping", "replacing", "down", "waiting", "done", "given-up",
)  # fmt: skip
CHILD_STATES = (IDLE, STARTING, UP, STOPPING, REPLACING, DOWN, WAITING, DONE, GIVEN_UP)

START = "start"  # it is to run
RUN_READY = "run-ready"  # its run can be used
RUN_OVER = "run-over"  # its run is gone
LATE = "late"  # its run has not got ready in time
STABLE = "stable"  # its run has been ready for long enough to forget earlier failures
RECYCLE = "recycle"  # its run is too old or too large: another one takes its place when that is ready
OUTGROWN = "outgrown"  # its run was too large as soon as it was ready: so will the next one be
SUCCESSOR_READY = "successor-ready"  # that other one is
REPLACE = "replace"  # its run is to end, and another one to come: a sibling has failed, it hangs, its owner wants it
REST = "rest"  # decided: it is not to come again
RETRY = "retry"  # decided: another run, after a delay
OVERRUN = "overrun"  # decided: it has failed too often
CHILD_EVENTS = (
    START, RUN_READY, RUN_OVER, LATE, STABLE, RECYCLE, OUTGROWN, SUCCESSOR_READY, STOP, REPLACE, REST, RETRY, OVERRUN,
)  # fmt: skip

CHILD_TABLE: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    (IDLE, START): (STARTING, ("spawn",)),
    (IDLE, STOP): (DONE, ("tell_stopped",)),

    (STARTING, RUN_READY): (UP, ("tell_ready", "start_settling")),
    (STARTING, RUN_OVER): (DOWN, ("decide",)),
    (STARTING, LATE): (STARTING, ("stop_late",)),
    (STARTING, STOP): (STOPPING, ("stop_run",)),
    (STARTING, REPLACE): (REPLACING, ("stop_run",)),

    (UP, RUN_OVER): (DOWN, ("drop_successor", "decide")),
    (UP, STABLE): (UP, ("forget_failures",)),
    (UP, RECYCLE): (UP, ("spawn_successor",)),
    (UP, OUTGROWN): (UP, ("count_outgrown",)),
    (UP, SUCCESSOR_READY): (UP, ("take_over", "tell_ready", "start_settling", "stop_old")),
    (UP, STOP): (STOPPING, ("drop_successor", "stop_run")),
    (UP, REPLACE): (REPLACING, ("drop_successor", "stop_run")),

    (STOPPING, RUN_OVER): (DONE, ("tell_stopped",)),

    (REPLACING, RUN_OVER): (WAITING, ("tell_restart",)),
    (REPLACING, STOP): (STOPPING, ()),

    (DOWN, REST): (DONE, ("tell_stopped",)),
    (DOWN, RETRY): (WAITING, ("tell_restart",)),
    (DOWN, OVERRUN): (GIVEN_UP, ("tell_given_up",)),
    (DOWN, STOP): (DONE, ("tell_stopped",)),

    (WAITING, START): (STARTING, ("spawn",)),
    (WAITING, STOP): (DONE, ("tell_stopped",)),

    (DONE, START): (STARTING, ("spawn",)),
    (GIVEN_UP, START): (STARTING, ("forget_failures", "spawn")),
    (GIVEN_UP, STOP): (DONE, ("tell_stopped",)),
}  # fmt: skip

RESTING = frozenset({IDLE, DONE, GIVEN_UP})  # nothing happens until its owner wants it
ENDED = frozenset({DONE, GIVEN_UP})  # as RESTING, but once it has run
RUNLESS = frozenset({IDLE, WAITING, DONE, GIVEN_UP})  # no run of its own is left


class Machine:
    """
    A state, and the table that it moves in.

    Args:
        table: By state and event: the next state, and the names of the owner's methods to call, in order.
        state: The first one.
    """

    __slots__ = ("state", "table")

    def __init__(self, table: Mapping[tuple[str, str], tuple[str, tuple[str, ...]]], state: str) -> None:
        self.table: Mapping[tuple[str, str], tuple[str, tuple[str, ...]]] = table
        self.state: str = state

    def knows(self, event: str) -> bool:
        """
        Whether *event* has a cell now.
        """
        return (self.state, event) in self.table

    def send(self, event: str, owner: object) -> bool:
        """
        Move, and have *owner* do what the cell says. Says whether there was a cell.
        """
        cell = self.table.get((self.state, event))
        if cell is None:
            return False
        self.state, effects = cell
        for effect in effects:
            getattr(owner, effect)()
        return True
