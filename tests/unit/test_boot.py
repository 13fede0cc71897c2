"""The start of a zygote that does not come up, or is not one: what is told, what is ended, what is closed."""

import os
import socket
import sys
from types import SimpleNamespace

import pytest

from safespawn._core.flow import READ, DeadlinePassed
from safespawn._drive import boot
from safespawn._zygote import wire
from safespawn.errors import BootError
from support.stage import null_fds

HELLO = (wire.HELLO, wire.PROTOCOL, sys.version, 5001, 5000, 2, {"prctl": 1})


class Start:
    """A start in which no process comes to be: the test is the zygote, and the clock."""

    def __init__(self, patch):
        self.now = 100.0
        self.far = None  # the zygote's end
        self.reaped = []
        self.waits = []
        patch.setattr(boot, "time", SimpleNamespace(monotonic=lambda: self.now))
        patch.setattr(boot, "_spawn", self.spawn)
        patch.setattr(boot, "_open_pidfd", lambda pid: null_fds(1)[0] if pid == 5000 else None)
        patch.setattr(boot, "reap", self.reap)

    def spawn(self, executable, control_fd, output_fd, *, keeps):
        assert (executable, keeps) == (sys.executable, False)
        self.far = socket.socket(fileno=os.dup(control_fd))
        os.write(output_fd, b"Fatal Python error: no encodings")
        return 5000

    def reap(self, pid, _pidfd, number):
        self.reaped.append((pid, number.name))
        return 1

    def play(self, *steps, deadline=None):
        """Drive the flow: at each wait the next step says what is ready."""
        flow = boot.boot_flow(keeps=False, deadline=deadline)
        ready = None
        left = list(steps)
        try:
            while True:
                interest, until = flow.send(ready)
                self.waits.append(until - 100.0)
                control_fd, pidfd = interest
                ready = left.pop(0)(control_fd, pidfd, until)
        except StopIteration as end:
            return end.value
        finally:
            assert not left
            if self.far is not None:
                self.far.close()

    def say(self, *message, count=3):
        """The zygote says this, with so many descriptors."""

        def step(control_fd, _pidfd, _until):
            fds = [*null_fds(1), *(end.detach() for end in socket.socketpair())]
            socket.send_fds(self.far, [wire.encode(message)], fds[:count])
            for fd in fds:
                os.close(fd)
            return {control_fd: READ}

        return step

    def nothing(self, control_fd, _pidfd, _until):
        """The connection looks readable, and is not."""
        return {control_fd: READ}

    def silence(self, _control_fd, _pidfd, until):
        """Nothing happens until then."""
        self.now = until
        return {}

    def ends(self, control_fd, pidfd, _until):
        """The process is over, and its end of the connection closed."""
        self.far.close()
        return {control_fd: READ, pidfd: READ}


@pytest.fixture
def start(monkeypatch):
    """Nothing may stay open of it."""
    before = sorted(os.listdir("/proc/self/fd"))
    yield Start(monkeypatch)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_zygote_that_comes_up(start):
    """It is known by its pids and facts, and nothing is ended."""
    zygote = start.play(start.nothing, start.say(*HELLO))
    assert (zygote.pid, zygote.warden_pid) == (5001, 5000)
    assert start.reaped == []
    while connection := zygote.lease_nowait():
        connection.close()
    zygote.control.close()
    for fd in (zygote.pidfd, zygote.warden_fd, zygote.output_fd):
        os.close(fd)


def test_a_zygote_that_ends_before_its_hello(start):
    """How it ended, and what it wrote, is told; it is reaped once."""
    with pytest.raises(BootError) as caught:
        start.play(start.ends)
    assert start.reaped == [(5000, "SIGKILL")]
    assert (caught.value.exit_status, caught.value.executable) == (1, sys.executable)
    assert "no encodings" in caught.value.output


def test_a_zygote_that_never_says_hello(start):
    """Is ended after its time, and told with what it wrote."""
    with pytest.raises(BootError, match="no hello came") as caught:
        start.play(start.silence)
    assert start.waits == [boot.BOOT_SECONDS]
    assert start.reaped == [(5000, "SIGKILL")]
    assert caught.value.seconds == boot.BOOT_SECONDS
    assert "no encodings" in caught.value.output


def test_a_caller_who_has_less_time(start):
    """Gets his own deadline, and the half-started one is ended."""
    with pytest.raises(DeadlinePassed):
        start.play(start.silence, deadline=100.5)
    assert start.waits == [0.5]
    assert start.reaped == [(5000, "SIGKILL")]


@pytest.mark.parametrize(
    ("message", "count", "said"),
    [
        ((*HELLO[:2], "2.7", *HELLO[3:]), 3, "it runs Python 2.7"),
        (HELLO, 2, f"a hello was expected, not kind {wire.HELLO} with 2 descriptors"),
        ((wire.CONNECTED,), 1, f"a hello was expected, not kind {wire.CONNECTED} with 1 descriptors"),
    ],
)
def test_something_else_than_a_zygote(start, message, count, said):
    """It is ended, what it sent is closed, and the error says what it was."""
    with pytest.raises(BootError, match=said):
        start.play(start.say(*message, count=count))
    assert start.reaped == [(5000, "SIGKILL")]


def test_an_interrupted_start(start):
    """Ends what it has started; in a forked copy of the program, which drops it too, nothing is ended."""
    for is_copy in (False, True):
        flow = boot.boot_flow(keeps=False)
        next(flow)
        with pytest.MonkeyPatch.context() as patch:
            if is_copy:
                patch.setattr(boot.os, "getpid", lambda: 1)
            flow.close()
        assert start.reaped == ([] if is_copy else [(5000, "SIGKILL")])
        start.reaped.clear()
        start.far.close()


@pytest.mark.parametrize("case", ["no executable", "frozen", "is one itself"])
def test_a_program_that_must_not_start_itself(start, monkeypatch, case):
    """Nothing is started; the error has the cure."""
    if case == "no executable":
        monkeypatch.setattr(sys, "executable", "")
    elif case == "frozen":
        monkeypatch.setattr(sys, "frozen", True, raising=False)
    else:
        monkeypatch.setenv("SAFESPAWN_ZYGOTE_OF", "1")
    with pytest.raises(BootError, match=r"set sys\.executable to a Python of the same version"):
        start.play()
    assert start.far is None


def test_a_zygote_that_is_gone_at_once(monkeypatch):
    """Somebody else has reaped it: nothing is signalled. Without room for a pidfd it is ended, and that is told."""
    killed = []
    monkeypatch.setattr(boot.os, "kill", lambda pid, number: killed.append((pid, number)))

    def refuse(number):
        def opened(_pid):
            raise OSError(number, os.strerror(number))

        return opened

    monkeypatch.setattr(boot.os, "pidfd_open", refuse(3))
    with pytest.raises(BootError, match="it ended at once"):
        boot._open_pidfd(7)
    assert killed == []
    monkeypatch.setattr(boot.os, "pidfd_open", refuse(24))
    with pytest.raises(OSError, match="Too many open files"):
        boot._open_pidfd(7)
    assert killed == [(7, 9)]
