"""
A numpy array of 64 MiB to a worker, and back: how fast, against pickling it through a pipe and against memcpy?
"""

from bench.harness import Figure
from bench.pool_peers import BARE
from bench.pool_rounds import BLOCKING_NAMES, in_turns, mebibytes_per_second, opened

TITLE = "pools: a numpy array of 64 MiB, 2 workers"
STANDARD = "multiprocessing fork"
PEERS = tuple(name for name in BLOCKING_NAMES if name not in ("multiprocessing spawn", "multiprocessing forkserver"))
WAYS = (
    ("ends", "to a worker", ">= 10"),
    ("total", "to a worker that reads it all", ""),
    ("same", "there and back", ">= 10"),
    ("negative", "there, and a new one back", ""),
)


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    rounds = 3 if quick else 9
    figures = []
    for task, title, target in WAYS:
        names = PEERS if task in ("ends", "same") else ("safespawn.Pool", STANDARD)
        with opened((BARE, *names)) as sides:
            seen = in_turns(sides, rounds, "array_rate", {BARE: {"what": "memcpy"}}, task=task)
        form = mebibytes_per_second
        figures.append(seen.figure(f"{title} / multiprocessing's", "safespawn.Pool", STANDARD, target, form))
        if task == "ends":
            figures.append(seen.figure(f"{title} / memcpy", "safespawn.Pool", BARE, ">= 0.4", form))
        figures += seen.each(title, "MiB/s")
    return figures
