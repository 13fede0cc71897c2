"""
multiprocessing's interface over processes that are forked from a clean template: `Process`, and the context for
whatever takes one.

Run it with `python examples/process.py`.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor

import safespawn


def greet(connection, name):
    this, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    connection.send(f"{this.name} greets {name}, child of {parent.name}")


def leave(code):
    sys.exit(code)


def square(number):
    return number * number


def count(counter, lock, times):
    for _ in range(times):
        with lock:
            counter.value += 1


def main() -> None:
    # A process, with a pipe to it.
    here, there = multiprocessing.Pipe()
    process = safespawn.Process(target=greet, args=(there, "you"), name="Ada")
    process.start()
    print(here.recv())
    process.join()
    print("exit code:", process.exitcode)

    # How it ended is what it says, or the signal.
    for target, args in ((leave, (3,)), (time.sleep, (60,))):
        process = safespawn.Process(target=target, args=args)
        process.start()
        if target is time.sleep:
            process.terminate()
        process.join()
        print("ended:", process.exitcode if process.exitcode >= 0 else signal.Signals(-process.exitcode).name)

    # The context: queues, locks, shared values, managers.
    mp = safespawn.get_context()
    counter, lock = mp.Value("i", 0, lock=False), mp.Lock()
    processes = [mp.Process(target=count, args=(counter, lock, 500)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    print("counted:", counter.value)

    # Whatever takes a context takes this one.
    with ProcessPoolExecutor(2, mp_context=mp) as executor:
        print("squares:", list(executor.map(square, range(5))))

    # Threads that log, and hold locks, do no harm: a process inherits nothing from them.
    log = logging.getLogger("threads")
    log.addHandler(logging.FileHandler(os.devnull))
    log.propagate = False
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [log.warning("again") for _ in iter(stop.is_set, True)])
    thread.start()
    codes = []
    for number in range(20):
        process = mp.Process(target=leave, args=(number,))
        process.start()
        process.join()
        codes.append(process.exitcode)
    stop.set()
    thread.join()
    print("beside a thread:", codes == list(range(20)))


if __name__ == "__main__":
    main()
