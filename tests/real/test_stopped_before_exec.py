"""Somebody stops a command between its start and its exec, which the zygote waits for."""

import subprocess
import sys

from support.children import ENV

PROGRAM = """
import os, signal, sys, threading, time
import safespawn
from safespawn._core.procfs import command, stopped_before_exec

def stop_one(zygote, deadline):
    while time.monotonic() < deadline:
        with open(f"/proc/{zygote}/task/{zygote}/children") as file:
            children = file.read().split()
        for pid in map(int, children):
            if command(pid) == command(zygote):
                try:
                    os.kill(pid, signal.SIGSTOP)
                    time.sleep(0.02)
                    if pid in stopped_before_exec(zygote):
                        return pid
                    os.kill(pid, signal.SIGCONT)  # it was too late: this is another program by now
                except ProcessLookupError:
                    pass
    raise SystemExit("none was found")

def start():
    while not found:
        outcomes.append(safespawn.run(["true"]).returncode)

found, outcomes = [], []
with safespawn.Supervisor("app", guard="off") as supervisor:
    callers = [threading.Thread(target=start) for _ in range(2)]
    for caller in callers:
        caller.start()
    zygote = supervisor.statistics()["zygotes"][0]
    found.append(stop_one(zygote, time.monotonic() + 60))
    began = time.monotonic()
    if sys.argv[1] == "call":
        for caller in callers:
            caller.join()
    print("started", time.monotonic() - began, flush=True)
    began = time.monotonic()
print("closed", time.monotonic() - began, flush=True)
for caller in callers:
    caller.join()
print("statuses", *set(outcomes), flush=True)
"""
ANSWER_SECONDS = 8.0  # below the ten after which a call gives up; it takes one
CLOSE_SECONDS = 4.0  # below the five after which a Supervisor ends things by force; it takes a moment


def run(what):
    """Run the program; what it found, by the first word of the line."""
    argv = [sys.executable, "-c", PROGRAM, what]
    done = subprocess.run(argv, env=ENV, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return {word: rest for word, _, rest in (line.partition(" ") for line in done.stdout.splitlines())}


def test_its_caller_has_its_result():
    """It is let go on when the zygote is late, and every start comes to its end."""
    said = run("call")
    assert float(said["started"]) < ANSWER_SECONDS
    assert said["statuses"] == "0"


def test_the_supervisor_is_left_at_once():
    """The zygote hears of the end, for it waits for nothing any more."""
    said = run("close")
    assert float(said["closed"]) < CLOSE_SECONDS
