"""
Eight threads that call as fast as they can: how many calls a second, against `subprocess.run`?
"""

import subprocess
import threading
import time

import safespawn
from bench.harness import Figure, in_turns, per_second

TITLE = "calls a second from 8 threads, against subprocess.run"
THREADS = 8


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    figures = []
    with safespawn.Supervisor("bench", guard="off") as supervisor:
        for name, options in (("8 threads", {}), ("8 threads, capture_output=True", {"capture_output": True})):
            pairs = in_turns(
                lambda o=options: rate(lambda: supervisor.run(["true"], **o), 1.0),
                lambda o=options: rate(lambda: subprocess.run(["true"], **o, check=False), 1.0),
                3 if quick else 9,
            )
            detail = f"{pairs.both(per_second)}; middle half of the rounds {pairs.spread}"
            figures.append(Figure(name, pairs.ratio, "x", ">= 1.0", detail))
    return figures


def rate(call, seconds: float) -> float:
    """
    Calls a second.
    """
    counts = [0] * THREADS
    ready = threading.Barrier(THREADS + 1)
    end = [0.0]

    def work(index: int) -> None:
        ready.wait()
        while time.perf_counter() < end[0]:
            call()
            counts[index] += 1

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    end[0] = began + seconds
    ready.wait()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - began)
