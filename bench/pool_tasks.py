"""
What the pools are given to do. Importable by every worker, and light: no worker pays for it when it starts.
"""

import logging
import os
import signal
import time


def tiny(number):
    return number


def turn(loops):
    """
    Keep a core busy; the seconds of it that this took.
    """
    began = time.thread_time()
    for _ in range(loops):
        pass
    return time.thread_time() - began


def rest(seconds):
    """
    Keep nothing busy.
    """
    time.sleep(seconds)


def timed_rest(seconds):
    """
    Sleep; the seconds that this took.
    """
    began = time.monotonic()
    time.sleep(seconds)
    return time.monotonic() - began


def numpy_sum(number):
    import numpy as np

    return float(np.full(10, number).sum())


def ends(array):
    """
    Take an array, look at next to nothing of it.
    """
    return float(array[0]), float(array[-1])


def total(array):
    """
    Take an array and read all of it.
    """
    return float(array.sum())


def same(array):
    """
    Take an array, and give it back.
    """
    return array


def negative(array):
    """
    Take an array, and give a new one back.
    """
    return -array


class OddError(Exception):
    """
    An exception that pickle cannot make again: its arguments are not those of its class.
    """

    def __init__(self, name, number):
        super().__init__(f"{name} {number}")


def die(seconds):
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def say(words):
    logging.getLogger("bench").warning(words)


def fail_oddly():
    raise OddError("odd", 1)


def stay(path, seconds):
    """
    Say who runs this, in a file, and be busy.
    """
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(str(os.getpid()))
    os.rename(f"{path}.new", path)
    time.sleep(seconds)
