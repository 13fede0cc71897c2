"""
What every subject of the benchmark shares: a figure, paired rounds, and reading /proc.

Ours and theirs are measured in turns, in the same process and the same seconds, and a ratio is the median of the
rounds' ratios: so another load on the machine hits both, and a single hiccup neither.
"""

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable


@dataclasses.dataclass
class Figure:
    """
    One line of the table.

    Attributes:
        name: What was measured.
        value: The figure.
        unit: "x" for a ratio, else of what it is.
        target: Where it shall lie: "<= 1.15", ">= 50"; "" where nothing is promised.
        detail: Both sides, and what else explains it.
    """

    name: str
    value: float
    unit: str = "x"
    target: str = ""
    detail: str = ""

    @property
    def met(self) -> bool | None:
        """
        Whether it lies where it shall; None where nothing is promised.
        """
        if not self.target:
            return None
        sign, limit = self.target.split()
        return self.value <= float(limit) if sign == "<=" else self.value >= float(limit)


@dataclasses.dataclass
class Pairs:
    """
    Rounds of two sides: one number of each side a round.
    """

    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float:
        """
        The median of the rounds' ratios, ours to theirs.
        """
        return statistics.median(mine / other for mine, other in zip(self.ours, self.theirs, strict=True))

    @property
    def spread(self) -> str:
        """
        The middle half of the ratios.
        """
        ratios = sorted(mine / other for mine, other in zip(self.ours, self.theirs, strict=True))
        quarter = len(ratios) // 4
        return f"{ratios[quarter]:.2f} to {ratios[-1 - quarter]:.2f}"

    def both(self, form: Callable[[float], str]) -> str:
        """
        Both medians, for the detail.
        """
        return f"{form(statistics.median(self.ours))} against {form(statistics.median(self.theirs))}"


def milliseconds(seconds: float) -> str:
    """
    Seconds, for reading.
    """
    return f"{seconds * 1000:.2f} ms"


def per_second(rate: float) -> str:
    """
    A rate, for reading.
    """
    return f"{rate:,.0f}/s"


def in_turns(ours: Callable[[], float], theirs: Callable[[], float], rounds: int) -> Pairs:
    """
    Measure both in turns; each begins every other round.
    """
    pairs = Pairs([], [])
    for number in range(rounds):
        gc.collect()
        if number % 2:
            pairs.theirs.append(theirs())
            pairs.ours.append(ours())
        else:
            pairs.ours.append(ours())
            pairs.theirs.append(theirs())
    return pairs


def median_call(call: Callable[[], object], times: int) -> Callable[[], float]:
    """
    A measurement for `in_turns`: the median time of *call*.
    """

    def measure() -> float:
        took = []
        for _ in range(times):
            began = time.perf_counter()
            call()
            took.append(time.perf_counter() - began)
        return statistics.median(took)

    return measure


def resident_kib(pid: int, field: str = "Rss") -> int:
    """
    Resident memory of a process: Rss, or Pss, which splits shared pages among those who share them.

    Source: proc_pid_smaps(5), smaps_rollup.
    """
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        for line in file:
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
    raise LookupError(field)
