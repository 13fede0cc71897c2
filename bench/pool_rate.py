"""
Many tasks at once: tiny ones, how many a second; and some a hundred times longer than the rest, how well divided?
"""

import time

from bench import pool_tasks
from bench.harness import Figure, per_second
from bench.pool_rounds import BLOCKING_NAMES, in_turns, opened

TITLE = "pools: many tasks, 2 workers"
STANDARD = "multiprocessing fork"
SHORT_SECONDS = 0.0002


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    return [
        *submit_figures(quick=quick),
        *imap_unordered_figures(quick=quick),
        *map_figures(quick=quick),
        *skewed_figures(quick=quick),
    ]


def submit_figures(*, quick: bool) -> list[Figure]:
    """
    The peers that no target names get fewer tasks: some take a millisecond for each.
    """
    count, few, rounds = (5000, 500, 3) if quick else (20_000, 2000, 7)
    named = ("safespawn.Pool", "safespawn.Executor", STANDARD, "ProcessPoolExecutor")
    fewer = {name: {"count": few} for name in BLOCKING_NAMES if name not in named}
    with opened([name for name in BLOCKING_NAMES if name != "joblib"]) as sides:
        seen = in_turns(sides, rounds, "submit", fewer, count=count)
    title = f"{count:,} x apply_async, then get"
    return [
        seen.figure(f"{title} / multiprocessing's", "safespawn.Pool", STANDARD, ">= 2", per_second),
        seen.figure(f"{title} / PPE.submit", "safespawn.Pool", "ProcessPoolExecutor", ">= 6", per_second),
        seen.figure("Executor.submit, then result / PPE", "safespawn.Executor", "ProcessPoolExecutor", "", per_second),
        *seen.each("submit and result", "/s"),
    ]


def imap_unordered_figures(*, quick: bool) -> list[Figure]:
    count, rounds = (5000, 3) if quick else (20_000, 7)
    with opened(("safespawn.Pool", STANDARD, "mpire")) as sides:
        seen = in_turns(sides, rounds, "imap_unordered", {"mpire": {"count": count // 10}}, count=count)
    title = f"{count:,} x imap_unordered, chunk 1 / mp's"
    figure = seen.figure(title, "safespawn.Pool", STANDARD, ">= 3", per_second)
    return [figure, *seen.each("imap_unordered", "/s")]


def map_figures(*, quick: bool) -> list[Figure]:
    count, rounds = (20_000, 5) if quick else (100_000, 15)
    with opened(("safespawn.Pool", STANDARD, "mpire", "joblib")) as sides:
        seen = in_turns(sides, rounds, "map", count=count)
    title = f"map of {count:,}, default chunks / mp's"
    figure = seen.figure(title, "safespawn.Pool", STANDARD, ">= 1.0", per_second)
    return [figure, *seen.each("map", "/s")]


def skewed_figures(*, quick: bool) -> list[Figure]:
    """
    One task of a hundred takes a hundred times longer. The ideal is that of the very tasks: see `pool_measures.skewed`.
    """
    count, rounds = (2000, 3) if quick else (4000, 7)
    loops = loops_for(SHORT_SECONDS)
    figures = []
    for kind, func, short in (("busy", "turn", loops), ("asleep", "timed_rest", SHORT_SECONDS)):
        for method in ("map", "imap_unordered"):
            with opened(("safespawn.Pool", STANDARD)) as sides:
                task = {"func": func, "short": short, "long": short * 100, "count": count, "method": method}
                seen = in_turns(sides, rounds, "skewed", **task)
            title = f"skewed, {kind}, {method}"
            ours, other = seen.each(f"{title} / ideal", "x")
            ours.name, ours.target = f"{title}: ours / ideal", "<= 1.1"
            figures += [ours, other]
    return figures


def loops_for(seconds: float) -> int:
    """
    How many turns of an empty loop take so long on this machine, at its best.
    """
    loops, best = 100_000, float("inf")
    for _ in range(50):
        began = time.perf_counter()
        pool_tasks.turn(loops)
        best = min(best, time.perf_counter() - began)
    return round(loops * seconds / best)
