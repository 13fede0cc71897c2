"""
The life of one child on one connection, as a table.

Theory of operation. A connection is one child's lifeline. On it the application asks for a start (SPAWN), for signals
(KILL) and for the reaping (RELEASE); the kernel tells of the exec (EXECED, LAUNCH_FAILED) and of the exit (EXITED);
and the connection may close at any moment (CLOSED), which means: end this child. The state says what is true of the
child; the table says, for each state and event, the next state and what the server does, in order. An event that has
no cell is a mistake of the peer's: the server answers REFUSED, says the state, and nothing else changes.

    state       the child                                 the connection
    IDLE        none                                      open
    LAUNCHING   forked, exec not yet confirmed            open
    RUNNING     runs                                      open
    HELD        is a zombie: pid and group reserved       open
    REAPED      is gone; members of its group may live    open
    ENDING      was asked to end (SIGTERM)                closed
    KILLING     was sent SIGKILL, with its tree           closed
    LEFT        runs on, as it was asked (detach=True)    closed
    GONE        none                                      closed: forget the session

Runs in: zygote; pure, so that a test may walk every cell.
Never: makes a system call.
"""

IDLE, LAUNCHING, RUNNING, HELD, REAPED, ENDING, KILLING, LEFT, GONE = STATES = (
    "idle", "launching", "running", "held", "reaped", "ending", "killing", "left", "gone",
)  # fmt: skip

SPAWN = "spawn"  # the application asks for a child
LAUNCHED = "launched"  # the child is forked and will report its exec
EXECED = "execed"  # the program runs
LAUNCH_FAILED = "launch-failed"  # there is no program, and no child any more
EXITED_HOLD = "exited-hold"  # the child is a zombie, and the application wants it kept
EXITED = "exited"  # the child has been reaped
KILL = "kill"  # the application asks for a signal
RELEASE = "release"  # the application has seen the exit
CLOSED = "closed"  # the application hung up, or died
HUNG_UP = "hung-up"  # as CLOSED, in a zygote whose children outlive the application
GRACE_OVER = "grace-over"  # SIGTERM has had its time
EVENTS = (
    SPAWN, LAUNCHED, EXECED, LAUNCH_FAILED, EXITED_HOLD, EXITED, KILL, RELEASE, CLOSED, HUNG_UP, GRACE_OVER,
)  # fmt: skip

REQUESTS = frozenset({SPAWN, KILL, RELEASE})  # what a peer asks for: it is told when that cannot be

TABLE: dict[tuple[str, str], tuple[str, tuple[str, ...]]] = {
    (IDLE, SPAWN): (LAUNCHING, ("start",)),
    (IDLE, CLOSED): (GONE, ("forget",)),

    (LAUNCHING, LAUNCHED): (LAUNCHING, ("await_exec",)),
    (LAUNCHING, EXECED): (RUNNING, ("watch_child", "announce")),
    (LAUNCHING, LAUNCH_FAILED): (IDLE, ("reply_failed",)),
    (LAUNCHING, KILL): (LAUNCHING, ("pass_signal",)),
    (LAUNCHING, CLOSED): (KILLING, ("watch_child", "kill_tree")),

    (RUNNING, KILL): (RUNNING, ("pass_signal",)),
    (RUNNING, EXITED_HOLD): (HELD, ("reply_exited", "unwatch")),
    (RUNNING, EXITED): (REAPED, ("reply_exited", "unwatch")),
    (RUNNING, CLOSED): (ENDING, ("terminate", "start_grace")),

    (HELD, KILL): (HELD, ("sweep", "reply_swept")),
    (HELD, RELEASE): (REAPED, ("reap", "reply_released")),
    (HELD, CLOSED): (GONE, ("reap", "forget")),

    (REAPED, SPAWN): (LAUNCHING, ("start",)),
    (REAPED, KILL): (REAPED, ("sweep", "reply_swept")),
    (REAPED, CLOSED): (GONE, ("forget",)),

    (IDLE, HUNG_UP): (GONE, ("forget",)),
    (LAUNCHING, HUNG_UP): (LEFT, ("watch_child",)),
    (RUNNING, HUNG_UP): (LEFT, ()),
    (HELD, HUNG_UP): (GONE, ("reap", "forget")),
    (REAPED, HUNG_UP): (GONE, ("forget",)),
    (LEFT, EXITED): (GONE, ("unwatch", "forget")),

    (ENDING, GRACE_OVER): (KILLING, ("kill_tree",)),
    (ENDING, EXITED): (GONE, ("unwatch", "sweep_tree", "forget")),

    (KILLING, EXITED): (GONE, ("unwatch", "sweep_tree", "forget")),
    (KILLING, LAUNCH_FAILED): (GONE, ("forget",)),
}  # fmt: skip
