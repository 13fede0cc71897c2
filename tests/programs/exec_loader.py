"""
A program that loads batches as training programs do: `exec_loader.py BATCHES`. It knows nothing of safespawn.

Worker processes take indices from a queue of their own and put batches into one that all share; a thread of the parent
takes them out of it, and another one logs meanwhile; the main thread wants them in order.
"""

import logging
import multiprocessing
import queue
import sys
import threading

WORKERS = 3
AHEAD = 2  # batches under way for each worker


class Squares:
    """A data set."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return index * index


def work(dataset, indices, batches, done):
    """A worker: it ends at None, or when the parent says so."""
    log = logging.getLogger("loader")
    while not done.is_set():
        task = indices.get()
        if task is None:
            break
        number, wanted = task
        log.warning("batch %d", number)
        batches.put((number, bytes(4096), [dataset[index] for index in wanted]))


class Loader:
    """Batches of a data set, in order."""

    def __init__(self, dataset, size):
        self.dataset, self.size = dataset, size

    def __iter__(self):
        batches, done = multiprocessing.Queue(), multiprocessing.Event()
        indices = [multiprocessing.Queue() for _ in range(WORKERS)]
        workers = [
            multiprocessing.Process(target=work, args=(self.dataset, each, batches, done), daemon=True)
            for each in indices
        ]
        for worker in workers:
            worker.start()
        ready = queue.Queue()

        def pin():
            while (batch := batches.get()) is not None:
                ready.put(batch)

        pinner = threading.Thread(target=pin, daemon=True)
        pinner.start()
        count = len(self.dataset) // self.size
        waiting, sent = {}, 0
        try:
            for number in range(count):
                while sent < min(count, number + WORKERS * AHEAD):
                    indices[sent % WORKERS].put((sent, range(sent * self.size, (sent + 1) * self.size)))
                    sent += 1
                while number not in waiting:
                    index, _, batch = ready.get(timeout=60)
                    waiting[index] = batch
                yield waiting.pop(number)
        finally:
            done.set()
            for each in indices:
                each.put(None)
            for worker in workers:
                worker.join(60)
            batches.put(None)
            pinner.join(60)
            print([worker.exitcode for worker in workers])


def main():
    """Two epochs beside a thread that logs."""
    logging.basicConfig(stream=sys.stderr, format="%(message)s")
    stop = threading.Event()

    def chatter():
        while not stop.wait(0.001):
            logging.getLogger("chatter").warning("chatter")

    talker = threading.Thread(target=chatter)
    talker.start()
    for _ in range(2):
        print(sum(sum(batch) for batch in Loader(Squares(), int(sys.argv[1]))))
    stop.set()
    talker.join()


if __name__ == "__main__":
    main()
