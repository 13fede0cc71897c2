"""
How long from making a pool to its first result? With zygote and template running, as with multiprocessing's forkserver
running.
"""

from bench.harness import Figure, milliseconds
from bench.pool_rounds import BLOCKING_NAMES, Rounds, in_turns, opened

TITLE = "pools: from making one of 2 workers to its first result"
OURS = "safespawn.Pool"
FORKSERVER = "multiprocessing forkserver"
SPAWN = "multiprocessing spawn"
LARGE = " in a large application"


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    rounds = 3 if quick else 15
    return [
        *start_figures(rounds),
        *numpy_figures(rounds),
        *large_figures(rounds, resident_mib),
    ]


def start_figures(rounds: int) -> list[Figure]:
    """
    Second and later pools of a process for all; for ours and the forkserver also the first.
    """
    with opened(BLOCKING_NAMES) as sides:
        in_turns(sides, 1, "start")
        warm = in_turns(sides, rounds, "start")
    first = first_pools((OURS, FORKSERVER), rounds)
    lines = [*first.each("first pool", "ms", 1000), *warm.each("later pool", "ms", 1000)]
    first.values[FORKSERVER] = warm.values.get(FORKSERVER, [])
    title = "forkserver's later pool"
    return [
        first.figure(f"first pool after init(preload=[]) / {title}", OURS, FORKSERVER, "<= 0.5", milliseconds),
        warm.figure(f"later pool / {title}", OURS, FORKSERVER, "<= 0.5", milliseconds),
        *lines,
    ]


def first_pools(names, rounds: int) -> Rounds:
    """
    Each round in new processes: the zygote runs, the forkserver does not.
    """
    values, out = {name: [] for name in names}, {}
    for _ in range(rounds):
        with opened([name for name in names if name not in out]) as sides:
            seen = in_turns(sides, 1, "start")
        out |= seen.out
        for name, found in seen.values.items():
            values[name] += found
    return Rounds({name: found for name, found in values.items() if name not in out}, out)


def numpy_figures(rounds: int) -> list[Figure]:
    """
    One worker, whose first task uses numpy; ours and the forkserver's have that, and the task's module, preloaded.
    """
    with opened((OURS, FORKSERVER, SPAWN)) as sides:
        preload = {name: {"preload": ["numpy", "bench.pool_tasks"]} for name in (OURS, FORKSERVER)}
        in_turns(sides, 1, "start", preload, task="numpy_sum", workers=1)
        seen = in_turns(sides, rounds, "start", preload, task="numpy_sum", workers=1)
    figure = seen.figure("a worker with numpy preloaded / spawn's", OURS, SPAWN, "<= 0.05", milliseconds)
    return [figure, *seen.each("a worker with numpy", "ms", 1000)]


def large_figures(rounds: int, resident_mib: int) -> list[Figure]:
    """
    The same pool in a small application and in a large one.
    """
    figures = []
    for name in (OURS, FORKSERVER, "multiprocessing fork"):
        with opened((name,)) as small, opened((name,)) as large:
            large[name].ask("hold", mebibytes=resident_mib)
            sides = {name: small[name], name + LARGE: large[name]}
            in_turns(sides, 1, "start")
            seen = in_turns(sides, rounds, "start")
        target = "<= 1.1" if name == OURS else ""  # no slower, but for the noise of a start
        title = f"{name}: {resident_mib} MiB / few"
        figures.append(seen.figure(title, name + LARGE, name, target, milliseconds))
    return figures
