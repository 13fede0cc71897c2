"""
What the tests of pools have their workers do.
"""

# ruff: noqa: D103 - each is read where it is used, and does what it is called

import asyncio
import contextlib
import contextvars
import logging
import multiprocessing
import os
import random
import signal
import sys
import threading
import time

import safespawn

GREETING = ["unset"]


def square(x):
    return x * x


def add(x, y=0):
    return x + y


def nap(seconds):
    time.sleep(seconds)
    return seconds


def spin():
    """Be busy, for ever."""
    while True:
        pass


def pid(_=None):
    return os.getpid()


def fail(message="no"):
    raise ValueError(message)


def fail_at(x, at=5):
    if x == at:
        raise ValueError(f"at {x}")
    return x


def greet(word):
    GREETING[0] = word


def greeting():
    return GREETING[0]


def who():
    worker = safespawn.current_worker()
    with open("/proc/self/comm") as file:
        return worker.pool, worker.index, worker.pid == os.getpid(), file.read().strip()


def surroundings():
    return {
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
        "argv": sys.argv,
        "path": sys.path,
        "stdin": os.readlink("/proc/self/fd/0"),
        "affinity": os.sched_getaffinity(0),
        "threads": threading.active_count(),
    }


def signals():
    """
    Those that are not at their default, and the mask.
    """
    odd = {
        number: str(signal.getsignal(number))
        for number in signal.valid_signals()
        if signal.getsignal(number) not in (signal.SIG_DFL, None)
    }
    return odd, signal.pthread_sigmask(signal.SIG_BLOCK, ())


def draw(_):
    return random.random()


def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists the others
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def count_to(n):
    yield from range(n)


async def count_slowly(n):
    for number in range(n):
        yield number


SPAN = contextvars.ContextVar("SPAN", default="none")


async def count_in_a_span(n, path):
    """
    Count, with a time limit and a context variable that are open from one item to the next; *path* is made at the end.
    """
    token = SPAN.set("open")
    try:
        async with asyncio.timeout(60):
            for number in range(n):
                yield number, SPAN.get()
                await asyncio.sleep(0)
    finally:
        await asyncio.sleep(0)
        SPAN.reset(token)
        os.mknod(path)


def count_and_note(n, path):
    """
    Count, and write how far it got.
    """
    for number in range(n):
        with open(path, "w") as file:
            file.write(str(number))
        yield number


def fail_after(n):
    yield from range(n)
    raise ValueError("after the last")


def log(words):
    for word in words:
        logging.getLogger("tests.worker").warning("says %s", word, extra={"word": word})
    return len(words)


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)
    return path


def begin_and_wait(begun, path):
    touch(begun)
    return wait_for(path)


def touch(path):
    with open(path, "a") as file:
        file.write("x")
    return os.path.getsize(path)


def touch_and_die(path, times):
    """
    Kill the worker until it was called *times* times.
    """
    if touch(path) < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return os.path.getsize(path)


def change(array):
    array[0] = 42
    return float(array[0]), float(array.sum())


def hold(array, kept=[]):  # noqa: B006 - it is to outlive the call
    kept.append(array)
    return len(kept)


def held(kept=hold.__defaults__[0]):
    return [float(array.sum()) for array in kept]


def nested(n):
    with safespawn.Pool(2) as pool:
        return pool.map(square, range(n))


class Odd(Exception):
    """
    Its constructor takes what its `args` are not.
    """

    def __init__(self, left, right):
        super().__init__(f"{left} and {right}")
        self.left, self.right = left, right


def raise_odd():
    raise Odd("this", "that")


SHARED = []


def share(*things):
    SHARED[:] = things


def use_shared(x):
    lock, queue, value = SHARED
    with lock:
        value.value += x
    queue.put(x)
    return x


def family():
    process, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    return process.name, parent.name, parent.pid, parent.is_alive(), bytes(process.authkey)
