"""
What tests have done in workers.
"""

# ruff: noqa: D103 - each is read where it is used, and does what it is called

import asyncio
import importlib
import logging
import os
import signal
import sys
import threading
import time

import safespawn

state = []  # what an initializer has left in this worker


def same(value):
    return value


def add(first, second=0):
    return first + second


def keywords(**given):
    return given


def pid(_=None):
    return os.getpid()


def where():
    """The worker's pool and index."""
    worker = safespawn.current_worker()
    return worker.pool, worker.index


def nap(seconds, value=None):
    time.sleep(seconds)
    return value


def touch_and_nap(path, seconds):
    """Make *path*, which says that it runs, then sleep."""
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    time.sleep(seconds)
    return "slept"


def nap_itself(seconds):
    time.sleep(seconds)
    return seconds


def touch_and_nap_shortly(path):
    touch_and_nap(path, 0.05)


def touch_and_nap_long(path):
    touch_and_nap(path, 30)


def note_then_nap(begun, ended, seconds):
    """Make *begun*, sleep, and make *ended* also when that is interrupted."""
    try:
        touch_and_nap(begun, seconds)
    finally:
        with open(ended, "w") as file:
            file.write("over")


def stubborn(path, seconds):
    """Make *path*, then sleep on whatever is raised in it, and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    limit = time.monotonic() + seconds
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    while time.monotonic() < limit:
        try:
            time.sleep(limit - time.monotonic())
        except BaseException:  # noqa: BLE001 - being stubborn is its part
            continue


def wait_for(path, seconds=20.0):
    """Wait until *path* is there."""
    limit = time.monotonic() + seconds
    while not os.path.exists(path):
        if time.monotonic() > limit:
            raise TimeoutError(path)
        time.sleep(0.002)


def fail(text="no"):
    raise ValueError(text)


def fail_if_odd(value):
    if value % 2:
        raise ValueError(value)
    return value


def die(number=signal.SIGKILL):
    os.kill(os.getpid(), number)
    time.sleep(10)


def die_once(path):
    """Die at the first call, by what is left at *path*."""
    if not os.path.exists(path):
        with open(path, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(10)
    return "survived"


def remember(value):
    state.append(value)


def remembered():
    return list(state)


def refuse():
    raise ValueError("this initializer never works")


def import_and_nap(path, name, seconds):
    """Import a module from *path*; returns its `value`."""
    if path not in sys.path:
        sys.path.append(path)
    module = importlib.import_module(name)
    time.sleep(seconds)
    return module.value


def count_to(limit):
    yield from range(limit)


def count_and_die(limit):
    yield from range(limit)
    raise ValueError("the end of it")


async def acount_to(limit):
    for number in range(limit):
        await asyncio.sleep(0)
        yield number


def count_for_ever(path):
    """Count, and make *path* when that is ended."""
    number = 0
    try:
        while True:
            yield number
            number += 1
    finally:
        with open(path, "w") as file:
            file.write(str(number))


def produced(path, limit):
    """Count to *limit*, and keep at *path* how far it is."""
    for number in range(limit):
        with open(path, "w") as file:
            file.write(str(number))
        yield number


def big(size):
    return bytes(size)


def log(text):
    logging.getLogger("tasks").warning(text)


def lock():
    return threading.Lock()
