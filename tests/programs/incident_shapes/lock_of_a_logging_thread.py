"""The first two incidents: a thread logs while this process forks, by os.fork and by multiprocessing."""

import logging
import multiprocessing
import os
import threading

log = logging.getLogger(__name__)


def chatter():
    """Holds the handler's lock now and then."""
    while True:
        log.info("still here")


def work(number):
    """Hangs in a child that inherited the lock while it was held."""
    log.info("working on %d", number)
    return number


def main():
    """Start the thread, then fork three times."""
    logging.basicConfig(filename="app.log")
    threading.Thread(target=chatter, daemon=True).start()
    pid = os.fork()  # expect: SPN201 SPN301
    if pid == 0:
        work(0)
        os._exit(0)
    process = multiprocessing.Process(target=work, args=(1,))  # expect: SPN203
    process.start()  # expect: SPN301
    with multiprocessing.Pool(2) as pool:  # expect: SPN203 SPN301
        pool.map(work, range(100))
    process.join()


if __name__ == "__main__":
    main()
