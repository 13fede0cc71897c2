"""
The zygote itself: how long until it is there, how much memory does it take, and does that stay level? And the import.
"""

import statistics
import subprocess
import sys
import time

import safespawn
from bench.harness import Figure, in_turns, median_call, resident_kib

TITLE = "the zygote: boot and memory; the import"


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    return [*boot_figures(quick=quick), *memory_figures(quick=quick), import_figure(quick=quick)]


def boot_figures(*, quick: bool) -> list[Figure]:
    """
    From nothing to a zygote that has said hello, and a whole first call from a fresh interpreter.
    """
    boots = []
    for _ in range(5 if quick else 25):
        began = time.perf_counter()
        with safespawn.Supervisor("bench", guard="off"):
            boots.append(time.perf_counter() - began)
    detail = f"fastest {min(boots) * 1000:.1f}, slowest {max(boots) * 1000:.1f} ms of {len(boots)}"
    return [Figure("boot of a zygote", statistics.median(boots) * 1000, "ms", "<= 30", detail)]


def memory_figures(*, quick: bool) -> list[Figure]:
    """
    Resident memory of zygote and warden, new and after many children.
    """
    children = 1000 if quick else 10_000
    with safespawn.Supervisor("bench", guard="off") as supervisor:
        supervisor.run(["true"], capture_output=True)
        (pid,) = supervisor.statistics()["zygotes"]
        with open(f"/proc/{pid}/stat", "rb") as file:
            warden_pid = int(file.read().rpartition(b")")[2].split()[1])
        for _ in range(children // 2):  # what the allocator keeps has found its size by then
            supervisor.run(["true"], capture_output=True)
        before = resident_kib(pid)
        fds = supervisor.statistics()["zygote"]["descriptors"]
        pss = resident_kib(pid, "Pss") + resident_kib(warden_pid, "Pss")
        warden = resident_kib(warden_pid)
        for _ in range(children):
            supervisor.run(["true"], capture_output=True)
        after = resident_kib(pid)
        more_fds = supervisor.statistics()["zygote"]["descriptors"] - fds
    pss_detail = f"shared pages shared out: {pss / 1024:.1f} MiB together with the warden"
    return [
        Figure("resident memory of the zygote", before / 1024, "MiB", "<= 15", pss_detail),
        Figure(
            "resident memory of the warden", warden / 1024, "MiB", "<= 15", "all but some hundred KiB shared with it"
        ),
        Figure(f"growth over {children:,} children", after - before, "KiB", "<= 64", f"{more_fds:+d} descriptors"),
    ]


def import_figure(*, quick: bool) -> Figure:
    """
    `import safespawn` over a bare interpreter.
    """

    def interpreter(code: str):
        return lambda: subprocess.run([sys.executable, "-c", code], check=True)

    pairs = in_turns(
        median_call(interpreter("import safespawn"), 5), median_call(interpreter("pass"), 5), 3 if quick else 15
    )
    extra = statistics.median(mine - other for mine, other in zip(pairs.ours, pairs.theirs, strict=True))
    return Figure("import safespawn", extra * 1000, "ms", "<= 15", pairs.both(lambda each: f"{each * 1000:.1f} ms"))
