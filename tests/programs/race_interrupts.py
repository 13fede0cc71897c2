"""
An application that is interrupted by Ctrl-C again and again while it runs commands: `race_interrupts.py TIMES`.

A thread sends SIGINT at random moments, once or twice in each round; the main thread counts what was interrupted, and
what is left at the end.
"""

import gc
import json
import os
import queue
import random
import signal
import sys
import threading
import time

import safespawn
from safespawn import supervisor
from safespawn._drive import generation

TIMES = int(sys.argv[1])
BURST = 2  # interrupts in a round, at most
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
    until = time.monotonic() + 10
    while True:
        for zygote in engine.zygotes:
            zygote.trim()
        engine.prune()
        seen = supervisor.default_supervisor().statistics()["zygote"]
        level = {name: seen.get(name) for name in ("connections", "running", "ending", "held", "children")}
        if set(level.values()) == {0} or time.monotonic() > until:
            engine.prune()  # what ended between the two looks
            return level


class Rounds:
    """Calls that are interrupted; no interrupt gets out of a round."""

    def __init__(self):
        self.chance = random.Random(1)
        self.left = 0  # interrupts that are still to come in this round
        self.begun = queue.SimpleQueue()  # how many a new round has; None at the end
        self.counts = {"calls": 0, "interrupted": 0, "errors": []}

    def send(self):
        """In a thread: what a round has left, at random moments."""
        while (count := self.begun.get()) is not None:
            for _ in range(count):
                time.sleep(self.chance.uniform(0.0, 0.004))
                os.kill(os.getpid(), signal.SIGINT)
                self.left -= 1

    def attempt(self):
        """One call, interrupted somewhere."""
        self.counts["calls"] += 1
        self.left = self.chance.randint(1, BURST)
        self.begun.put(self.left)
        try:
            self.chance.choice(CALLS)()
        except safespawn.TimeoutExpired:
            return
        except Exception as error:  # noqa: BLE001 - told to the test
            self.counts["errors"].append(repr(error))

    def round(self, levels=BURST + 1):
        """
        An attempt, and all its interrupts: each of these ends a level at most, and there are more levels than that.
        """
        try:
            if levels:
                self.round(levels - 1)
            else:
                self.attempt()
            while self.left:
                time.sleep(0.0005)
            time.sleep(0)  # what has come is raised here at the latest
        except KeyboardInterrupt:
            self.counts["interrupted"] += 1


def main():
    """Be interrupted, and count."""
    rounds = Rounds()
    suspicions = []
    suspect = generation.Generation.suspect
    generation.Generation.suspect = lambda self: (suspicions.append(self.pid), suspect(self))
    safespawn.run(["true"])
    figures()
    before = targets()
    sender = threading.Thread(target=rounds.send)
    sender.start()
    while rounds.counts["interrupted"] < TIMES:
        rounds.round()
    rounds.begun.put(None)
    sender.join()
    safespawn.run(["true"])  # if the last zygote was late, there is another one now
    gc.collect()
    counts = rounds.counts
    counts["zygote"] = figures()
    counts["suspicions"] = len(set(suspicions))
    counts["boots"] = supervisor.default_supervisor()._engine.boots
    left = targets()
    for each in before:
        if each in left:
            left.remove(each)
    counts["left"] = left
    print(json.dumps(counts), flush=True)


main()
