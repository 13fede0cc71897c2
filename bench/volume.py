"""
Large output and input through pipes: how fast, and how much memory? Each measurement in a process of its own.
"""

import json
import subprocess
import sys
import time

import safespawn
from bench.harness import Figure, Pairs

TITLE = "large output and input, against subprocess.run"


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    mebibytes, rounds = (256, 2) if quick else (1024, 3)
    figures = []
    for name, way, size in (
        (f"{mebibytes} MiB of output, captured", "output", mebibytes),
        (f"{mebibytes // 2} MiB in and out at once, captured", "both", mebibytes // 2),
    ):
        rates, peaks = Pairs([], []), Pairs([], [])
        for number in range(rounds):
            for side in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                seconds, peak_kib = in_own_process(side, way, size)
                getattr(rates, side).append(size / seconds)
                getattr(peaks, side).append(peak_kib / 1024)
        figures.append(Figure(f"{name}: speed", rates.ratio, "x", "", rates.both(lambda rate: f"{rate:,.0f} MiB/s")))
        figures.append(
            Figure(f"{name}: peak memory", peaks.ratio, "x", "", peaks.both(lambda peak: f"{peak:,.0f} MiB"))
        )
    return figures


def in_own_process(side: str, way: str, mebibytes: int) -> tuple[float, int]:
    done = subprocess.run(
        [sys.executable, "-m", "bench.volume", side, way, str(mebibytes)], check=True, stdout=subprocess.PIPE
    )
    seconds, peak_kib = json.loads(done.stdout)
    return seconds, peak_kib


def once(side: str, way: str, mebibytes: int) -> tuple[float, int]:
    """
    Seconds, and the peak of resident memory in KiB; for the caller, on stdout.
    """
    run = safespawn.run if side == "ours" else subprocess.run
    size = mebibytes * 2**20
    run(["true"], capture_output=True, check=False)
    given = {"input": bytes(size)} if way == "both" else {}
    argv = ["cat"] if way == "both" else ["head", "-c", str(size), "/dev/zero"]
    began = time.perf_counter()
    done = run(argv, capture_output=True, check=True, **given)
    took = time.perf_counter() - began
    assert len(done.stdout) == size
    return took, peak_kib()


def peak_kib() -> int:
    """
    Not getrusage's: that one remembers what was before exec.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmHWM:"))


if __name__ == "__main__":
    print(json.dumps(once(sys.argv[1], sys.argv[2], int(sys.argv[3]))))
