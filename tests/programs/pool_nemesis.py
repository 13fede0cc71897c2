"""
A pool under attack for some seconds: `pool_nemesis.py SECONDS VICTIMS FILE`; VICTIMS: "interrupt", or letters of
"worker", "template" and "zygote".

The users submit tasks that note that they ran. What each task came to is checked at the end: one result or one error,
and no task ran twice.
"""

import contextlib
import gc
import itertools
import json
import os
import random
import signal
import sys
import threading
import time

from safespawn import supervisor
from safespawn.pool import Pool
from support import fault_tasks as tasks

BOUND = 30.0
STRIKES = 3  # at least, however slow the machine is


def outcome(function):
    """A value, or the name of an exception."""
    try:
        return function()
    except Exception as error:  # noqa: BLE001 - told to the test
        return type(error).__name__


def attack(pool, victims, stop, strikes):
    """Kill somebody now and then."""
    chance = random.Random(1)
    while not stop.wait(chance.uniform(0.05, 0.3)):
        victim = chance.choice(victims)
        pids = {
            "w": lambda: [worker["pid"] for worker in pool.statistics()["workers"]],
            "t": lambda: [getattr(pool._crew.template, "pid", None)],
            "z": lambda: [zygote.pid for zygote in supervisor.default_supervisor()._engine.zygotes],
        }[victim]()
        pids = [pid for pid in pids if pid]
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(pids), signal.SIGKILL)
                strikes.append(victim)


def use(pool, path, numbers, stop, wrong, counts):
    """Submit in every way, and check what comes."""
    while not stop.is_set():
        rows = [next(numbers) for _ in range(8)]
        results = [pool.apply_async(tasks.note, (path, number)) for number in rows[:6]]
        for number, result in zip(rows, results, strict=False):
            check(number, outcome(lambda result=result: result.get(BOUND)), wrong, counts)
        check(rows[6], outcome(lambda row=rows[6]: pool.apply(tasks.note, (path, row))), wrong, counts)
        mapped = outcome(lambda: pool.map(tasks.echo, range(20)))
        if mapped != "WorkerDied" and mapped != list(range(20)):
            wrong.append(["map", mapped])
        large = outcome(lambda: pool.apply_async(tasks.large, (200_000,)).get(BOUND))
        if large not in ("WorkerDied", b"x" * 200_000):
            wrong.append(["large", large])


def check(number, found, wrong, counts):
    """One result or one error."""
    if found == number:
        counts["delivered"] += 1
    elif found == "WorkerDied":
        counts["died"] += 1
    else:
        wrong.append([number, found])


def besieged(seconds, victims, path):
    """Two users, one attacker."""
    stop, strikes, wrong = threading.Event(), [], []
    counts = {"delivered": 0, "died": 0}
    numbers = itertools.count()
    with Pool(3) as pool:
        threads = [threading.Thread(target=use, args=(pool, path, numbers, stop, wrong, counts)) for _ in range(2)]
        threads.append(threading.Thread(target=attack, args=(pool, victims, stop, strikes)))
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end or (len(strikes) < STRIKES and time.monotonic() < end + BOUND):
            time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join(2 * BOUND)
        hung = sum(thread.is_alive() for thread in threads)
        unfinished = pool.statistics()["unfinished"]
        whole = outcome(lambda: pool.map(tasks.echo, range(50))) == list(range(50))
    return {"strikes": len(strikes), "wrong": wrong, **counts, "hung": hung, "whole": whole, "unfinished": unfinished}


def interrupted(seconds, path):
    """Ctrl-C at random moments of a program that catches it and goes on with the same pool."""
    pool = Pool(2)
    pool.map(tasks.echo, range(10))
    chance = random.Random(2)
    counts = {"interrupted": 0, "done": 0}
    wrong = []
    calls = [
        lambda: pool.apply(tasks.echo, (1,)) == 1,
        lambda: pool.map(tasks.echo, range(10)) == list(range(10)),
        lambda: pool.apply_async(tasks.echo, (2,)).get() == 2,
        lambda: list(pool.imap(tasks.echo, range(10))) == list(range(10)),
        lambda: list(pool.stream(tasks.count, (10,))) == list(range(10)),
        lambda: pool.apply(tasks.note, (path, 1)) == 1,
    ]
    end = time.monotonic() + seconds
    stop = threading.Event()

    def ring():
        while not stop.wait(chance.uniform(0.0002, 0.01)):
            if ready:
                signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    ready = False
    bell = threading.Thread(target=ring)
    bell.start()
    while time.monotonic() < end:
        call = chance.choice(calls)
        try:
            ready = True
            right = call()
            ready = False
        except KeyboardInterrupt:
            ready = False
            counts["interrupted"] += 1
        except Exception as error:  # noqa: BLE001 - told to the test
            wrong.append(repr(error))
        else:
            counts["done"] += 1
            if not right:
                wrong.append("another result")
    while True:
        try:
            ready = False
            stop.set()
            bell.join()
            break
        except KeyboardInterrupt:
            continue
    gc.collect()
    deadline = time.monotonic() + 10.0
    while pool.statistics()["unfinished"] and time.monotonic() < deadline:
        time.sleep(0.01)
    unfinished = pool.statistics()["unfinished"]
    results = [pool.apply_async(tasks.who, (0.02,)) for _ in range(20)]
    workers = len({result.get(BOUND) for result in results})
    began = time.monotonic()
    pool.close()
    pool.join(BOUND)
    return {**counts, "wrong": wrong, "unfinished": unfinished, "workers": workers, "end": time.monotonic() - began}


def main():
    """Tell what came of it."""
    seconds, victims, path = float(sys.argv[1]), sys.argv[2], sys.argv[3]
    if victims == "interrupt":
        facts = interrupted(seconds, path)
    else:
        facts = besieged(seconds, [word[0] for word in victims.split(",")], path)
    print(json.dumps(facts), flush=True)


if __name__ == "__main__":
    main()
