"""
Threads log while a pool forks its workers. With multiprocessing's fork start method a worker inherits the lock of the
log file's buffer, held by a thread that the worker does not have, and waits for it for ever; the program waits for the
worker. A pool of safespawn's forks from a process that has one thread and no log file.

Run it with `python examples/incident_pool.py [ROUNDS]`: both, side by side.
"""

import logging
import multiprocessing
import os
import sys
import threading

import safespawn

PATIENCE = {"multiprocessing": 4.0, "safespawn": 120.0}  # seconds; twenty rounds take one
TASKS = 20
log = logging.getLogger("app")


class Arrivals(logging.Handler):
    """
    Counts the records that come from workers.
    """

    count = 0

    def emit(self, record):
        """
        As every handler.
        """
        self.count += record.process != os.getpid()


def work(number):
    log.warning("working at %d", number)
    return number * number


def talk(stop):
    while not stop.is_set():
        log.warning("a thread has something to say, %s", "again " * 20)


def one_side(side, rounds):
    """
    The program, once: it makes and uses a pool, *rounds* times, while two threads log.
    """
    Pool = safespawn.Pool if side == "safespawn" else multiprocessing.get_context("fork").Pool  # noqa: N806 - a class
    arrivals = Arrivals()
    log.propagate = False
    log.addHandler(logging.FileHandler(os.devnull))
    log.addHandler(arrivals)
    stop = threading.Event()
    threads = [threading.Thread(target=talk, args=(stop,), daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(rounds):
        with Pool(2) as pool:
            assert pool.map(work, range(TASKS), 1) == [each * each for each in range(TASKS)]
        print(f"round {number + 1}: {arrivals.count} records of the workers are in the handlers here", flush=True)
    stop.set()
    for thread in threads:
        thread.join()


def side_by_side(rounds):
    for side, patience in PATIENCE.items():
        argv = [sys.executable, "-W", "ignore", __file__, side, str(rounds)]
        try:
            done = safespawn.run(argv, capture_output=True, text=True, check=True, timeout=patience)
        except safespawn.TimeoutExpired as error:
            print(f"{side}: HANGS in round {error.stdout.count('round') + 1} of {rounds}; ended, with its workers")
        else:
            print(f"{side}: all {rounds} rounds are through; {done.stdout.splitlines()[-1]}")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one_side(sys.argv[1], int(sys.argv[2]))
    else:
        side_by_side(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
