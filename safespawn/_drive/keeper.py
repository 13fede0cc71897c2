"""
The engine of a Supervisor's children: starts them, has them come again, stops them, tells what happens.

Everything is done where its pump runs: in a thread of its own (`Supervisor`) or in a task (`AsyncSupervisor`). What is
decided is decided by the tables of `_core.upkeep` and the functions of `_core.restart`.

A restart is a *round*: the children that it takes along are stopped, in the reverse order, one after the other; then
its delay passes; then they are started in order, each when the one before is ready. With the strategy one_for_one a
round has one child, and there are as many rounds as children that have failed; otherwise there is one round at a time,
and a failure in the midst of it begins it anew.

Runs in: application.
"""

import functools
import os
import sys
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import attrs

from safespawn._core import events, upkeep
from safespawn._core.restart import FAILED, FAILURES, OUTGROWN, GiveUp, Intensity, Strategy, affected
from safespawn._core.terms import Terms
from safespawn._drive import levels, orphans, vigil
from safespawn._drive.charge import Charge, Starter
from safespawn._drive.ledger import Ledger
from safespawn._drive.pump import Pump, Timer
from safespawn._drive.relay import SLOW_SECONDS, Wait, relay, report
from safespawn._worker.notice import notify, watchdog_seconds
from safespawn.child_errors import ChildrenGaveUp, how_it_ended
from safespawn.errors import BadArgument, BrokenError, ClosedError

KEPT_EVENTS = 250  # for whoever looks back; an event with stacks or an error in it takes some kilobytes
UNREAD_EVENTS = 1000  # for one reader, until the oldest are dropped
KEPT_CHILDREN = 100  # that have ended, of ten kilobytes each; arbitrary: who wants to know of one has it, or its events
RUNG_SECONDS = 0.5  # beside its grace, for what a stopping child costs: stacks, SIGKILL, burial
HURRY_SECONDS = 0.2  # for a child to end by SIGTERM, when whoever waits has lost patience
_LEDGER_SLOTS = 16
_KINDS: dict[str, type[events.Event]] = {
    "starting": events.Starting, "ready": events.Ready, "exited": events.Exited, "restarting": events.Restarting,
    "gave_up": events.GaveUp, "hung": events.Hung, "stopping": events.Stopping, "killed": events.Killed,
    "leaked": events.Leaked,
}  # fmt: skip

_keepers: "weakref.WeakSet[Keeper]" = weakref.WeakSet()
_hooked: list[int] = []


class Feed:
    """
    Events for one reader; when it does not read, the oldest are dropped, and counted.
    """

    def __init__(self, wake: Callable[[], object]) -> None:
        self.events: deque[events.Event] = deque()
        self.wake = wake
        self.dropped = 0
        self.ended = False

    def put(self, event: events.Event) -> None:
        """
        One more.
        """
        if len(self.events) >= UNREAD_EVENTS:
            self.events.popleft()
            self.dropped += 1
        self.events.append(event)
        self.wake()

    def end(self) -> None:
        """
        There will be no more.
        """
        self.ended = True
        self.wake()


@attrs.define(eq=False)
class Round:
    """
    Children that are started again together.

    Attributes:
        names: In their order.
        due: Not before this monotonic time.
        stopping: Some still run.
    """

    names: list[str]
    due: float
    stopping: bool = True


class Keeper:
    """
    The children of one Supervisor.
    """

    def __init__(
        self,
        engine: Any,
        name: str,
        *,
        strategy: Strategy,
        restarts: int,
        per: float,
        give_up: GiveUp,
        on_event: Callable[[events.Event], object] | None,
    ) -> None:
        self.engine = engine
        self.name = name
        self.strategy: Strategy = strategy
        self.intensity: Intensity = Intensity(restarts, per)
        self.gives_up: GiveUp = give_up
        self.on_event = on_event
        self.pid: int = os.getpid()
        self.pump: Pump = Pump(self._on_trouble)
        self.charges: dict[str, Charge] = {}  # in the order of their start
        self.rounds: list[Round] = []
        self.closing: bool = False
        self.hurried: bool = False
        self.over: bool = False
        self.broken: BaseException | None = None
        self.on_over: list[Callable[[], object]] = []
        self.on_broken: list[Callable[[], object]] = []
        self.on_rest: list[Callable[[], object]] = []  # told whenever all children are at rest
        self.feeds: list[Feed] = []
        self.history: deque[events.Event] = deque(maxlen=KEPT_EVENTS)
        self.counts: Counter[str] = Counter()
        self.forgotten: int = 0  # children that had ended, to make room for later ones
        self._ledgers: list[Ledger] = []
        self._wake_fd = -1  # the relay's
        self.logged: threading.Event = threading.Event()  # all that there was to log
        self._released = False
        self.waits: dict[Wait, None] = {}
        self._follows_levels = False
        self._advancing = False
        self._watched: set[Charge] = set()
        _keepers.add(self)
        if not _hooked:
            _hooked.append(self.pid)
            os.register_at_fork(after_in_child=_forget_in_copy)
        seconds = watchdog_seconds()
        if seconds is not None:
            self._beat(seconds / 2)
        self.orphanage: orphans.Orphanage | None = None
        if orphans.inherits_orphans():
            self.orphanage = orphans.Orphanage()
            self._look_for_orphans()

    # --- for whoever serves it ---------------------------------------------------------------------------------------
    def call(self, action: Callable[[], object]) -> None:
        """
        Do *action* where the pump runs; from any thread.
        """
        self.pump.call_soon(action)

    def later(self, seconds: float, action: Callable[[], object]) -> Timer:
        """
        Do *action* in some time, unless all is over by then, or it is called off.
        """
        return self.pump.call_at(time.monotonic() + seconds, functools.partial(self._do, action))

    def _do(self, action: Callable[[], object]) -> None:
        if not self.over:
            action()

    def _beat(self, seconds: float) -> None:
        notify("WATCHDOG=1")
        self.later(seconds, functools.partial(self._beat, seconds))

    def _look_for_orphans(self) -> None:
        assert self.orphanage is not None  # noqa: S101 - this process gets some
        self.orphanage.look()
        self.later(orphans.LOOK_SECONDS, self._look_for_orphans)

    # --- children ----------------------------------------------------------------------------------------------------
    def start(self, terms: Terms, starter: Starter) -> Charge | None:
        """
        A new child; *starter* is told when it is ready, or why it is not.
        """
        error: BaseException | None = None
        if self.closing or self.over:
            error = self.broken or ClosedError(f"Supervisor {self.name!r}")
        elif terms.name in self.charges and self.charges[terms.name].state not in upkeep.RESTING:
            error = BadArgument(f"there is a child {terms.name!r} already", parameter="name", value=terms.name)
        if error is not None:
            starter(error)
            return None
        if terms.name in self.charges:  # at rest; the new one comes last in the order
            self.forget(self.charges[terms.name])
        charge = self.charges[terms.name] = Charge(self, terms, starter)
        charge.send(upkeep.START)
        return charge

    def forget(self, charge: Charge) -> None:
        """
        It is at rest, and of no interest any more.
        """
        del self.charges[charge.name]
        for each in self.rounds:
            if charge.name in each.names:
                each.names.remove(charge.name)
        charge.is_forgotten = True
        charge.let_go()

    def _forget_oldest(self) -> None:
        """
        Keep no more children that have ended than there is room for.
        """
        if len(self.charges) > KEPT_CHILDREN:
            ended = [charge for charge in self.charges.values() if charge.state in upkeep.ENDED and charge.is_clear]
            ended.sort(key=lambda charge: charge.ended_at)
            for charge in ended[: max(0, len(ended) - KEPT_CHILDREN)]:
                self.forget(charge)
                self.forgotten += 1

    def window_of(self, charge: Charge) -> Intensity:
        """
        What counts the restarts of *charge*: all children's together, or where the others go on without it its own.
        """
        return self.intensity if self.gives_up == "raise" else charge.intensity

    def takes_along(self, charge: Charge) -> bool:
        """
        Whether a round that is stopping its children has *charge* in it.
        """
        return any(each.stopping and charge.name in each.names for each in self.rounds)

    def begin_round(self, charge: Charge, delay: float, *, alone: bool = False) -> None:
        """
        *charge* comes again, and those that its failure takes along.
        """
        names = [charge.name] if alone else affected(self.strategy, list(self.charges), charge.name)
        if self.strategy == "one_for_one" or alone:
            self.rounds = [each for each in self.rounds if each.names != names]
        else:
            for each in self.rounds:  # those that wait for an earlier one come with this one
                names += [name for name in each.names if name not in names]
            order = list(self.charges)
            names.sort(key=order.index)
            self.rounds = []
        for name in names:
            self.charges[name].because_of, self.charges[name].delay = charge.name, delay
        self.rounds.append(Round(names, time.monotonic() + delay))
        self.advance()

    def give_up(self, charge: Charge) -> None:
        """
        A child has failed too often.
        """
        window = self.window_of(charge)
        self.tell("gave_up", charge.name, None, restarts=window.restarts, per=window.per)
        if self.gives_up == "raise" and self.broken is None:
            self.broken = ChildrenGaveUp(
                f"child {charge.name!r} of supervisor {self.name!r} failed more than {window.restarts} times in "
                f"{window.per:g} s",
                [error for each in self.charges.values() for error in each.recent] or [BrokenError("it failed")],
                supervisor=self.name, child=charge.name, restarts=window.restarts, per=window.per,
            )  # fmt: skip
            for tell in self.on_broken:
                tell()
            self.close()

    # --- what is to be done next -------------------------------------------------------------------------------------
    def advance(self) -> None:
        """
        Something has changed: do what can be done now, soon.
        """
        if not self._advancing and not self.over:
            self._advancing = True
            self.pump.call_soon(self._advance)

    def _advance(self) -> None:
        self._advancing = False
        if self.over:
            return
        if self.closing:
            self._advance_close()
        else:
            for each in list(self.rounds):
                if each in self.rounds and self._advance_round(each):
                    self.rounds.remove(each)
        for charge in list(self.charges.values()):
            charge.tell_waiters()
        self._forget_oldest()
        if self.on_rest and self.is_at_rest():
            for tell in list(self.on_rest):
                tell()

    def is_at_rest(self) -> bool:
        """
        Whether all children are, so that nothing will happen any more by itself.
        """
        return all(charge.state in upkeep.RESTING and charge.is_clear for charge in list(self.charges.values()))

    def _advance_round(self, each: Round) -> bool:
        """
        Go on with a round as far as that is possible. Says whether it is through.
        """
        charges = [self.charges[name] for name in each.names if name in self.charges]
        if each.stopping:
            for charge in reversed(charges):
                if charge.is_clear:
                    continue
                if charge.state in (upkeep.STARTING, upkeep.UP):
                    charge.why = "restart"
                    charge.end_wanted = "stopped"
                    charge.send(upkeep.STOP if charge.terms.restart == "never" else upkeep.REPLACE)
                return False
            each.stopping = False
            if each.due > time.monotonic():
                self.later(each.due - time.monotonic(), self.advance)
        if time.monotonic() < each.due:
            return False
        for charge in charges:
            if charge.state == upkeep.WAITING:
                charge.send(upkeep.START)
            if charge.state not in (upkeep.UP, *upkeep.RESTING):
                return False
        return True

    # --- the end -----------------------------------------------------------------------------------------------------
    def close(self) -> None:
        """
        Stop all children, the last one first; then it is over. Only where the pump runs.
        """
        if not self.closing:
            self.closing = True
            notify("STOPPING=1\nSTATUS=stopping")
            self.rounds.clear()
        self.advance()

    def _advance_close(self) -> None:
        for charge in reversed(self.charges.values()):
            charge.drop_successor()
            if charge.state not in (upkeep.DONE, upkeep.STOPPING):
                charge.stop("shutdown")
            if not charge.is_clear:
                return
        self.finish()

    def hurry(self) -> None:
        """
        Whoever waits for the end has lost patience: each child that is going goes one rung further.
        """
        self.hurried = True
        for charge in list(self.charges.values()):
            for run in charge.processes():
                if run.state != upkeep.GONE and (self.closing or run.why):
                    run.send(upkeep.HURRY)

    def grace(self, seconds: float) -> float:
        """
        The time that a child really has for its end.
        """
        return min(seconds, HURRY_SECONDS) if self.hurried else seconds

    def bound(self) -> float:
        """
        Seconds from now within which all children are stopped, unless one of them sleeps in the kernel.
        """
        now, seconds = time.monotonic(), 0.0
        for charge in list(self.charges.values()):
            if not charge.is_clear:
                run, grace = charge.run, self.grace(charge.terms.stop_timeout)
                asked_at = None if run is None else run.asked_at
                seconds += RUNG_SECONDS + (grace if asked_at is None else max(0.0, asked_at + grace - now))
        return seconds

    def finish(self) -> None:
        """
        Nothing is left to do.
        """
        if self.over:
            return
        self.over = True
        self.pump.stopped = True
        for charge in list(self.charges.values()):
            charge.tell_waiters(last=True)
            if charge.starter is not None:
                charge.starter(self.broken or ClosedError(f"Supervisor {self.name!r}"))
            charge.let_go()
        for feed in self.feeds:
            feed.end()
        for tell in [*self.on_over, *self.on_rest]:
            tell()

    def is_over(self) -> bool:
        """
        Whether nothing is left to do, as of now.
        """
        return self.over

    def release(self, seconds: float = 0.0) -> None:
        """
        After the pump has ended: let go of what is left. Wait *seconds* at most for the handlers of what was logged.
        """
        for charge in list(self.charges.values()):
            for run in charge.processes():
                run.abandon()
        self.finish()
        self._released = True
        if self._wake_fd >= 0:
            self.pump.unwatch(self._wake_fd)
            self._wake_fd = -1
            if relay.thread is None:
                self.logged.set()
            else:
                relay.post(self.logged.set)
            relay.let_go(seconds if seconds and self.logged.wait(seconds) else 0.0)
        else:
            self.logged.set()
        for ledger in self._ledgers:
            ledger.close()
        self._ledgers.clear()
        self.pump.close()

    def lose_pump(self, error: BaseException) -> None:
        """
        The pump cannot go on: nobody shall wait for it.
        """
        self.report(error)
        broken = BrokenError(f"the engine of Supervisor {self.name!r} has failed: {type(error).__name__}: {error}")
        broken.__cause__ = error
        self.broken = self.broken or broken
        for tell in self.on_broken:
            tell()
        self.closing = True
        self.finish()

    def _on_trouble(self, error: BaseException) -> None:
        """
        A bug of ours, or no memory left: it is told, and the children are stopped.
        """
        self.report(error)
        if self.broken is None and not self.over:
            self.broken = BrokenError(
                f"the engine of Supervisor {self.name!r} has failed: {type(error).__name__}: {error}"
            )
            self.broken.__cause__ = error
            for tell in self.on_broken:
                tell()
            self.close()

    # --- facts -------------------------------------------------------------------------------------------------------
    def tell(self, kind: str, name: str, pid: int | None, **facts: Any) -> None:
        """
        Something has happened to the child *name*.
        """
        event = _KINDS[kind](child=name, pid=pid, time=time.time(), **facts)
        self.counts[kind] += 1
        charge = self.charges.get(name)
        if charge is not None:
            charge.last_event = kind
            if isinstance(event, (events.Exited, events.Hung, events.Killed, events.GaveUp)):
                said = how_it_ended(event.returncode, event.pid) if isinstance(event, events.Exited) else kind
                charge.row.note(said)
        self.history.append(event)
        self._log(event)
        for feed in list(self.feeds):
            feed.put(event)
        if self.on_event is not None:
            try:
                self.on_event(event)
            except BaseException as error:  # noqa: BLE001 - as any callback, also one that wants to exit
                self.report(error)
        if kind in ("ready", "exited") and "NOTIFY_SOCKET" in os.environ and not self.closing:
            up = sum(each.state == upkeep.UP for each in list(self.charges.values()))
            notify(f"STATUS={up} of {len(self.charges)} children are up")

    def _log(self, event: events.Event) -> None:
        """
        Tell the logger "safespawn.supervisor" of what an operator would ask for. The handlers run in the thread of the
        relay: one that blocks, or waits for a child of this supervisor, holds up nothing here.
        """
        level, text = words(event)
        if not level or (level < 30 and "logging" not in sys.modules):
            return
        import logging

        logger = logging.getLogger("safespawn.supervisor")
        if not logger.isEnabledFor(level):
            return
        record = logger.makeRecord(
            logger.name, level, __file__, 0, "%s: child %r: %s", (self.name, event.child, text), None, "log"
        )
        if not self._released and self.hold_relay() >= 0:
            relay.ensure()
            if relay.thread is not None:
                relay.post(functools.partial(logger.handle, record))
                return
        try:
            logger.handle(record)
        except BaseException as error:  # noqa: BLE001 - a handler's trouble is not the children's
            report(error)

    def report(self, error: BaseException) -> None:
        """
        Say that a callback, or the engine itself, has failed.
        """
        report(error)

    def watch_over(self, charge: Charge) -> None:
        """
        Look after a child that is up.
        """
        if charge not in self._watched and vigil.is_wanted(charge):
            self._watched.add(charge)
            vigil.begin(charge)

    def unwatch(self, charge: Charge) -> None:
        """
        It is not up any more.
        """
        self._watched.discard(charge)

    def statistics(self) -> dict[str, Any]:
        """
        Figures, from any thread.
        """
        now = time.monotonic()
        return {
            "children": [charge.figures(now) for charge in list(self.charges.values())],
            "events": dict(self.counts),
            "events_dropped": sum(feed.dropped for feed in self.feeds),
            "forgotten": self.forgotten,
            "restarts": self.intensity.count(now),
            "orphans_reaped": 0 if self.orphanage is None else self.orphanage.reaped,
            "stopping": round(self.bound(), 3) if self.closing and not self.over else None,
        }

    def ledger(self) -> Ledger:
        """
        Memory with room for a journal.
        """
        for ledger in self._ledgers:
            if not ledger.is_full:
                return ledger
        self._ledgers.append(Ledger(_LEDGER_SLOTS))
        return self._ledgers[-1]

    def hold_relay(self) -> int:
        """
        Functions log from now on; returns the eventfd for that, or -1 where there is no descriptor left.
        """
        if self._wake_fd < 0:
            try:
                self._wake_fd = relay.hold()
            except OSError:
                return -1
            if relay.thread is None:
                self.pump.watch(self._wake_fd, self._first_record)
        return self._wake_fd

    def _first_record(self, _events: int) -> None:
        self.pump.unwatch(self._wake_fd)
        relay.ensure()

    def follow_levels(self) -> None:
        """
        A function logs here: from now on it is told when the levels of this program have changed.
        """
        if not self._follows_levels:
            self._follows_levels = True
            self.later(levels.LOOK_SECONDS, self._look_at_levels)

    def _look_at_levels(self) -> None:
        self._follows_levels = False
        present = levels.current_levels()
        for charge in list(self.charges.values()):
            for run in charge.processes():
                if run.source is not None and run.state != upkeep.GONE:
                    self.follow_levels()
                    if run.levels is not present:
                        run.tell_levels(present)

    def forget_in_copy(self) -> None:
        """
        In a forked copy of the application: everything here is the original's.
        """
        self.closing = self.over = True
        for charge in self.charges.values():
            for run in charge.processes():
                if run.worker is not None and run.worker.socket is not None:
                    run.worker.socket.close()
                    run.worker.socket = None
                if run.child is not None:
                    run.child.close()
                if run.lines is not None:
                    run.lines.watched = False
                    run.lines.close()
        try:
            self.pump.forget_in_copy()
        except OSError:
            pass  # it was being closed at the fork


def _forget_in_copy() -> None:
    for keeper in list(_keepers):
        if keeper.pid != os.getpid() and not keeper.over:
            keeper.forget_in_copy()


def words(event: events.Event) -> tuple[int, str]:
    """
    The level of an event, as logging has it, and what it says; 0 for nothing.
    """
    if isinstance(event, events.Exited) and event.end in FAILURES:
        why = f": {type(event.error).__name__}: {event.error}".partition("\n")[0] if event.error is not None else ""
        if event.end == FAILED:
            return 30, f"it could not be started{why}"
        if event.end == OUTGROWN:
            return 30, f"process {event.pid} was ended: like those before it, it needs more memory than its memory_max"
        return 30, f"{how_it_ended(event.returncode, event.pid)} ({event.end}) after {event.duration:.1f} s{why}"
    if isinstance(event, events.Killed):
        stacks = f"; it did this instead:\n{event.stacks.rstrip()}" if event.stacks else ""
        return 30, f"process {event.pid} did not end within {event.seconds:.1f} s and was killed{stacks}"
    if isinstance(event, events.Hung):
        facts = "; ".join(event.evidence)
        return 30, f"process {event.pid} seems to hang: {facts}" + (
            f"\n{event.stacks.rstrip()}" if event.stacks else ""
        )
    if isinstance(event, events.GaveUp):
        return 40, f"it failed more than {event.restarts} times in {event.per:g} s, and is not started again"
    if isinstance(event, events.Leaked):
        what = "is still there after SIGKILL" if event.stuck else f"left {event.count} processes, which were killed"
        return 30 if event.stuck else 20, f"process {event.pid} {what}"
    if isinstance(event, events.Restarting):
        return 20, f"it is started again in {event.delay:.2f} s" if event.delay else "it is started again"
    if isinstance(event, events.Ready):
        return 20, f"process {event.pid} is ready after {event.seconds:.2f} s"
    return 0, ""


def serve(keeper: Keeper) -> None:
    """
    What the thread of a keeper runs.
    """
    try:
        keeper.pump.run()
    except BaseException as error:  # noqa: BLE001 - whoever waits must hear of it
        keeper.lose_pump(error)
    finally:
        keeper.release(SLOW_SECONDS)


def new_thread(keeper: Keeper) -> threading.Thread:
    """
    The thread of a keeper, not started yet.
    """
    return threading.Thread(target=serve, args=(keeper,), name=f"safespawn {keeper.name}", daemon=True)
