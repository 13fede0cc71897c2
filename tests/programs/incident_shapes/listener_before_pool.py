"""The fifth incident: the listener of the log queue runs, in a thread, when the pool is forked."""

import logging
import logging.handlers
import multiprocessing


def prepare(queue):
    """In each worker: send all records to the parent."""
    logging.getLogger().addHandler(logging.handlers.QueueHandler(queue))


def work(number):
    """Log something."""
    logging.getLogger(__name__).warning("number %d", number)


def main():
    """Listener first, pool second."""
    queue = multiprocessing.Queue()
    listener = logging.handlers.QueueListener(queue, logging.StreamHandler())
    listener.start()
    with multiprocessing.Pool(4, prepare, (queue,)) as pool:  # expect: SPN203 SPN301
        pool.map(work, range(1000))
    listener.stop()


if __name__ == "__main__":
    main()
