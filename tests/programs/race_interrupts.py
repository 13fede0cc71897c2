"""
An application that is interrupted by Ctrl-C again and again while it runs commands: `race_interrupts.py SECONDS`.

A thread sends SIGINT at random moments; the main thread counts what was interrupted, and what is left at the end.
"""

import gc
import json
import os
import random
import signal
import sys
import threading
import time

import safespawn
from safespawn import supervisor

SECONDS = float(sys.argv[1])
CALLS = (
    lambda: safespawn.run(["true"]),
    lambda: safespawn.run(["echo", "x"], capture_output=True),
    lambda: safespawn.run(["sleep", "0.01"]),
    lambda: safespawn.run(["cat"], input=b"y" * 200_000, capture_output=True),
    lambda: safespawn.run(["sleep", "10"], timeout=0.01),
    lambda: talk(b"hello"),
)


def talk(data):
    """Start a process and end it."""
    with safespawn.Popen(["cat"], stdin=-1, stdout=-1) as process:
        process.communicate(data)


def targets():
    """What the descriptors of this process point at."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return sorted(found)


def figures():
    """What the default zygote holds, when nothing runs any more."""
    engine = supervisor.default_supervisor()._engine
    until = time.monotonic() + 3
    while True:
        for zygote in engine.zygotes:
            zygote.trim()
        engine.prune()
        seen = supervisor.default_supervisor().statistics()["zygote"]
        level = {name: seen.get(name) for name in ("connections", "running", "ending", "held", "children")}
        if not any(level.values()) or time.monotonic() > until:
            engine.prune()  # what ended between the two looks
            return level


def main():
    """Be interrupted, and count."""
    chance = random.Random(1)
    stop = threading.Event()
    counts = {"calls": 0, "interrupted": 0, "errors": []}

    def interrupt():
        while not stop.wait(chance.uniform(0.0, 0.004)):
            os.kill(os.getpid(), signal.SIGINT)

    safespawn.run(["true"])
    figures()
    before = targets()
    sender = threading.Thread(target=interrupt)
    sender.start()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        try:
            while time.monotonic() < until:
                counts["calls"] += 1
                try:
                    chance.choice(CALLS)()
                except safespawn.TimeoutExpired:
                    continue
        except KeyboardInterrupt:
            counts["interrupted"] += 1
        except Exception as error:  # noqa: BLE001 - told to the test
            counts["errors"].append(repr(error))
    while sender.is_alive():
        try:
            stop.set()
            sender.join()
        except KeyboardInterrupt:
            continue
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.collect()
    counts["zygote"] = figures()
    counts["boots"] = supervisor.default_supervisor()._engine.boots
    left = targets()
    for each in before:
        if each in left:
            left.remove(each)
    counts["left"] = left
    print(json.dumps(counts), flush=True)


main()
