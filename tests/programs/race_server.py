"""
The zygote's real Server, in this process, with real children, driven over real sockets by hypothesis.

Peers say anything at any time: right requests, out of order, garbage, foreign descriptors, or nothing any more. After
each step every session must be what the table allows, and at the end no child and no descriptor may be left.
"""

import _socket
import importlib.util
import json
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

PACKAGE = Path(next(iter(importlib.util.find_spec("safespawn").submodule_search_locations)))
sys.path.insert(0, str(PACKAGE / "_zygote"))

import channel  # noqa: E402
import server  # noqa: E402
import session as table  # noqa: E402
import system  # noqa: E402
import wire  # noqa: E402

EXAMPLES, STEPS = int(sys.argv[1]), 30
server.GRACE_SECONDS = 0.02
NUMBERS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
LIMITS = tuple((number, *resource.getrlimit(number)) for number in NUMBERS)
AMBIENT = (dict(os.environb), LIMITS, tuple(sorted(os.sched_getaffinity(0))), 0, os.getpgrp())
LETHAL = {"kill": 9, "stop": 15}
STARTED = []  # how many children each example has had


def spawn(argv, flags, *, ambient=AMBIENT, streams=(-2, -2, -2), credentials=None):
    """A SPAWN message."""
    return (wire.SPAWN, argv, None, ambient, None, None, streams, (), None, flags, -1, 18, (), credentials)


COMMANDS = st.sampled_from(
    [
        (b"true",), (b"sh", b"-c", b"exit 3"), (b"sleep", b"100"), (b"sh", b"-c", b"trap '' TERM; sleep 100 & wait"),
        (b"/does/not/exist",), (b"kill", b"-9", b"0"),
    ]
)  # fmt: skip
FLAGS = st.integers(0, 31)


def leave(peer):
    """Hang up, as the application does: a child that is not yet exec'ed may have a copy."""
    try:
        peer.shutdown(_socket.SHUT_RDWR)
    except OSError:
        pass  # the server has hung up
    peer.close()


class Peers(RuleBasedStateMachine):
    """One server, several peers."""

    peers = Bundle("peers")

    def __init__(self):
        super().__init__()
        self.descriptors = set(os.listdir("/proc/self/fd"))
        near, self.control = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0)
        channel.prepare(near)
        self.control.setblocking(False)
        self.near = near
        self.application_fd = os.pidfd_open(os.getpid())
        self.server = server.Server(near, os.getpid(), self.application_fd, -1, keeps=False)
        self.open = {}

    def turn(self):
        """Let the server work until nothing is ready."""
        for _ in range(20):
            self.server.turn(0.0)
            if not select.select([self.server.epoll], [], [], 0)[0]:
                return

    def teardown(self):
        for peer in list(self.open):
            leave(peer)
        deadline = time.monotonic() + 10
        while self.server.sessions:
            self.server.turn(0.05)
            assert time.monotonic() < deadline, [(each.state, each.pid) for each in self.server.sessions]
        assert self.server.by_pid == {}
        while left := system.children(os.getpid()):
            self.server.tidy()
            for pid in left:
                system.kill_tree(pid)
            assert time.monotonic() < deadline, left
        assert not self.server.ending
        STARTED.append(self.server.started)
        self.server.control.close()
        self.control.close()
        self.server.epoll.close()
        os.close(self.application_fd)
        os.close(self.server.launcher.null_fd)
        extra = set(os.listdir("/proc/self/fd")) - self.descriptors
        assert len(extra) == 0, [os.readlink(f"/proc/self/fd/{fd}") for fd in extra]

    @rule(target=peers)
    def connect(self):
        """A new connection."""
        near, far_fd = channel.pair()
        self.server.adopt(near)
        peer = _socket.socket(fileno=far_fd)
        peer.setblocking(False)
        self.open[peer] = 0
        return peer

    def say(self, peer, data, fds=()):
        """Send, if the connection lasts."""
        rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, server.channel.pack(f"{len(fds)}i", *fds))] if fds else []
        try:
            peer.sendmsg([data], rights, _socket.MSG_NOSIGNAL)
        except OSError:
            return
        finally:
            for fd in fds:
                os.close(fd)
        self.turn()

    @rule(peer=peers, argv=COMMANDS, flags=FLAGS, forked=st.booleans())
    def start(self, peer, argv, flags, forked):
        """A right request, wherever the session stands."""
        if argv[0] == b"kill" and not flags & wire.NEW_SESSION:
            flags |= wire.NEW_SESSION  # it kills its whole group
        credentials = (None, None, None, (), 1, None, None) if forked else None
        self.say(peer, wire.encode(spawn(argv, flags, credentials=credentials)), (os.open("/", os.O_PATH),))

    @rule(target=peers, argv=COMMANDS, flags=FLAGS, forked=st.booleans())
    def connect_and_start(self, argv, flags, forked):
        """What mostly happens."""
        peer = self.connect()
        self.start(peer, argv, flags, forked)
        return peer

    @rule(
        target=peers,
        flags=FLAGS,
        words=st.lists(st.sampled_from(["kill", "stop", "release", "wait", "read"]), max_size=6),
    )
    def live(self, flags, words):
        """A child's life, with requests at all its times."""
        peer = self.connect_and_start((b"sleep", b"0.01"), flags, forked=bool(flags & 1))
        for word in words:
            if word == "wait":
                self.wait(0.015)
            elif word == "read":
                self.drain(peer)
            else:
                self.say(peer, wire.encode((wire.RELEASE,) if word == "release" else (wire.KILL, LETHAL[word], True)))
        return peer

    @rule(peer=peers, streams=st.tuples(*[st.integers(-3, 4)] * 3), fds=st.integers(0, 3), ambient=st.booleans())
    def start_wrongly(self, peer, streams, fds, ambient):
        """A request that fits its shape and not its descriptors."""
        message = spawn((b"true",), 0, ambient=AMBIENT if ambient else None, streams=streams)
        self.say(peer, wire.encode(message), tuple(os.open("/", os.O_RDONLY) for _ in range(fds)))

    @rule(place=st.sampled_from([7, 10, 11, 12]), number=st.sampled_from([2**31, 2**40, 2**70]))
    def start_with_a_number_that_no_c_type_holds(self, place, number):
        """A request of the right shape that no system call can carry out is answered, and leaves no pipe."""
        message = [*spawn((b"true",), 0, streams=(wire.PIPE,) * 3)]
        message[place] = {7: ((1, number),), 12: (number,)}.get(place, number)
        peer = self.connect()
        self.say(peer, wire.encode(tuple(message)), (os.open("/", os.O_PATH), os.open("/", os.O_PATH)))
        while not select.select([peer], [], [], 0)[0]:
            self.server.turn(0.05)  # a forked child tells it
        answer = wire.decode(peer.recv(65536))
        assert answer[0] == wire.FAILED, answer

    @rule(peer=peers, number=st.sampled_from([0, 9, 15, 19, 18, -1, 1000, 2**40]), whole=st.booleans())
    def kill(self, peer, number, whole):
        """A signal, possible or not."""
        self.say(peer, wire.encode((wire.KILL, number, whole)))

    @rule(peer=peers)
    def release(self, peer):
        """Read or not, held or not."""
        self.say(peer, wire.encode((wire.RELEASE,)))

    @rule(
        peer=peers, kind=st.sampled_from([(wire.CONNECT,), (wire.STARTED, 1, 0), (wire.REFUSED, "x"), (wire.CENSUS,)])
    )
    def speak_out_of_turn(self, peer, kind):
        """A message that only another one may send."""
        self.say(peer, wire.encode(kind), (os.open("/", os.O_PATH),))

    @rule(peer=peers, data=st.binary(max_size=100), fds=st.integers(0, 3))
    def babble(self, peer, data, fds):
        """Bytes."""
        self.say(peer, data, tuple(os.open("/", os.O_PATH) for _ in range(fds)))

    @rule(peer=peers, sealed=st.booleans(), size=st.sampled_from([0, 10, 100_000]))
    def hand_over(self, peer, sealed, size):
        """A body in a memfd, with or without its seals."""
        data = wire.encode((wire.REFUSED, "x" * size))
        header, fd = wire.to_memfd(data)
        if not sealed:
            os.close(fd)
            fd = os.memfd_create("unsealed")
            os.write(fd, data[8:])
        self.say(peer, header, (fd,))

    @rule(peer=peers)
    def babble_at_length(self, peer):
        """A datagram longer than any message."""
        self.say(peer, b"x" * (channel.BUFFER_BYTES + 10))

    @rule(data=st.binary(max_size=60), fds=st.integers(0, 2))
    def babble_at_the_door(self, data, fds):
        """Bytes on the control socket."""
        if data or fds:
            self.say(self.control, data, tuple(os.open("/", os.O_PATH) for _ in range(fds)))
            self.drain(self.control)

    @rule(peer=peers)
    def read(self, peer):
        """Take the answers."""
        self.drain(peer)

    def drain(self, peer):
        while True:
            try:
                data, ancillary, _, _ = peer.recvmsg(4096, 1000)
            except OSError:
                return
            for _, _, value in ancillary:
                for fd in memoryview(value).cast("i"):
                    os.close(fd)
            if not data:
                return
            wire.decode(data)

    @rule(peer=consumes(peers))
    def hang_up(self, peer):
        """Go away."""
        self.drain(peer)
        self.open.pop(peer, None)
        leave(peer)
        self.turn()

    @rule(seconds=st.sampled_from([0.0, 0.005, 0.03]))
    def wait(self, seconds):
        """Let children end and timers come."""
        until = time.monotonic() + seconds
        while True:
            self.server.turn(max(0.0, min(0.005, until - time.monotonic())))
            if time.monotonic() >= until:
                return

    @invariant()
    def the_server_lives_and_knows_its_sessions(self):
        assert not self.server.ending
        for each in self.server.sessions:
            assert each.state in table.STATES
            assert each.state != table.GONE
            if each.state in (table.LAUNCHING, table.RUNNING, table.HELD, table.ENDING, table.KILLING):
                assert self.server.by_pid[each.pid] is each
            if each.connection is not None:
                assert each.state not in (table.ENDING, table.KILLING, table.LEFT)
        assert {each.pid for each in self.server.by_pid.values()} == set(self.server.by_pid)


def main():
    """Run it; an excepthook tells of what the server took for a bug of its own."""
    wrong = []
    sys.__excepthook__ = lambda *facts: wrong.append(repr(facts[1]))
    system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    run_state_machine_as_test(
        Peers,
        settings=settings(
            max_examples=EXAMPLES, stateful_step_count=STEPS, deadline=None, database=None,
            suppress_health_check=list(HealthCheck), derandomize=len(sys.argv) < 3,
        ),
    )  # fmt: skip
    print(json.dumps({"wrong": wrong, "examples": len(STARTED), "started": sum(STARTED)}), flush=True)


main()
