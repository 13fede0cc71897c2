"""
What the order guard costs a program that does nothing wrong.
"""

import threading
import time

from bench.harness import Figure
from safespawn import _policy, _recorder, _watch

TITLE = "the order guard"
MICRO = 1e6


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    rounds = 5 if quick else 25
    event = audit_event
    before = best(event, 20_000, rounds)
    recorded, bare = start_of_a_thread(rounds)
    whole = best(start_and_join, 300, rounds)
    layer = _policy.make_layer("warn", ())
    _watch.begin(layer)
    after = best(event, 20_000, rounds)
    release = threading.Event()
    threads = [threading.Thread(target=release.wait) for _ in range(20)]
    for each in threads:
        each.start()
    record = best(_watch._record, 200, rounds)  # noqa: SLF001 - what runs before a fork
    release.set()
    for each in threads:
        each.join()
    _watch.end(layer)
    return [
        Figure(
            "an audited event that is none of ours, id()", (after - before) * MICRO, "us", "<= 0.5", "more than before"
        ),
        Figure("the start of a thread", (recorded - bare) * MICRO, "us", "<= 2", f"of {whole * MICRO:.0f}"),
        Figure("the record of a fork with 20 threads", record * MICRO, "us", "<= 40"),
    ]


def audit_event() -> None:
    id(TITLE)  # of what is audited, what programs do most


def start_of_a_thread(rounds: int) -> tuple[float, float]:
    """
    Seconds that `Thread.start` takes with and without the recorder, if starting itself took none: that varies by more.
    """
    _recorder.uninstall()
    real = threading.Thread.start
    thread = threading.Thread(target=int)
    try:
        threading.Thread.start = start_nothing
        bare = best(thread.start, 20_000, rounds)
        _recorder.install()
        recorded = best(thread.start, 20_000, rounds)
        _recorder.uninstall()
    finally:
        threading.Thread.start = real
        _recorder.install()
    return recorded, bare


def start_nothing(thread: threading.Thread) -> None:
    del thread


def start_and_join() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def best(call, times: int, rounds: int) -> float:
    """
    Seconds a call, in the best round: the others had somebody else on the machine.
    """
    found = []
    for _ in range(rounds):
        began = time.perf_counter()
        for _ in range(times):
            call()
        found.append((time.perf_counter() - began) / times)
    return min(found)
