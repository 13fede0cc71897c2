"""
A pool in the long run and at rest: does the application's memory stay level, and what does an idle pool cost?
"""

import statistics

from bench.harness import Figure
from bench.pool_peers import ASYNC_NAMES
from bench.pool_rounds import BLOCKING_NAMES, in_turns, opened

TITLE = "pools: memory in the long run; 2 workers at rest"
LIMIT_SECONDS = 600.0


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    return [*level_figures(100_000 if quick else 1_000_000), *rest_figures(1 if quick else 3)]


def level_figures(count: int) -> list[Figure]:
    figures = []
    for name in ("safespawn.Pool", "multiprocessing fork"):
        target = "<= 1.05" if name == "safespawn.Pool" else ""
        title = f"RSS after {count:,} of imap / at 1/4, {name}"
        with opened((name,)) as sides:
            seen = sides[name].ask("level", count=count, limit=LIMIT_SECONDS)
            if seen is None:
                figures.append(Figure(title, float("inf"), "x", target, sides[name].out))
                continue
        quarter, end, peak, rate = seen
        detail = f"{quarter / 1024:.1f}, then {end / 1024:.1f} MiB, peak {peak / 1024:.1f}; {rate:,.0f} tasks/s"
        figures.append(Figure(title, end / quarter, "x", target, detail))
    return figures


def rest_figures(rounds: int) -> list[Figure]:
    """
    What came with the pool: CPU time of the application and all that stems from it, threads, descriptors, processes.
    """
    figures, out = [], []
    for name in (*BLOCKING_NAMES, *(name for name in ASYNC_NAMES if "uvloop" not in name)):
        with opened((name,)) as sides:
            seen = in_turns(sides, rounds, "at_rest")
        if name in seen.out:
            out.append(f"; {name}: {seen.out[name]}")
            continue
        threads, fds, processes, _ = seen.values[name][0]
        used = statistics.median(each[3] for each in seen.values[name])
        detail = f"+{threads} threads, +{fds} descriptors, +{processes} processes"
        figures.append(Figure(f"  at rest, {name}", used, "ms CPU/s", "", detail))
    figures[-1].detail += "".join(out)
    return figures
