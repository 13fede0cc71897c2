"""
An application whose death, or whose zygote's, is the test's: `fault_app.py STORY [COUNT]`.

Every story prints one JSON line when it is where the test wants it: the pids of zygote and warden, and what it started.
Stories of a living application then read commands from stdin, one a line, and answer each with one line.
"""

import json
import os
import signal
import sys
import threading
import time

import safespawn
from safespawn import errors, supervisor

STUBBORN = "trap '' TERM INT HUP; "
TREES = {
    "plain": ["sleep", "1000"],
    "stubborn": ["sh", "-c", f"{STUBBORN} while :; do sleep 1000; done"],
    "grandchild": ["sh", "-c", f"({STUBBORN} sleep 1001 & sleep 1002) & wait"],
    "session": ["sh", "-c", "setsid sh -c 'sleep 1003 & sleep 1004'"],
    "daemon": ["sh", "-c", "(setsid sh -c 'sleep 1005 & sleep 1006' &) & exec sleep 1007"],
}


def zygote():
    """The application's present zygote."""
    return supervisor.default_supervisor()._engine._current[False]


def say(**facts):
    """Print one line for the test."""
    print(json.dumps(facts), flush=True)


def below(pid):
    """Everybody below *pid*; nobody, if it has gone."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            children = [int(word) for word in file.read().split()]
    except OSError:
        return []
    return children + [other for child in children for other in below(child)]


def commands(pid):
    """What runs below *pid*: command lines."""
    found = []
    for each in below(pid):
        try:
            with open(f"/proc/{each}/cmdline") as file:
                found.append(file.read().replace("\0", " ").strip())
        except OSError:
            continue
    return found


def await_trees(count):
    """Wait until *count* sleepers run below the zygote: every tree stands in full."""
    deadline = time.monotonic() + 15
    while sum(line.startswith("sleep") for line in commands(zygote().pid)) < count:
        assert time.monotonic() < deadline, commands(zygote().pid)
        time.sleep(0.005)  # the children are no programs of ours: they cannot tell


def in_thread(args, results, **options):
    """Run a command in a thread of its own; its outcome goes to *results*."""

    def work():
        began = time.monotonic()
        try:
            outcome = safespawn.run(args, **options).returncode
        except Exception as error:  # noqa: BLE001 - told to the test
            outcome = type(error).__name__
            if not isinstance(error, errors.SafespawnError):
                outcome += " (not ours)"
        results.append((outcome, time.monotonic() - began))

    thread = threading.Thread(target=work, daemon=True)  # the exit shall not wait for the command
    thread.start()
    return thread


def forest(count):
    """Start *count* commands of every shape, each awaited by a thread, and wait until all their descendants run."""
    safespawn.run(["true"])
    results = []
    shapes = list(TREES.values())
    sleepers = {"plain": 1, "stubborn": 1, "grandchild": 2, "session": 2, "daemon": 3}
    threads = [in_thread(shapes[number % len(shapes)], results) for number in range(count)]
    expected = sum(list(sleepers.values())[number % len(shapes)] for number in range(count))
    await_trees(expected)
    return threads, results


def obey(threads, results):
    """Do what the test says until its end of the pipe closes."""
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "join":
            for thread in threads:
                thread.join()
            say(results=results)
        elif word == "run":
            began = time.monotonic()
            options = {"timeout": float(rest[0])} if rest else {}
            try:
                outcome = safespawn.run(["sh", "-c", "exit 7"], **options).returncode
            except Exception as error:  # noqa: BLE001 - told to the test
                outcome = type(error).__name__
            say(outcome=outcome, seconds=time.monotonic() - began, zygote=zygote().pid, warden=zygote().warden_pid)
        elif word == "stopped":  # a command runs, then the zygote stops, then the command's time is over
            one = []
            thread = in_thread(["sleep", "1000"], one, timeout=float(rest[0]), **json.loads(rest[1]))
            await_trees(1)
            os.kill(zygote().pid, signal.SIGSTOP)
            thread.join()
            say(outcome=one[0][0], seconds=one[0][1], below=len(below(zygote().pid)))
        elif word == "close":
            began = time.monotonic()
            supervisor.default_supervisor().close()
            say(seconds=time.monotonic() - began)
        elif word == "exit":
            os._exit(0)
        elif word == "exec":
            os.execv("/bin/sleep", ["sleep", "0.01"])
        elif word == "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif word == "end":
            return


def main():
    """Play the story."""
    story, count = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    threads, results = [], []
    if story == "forest":
        threads, results = forest(count)
    elif story == "copied":  # a forked copy lives on with copies of every socket, and is told to end by its stdin
        threads, results = forest(count)
        if os.fork() == 0:
            os.execv("/bin/sh", ["sh", "-c", "read line"]) if "exec" in sys.argv else sys.stdin.read()
            os._exit(0)
    elif story == "held":
        safespawn.run(["true"])
        process = safespawn.Popen(["true"])
        while not process._process.looks_ended():
            time.sleep(0.001)  # the kernel's word only, so that the status stays unread
        threads = [threading.Thread(target=lambda: results.append(outcome_of(process)))]
    elif story == "idle":
        safespawn.run(["true"])
    say(zygote=zygote().pid, warden=zygote().warden_pid, below=len(below(zygote().pid)))
    if story == "held":
        sys.stdin.readline()
        threads[0].start()
    obey(threads, results)


def outcome_of(process):
    """How the wait for a held process ends."""
    began = time.monotonic()
    try:
        return process.wait(), time.monotonic() - began
    except Exception as error:  # noqa: BLE001 - told to the test
        return type(error).__name__, time.monotonic() - began


if __name__ == "__main__":
    main()
