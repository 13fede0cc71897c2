"""
A connection whose other end the test holds, a clock that the test moves: flows of `safespawn._core`, step by step.
"""

import os
import socket
from types import SimpleNamespace

from safespawn._core.child import Child
from safespawn._core.connection import Connection
from safespawn._core.flow import READ, WRITE
from safespawn._core.spec import SpawnSpec
from safespawn._zygote import wire

BEGAN = 100.0  # monotonic seconds


class Lender:
    """
    Who takes connections back; what becomes of them is written down.
    """

    def __init__(self):
        self.log = []

    def give_back(self, connection):
        assert connection is not None
        self.log.append("given back")

    def discard(self, connection):
        assert connection is not None
        self.log.append("discarded")


class Zygote:
    """
    What a connection knows of its zygote; what it is told is written down.
    """

    pid = 4711
    keeps = False  # its children outlive it
    stopped = False
    status = None
    silent_since = 1.0

    def __init__(self):
        self.told = []
        self.starting = set()

    def suspect(self):
        self.told.append("suspect")

    def died(self):
        self.told.append("died")

    def note_silence(self, since, now):
        self.told.append(("silence", since, now))

    def death_flow(self):
        self.told.append("death awaited")
        return
        yield

    def is_stopped(self):
        return self.stopped

    def exit_status(self):
        return self.status

    def last_words(self):
        return ("it said so",)

    def looks(self):
        return "T", "do_signal_stop"


class Stage:
    """
    One child on one connection.
    """

    def __init__(self, spec=None):
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.theirs.setblocking(False)
        self.zygote = Zygote()
        self.connection = Connection(ours, self.zygote)
        self.now = BEGAN
        self.child = Child(self.connection, spec or SpawnSpec((b"tool", b"word")), BEGAN)
        self.waits = []  # seconds after the beginning, or None, for each wait
        self.watched = []  # what each wait was for
        self.others = []

    @property
    def clock(self):
        """What stands in for the module `time`."""
        return SimpleNamespace(monotonic=lambda: self.now)

    def play(self, flow, *steps):
        """
        Drive *flow*: at each wait the next step says what is ready. Each step must be needed.
        """
        left = list(steps)
        ready = None
        while True:
            try:
                interest, deadline = flow.send(ready)
            except StopIteration as end:
                assert not left, f"{len(left)} steps were not needed"
                return end.value
            except BaseException:
                assert not left, f"{len(left)} steps were not needed"
                raise
            self.watched.append(set(interest))
            self.waits.append(None if deadline is None else round(deadline - BEGAN, 6))
            assert set(interest.values()) <= {READ, WRITE}
            assert left, f"one more wait, for {interest} until {deadline}"
            step = left.pop(0)
            if isinstance(step, BaseException):
                interest, deadline = flow.throw(step)
                self.watched.append(set(interest))
                self.waits.append(None if deadline is None else round(deadline - BEGAN, 6))
                step = left.pop(0)
            ready = step(interest, deadline)

    # --- steps
    def say(self, *message, fds=()):
        """The zygote says this, with these descriptors, which are closed here."""

        def step(interest, _deadline):
            assert self.connection.fileno() in interest
            socket.send_fds(self.theirs, [wire.encode(message)], list(fds))
            for fd in fds:
                os.close(fd)
            return {self.connection.fileno(): READ}

        return step

    def hang_up(self, interest, _deadline):
        """The zygote's end of the connection is closed."""
        assert self.connection.fileno() in interest
        self.theirs.close()
        return {self.connection.fileno(): READ}

    def nothing(self, _interest, _deadline):
        """The connection looks readable, and is not."""
        return {self.connection.fileno(): READ}

    def silence(self, _interest, deadline):
        """Nothing happens until the deadline."""
        self.now = deadline
        return {}

    def ready_pidfd(self, interest, _deadline):
        """What `say` sent in the place of a pidfd is readable."""
        (found,) = [each for each in interest if link(each) == os.devnull]
        return {found: READ}

    def ready(self, fd):
        """This descriptor is readable, or what is a copy of it by then."""
        name = link(fd)

        def step(interest, _deadline):
            (found,) = [each for each in interest if (link(each) == name if name else each == fd)]
            return {found: READ}

        return step

    # --- what the application has said
    def heard(self):
        """The messages that the zygote has got, and how many descriptors with each."""
        found = []
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.theirs, 65536, 16)
            except BlockingIOError:
                return found
            for fd in fds:
                os.close(fd)
            if not data:
                return found
            found.append(wire.decode(data))

    def another(self, spec=None):
        """A stage that is closed with this one."""
        self.others.append(Stage(spec))
        return self.others[-1]

    def close(self):
        """Let go of all that is open."""
        for each in self.others:
            each.close()
        self.child.close()
        self.connection.close()
        self.theirs.close()


def null_fds(count):
    """So many open descriptors."""
    return [os.open(os.devnull, os.O_RDWR) for _ in range(count)]


def link(fd):
    """What that descriptor is of, as /proc says; "" if it is none."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


def count_of(name):
    """How many descriptors this process has of that."""
    return sum(link(fd) == name for fd in os.listdir("/proc/self/fd"))


def is_open(fd):
    """Whether that number is a descriptor of this process."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
