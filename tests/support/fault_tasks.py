"""
What a worker may be asked to do that it does not survive, or that does not survive it.

`Trap(place, name)` has a fault when it is pickled or unpickled, in the process where that happens; `FAULTS` has them by
name. In the application only the harmless ones are used.
"""

import ctypes
import functools
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time


# --- harmless tasks ---------------------------------------------------------------------------------------------------
def echo(value):
    """The value."""
    return value


def nap(seconds, value=None):
    """The value, after a while."""
    time.sleep(seconds)
    return value


def who(seconds=0.0):
    """The worker's pid."""
    time.sleep(seconds)
    return os.getpid()


def count(limit):
    """A generator."""
    yield from range(limit)


def endless():
    """A generator without an end."""
    number = 0
    while True:
        yield number
        number += 1


def large(size):
    """Bytes."""
    return b"x" * size


def note(path, word):
    """A line in a file that many processes append to."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, f"{word}\n".encode())
    os.close(fd)
    return word


# --- faults -----------------------------------------------------------------------------------------------------------
def error():
    """An ordinary exception."""
    raise ValueError("on purpose")


def leave():
    """An exception that is not an Exception."""
    sys.exit(3)


def vanish():
    """The end, without a word."""
    os._exit(7)


def crash():
    """A crash in C."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.string_at(0)


def die(number=signal.SIGKILL):
    """A signal to itself."""
    os.kill(os.getpid(), number)
    time.sleep(60)


def stop():
    """Nothing any more."""
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(60)


@functools.cache
def _spinner():
    folder = tempfile.mkdtemp()
    source, library = os.path.join(folder, "spin.c"), os.path.join(folder, "spin.so")
    with open(source, "w") as file:
        file.write("void spin(void) { for (volatile int i = 0;; i++) {} }\n")
    try:
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True, capture_output=True)
        return ctypes.PyDLL(library).spin
    except (OSError, subprocess.CalledProcessError):
        return lambda: sum(range(10**18))  # a C loop that asks for no signal and gives the GIL to nobody
    finally:
        for path in (source, library):
            if os.path.exists(path):
                os.unlink(path)
        os.rmdir(folder)


def spin():
    """A C loop that keeps the GIL."""
    _spinner()()


FAULTS = {
    "error": error, "exit": leave, "vanish": vanish, "crash": crash, "kill": die, "stop": stop, "spin": spin,
}  # fmt: skip


def fault(name):
    """Do it."""
    FAULTS[name]()


class Trap:
    """
    A value with a fault in it.

    Args:
        place: "pickle" or "unpickle"; that far it comes.
        name: Of the fault.
        pid: The process that is spared.
    """

    def __init__(self, place, name, pid=0):
        self.place, self.name, self.pid = place, name, pid

    def __reduce__(self):
        if self.place == "pickle" and os.getpid() != self.pid:
            fault(self.name)
        return _revive, (self.place, self.name, self.pid)


def _revive(place, name, pid):
    if place == "unpickle" and os.getpid() != pid:
        fault(name)
    return Trap(place, name, pid)


def give_trap(place, name, pid=0, size=0):
    """A result that is a trap, behind *size* bytes."""
    return [b"x" * size, Trap(place, name, pid)]


def stream_fault(name, after):
    """A generator with a fault in the middle."""
    yield from range(after)
    fault(name)


# --- what tasks do to their worker ------------------------------------------------------------------------------------
def close_descriptors():
    """As daemons do."""
    os.closerange(3, 256)
    return "closed"


def new_session():
    """Leave the group."""
    os.setsid()
    return os.getpid()


def change_handlers():
    """Every handler that can be changed; gives nothing back."""
    for number in set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP}:
        try:
            signal.signal(number, signal.SIG_IGN)
        except (OSError, ValueError):
            continue  # of the C library's own
    return "changed"


def stubborn(seconds):
    """Ignore all that can be ignored."""
    change_handlers()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.05)
        except BaseException:  # noqa: BLE001 - that is the point
            continue
    return "unmoved"


def deleted_directory():
    """Stand in a directory that is not there any more."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)
    return "nowhere"


def all_descriptors(limit=64):
    """Open until nothing more can be opened."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    kept = []
    try:
        while True:
            kept.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        _kept.extend(kept)
        return len(kept)


_kept = []


def give_descriptors_back():
    """The opposite."""
    while _kept:
        os.close(_kept.pop())


def leave_behind():
    """A thread, a child, a grandchild in a session of its own, and an exit function that hangs."""
    import atexit

    threading.Thread(target=time.sleep, args=(60,)).start()
    atexit.register(time.sleep, 60)
    child = subprocess.Popen(["sleep", "60"])
    daemon = subprocess.Popen(["setsid", "sleep", "60"])
    return os.getpid(), child.pid, daemon.pid


def hold_socket(seconds=60):
    """A child that has every descriptor of its parent."""
    pid = os.fork()
    if pid == 0:
        time.sleep(seconds)
        os._exit(0)
    return pid


def hold_and_die():
    """The same, and then the end of the parent alone."""
    hold_socket()
    die()


def come_back_twice(how):
    """A fork that forgets to leave."""
    pid = os.fork()
    if pid == 0:
        if how == "raise":
            raise ValueError("in the copy")
        return "copy"
    os.waitpid(pid, 0)
    return "original"


def eat_memory(size):
    """Take so many bytes, and touch them."""
    kept = bytearray(size)
    kept[::4096] = b"x" * len(kept[::4096])
    time.sleep(60)
    return len(kept)


def limit_memory(spare):
    """Have little more than what there is."""
    with open("/proc/self/statm") as file:
        size = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + spare, resource.RLIM_INFINITY))


def swallow(seconds):
    """Go on, whatever is raised."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            time.sleep(0.01)
        except BaseException:  # noqa: BLE001 - that is the point
            continue
    return "unmoved"


# --- logging ----------------------------------------------------------------------------------------------------------
def log_lines(number, size=0, last=None):
    """So many records, and a fault perhaps."""
    logger = logging.getLogger("fault")
    for index in range(number):
        logger.warning("%d %s", index, "y" * size)
    if last is not None:
        fault(last)
    return number


def log_wrongly():
    """A record whose message cannot be made."""
    logging.getLogger("fault").warning("%d", "x")
    return "said"
