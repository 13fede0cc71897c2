"""
One supervised child: what its table says, done.

Runs in: application, where the pump runs. The attributes may be read from anywhere.
"""

import random
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import attrs

from safespawn._core import restart, upkeep
from safespawn._core.restart import FAILURES, Intensity, comes_again
from safespawn._core.terms import Function
from safespawn._drive import board
from safespawn._drive.run import Run
from safespawn.child_errors import ChildFailed, ChildNotReady
from safespawn.errors import ClosedError

if TYPE_CHECKING:
    from safespawn._core.terms import Terms
    from safespawn._drive.keeper import Keeper

Starter = Callable[[BaseException | None], object]
KEPT_FAILURES = 5  # for the error that says that it was given up


class Charge:
    """
    The child.

    Attributes:
        machine: Its state.
        run: Its process, if there is one.
        successor: What takes its place when it is ready.
        leaving: Processes whose place was taken.
        value: What the present process passed to `ready`.
        restarts: How often it was started again.
        failures: Of them in a row, without a time of calm.
    """

    def __init__(self, keeper: "Keeper", terms: "Terms", starter: Starter) -> None:
        self.keeper = keeper
        self.terms: Terms = terms
        self.machine: upkeep.Machine = upkeep.Machine(upkeep.CHILD_TABLE, upkeep.IDLE)
        self.run: Run | None = None
        self.last: Run | None = None  # the one that is over
        self.successor: Run | None = None
        self.leaving: set[Run] = set()
        self.missed: int = 0  # successors in a row that did not get ready
        self.no_successor_before: float = 0.0  # monotonic
        self.value: Any = None
        self.pid: int | None = None
        self.runs: int = 0
        self.restarts: int = 0
        self.failures: int = 0
        self.recent: deque[Exception] = deque(maxlen=KEPT_FAILURES)
        self.intensity: Intensity = Intensity(keeper.intensity.restarts, keeper.intensity.per)
        self.delay: float = 0.0
        self.because_of: str = terms.name
        self.why: str = ""
        self.end_wanted: str = restart.STOPPED
        self.last_event = ""
        self.starter: Starter | None = starter
        self.row: board.Row = board.publish("child", terms.name, owner=keeper.name, state=upkeep.IDLE)
        self.is_new: bool = True  # it has never been ready: its starter waits
        self.is_forgotten: bool = False  # the keeper does not know it any more
        self.ended_at: float = 0.0  # monotonic
        self.resting: list[Callable[[], object]] = []  # told when it is at rest
        self.changing: list[Callable[[], object]] = []  # told when it is ready again, or at rest

    def __repr__(self) -> str:
        return f"<child {self.terms.name!r}, {self.machine.state}>"

    @property
    def name(self) -> str:
        """
        Its name.
        """
        return self.terms.name

    @property
    def state(self) -> str:
        """
        Its state.
        """
        return self.machine.state

    @property
    def is_clear(self) -> bool:
        """
        Whether no process of it is left.
        """
        return self.state in upkeep.RUNLESS and self.successor is None and not self.leaving

    def send(self, event: str) -> bool:
        """
        Something has happened.
        """
        known = self.machine.send(event, self)
        if known:
            self.show()
        return known

    def show(self) -> None:
        """
        Have `safespawn ps` see it as it is now.
        """
        run, until = self.run, 0.0
        if self.state in (upkeep.STOPPING, upkeep.REPLACING) and run is not None and run.asked_at is not None:
            until = run.asked_at + self.keeper.grace(self.terms.stop_timeout)
        elif self.state == upkeep.WAITING:
            until = time.monotonic() + self.delay
        if self.row.facts.state != self.state or self.row.facts.pid != (self.pid or 0):
            self.row.update(state=self.state, pid=self.pid or 0, restarts=self.restarts, until=until)

    def processes(self) -> list[Run]:
        """
        All that it has.
        """
        return [run for run in (self.run, self.successor, *self.leaving) if run is not None]

    # --- from outside ------------------------------------------------------------------------------------------------
    def stop(self, why: str) -> None:
        """
        It is to end, and not to come again.
        """
        self.why, self.end_wanted = why, restart.STOPPED
        self.send(upkeep.STOP)
        self.keeper.advance()

    def replace(self, why: str, end: str = restart.STOPPED) -> None:
        """
        Its process is to end, and another one to come.
        """
        self.why, self.end_wanted, self.delay = why, end, 0.0
        if self.send(upkeep.REPLACE):
            self.keeper.begin_round(self, 0.0, alone=True)

    def when_resting(self, tell: Callable[[], object]) -> None:
        """
        *tell* when it is at rest and no process is left.
        """
        self.resting.append(tell)
        self.tell_waiters()

    def tell_waiters(self, *, last: bool = False) -> None:
        """
        It may be at rest now; *last*: or nobody looks after it any more.
        """
        if last or (self.state in upkeep.RESTING and self.is_clear):
            resting, self.resting = self.resting + self.changing, []
            self.changing = []
            for tell in resting:
                tell()

    def let_go(self) -> None:
        """
        It will not be started again: close what each start would need.
        """
        self.row.withdraw()
        what = self.terms.what
        if isinstance(what, Function) and what.inheritance is not None:
            inheritance, self.terms = (
                what.inheritance,
                attrs.evolve(self.terms, what=attrs.evolve(what, inheritance=None)),
            )
            inheritance.close()

    # --- from its processes ------------------------------------------------------------------------------------------
    def note_pid(self, run: Run) -> None:
        """
        A process runs.
        """
        if run is self.run:
            self.pid = run.pid
            self.show()

    def on_run_ready(self, run: Run) -> None:
        """
        A process can be used.
        """
        if run is self.run:
            self.send(upkeep.RUN_READY)
        elif run is self.successor:
            self.send(upkeep.SUCCESSOR_READY)

    def on_run_over(self, run: Run) -> None:
        """
        A process is gone.
        """
        if run is self.run:
            self.last, self.run, self.pid = run, None, None
            self.send(upkeep.RUN_OVER)
        elif run is self.successor:
            self.successor = None
            self.missed += 1
            delay = self.terms.backoff.delay(self.missed + 1, random.random())  # noqa: S311 - no secret
            self.no_successor_before = time.monotonic() + delay
        self.leaving.discard(run)
        self.tell_waiters()  # a child whose first start has failed is not among the keeper's any more
        self.keeper.advance()

    def on_late(self, run: Run) -> None:
        """
        A process has not got ready in time.
        """
        if run is self.run:
            self.send(upkeep.LATE)
        elif run is self.successor:
            run.stop("late", restart.LATE)

    def on_unusable(self, run: Run) -> None:
        """
        A process says that it is ready, and it cannot be understood; or asking has failed.
        """
        run.stop("unusable", restart.ERROR)

    def on_settled(self, run: Run) -> None:
        """
        A process was ready a while ago.
        """
        if run is self.run:
            self.send(upkeep.STABLE)

    def on_outgrown(self, run: Run, size: int, age: float) -> None:
        """
        A process is larger than it may be, and has only just got ready: so would the next one be. Once for each.
        """
        limit = self.terms.memory_max_bytes
        run.outgrown = f"it used {size:,} bytes {age:.1f} s after it was ready, and memory_max is {limit:,}"
        self.send(upkeep.OUTGROWN)

    # --- effects -----------------------------------------------------------------------------------------------------
    def spawn(self) -> None:
        """
        Effect: a process.
        """
        self.runs += 1
        self.run = Run(self, self.runs)
        self.run.begin()

    def spawn_successor(self) -> None:
        """
        Effect: a process that is to take the place of the present one. After one that did not get ready, the next has
        to wait as a child that fails does; the present one is the better one meanwhile.
        """
        if self.successor is None and not self.leaving and time.monotonic() >= self.no_successor_before:
            self.runs += 1
            self.successor = Run(self, self.runs)
            self.successor.begin()

    def count_outgrown(self) -> None:
        """
        Effect: it needs more memory than it may have, which counts as a failure. The present process stays for as long
        as there may be another one.
        """
        run, now = self.run, time.monotonic()
        assert run is not None  # noqa: S101 - it is up
        if self.keeper.window_of(self).allow(now):
            self.failures += 1
            self.recent.append(self._too_large(run))
            delay = self.terms.backoff.delay(self.failures, random.random())  # noqa: S311 - no secret
            self.no_successor_before = max(self.no_successor_before, now + delay)
        else:
            run.stop("memory", restart.OUTGROWN)

    def _too_large(self, run: Run) -> ChildFailed:
        return ChildFailed(
            child=self.name, pid=run.pid, returncode=run.returncode, end=restart.OUTGROWN,
            seconds=time.monotonic() - run.began, known=(run.outgrown,),
        )  # fmt: skip

    def drop_successor(self) -> None:
        """
        Effect: no change, after all.
        """
        if self.successor is not None:
            run, self.successor = self.successor, None
            self.leaving.add(run)
            run.stop("stop")

    def take_over(self) -> None:
        """
        Effect: the successor takes the place.
        """
        if self.run is not None:
            self.leaving.add(self.run)
        self.run, self.successor = self.successor, None
        self.missed = 0
        assert self.run is not None  # noqa: S101 - it is ready
        self.pid = self.run.pid

    def stop_old(self) -> None:
        """
        Effect: whose place was taken ends.
        """
        for run in list(self.leaving):
            run.stop("recycled", restart.RECYCLED)

    def stop_run(self) -> None:
        """
        Effect: its process is to end.
        """
        if self.run is not None:
            self.run.stop(self.why, self.end_wanted)

    def stop_late(self) -> None:
        """
        Effect: see what it does instead of getting ready, then end it.
        """
        run = self.run
        assert run is not None  # noqa: S101 - it is starting

        def seen(text: str | None, _error: BaseException | None) -> None:
            run.stacks = text or ""
            run.stop("late", restart.LATE)

        self.keeper.pump.spawn(run.stacks_flow(), seen)

    def tell_ready(self) -> None:
        """
        Effect: whoever waits for it may go on.
        """
        run = self.run
        assert run is not None  # noqa: S101 - it is ready
        self.value = run.value
        self.is_new = False
        self.keeper.tell("ready", self.name, run.pid, seconds=round(time.monotonic() - run.began, 6))
        self._answer(None)
        changing, self.changing = self.changing, []
        for tell in changing:
            tell()
        self.keeper.advance()

    def start_settling(self) -> None:
        """
        Effect: in some time its earlier failures are forgotten; and it is watched from now on.
        """
        assert self.run is not None  # noqa: S101 - it is ready
        self.run.later(self.terms.backoff.reset_after, self.run.settle)
        self.keeper.watch_over(self)

    def forget_failures(self) -> None:
        """
        Effect: a new beginning.
        """
        self.failures = 0

    def decide(self) -> None:
        """
        Effect: its process is over, unasked: what becomes of it.
        """
        run, keeper = self.last, self.keeper
        assert run is not None  # noqa: S101 - it is over
        error = self.failure(run)
        if error is not None:
            self.recent.append(error)
        again = comes_again(self.terms.restart, run.end, run.returncode, self.terms.no_restart_codes)
        if keeper.closing:
            self.send(upkeep.STOP)
        elif self.is_new or not again:
            self.send(upkeep.REST)
        elif keeper.takes_along(self):
            self.send(upkeep.RETRY)  # when they are; a sibling has failed: it is not this one's doing
        elif not keeper.window_of(self).allow(time.monotonic()):
            self.send(upkeep.OVERRUN)
        else:
            self.failures += 1
            self.delay = self.terms.backoff.delay(self.failures, random.random())  # noqa: S311 - no secret
            self.because_of = self.name
            self.send(upkeep.RETRY)
            keeper.begin_round(self, self.delay)

    def failure(self, run: Run) -> Exception | None:
        """
        The error for a process that has failed; None for one that has not.
        """
        if run.end == restart.LATE:
            return ChildNotReady(
                child=self.name, pid=run.pid, seconds=self.terms.ready_timeout, ready=str(self.terms.ready),
                stacks=run.stacks, known=run.doubts,
            )  # fmt: skip
        if run.end not in FAILURES and not (self.is_new and run.end != restart.STOPPED):
            return None
        if run.end == restart.OUTGROWN:
            return self._too_large(run)
        if run.end == restart.FAILED and self.is_new and isinstance(run.error, Exception):
            return run.error
        error = ChildFailed(
            child=self.name, pid=run.pid, returncode=run.returncode, end=run.end,
            seconds=time.monotonic() - run.began, stderr=run.stderr, oom=run.oom,
            known=("it had not said that it is ready",) if self.is_new and run.end != restart.FAILED else (),
        )  # fmt: skip
        error.__cause__ = run.error
        return error

    def tell_restart(self) -> None:
        """
        Effect: it will be started again.
        """
        self.restarts += 1
        self.keeper.tell("restarting", self.name, None, delay=round(self.delay, 6), because_of=self.because_of)

    def tell_given_up(self) -> None:
        """
        Effect: it has failed too often.
        """
        self.ended_at = time.monotonic()
        self.keeper.give_up(self)
        self.tell_waiters()

    def tell_stopped(self) -> None:
        """
        Effect: it is at rest.
        """
        self.ended_at = time.monotonic()
        if self.is_new:
            error = self.recent[-1] if self.recent else ClosedError(f"child {self.name!r}")
            self.keeper.forget(self)
            self._answer(error)
        self.keeper.advance()

    def _answer(self, error: BaseException | None) -> None:
        starter, self.starter = self.starter, None
        if starter is not None:
            starter(error)

    # --- facts -------------------------------------------------------------------------------------------------------
    def figures(self, now: float) -> dict[str, Any]:
        """
        For the statistics.
        """
        run = self.run
        ready_at = None if run is None else run.ready_at
        asked_at = None if run is None else run.asked_at
        left = None if asked_at is None else max(0.0, asked_at + self.terms.stop_timeout - now)
        return {
            "name": self.name,
            "state": self.state,
            "pid": self.pid,
            "uptime": None if ready_at is None else round(now - ready_at, 3),
            "restarts": self.restarts,
            "failures": self.failures,
            "last_event": self.last_event,
            "status": "" if run is None else run.status_text,
            "seconds_left": None if left is None else round(left, 3),
        }
