"""
The third incident: threads run commands while other threads fork. `incident_storm.py SIDE CALLS THREADS [LIVE]`.

SIDE is "ours" or "theirs"; a foreign fork comes every 10 ms, and its copies live LIVE seconds (2) without an exec. It
prints one JSON line: calls, how many took over a second, the slowest, wrong outcomes, and what is left at the end.
"""

import json
import os
import subprocess
import sys
import threading
import time

import safespawn
from safespawn import supervisor
from safespawn._drive.engine import RELIEF

BLOCKED_SECONDS = 1.0
FORK_SECONDS = 0.01
SIDE, CALLS, THREADS = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
LIVE = float(sys.argv[4]) if len(sys.argv) > 4 else 2.0


def fork_all_the_time(stop, copies):
    """Be the foreign library."""
    live = []
    while not stop.wait(FORK_SECONDS):
        pid = os.fork()
        if pid == 0:
            time.sleep(LIVE)  # the incident itself: a copy that holds what it was born with
            os._exit(0)
        copies.append(pid)
        live.append(pid)
        live = [pid for pid in live if os.waitpid(pid, os.WNOHANG) == (0, 0)]
    for pid in live:
        os.waitpid(pid, 0)


def work(todo, took, wrong):
    """Run commands until none is left to run."""
    run = safespawn.run if SIDE == "ours" else subprocess.run
    while True:
        try:
            number = todo.pop()
        except IndexError:
            return
        code = number % 3
        began = time.monotonic()
        try:
            done = run(["sh", "-c", f"echo {number}; exit {code}"], capture_output=True, check=False)
            if (done.returncode, done.stdout, done.stderr) != (code, b"%d\n" % number, b""):
                wrong.append(repr(done))
        except Exception as error:  # noqa: BLE001 - told to the test
            wrong.append(repr(error))
        took.append(time.monotonic() - began)


def main():
    """Brew the storm and count."""
    if SIDE == "ours":
        safespawn.run(["true"])
        supervisor.default_supervisor()._engine._current[False].trim()
    before = len(os.listdir("/proc/self/fd"))
    todo, took, wrong, copies = list(range(CALLS)), [], [], []
    stop = threading.Event()
    forker = threading.Thread(target=fork_all_the_time, args=(stop, copies))
    workers = [threading.Thread(target=work, args=(todo, took, wrong)) for _ in range(THREADS)]
    began = time.monotonic()
    for thread in (forker, *workers):
        thread.start()
    for thread in workers:
        thread.join()
    seconds = time.monotonic() - began
    stop.set()
    forker.join()
    facts = {
        "side": SIDE, "calls": len(took), "seconds": round(seconds, 2), "foreign_forks": len(copies),
        "blocked": sum(each > BLOCKED_SECONDS for each in took), "slowest": round(max(took), 3),
        "median": round(sorted(took)[len(took) // 2], 4), "wrong": len(wrong), "examples": wrong[:3],
    }  # fmt: skip
    if SIDE == "ours":
        engine = supervisor.default_supervisor()._engine
        relief = engine._current.get(RELIEF)  # so many threads may have been a crowd
        engine._dismiss()
        for zygote in engine.zygotes:
            zygote.trim()
        facts["boots"] = engine.boots - (relief is not None)
        until = time.monotonic() + 2
        while relief is not None and not relief.closed and time.monotonic() < until:
            engine.prune()
        until = time.monotonic() + 2
        while True:
            figures = supervisor.default_supervisor().statistics()["zygote"]
            left = {name: figures[name] for name in ("connections", "running", "held", "ending", "children")}
            if not any(left.values()) or time.monotonic() > until:
                break
        facts["left"] = left
    with open(f"/proc/self/task/{os.getpid()}/children") as file:
        facts["children"] = len(file.read().split())  # the warden is ours
    facts["fds"] = len(os.listdir("/proc/self/fd")) - before
    print(json.dumps(facts), flush=True)


main()
