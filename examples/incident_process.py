"""
A thread logs while a process is started, and the process logs too. With the fork start method the process inherits the
lock of the log file's buffer, held by a thread that it does not have: it hangs, and `join` with it. A process of
safespawn's is forked from one that has a single thread; it configures its own logging, as any new process does.

Run it with `python examples/incident_process.py [ROUNDS]`: both, side by side.
"""

import logging
import multiprocessing
import os
import sys
import threading

import safespawn

PATIENCE = {"multiprocessing": 4.0, "safespawn": 120.0}  # seconds; twenty rounds take one
log = logging.getLogger("app")


def configure():
    if not log.handlers:
        log.propagate = False
        log.addHandler(logging.FileHandler(os.devnull))


def job():
    configure()
    log.warning("the process has something to say")


def talk(stop):
    while not stop.is_set():
        log.warning("a thread has something to say, %s", "again " * 20)


def one_side(side, rounds):
    """
    The program, once: it starts a process, *rounds* times, while two threads log.
    """
    context = safespawn.get_context() if side == "safespawn" else multiprocessing.get_context("fork")
    configure()
    stop = threading.Event()
    threads = [threading.Thread(target=talk, args=(stop,), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        process = context.Process(target=job)
        process.start()
        process.join()
        print(f"round {number + 1}: exit code {process.exitcode}", flush=True)
    stop.set()
    for thread in threads:
        thread.join()


def side_by_side(rounds):
    for side, patience in PATIENCE.items():
        argv = [sys.executable, "-W", "ignore", __file__, side, str(rounds)]
        try:
            done = safespawn.run(argv, capture_output=True, text=True, check=True, timeout=patience)
        except safespawn.TimeoutExpired as error:
            print(f"{side}: HANGS in round {error.stdout.count('round') + 1} of {rounds}; ended, with its processes")
        else:
            print(f"{side}: all {rounds} rounds are through, {done.stdout.count('exit code 0')} with exit code 0")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one_side(sys.argv[1], int(sys.argv[2]))
    else:
        side_by_side(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
