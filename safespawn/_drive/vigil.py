"""
Looks at the children that are up: whether they make progress, how old and how large they are.

A child counts as hung when for ``hang_after`` seconds it has used no CPU, has been given none (its context switches do
not count up), and has not beaten; or when it has not beaten for two whole periods of ``heartbeat``. The first period
without a beat is reported with the stacks, and nothing more: the machine may have been busy. A look that itself comes
late says nothing about the child, and begins anew.

Runs in: application, where the pump runs. Source: proc_pid_stat(5), proc_pid_status(5).
"""

import functools
import os
import random
import time
from typing import TYPE_CHECKING

import attrs

from safespawn._core import restart, upkeep
from safespawn._core.procfs import stat_fields

if TYPE_CHECKING:
    from safespawn._drive.charge import Charge
    from safespawn._drive.run import Run

LOOKS_PER_PERIOD = 4
LOOK_SECONDS = (0.02, 1.0)  # at least, and at most, between two looks
AGE_JITTER = 0.1  # children of one age do not all go at once
_PAGE = os.sysconf("SC_PAGE_SIZE")


@attrs.define(eq=False)
class Watch:
    """
    What was seen of one process.

    Attributes:
        run: The process.
        progress: CPU ticks, context switches, beats.
        since: Monotonic time of the last progress.
        beat_at: Of the last beat, or of the beginning.
        misses: Periods without a beat that were reported.
        reported: Whether its standing still was.
        last_look: Monotonic.
        too_old_at: Monotonic time at which it is replaced; infinite if never.
    """

    run: "Run"
    progress: tuple[int, ...]
    since: float
    beat_at: float
    last_look: float
    too_old_at: float
    misses: int = 0
    reported: bool = False


def is_wanted(charge: "Charge") -> bool:
    """
    Whether there is anything to look at.
    """
    terms = charge.terms
    return any(each is not None for each in (terms.heartbeat, terms.hang_after, terms.memory_max_bytes, terms.max_age))


def period(charge: "Charge") -> float:
    """
    Seconds from one look to the next.
    """
    terms = charge.terms
    wanted = [
        each / LOOKS_PER_PERIOD for each in (terms.heartbeat, terms.hang_after, terms.max_age) if each is not None
    ]
    return max(LOOK_SECONDS[0], min([*wanted, LOOK_SECONDS[1]]))


def begin(charge: "Charge") -> None:
    """
    Look from now on.
    """
    charge.keeper.later(period(charge), functools.partial(look, charge, None))


def first(run: "Run") -> Watch:
    """
    The beginning of the watch over *run*.
    """
    now = time.monotonic()
    age = run.terms.max_age
    jitter = 1.0 + AGE_JITTER * (2.0 * random.random() - 1.0)  # noqa: S311 - no secret
    return Watch(run, seen(run), now, now, now, float("inf") if age is None else (run.ready_at or now) + age * jitter)


def look(charge: "Charge", watch: Watch | None) -> None:
    """
    One look, and the next one ordered.
    """
    run = charge.run
    if charge.keeper.closing or charge.state in upkeep.RESTING:
        charge.keeper.unwatch(charge)
        return
    seconds = period(charge)
    again = seconds
    if run is None or charge.state != upkeep.UP or run.state != upkeep.UP:
        watch = None
    elif watch is None or watch.run is not run:
        watch = first(run)
    else:
        now = time.monotonic()
        late = now - watch.last_look > 2 * seconds + LOOK_SECONDS[0]
        watch.last_look = now
        if late:  # it is this process that was not given any time
            watch.since = watch.beat_at = now
        else:
            look_at_progress(charge, watch, now)
            look_at_beats(charge, watch, now)
        look_at_size(charge, watch, now)
    charge.keeper.later(again, functools.partial(look, charge, watch))


def seen(run: "Run") -> tuple[int, ...]:
    """
    What grows while a process makes progress.
    """
    fields = stat_fields(run.pid or 0)
    ticks = int(fields[11]) + int(fields[12]) if fields else 0
    beats = run.beats
    return ticks, switches(run.pid or 0), 0 if beats is None else beats[0]


def switches(pid: int) -> int:
    """
    How often the threads of *pid* have been given a CPU.
    """
    count = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/status", "rb") as file:
                for line in file:
                    if b"ctxt_switches" in line:
                        count += int(line.rpartition(b":")[2])
    except (OSError, ValueError):
        return 0
    return count


def look_at_progress(charge: "Charge", watch: Watch, now: float) -> None:
    """
    Has it done anything at all?
    """
    limit = charge.terms.hang_after
    if limit is None:
        return
    progress = seen(watch.run)
    if progress != watch.progress:
        watch.progress, watch.since, watch.reported = progress, now, False
        return
    stood = now - watch.since
    if stood < limit or watch.reported:
        return
    watch.reported = True
    state = b"".join(stat_fields(watch.run.pid or 0)[:1]).decode() or "unknown"
    evidence = (f"no CPU used and no context switch for {stood:.1f} s", f"its state is {state}")
    report(charge, watch.run, stood, evidence, act=charge.terms.on_hung == "restart")


def look_at_beats(charge: "Charge", watch: Watch, now: float) -> None:
    """
    Has it beaten?
    """
    limit = charge.terms.heartbeat
    if limit is None:
        return
    beats = watch.run.beats
    if beats is not None and beats[1] > watch.beat_at:
        watch.beat_at, watch.misses = beats[1], 0
    silent = now - watch.beat_at
    if silent < limit * (watch.misses + 1):
        return
    watch.misses += 1
    before, watch.progress = watch.progress, seen(watch.run)
    works = "it uses the CPU meanwhile" if watch.progress[:2] != before[:2] else "it uses no CPU either"
    evidence = (f"no beat for {silent:.1f} s, {limit:g} s are the limit", works)
    act = charge.terms.on_hung == "restart" and watch.misses > 1
    if watch.misses == 1 or act:
        report(charge, watch.run, silent, evidence, act=act)


def report(charge: "Charge", run: "Run", seconds: float, evidence: tuple[str, ...], *, act: bool) -> None:
    """
    Tell that it hangs, with its stacks; and end it, if that is wanted.
    """

    def told(text: str | None, _error: BaseException | None) -> None:
        run.stacks = text or ""
        charge.keeper.tell(
            "hung", charge.name, run.pid, seconds=round(seconds, 3), evidence=evidence, stacks=run.stacks
        )
        if act and charge.run is run and charge.state == upkeep.UP:
            run.stop("hung", restart.HUNG)

    charge.keeper.pump.spawn(run.stacks_flow(), told)


def look_at_size(charge: "Charge", watch: Watch, now: float) -> None:
    """
    Is it too large, or too old?
    """
    limit = charge.terms.memory_max_bytes
    if limit is not None:
        try:
            with open(f"/proc/{watch.run.pid}/statm", "rb") as file:
                size = int(file.read().split()[1]) * _PAGE
        except (OSError, IndexError):
            return
        run = watch.run
        age = now - (run.ready_at or now)
        if not run.outgrown and restart.outgrows(size, limit, age):
            charge.on_outgrown(run, size, age)
        if size > limit and run.state == upkeep.UP:
            charge.send(upkeep.RECYCLE)
    if now >= watch.too_old_at:
        charge.send(upkeep.RECYCLE)
