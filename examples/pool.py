"""
A tour of the pool: one call, many calls, results as they come, a worker that dies, the end.

Run it with `python examples/pool.py`.
"""

import itertools
import os
import signal
import threading

import safespawn


def square(number):
    return number * number


def lines_of(count):
    for number in range(count):
        yield f"line {number}"


def crash_at(number):
    if number == 13:
        os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory is short
    return number


def main():
    # Threads may run already: the workers are not forked from this process.
    idle = threading.Event()
    threading.Thread(target=idle.wait, daemon=True).start()

    with safespawn.Pool(2, name="tour") as pool:
        # As multiprocessing.Pool.
        print("apply:", pool.apply(square, (12,)))
        print("map:", pool.map(square, range(10)))
        print("starmap:", pool.starmap(pow, [(2, 3), (3, 2)]))
        result = pool.apply_async(square, (5,), callback=lambda value: print("  the callback has", value))
        print("apply_async:", result.get(timeout=10))

        # It takes from its input what may be under way at once, so the input may be endless.
        squares = pool.imap(square, itertools.count(), buffersize=8)
        print("imap over an endless input:", list(itertools.islice(squares, 4)))
        del squares  # or the end of the block would wait for the rest

        # A generator that runs in a worker, a few items ahead of the reader.
        print("stream:", list(pool.stream(lines_of, (3,), buffersize=2)))

        # A worker that dies takes one task along. The others have their results, the pool has a new worker.
        results = [pool.apply_async(crash_at, (number,)) for number in range(20)]
        fine = 0
        for each in results:
            try:
                fine += each.get(timeout=10) is not None
            except safespawn.errors.WorkerDied as error:
                print("died:", str(error).partition("\n")[0].replace(str(error.pid), "PID"))
        print("results:", fine, "of 20")
        print("workers lost:", pool.statistics()["died"])
    print("the work is done, the workers have gone")


if __name__ == "__main__":
    main()
