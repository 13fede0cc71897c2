"""
Supervised children under attack at their critical moments: `children_nemesis.py SECONDS SEED`. Prints facts.

Struck are the zygote, its warden, the template and everything below them: by one signal, or by two within some
milliseconds, SIGKILL or SIGSTOP each; while a process starts, is asked to stop, is told to have ended, or at any time.
Calls to stop, to restart and to run a command go on meanwhile. Then it is seen whether all is well again, whether the
number of descriptors, of threads and the memory are level, and how long the end takes.
"""

import faulthandler
import json
import os
import queue
import random
import signal
import sys
import threading
import time

import safespawn
from safespawn.errors import SafespawnError

WHOLE_SECONDS = 60.0  # for all to be well again; several time limits of ten seconds may follow one another
LEVEL_SECONDS = 15.0  # for what was stopped to be let go of
GONE_SECONDS = 5.0  # after the end, for what has lost its zygote and its warden
MORE_FDS = 3
MOMENTS = ("Starting", "Stopping", "Exited", "Restarting")
OPTIONS = {
    "backoff": safespawn.Backoff(0.05, max=0.5), "stop_timeout": 0.5, "on_hung": "restart", "ready_timeout": 10.0,
}  # fmt: skip


def beats():
    """A function that says that it lives."""
    safespawn.stop_requested()
    safespawn.ready(os.getpid())
    while not safespawn.stop_requested(0.05):
        safespawn.beat()


def deaf():
    """One that ignores what it is asked, and has a child of its own."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork():
        safespawn.ready()
    while True:
        time.sleep(0.05)
        safespawn.beat()


def below(pid):
    """All processes below *pid*."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in map(int, file.read().split()):
                    found += [child, *below(child)]
    except OSError:
        return found
    return found


def facts(pid):
    """Name, state and birth of a process that runs; None when it does not."""
    try:
        with open(f"/proc/{pid}/stat", errors="replace") as file:
            head, _, tail = file.read().rpartition(")")
    except OSError:
        return None
    fields = tail.split()
    return None if fields[0] in "ZX" else (head.partition("(")[2], fields[0], fields[19])


def figures():
    """Descriptors, threads, resident KiB of this process."""
    with open("/proc/self/statm") as file:
        pages = int(file.read().split()[1])
    return len(os.listdir("/proc/self/fd")), threading.active_count(), pages * os.sysconf("SC_PAGE_SIZE") // 1024


class Nemesis:
    """Strikes, and writes down whom."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.stop = threading.Event()
        self.moments = queue.SimpleQueue()
        self.story = []
        self.seen = {}

    def hear(self, event):
        """Where the pump runs: a moment to strike."""
        self.story.append((round(time.monotonic(), 3), type(event).__name__, event.child, event.pid))
        if type(event).__name__ in MOMENTS and self.moments.empty():
            self.moments.put(type(event).__name__)

    def left(self):
        """Those seen that still run."""
        found = {pid: facts(pid) for pid in self.seen}
        return {pid: fact for pid, fact in found.items() if fact is not None and fact[2] == self.seen[pid]}

    def pick(self):
        """A victim: the infrastructure twice as often as its share."""
        parts = {pid: facts(pid) for pid in below(os.getpid())}
        parts = {pid: fact for pid, fact in parts.items() if fact is not None}
        self.seen.update({pid: fact[2] for pid, fact in parts.items()})
        crowd = [*parts, *(pid for pid, fact in parts.items() if fact[0].startswith("safespawn"))]
        return self.dice.choice(crowd) if crowd else None

    def blow(self):
        """One signal."""
        victim = self.pick()
        if victim is not None:
            number = self.dice.choice([signal.SIGKILL, signal.SIGSTOP])
            self.story.append((round(time.monotonic(), 3), number.name, victim, facts(victim)))
            try:
                os.kill(victim, number)
            except ProcessLookupError:
                return

    def attack(self):
        """The thread."""
        while not self.stop.is_set():
            try:
                self.moments.get(timeout=self.dice.uniform(0.1, 0.6))
                self.stop.wait(self.dice.choice([0.0, 0.0, 0.002, 0.02, 0.1, 0.25]))
            except queue.Empty:
                pass
            self.blow()
            if self.dice.random() < 0.5:
                self.stop.wait(self.dice.choice([0.0, 0.001, 0.01]))
                self.blow()
            self.stop.wait(self.dice.uniform(0.0, 0.3))


def quietly(action, *arguments, **options):
    """Errors of the library are its right under attack; any other one is not."""
    try:
        return action(*arguments, **options)
    except SafespawnError:
        return None


def use(supervisor, children, nemesis, wrong):
    """Calls."""
    dice = random.Random(1)
    while not nemesis.stop.wait(dice.uniform(0.0, 0.2)):
        try:
            what = dice.random()
            if what < 0.6:
                quietly(supervisor.run, ["true"], timeout=5)
            elif what < 0.8:
                quietly(dice.choice(children).restart)
            else:
                passing = quietly(supervisor.start, "passing", ["sleep", "1000"], **OPTIONS)
                if passing is not None:
                    quietly(passing.stop)
        except Exception as error:  # noqa: BLE001 - told to the test
            wrong.append(repr(error))


def is_well(supervisor, children):
    """Whether everything works."""
    done = quietly(supervisor.run, ["echo", "well"], capture_output=True, text=True, timeout=5)
    if done is None or done.stdout != "well\n":
        return False
    pids = [child.pid for child in children]
    states = [None if pid is None else facts(pid) for pid in pids]
    return all(child.state == "up" for child in children) and all(each and each[1] != "T" for each in states)


def main():
    """Tell what came of it."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    nemesis, wrong = Nemesis(seed), []
    policy = {"guard": "off", "restarts": 10**6, "give_up": "degrade", "on_event": nemesis.hear}
    with safespawn.Supervisor("nemesis", **policy) as supervisor:
        children = [
            supervisor.start("beats", beats, ready="notify", heartbeat=0.5, **OPTIONS),
            supervisor.start("deaf", deaf, ready="notify", heartbeat=0.5, max_age=2.0, **OPTIONS),
            supervisor.start("plain", ["sh", "-c", "while :; do sleep 0.1; done"], hang_after=1.0, **OPTIONS),
        ]
        before = figures()
        threads = [threading.Thread(target=use, args=(supervisor, children, nemesis, wrong)),
                   threading.Thread(target=nemesis.attack)]  # fmt: skip
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        nemesis.stop.set()
        for thread in threads:
            thread.join(2 * WHOLE_SECONDS)
        hung = [thread.name for thread in threads if thread.is_alive()]
        began = time.monotonic()
        whole = None
        while whole is None and time.monotonic() - began < WHOLE_SECONDS:
            if is_well(supervisor, children):
                whole = round(time.monotonic() - began, 2)
            time.sleep(0.1)
        for child in children:
            quietly(child.restart)  # off a zygote that is stopped: that is kept for as long as it has children
        began_level = time.monotonic()
        while figures()[0] > before[0] + MORE_FDS and time.monotonic() - began_level < LEVEL_SECONDS:
            quietly(supervisor.run, ["true"], timeout=5)
            time.sleep(0.1)
        after = figures()
        if after[0] > before[0] + MORE_FDS:
            engine = supervisor._engine
            os.system(f"ls -l /proc/{os.getpid()}/fd >&2")
            for each in (*engine.zygotes, *engine.templates):
                print(each.pid, facts(each.pid), each.usable, each.closed, each.leased, each._askers, file=sys.stderr)
            print([(each.name, each.state, each.pid) for each in children], file=sys.stderr)
        nemesis.seen.update({pid: fact[2] for pid in below(os.getpid()) if (fact := facts(pid)) is not None})
        said = supervisor.statistics()
        if whole is None or hung:
            print(*nemesis.story[-80:], *((pid, facts(pid)) for pid in below(os.getpid())), sep="\n", file=sys.stderr)
            print(said, [(each.name, each.state, each.pid) for each in children], file=sys.stderr)
            faulthandler.dump_traceback(all_threads=True)
        began = time.monotonic()
    closed = round(time.monotonic() - began, 2)
    left = nemesis.left()
    while left and time.monotonic() < began + closed + GONE_SECONDS:
        time.sleep(0.05)
        left = nemesis.left()
    blows = sum(isinstance(each[2], int) for each in nemesis.story)
    print(json.dumps({"blows": blows, "whole": whole, "hung": hung, "wrong": wrong, "closed": closed, "before": before,
                      "after": after, "left": list(map(str, left.items()))}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
