"""
One tiny task after another: how long until its result is there? Blocking, and in an event loop.
"""

from bench.harness import Figure
from bench.pool_peers import ASYNC_NAMES, BARE
from bench.pool_rounds import BLOCKING_NAMES, OURS, in_turns, microseconds, opened

TITLE = "pools: round trip of a tiny task, median, 2 workers"


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    times, rounds = (200, 5) if quick else (500, 15)
    return [*blocking_figures(times, rounds), *async_figures(times, rounds)]


def blocking_figures(times: int, rounds: int) -> list[Figure]:
    few = {"joblib": {"times": 20}}  # it looks every 10 ms whether a result is there
    with opened((BARE, *BLOCKING_NAMES)) as sides:
        seen = in_turns(sides, rounds, "round_trip", few, times=times)
    best = seen.best([name for name in BLOCKING_NAMES if name not in OURS], min)
    return [
        seen.figure("Pool.apply / best peer", "safespawn.Pool", best, "<= 0.6", microseconds),
        seen.figure("Executor.submit, result / best peer", "safespawn.Executor", best, "", microseconds),
        *seen.each("blocking", "µs", 1e6),
    ]


def async_figures(times: int, rounds: int) -> list[Figure]:
    """
    On uvloop the best of the peers on uvloop counts, else the best of all others.
    """
    with opened((BARE, *ASYNC_NAMES)) as sides:
        seen = in_turns(sides, rounds, "round_trip", times=times)
    figures = []
    for name in ASYNC_NAMES:
        if name in OURS:
            rivals = [each for each in ASYNC_NAMES if each not in OURS and ("uvloop" in each) == ("uvloop" in name)]
            title = name.removeprefix("safespawn.").replace(" on", ".run on") + " / best async peer"
            figures.append(seen.figure(title, name, seen.best(rivals, min), "<= 0.7", microseconds))
    return [*figures, *seen.each("async", "µs", 1e6)]
