"""
What workers log arrives in the handlers of the program, in order, without a queue, a listener or an initializer.

Run it with `python examples/pool_logging.py`.
"""

import logging
import os
import signal
import sys

import safespawn

log = logging.getLogger("shop.orders")


def order(number):
    log.info("order %d: begun", number)
    if number == 2:
        log.error("order %d: the worker is about to be killed", number)
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        log.debug("share: %s", 1 / (number - 1))  # number 1 fails
    except ZeroDivisionError:
        log.exception("order %d: trouble", number)
    return number


def main():
    # The program's own configuration, and nothing else. The level of the root logger goes to the workers.
    logging.basicConfig(level=logging.INFO, format="%(levelname)-7s %(name)s: %(message)s", stream=sys.stdout)
    with safespawn.Pool(1) as pool:
        for number in range(4):
            try:
                pool.apply(order, (number,))
            except safespawn.errors.WorkerDied as error:
                log.warning("--> worker lost with %s, but not what it had logged", error.task.rpartition(".")[2])


if __name__ == "__main__":
    main()
