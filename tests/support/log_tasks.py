"""
What workers of the tests log.
"""

import logging
import os
import signal
import subprocess
import threading
import time
import warnings

NAME = "tests.words"
log = logging.getLogger(NAME)


class Opaque:
    """
    No plain data, with a long repr.
    """

    def __repr__(self):
        return "<opaque " + "o" * 5000 + ">"


class Broken:
    """
    No repr at all.
    """

    def __repr__(self):
        raise RuntimeError("no repr")


def say(*words, level=logging.WARNING, name=NAME, **extra):
    """
    One record for each word.
    """
    for word in words:
        logging.getLogger(name).log(level, "says %s", word, extra=extra or None)
    return len(words)


def say_at_levels(name=NAME):
    """
    A record at each level; and which of these the logger here is enabled for.
    """
    levels = (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR)
    logger = logging.getLogger(name)
    for level in levels:
        logger.log(level, "at %d", level)
    return [level for level in levels if logger.isEnabledFor(level)]


def say_odd_things():
    """
    Extras of every kind.
    """
    log.warning(
        "odd",
        extra={
            "number": 3, "text": "ä", "none": None, "listed": [1, [2, {"a": 3.5}]], "pair": (1, "b"),
            "opaque": Opaque(), "inside": {"deep": Opaque()}, "broken": Broken(),
        },
    )  # fmt: skip


def fail_aloud():
    """
    An exception with notes, caught and logged; and a stack.
    """
    try:
        raise KeyError("lost")
    except KeyError as error:
        error.add_note("looked twice")
        log.exception("could not find it")
    log.warning("where", stack_info=True)


def say_long(size):
    """
    A record far too long, in every part.
    """
    try:
        raise ValueError("e" * size)
    except ValueError:
        log.exception("m" * size, extra={"text": "x" * size, "more": list(range(size))})


def leave_loose_ends():
    """
    A warning; a thread that ends with an exception; a finalizer that does.
    """
    warnings.warn("old ways", UserWarning, stacklevel=1)

    def in_thread():
        raise OSError("in a thread")

    thread = threading.Thread(target=in_thread, name="loose")
    thread.start()
    thread.join()

    class Ending:
        def __del__(self):
            raise LookupError("in a finalizer")

    Ending()


def count(number, last=None, pause=0.0):
    """
    So many records, numbered; then perhaps the end.
    """
    for index in range(number):
        log.warning("%d", index)
        if pause:
            time.sleep(pause)
    if last == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if last == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return number


def count_and_be_killed_amid():
    """
    Log without end, and be killed by a thread in the middle of it, whatever that is.
    """
    threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
    number = 0
    while True:
        log.warning("%d", number)
        number += 1


def say_from_a_copy():
    """
    Fork, and log in the child too; its records come as this one's do.
    """
    log.warning("before")
    pid = os.fork()
    if not pid:
        log.warning("from the copy")
        os._exit(0)
    os.waitpid(pid, 0)
    log.warning("after")


def say_in_handlers(number):
    """
    Log in the handler of a signal that comes while a record is being written.
    """
    signal.signal(signal.SIGALRM, lambda *_: log.warning("tick"))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        for index in range(number):
            log.warning("%d", index)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def own_handlers():
    """
    What this worker's root logger has.
    """
    return [type(handler).__name__ for handler in logging.getLogger().handlers], logging.getLogger().level


_started = []


def start_sleep():
    """
    Start a process, and leave it running.
    """
    _started.append(subprocess.Popen(["sleep", "999"]))
    return _started[-1].pid


_kept = []


def keep_queue(queue):
    """
    An initializer.
    """
    _kept[:] = [queue]


def put_much(number):
    """
    Put so much into the queue that its thread is not through when the task is.
    """
    for index in range(number):
        _kept[0].put(bytes(4000) + str(index).encode())
    return number
