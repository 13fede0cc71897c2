"""
Whether a child that has ended comes again, when, and which of its siblings go with it.

Runs in: application; pure.
Never: knows the time: *now* is an argument, in monotonic seconds, and so is what is random.
"""

import math
from collections import deque
from collections.abc import Collection, Sequence
from typing import Literal

import attrs

from safespawn.errors import BadArgument, BadArgumentType

Restart = Literal["always", "on-failure", "never"]
Strategy = Literal["one_for_one", "one_for_all", "rest_for_one"]
GiveUp = Literal["raise", "degrade"]
RESTARTS: tuple[Restart, ...] = ("always", "on-failure", "never")
STRATEGIES: tuple[Strategy, ...] = ("one_for_one", "one_for_all", "rest_for_one")
GIVE_UPS: tuple[GiveUp, ...] = ("raise", "degrade")

# --- how a run ended ------------------------------------------------------------------------------------------------
OK, ERROR, SIGNAL, LATE, HUNG, FAILED, LOST, OUTGROWN, STOPPED, RECYCLED = ENDS = (
    "ok",  # it returned, or exited with 0
    "error",  # it raised, or exited with another code
    "signal",  # a signal ended it that we did not send
    "late",  # it was ended, because it had not got ready in time
    "hung",  # it was ended, because it hung
    "failed",  # it could not be started
    "lost",  # it has ended, and nobody can say how
    "outgrown",  # it was ended: it was larger than memory_max as soon as it was ready, and so were those before it
    "stopped",  # it was asked to end
    "recycled",  # another run has taken its place
)
FAILURES = frozenset({ERROR, SIGNAL, LATE, HUNG, FAILED, LOST, OUTGROWN})

EARLY_SECONDS = 10.0  # after it was ready: what is too large by then did not become so by and by; arbitrary


@attrs.frozen
class Backoff:
    """
    How long to wait before a child that has failed is started again.

    The first failure after a time of calm is answered at once, the second in a row after *initial* seconds, each
    further one after *factor* times the seconds of the one before.

    Args:
        initial: Seconds.
        factor: From 1 up.
        max: Seconds that it does not exceed, before the jitter.
        jitter: So much, as a share of the delay, it may be longer or shorter: children that failed together do not
            come again together.
        reset_after: Seconds that a child must have been ready for its earlier failures to be forgotten.

    Raises:
        BadArgument, BadArgumentType: Not such numbers.
    """

    initial: float = 0.2
    factor: float = 2.0
    max: float = 30.0
    jitter: float = 0.2
    reset_after: float = 60.0

    def __attrs_post_init__(self) -> None:
        least = {"initial": 0.0, "factor": 1.0, "max": 0.0, "jitter": 0.0, "reset_after": 0.0}
        for name, low in least.items():
            check_number(name, getattr(self, name), least=low, most=1.0 if name == "jitter" else math.inf)

    def delay(self, failures: int, random: float) -> float:
        """
        Seconds to wait after the given number of failures in a row.

        Args:
            failures: From 1 up.
            random: From 0 to 1, for the jitter.
        """
        if failures <= 1:
            return 0.0
        try:
            grown = self.initial * self.factor ** (failures - 2)
        except OverflowError:
            grown = math.inf
        return min(grown, self.max) * (1.0 + self.jitter * (2.0 * random - 1.0))


class Intensity:
    """
    So many restarts in so many seconds, and no more.

    Args:
        restarts: How many are allowed.
        per: Seconds.
    """

    __slots__ = ("_times", "per", "restarts")

    def __init__(self, restarts: int, per: float) -> None:
        self.restarts: int = restarts
        self.per: float = per
        self._times: deque[float] = deque()

    def allow(self, now: float) -> bool:
        """
        Count a restart at *now*. Says whether it is still allowed.
        """
        times = self._times
        while times and now - times[0] >= self.per:
            times.popleft()
        if len(times) >= self.restarts:
            return False
        times.append(now)
        return True

    def count(self, now: float) -> int:
        """
        How many restarts are in the window.
        """
        return sum(now - time < self.per for time in self._times)


def comes_again(restart: Restart, end: str, returncode: int | None, no_restart_codes: Collection[int]) -> bool:
    """
    Whether a child whose run ended in this way is to have another one.
    """
    if end == STOPPED or restart == "never" or (returncode is not None and returncode in no_restart_codes):
        return False
    return restart == "always" or end in FAILURES


def outgrows(size: int, limit: int, age: float) -> bool:
    """
    Whether a process of *size* bytes that got ready *age* seconds ago needs more than its *limit* at all. Another one
    in its place would be no smaller: that is no leak, which recycling cures, but a failure.
    """
    return size > limit and age < EARLY_SECONDS


def end_of(returncode: int | None) -> str:
    """
    How a run ended that ended by itself.
    """
    if returncode is None:
        return LOST
    if returncode < 0:
        return SIGNAL
    return ERROR if returncode else OK


def affected(strategy: Strategy, order: Sequence[str], failed: str) -> list[str]:
    """
    The children that are started again with *failed*, in their order; they are stopped in the reverse one.
    """
    if strategy == "one_for_one":
        return [failed]
    if strategy == "one_for_all":
        return list(order)
    return list(order[order.index(failed) :])


def check_number(name: str, value: object, *, least: float = 0.0, most: float = math.inf) -> float:
    """
    *value*, the parameter *name*, if it is a number within these bounds.

    Raises:
        BadArgument, BadArgumentType: It is not.
    """
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise BadArgumentType(f"{name} is a number", parameter=name, value=value)
    if not least <= value <= most:
        bounds = f"from {least:g} up" if most == math.inf else f"from {least:g} to {most:g}"
        raise BadArgument(f"{name} is a number {bounds}", parameter=name, value=value)
    return float(value)


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """
    Refuse a *value* of the parameter *name* that is none of *choices*.

    Raises:
        BadArgument: It is none.
    """
    if value not in choices:
        raise BadArgument(f"{name} is one of {', '.join(map(repr, choices))}", parameter=name, value=value)
