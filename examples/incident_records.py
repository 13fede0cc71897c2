"""
Workers log through a queue to a listener in the program, as the logging cookbook has it. `with multiprocessing.Pool`
ends its workers where they stand: one that is just writing to the queue leaves half a record there, or takes the
queue's lock with it, and the listener cannot stop any more; what the others had not written is lost. A pool of
safespawn's needs no queue: each record is one message, and is read before the result that it came before.

Run it with `python examples/incident_records.py [ROUNDS]`: both, side by side.
"""

import logging
import logging.handlers
import multiprocessing
import sys

import safespawn

PATIENCE = {"multiprocessing": 4.0, "safespawn": 120.0}  # seconds; twenty rounds take one
TASKS = 20
RECORDS = 20
log = logging.getLogger("app")


class Arrivals(logging.Handler):
    """
    Counts records.
    """

    count = 0

    def emit(self, record):
        """
        As every handler.
        """
        self.count += record.name == log.name


def log_into(queue):
    log.handlers[:] = [logging.handlers.QueueHandler(queue)]


def work(number):
    for at in range(RECORDS):
        log.warning("step %d of %d", at, number)
    return number


def with_a_queue(arrivals):
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    listener = logging.handlers.QueueListener(queue, arrivals)
    listener.start()
    with context.Pool(4, log_into, (queue,)) as pool:
        pool.map(work, range(TASKS), 1)
    listener.stop()


def without(arrivals):
    log.addHandler(arrivals)
    with safespawn.Pool(4) as pool:
        pool.map(work, range(TASKS), 1)
    log.removeHandler(arrivals)


def one_side(side, rounds):
    """
    The program, once: a pool with workers that log, *rounds* times.
    """
    log.propagate = False
    for number in range(rounds):
        arrivals = Arrivals()
        (without if side == "safespawn" else with_a_queue)(arrivals)
        print(f"round {number + 1}: {arrivals.count} records of {TASKS * RECORDS}", flush=True)


def side_by_side(rounds):
    for side, patience in PATIENCE.items():
        argv = [sys.executable, "-W", "ignore", __file__, side, str(rounds)]
        try:
            done = safespawn.run(argv, capture_output=True, text=True, check=True, timeout=patience)
        except safespawn.TimeoutExpired as error:
            print(f"{side}: HANGS in round {error.stdout.count('round') + 1} of {rounds}; ended, with its workers")
        else:
            complete = done.stdout.count(f" {TASKS * RECORDS} records")
            print(f"{side}: all {rounds} rounds are through, {complete} of them with all records")


if __name__ == "__main__":
    if len(sys.argv) > 2:
        one_side(sys.argv[1], int(sys.argv[2]))
    else:
        side_by_side(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
