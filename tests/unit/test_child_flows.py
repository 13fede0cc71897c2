"""A child's flows against a scripted zygote: what is said, how long is waited, what is known in the end."""

import errno
import os
import signal
import socket

import pytest

from safespawn import errors
from safespawn._core import child as flows
from safespawn._core.flow import DeadlinePassed
from safespawn._core.spec import SpawnSpec
from safespawn._zygote import wire
from support.stage import BEGAN, Stage, is_open, link, null_fds

USAGE = tuple(range(16))
PIDFD = 10**6  # no descriptor: for a child that is asked about and not signalled


@pytest.fixture
def stage(monkeypatch):
    """A child that has been asked for, at `BEGAN`."""
    made = Stage()
    monkeypatch.setattr(flows, "time", made.clock)
    yield made
    if made.child.pidfd == PIDFD:
        made.child.pidfd = -1
    made.close()


@pytest.fixture
def signalled(monkeypatch):
    """The signals that were sent by a pidfd, in order."""
    sent = []
    monkeypatch.setattr(flows.signal, "pidfd_send_signal", lambda fd, number: sent.append((fd, number)))
    return sent


def exited(status=0, usage=USAGE, outputs=None):
    """The zygote's word of an exit."""
    return (wire.EXITED, 77, status, usage, outputs)


# --- the start --------------------------------------------------------------------------------------------------------
def test_a_start_gives_pid_pidfd_and_pipes(stage):
    """The first descriptor is the pidfd, the others are the caller's, in their order."""
    fds = null_fds(3)
    ends = stage.play(flows.start_flow(stage.child, None), stage.say(wire.STARTED, 77, 6, fds=fds))
    assert stage.child.pid == 77
    assert is_open(stage.child.pidfd)
    assert len(ends) == 2
    assert all(map(is_open, ends))
    assert stage.zygote.silent_since is None
    for fd in ends:
        os.close(fd)


def test_a_start_that_is_over_gives_its_end(stage):
    """A quiet command that has exited brings its status, what it used and what it printed."""
    ends = stage.play(
        flows.start_flow(stage.child, None), stage.nothing, stage.say(*exited(256, USAGE, (b"out", b"err")))
    )
    assert ends == []
    assert (stage.child.returncode, stage.child.usage, stage.child.outputs) == (1, USAGE, (b"out", b"err"))
    assert (stage.child.pid, stage.child.pidfd, stage.child.ended) == (77, -1, BEGAN)


@pytest.mark.parametrize(
    ("spec", "failed", "cls", "filename"),
    [
        (SpawnSpec((b"tool",)), ("exec", errno.ENOENT, None), errors.CommandNotFound, "tool"),
        (SpawnSpec((b"x",), executable=b"/bin/x"), ("exec", errno.EACCES, None), errors.CommandNotExecutable, "/bin/x"),
        (SpawnSpec((b"tool",), cwd=b"/gone"), ("cwd", errno.ENOENT, b"/gone"), errors.SpawnNotFound, "/gone"),
        (SpawnSpec((b"tool",), cwd=b"/gone"), ("cwd", errno.EACCES, b"."), errors.SpawnDenied, "."),
        (SpawnSpec((b"tool",)), ("cwd", errno.EACCES, b"/x"), errors.SpawnDenied, "."),
        (SpawnSpec((b"tool",)), ("fork", errno.EAGAIN, None), errors.SpawnWouldBlock, None),
    ],
)  # fmt: skip
def test_a_start_that_failed_is_told_with_its_name(stage, spec, failed, cls, filename):
    """The class is that of errno and stage, and the name is the one that subprocess would give."""
    stage.child.spec = spec
    with pytest.raises(errors.SpawnError) as caught:
        stage.play(flows.start_flow(stage.child, None), stage.say(wire.FAILED, *failed))
    assert type(caught.value) is cls
    assert (caught.value.stage, caught.value.errno) == failed[:2]
    assert caught.value.filename == filename
    assert "command b'tool'" in str(caught.value) or failed[0] != "fork"


@pytest.mark.parametrize(
    ("message", "said"),
    [((wire.REFUSED, "not now"), "not now"), ((wire.RELEASED, None), f"kind {wire.RELEASED} does not fit here"),
     ((wire.STARTED, 77, 0), f"kind {wire.STARTED} does not fit here")],
)  # fmt: skip
def test_an_answer_that_does_not_fit_is_an_error(stage, message, said):
    """It is told, and no descriptor of it stays open."""
    fds = [] if message[0] == wire.STARTED else null_fds(1)
    before = len(os.listdir("/proc/self/fd")) - len(fds)
    with pytest.raises(errors.RemoteProtocolError, match=said):
        stage.play(flows.start_flow(stage.child, None), stage.say(*message, fds=fds))
    assert len(os.listdir("/proc/self/fd")) == before
    assert stage.child.pid == 0


def test_a_silent_zygote_is_suspected_and_then_given_up(stage):
    """After a second later calls are to go elsewhere; after ten this one ends, and says how long it waited."""
    stage.connection.send((wire.CONNECT,))  # lies unread, and is not taken back unless that is asked
    with pytest.raises(errors.ZygoteUnresponsive) as caught:
        stage.play(flows.start_flow(stage.child, None), stage.silence, stage.silence)
    assert stage.waits == [1.0, 10.0]
    assert stage.zygote.told == ["suspect", "suspect"]
    assert (caught.value.stage, caught.value.seconds, caught.value.pid) == ("before start", 10.0, None)
    assert (caught.value.zygote_pid, caught.value.zygote_state, caught.value.wchan) == (4711, "T", "do_signal_stop")
    assert caught.value.argv == ("tool", "word")


@pytest.mark.parametrize(("seconds", "waits"), [(0.25, [0.25]), (4.0, [1.0, 4.0])])
def test_the_callers_deadline_comes_first(stage, seconds, waits):
    """It is not overstepped, the silence is noted, and only a late zygote is suspected."""
    with pytest.raises(DeadlinePassed):
        stage.play(flows.start_flow(stage.child, BEGAN + seconds), *[stage.silence] * len(waits))
    assert stage.waits == waits
    assert stage.zygote.told == ["suspect"] * (2 * (len(waits) - 1)) + [("silence", BEGAN, BEGAN + seconds)]


def test_a_zygote_that_dies_before_it_answers(stage):
    """Its death is waited for, and the error says that nothing is known."""
    stage.zygote.status = -9
    with pytest.raises(errors.SpawnLost) as caught:
        stage.play(flows.start_flow(stage.child, None), stage.hang_up)
    assert stage.zygote.told == ["death awaited"]
    assert (caught.value.stage, caught.value.zygote_pid, caught.value.zygote_status) == ("before start", 4711, -9)
    assert caught.value.known[-1] == "it said so"
    assert caught.value.argv == ("tool", "word")


# --- a start that nobody waits for any more ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "steps",
    [
        lambda stage: [stage.silence],
        lambda stage: [stage.nothing, stage.say(wire.STARTED, 77, 0, fds=null_fds(1)), stage.say(*exited(9))],
        lambda stage: [stage.say(wire.FAILED, "exec", 2, None)],
        lambda stage: [stage.hang_up],
    ],
)
def test_what_nobody_waits_for_is_killed(stage, steps):
    """SIGKILL to the tree is asked for, and its end awaited for half a second at most."""
    before = len(os.listdir("/proc/self/fd"))
    stage.play(flows.unanswered_flow(stage.child), *steps(stage))
    assert set(stage.waits) == {flows.UNANSWERED_SECONDS}
    if stage.theirs.fileno() >= 0:
        assert stage.heard() == [(wire.KILL, signal.SIGKILL, True)]
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_dead_zygote_is_asked_for_nothing(stage):
    """Where there is no zygote there is nothing to wait for."""
    stage.theirs.close()
    stage.play(flows.unanswered_flow(stage.child))
    assert stage.play(flows.sweep_flow(stage.child)) == 0
    stage.child.status = 0
    stage.play(flows.release_flow(stage.child))
    assert stage.child.usage is None


# --- the exit ---------------------------------------------------------------------------------------------------------
def test_an_exit_is_the_zygotes_word(stage):
    """A late word of the start may come first; then the exit is known."""
    stage.now = BEGAN + 0.5
    before = len(os.listdir("/proc/self/fd"))
    fds = [*null_fds(1), *os.pipe()]
    steps = [
        stage.nothing,
        stage.say(wire.STARTED, 77, 5, fds=fds),
        stage.silence,
        stage.say(*exited(11, None), fds=null_fds(1)),
    ]
    flow = flows.exit_flow(stage.child, BEGAN + 0.5)
    assert stage.play(flow, *steps[:3]) is False
    assert (stage.child.pid, link(stage.child.pidfd)) == (77, os.devnull)
    assert stage.play(flows.exit_flow(stage.child, None), steps[3]) is True
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert (stage.child.returncode, stage.child.usage, stage.child.ended) == (-11, None, BEGAN + 0.5)
    assert stage.play(flows.exit_flow(stage.child, None)) is True


def test_a_deadline_comes_before_the_exit(stage):
    """False is the answer, and nothing is known."""
    assert stage.play(flows.exit_flow(stage.child, BEGAN + 0.5), stage.silence) is False
    assert stage.waits == [0.5]
    assert stage.child.status is None


def test_the_kernels_word_counts_after_a_second(stage):
    """Only then the pidfd is watched; when it is readable, the zygote has five seconds for the status."""
    stage.child.pid, stage.child.pidfd = 77, PIDFD
    connection = stage.connection.fileno()
    steps = [stage.silence, stage.ready(PIDFD), stage.silence]
    with pytest.raises(errors.ZygoteUnresponsive) as caught:
        stage.play(flows.exit_flow(stage.child, None), *steps)
    assert stage.waits == [1.0, None, 6.0]
    assert stage.watched == [{connection}, {connection, PIDFD}, {connection}]
    assert stage.zygote.told == ["suspect"]
    assert (caught.value.stage, caught.value.seconds, caught.value.pid) == ("exited, status unknown", 5.0, 77)


def test_a_late_word_is_still_a_word(stage):
    """What the zygote says within these five seconds is the status."""
    stage.child.pidfd = PIDFD
    steps = [stage.silence, stage.ready(PIDFD), stage.say(*exited(0))]
    assert stage.play(flows.exit_flow(stage.child, None), *steps) is True
    assert stage.child.returncode == 0


def test_a_deadline_counts_while_the_zygote_is_late(stage):
    """The caller's deadline is the first of all that are waited for."""
    stage.child.pidfd = PIDFD
    steps = [stage.silence, stage.ready(PIDFD), stage.silence]
    assert stage.play(flows.exit_flow(stage.child, BEGAN + 3), *steps) is False
    assert stage.waits == [1.0, 3.0, 3.0]


def test_an_answer_that_is_no_exit_is_an_error(stage):
    """It is told with its kind."""
    with pytest.raises(errors.RemoteProtocolError, match="does not fit here"):
        stage.play(flows.exit_flow(stage.child, None), stage.say(wire.LOADED, fds=null_fds(1)))


def test_a_pidfd_that_did_not_fit_is_no_end(stage, monkeypatch):
    """STARTED without room for its descriptor is passed over: the exit is told all the same."""
    plain = stage.connection.receive
    words = [flows.Truncated(24, "none left")]

    class Connection:
        zygote = stage.zygote
        fileno = stage.connection.fileno
        socket = stage.connection.socket

        def receive(self):
            if words:
                raise words.pop()
            return plain()

    stage.child.connection = Connection()
    assert stage.play(flows.exit_flow(stage.child, None), stage.say(*exited(0))) is True
    assert stage.child.status == 0
    words.append(OSError(errno.EIO, "broken"))
    stage.child.status = None
    with pytest.raises(errors.SpawnLost, match="cannot be read: broken") as caught:
        stage.play(flows.exit_flow(stage.child, None), stage.nothing)
    assert caught.value.stage == "running"
    words.append(flows.Truncated(24, "none left"))
    with pytest.raises(errors.SpawnError) as caught:  # no room for the pipes: that is the start's failure
        stage.play(flows.start_flow(stage.child, None), stage.nothing)
    assert (caught.value.errno, caught.value.stage, caught.value.filename) == (24, "fds", None)
    assert caught.value.argv == (b"tool", b"word")
    stage.child.connection = stage.connection


KILLED, TERMED, SEGV, CODE = signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, 3 << 8


@pytest.mark.parametrize(
    ("kept", "zygote_status", "known"),
    [
        (None, 0, False),
        (CODE, -9, True),  # its own doing
        (SEGV, -9, True),
        (KILLED, -9, False),  # ours, most likely
        (TERMED, -9, False),
        (KILLED, 0, True),  # closed in order: so that is how it ended
        (TERMED, None, False),
    ],
)
@pytest.mark.parametrize("keeps", [False, True])
def test_what_is_known_of_a_child_of_a_dead_zygote(stage, monkeypatch, signalled, *, keeps, kept, zygote_status, known):
    """A status that the kernel tells counts, unless it is what the zygote's end does to its children."""
    monkeypatch.setattr(flows, "kept_status", lambda pidfd: kept if pidfd == PIDFD else None)
    stage.child.pid, stage.child.pidfd = 77, PIDFD
    stage.zygote.status, stage.zygote.keeps = zygote_status, keeps
    flow = flows.exit_flow(stage.child, None)
    if known:
        assert stage.play(flow, stage.hang_up) is True
        assert stage.child.status == kept
        assert stage.child.ended == BEGAN
    else:
        with pytest.raises(errors.SpawnLost) as caught:
            stage.play(flow, stage.hang_up)
        assert (caught.value.stage, caught.value.pid) == ("running", 77)
        assert ("the child was killed with its zygote" in caught.value.known) == (kept is not None)
    assert stage.zygote.told == ["death awaited"]
    assert signalled == ([] if keeps else [(PIDFD, signal.SIGKILL)])


def test_the_kernel_is_asked_until_it_knows(monkeypatch):
    """The pidfd, the zombie, and the pidfd again, since it may have been reaped in between."""
    for answers, expected, asked in [
        ({"pidfd": [5]}, 5, ["pidfd"]),
        ({"pidfd": [None], "zombie": [0]}, 0, ["pidfd", "zombie"]),
        ({"pidfd": [None, 9], "zombie": [None]}, 9, ["pidfd", "zombie", "pidfd"]),
        ({"pidfd": [0]}, 0, ["pidfd"]),
    ]:
        log = []

        def answer(name, answers=answers, log=log):
            log.append(name)
            return answers[name].pop(0)

        monkeypatch.setattr(flows, "kept_status", lambda fd, answer=answer: answer("pidfd") if fd == 8 else "?")
        monkeypatch.setattr(
            flows, "zombie_status", lambda *who, answer=answer: answer("zombie") if who == (77, 3) else "?"
        )
        assert flows.kernels_word(77, 8, 3) == expected
        assert log == asked


def test_a_child_of_a_dead_zygote_that_may_not_be_killed(stage, monkeypatch):
    """Is lost like any other: that it runs as somebody else is no error of the caller's."""

    def refuse(_fd, _number):
        raise PermissionError

    monkeypatch.setattr(flows.signal, "pidfd_send_signal", refuse)
    stage.child.pidfd = PIDFD
    with pytest.raises(errors.SpawnLost):
        stage.play(flows.exit_flow(stage.child, None), stage.hang_up)


@pytest.mark.parametrize("status", [0, 256, 9, 139, -1])
def test_the_kernels_answer_is_read(monkeypatch, status):
    """Where linux/pidfd.h has it: the mask at 0, which says whether there is a status, and that at 60, of 64 bytes."""
    has_status, asked = [True], []

    def answer(fd, number, info):
        assert (number, bytes(info)) == (0xC040FF0B, bytes([8]) + bytes(63))
        asked.append(fd)
        info[:] = bytes([15 if has_status[0] else 7]) + b"\xff" * 59 + status.to_bytes(4, "little", signed=True)

    monkeypatch.setattr("fcntl.ioctl", answer)
    assert [flows.kept_status(fd) for fd in (PIDFD, 0)] == [status, status]
    assert asked == [PIDFD, 0]
    has_status.clear()
    has_status.append(False)
    assert flows.kept_status(PIDFD) is None


def test_no_status_is_made_up():
    """No pidfd, something else than a pidfd, and the pidfd of who runs have none."""
    assert flows.kept_status(-1) is None
    read_fd, write_fd = os.pipe()
    pidfd = os.pidfd_open(os.getpid())
    try:
        assert flows.kept_status(read_fd) is None
        assert flows.kept_status(pidfd) is None
    finally:
        for fd in (read_fd, write_fd, pidfd):
            os.close(fd)


# --- after the exit ---------------------------------------------------------------------------------------------------
def test_an_exited_child_is_released(stage):
    """RELEASE is said once, news of a sweep is passed over, and what was used is kept."""
    stage.child.status = 0
    before = len(os.listdir("/proc/self/fd"))
    steps = [stage.nothing, stage.say(wire.SWEPT, 2, fds=null_fds(1)), stage.say(wire.RELEASED, USAGE)]
    stage.play(flows.release_flow(stage.child), *steps)
    assert len(os.listdir("/proc/self/fd")) == before
    assert stage.heard() == [(wire.RELEASE,)]
    assert stage.child.usage == USAGE
    assert stage.waits == [5.0] * 3


@pytest.mark.parametrize(
    "step", [lambda s: s.silence, lambda s: s.hang_up, lambda s: s.say(wire.REFUSED, "?")], ids=["silence", "end", "no"]
)
def test_a_release_that_is_not_answered_ends_all_the_same(stage, step):
    """What was used stays unknown."""
    stage.child.status = 0
    stage.play(flows.release_flow(stage.child), step(stage))
    assert stage.child.usage is None
    assert stage.child.release_asked


def test_a_release_is_not_asked_for_twice(stage):
    """After an interrupted wait only the answer is waited for; who runs, or was reaped, is not released."""
    stage.play(flows.release_flow(stage.child))
    stage.child.status = 0
    stage.child.release_asked = True
    stage.play(flows.release_flow(stage.child), stage.say(wire.RELEASED, None), stage.silence)
    stage.child.usage = USAGE
    stage.play(flows.release_flow(stage.child))
    assert stage.heard() == []


@pytest.mark.parametrize(
    ("steps", "count"),
    [
        (lambda s: [s.nothing, s.say(*exited(0), fds=null_fds(2)), s.say(wire.SWEPT, 3, fds=null_fds(1))], 3),
        (lambda s: [s.silence], 0),
        (lambda s: [s.hang_up], 0),
    ],
)
def test_a_sweep_tells_how_many_it_found(stage, steps, count):
    """SIGKILL for the tree is asked for; no answer in five seconds, or none any more, counts as none."""
    before = len(os.listdir("/proc/self/fd"))
    done = steps(stage)
    assert stage.play(flows.sweep_flow(stage.child), *done) == count
    assert len(os.listdir("/proc/self/fd")) <= before
    assert set(stage.waits) == {5.0}


# --- signals ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("whole", "pidfd", "by_pidfd"), [(True, PIDFD, False), (False, PIDFD, True), (False, -1, False), (True, -1, False)]
)
def test_a_tree_is_signalled_by_the_zygote_and_one_process_by_its_pidfd(stage, signalled, whole, pidfd, by_pidfd):
    """Who has no pidfd yet is signalled by the zygote as well; who has exited by nobody."""
    stage.child.pidfd = pidfd
    flows.tell(stage.child, signal.SIGHUP, whole=whole)
    assert signalled == ([(PIDFD, signal.SIGHUP)] if by_pidfd else [])
    assert stage.heard() == ([] if by_pidfd else [(wire.KILL, signal.SIGHUP, whole)])
    stage.child.status = 0
    flows.tell(stage.child, signal.SIGHUP, whole=whole)
    assert len(signalled) == by_pidfd
    assert stage.heard() == []


def test_a_signal_that_is_not_allowed_is_told(stage, monkeypatch):
    """Somebody else's process is an error; one that has ended is none."""
    refused = [ProcessLookupError(), PermissionError()]

    def send(_fd, _number):
        raise refused.pop(0)

    monkeypatch.setattr(flows.signal, "pidfd_send_signal", send)
    stage.child.pidfd = PIDFD
    flows.tell(stage.child, signal.SIGHUP, whole=False)
    with pytest.raises(PermissionError):
        flows.tell(stage.child, signal.SIGHUP, whole=False)


def signals_heard(stage):
    """The signals that the zygote was asked for."""
    return [(signal.Signals(number).name, whole) for kind, number, whole in stage.heard() if kind == wire.KILL]


@pytest.mark.parametrize("whole", [True, False])
def test_an_end_in_order(stage, whole):
    """SIGTERM and SIGCONT; who exits in its time is not killed, but what is left of its tree is, if that is wanted."""
    sweep = [stage.say(wire.SWEPT, 1)] if whole else []
    stage.play(flows.end_flow(stage.child, whole=whole, grace=0.5), stage.say(*exited(15)), *sweep)
    expected = [("SIGTERM", whole), ("SIGCONT", whole)] + [("SIGKILL", True)] * whole
    assert signals_heard(stage) == expected
    assert stage.waits[0] == 0.5


def test_an_end_without_patience(stage):
    """SIGKILL comes when the grace is over, and the exit after it is awaited."""
    stage.play(flows.end_flow(stage.child, whole=True), stage.silence, stage.say(*exited(9)))
    assert signals_heard(stage) == [("SIGTERM", True), ("SIGCONT", True), ("SIGKILL", True)]
    assert stage.waits[0] == flows.GRACE_SECONDS
    assert stage.child.returncode == -9


def test_an_interruption_skips_the_grace_and_comes_out_after_it(stage):
    """The child is gone before the interruption is raised again."""
    with pytest.raises(KeyboardInterrupt):
        stage.play(flows.end_flow(stage.child, whole=True), KeyboardInterrupt(), stage.say(*exited(9)))
    assert signals_heard(stage) == [("SIGTERM", True), ("SIGCONT", True), ("SIGKILL", True)]
    assert stage.child.returncode == -9


def test_a_lost_child_is_told_at_once(stage):
    """Where the zygote dies in the grace, nothing further is asked of it."""
    with pytest.raises(errors.SpawnLost):
        stage.play(flows.end_flow(stage.child, whole=True), stage.hang_up)


@pytest.mark.parametrize(("stopped", "patience"), [(True, 0.1), (False, 1.0)])
def test_a_kill_does_not_depend_on_the_zygote(stage, signalled, stopped, patience):
    """A late zygote is suspected, and the child killed by its pidfd; the status has a moment to come."""
    stage.zygote.stopped = stopped
    stage.child.pidfd = PIDFD
    steps = [stage.silence, stage.ready(PIDFD), stage.say(*exited(9))]
    if not stopped:
        stage.child.started = BEGAN + 50  # so that this test has one wait for the word in both cases
    stage.play(flows.kill_flow(stage.child, whole=True), *steps)
    assert stage.waits[:2] == [patience, flows.KILL_SECONDS]
    assert stage.zygote.told == ["suspect"]
    assert signalled == [(PIDFD, signal.SIGKILL)]
    assert stage.child.returncode == -9


def test_who_outlives_sigkill_is_told(stage, signalled, monkeypatch):
    """After five seconds the error says so, with the pid."""
    stage.zygote.stopped = True
    monkeypatch.setattr("safespawn._core.procfs.looks", lambda pid: ("D", "nfs_wait") if pid == 77 else None)
    stage.child.pidfd, stage.child.pid = PIDFD, 77
    with pytest.raises(errors.Unkillable) as caught:
        stage.play(flows.kill_flow(stage.child, whole=False), stage.silence, stage.silence)
    assert (caught.value.pid, caught.value.seconds) == (77, 5.0)
    assert (caught.value.state, caught.value.wchan) == ("D", "nfs_wait")
    assert signalled == [(PIDFD, signal.SIGKILL)] * 2


@pytest.mark.parametrize("has_pidfd", [True, False])
def test_a_killed_child_without_a_status(stage, signalled, has_pidfd):
    """That it has ended, or may have, is said; how, is not."""
    stage.zygote.stopped = True
    stage.child.pidfd = PIDFD if has_pidfd else -1
    steps = [stage.silence, stage.ready(PIDFD), stage.silence] if has_pidfd else [stage.silence] * 3
    with pytest.raises(errors.ZygoteUnresponsive) as caught:
        stage.play(flows.kill_flow(stage.child, whole=True), *steps)
    assert caught.value.stage == "killed, status unknown"
    assert caught.value.seconds == pytest.approx(0.2 if has_pidfd else 5.0)


# --- the request ------------------------------------------------------------------------------------------------------
class Ambient:
    """What a child takes from the application."""

    carried = ({}, (), (), 0, 0)
    umask = 0o22
    ignored = (13,)


def test_a_request_has_its_descriptors_in_order(stage):
    """The directory, the streams that are descriptors, the passed ones: each with its index in the message."""
    spec = SpawnSpec((b"x",), streams=(wire.PIPE, 1, 2), pass_fds=(7, 9))
    message = flows.request(spec, Ambient, None)
    assert message[6:8] == ((wire.PIPE, 1, 2), ((3, 7), (4, 9)))
    message = flows.request(SpawnSpec((b"x",), streams=(0, wire.NULL, 2)), Ambient, None)
    assert message[6:8] == ((1, wire.NULL, 2), ())
    message = flows.request(SpawnSpec((b"x",), streams=(5, 6, 7), pass_fds=(8,)), Ambient, None)
    assert message[6:8] == ((1, 2, 3), ((4, 8),))
    message = flows.request(SpawnSpec((b"x",), streams=(wire.PIPE, wire.PIPE, wire.STDOUT)), Ambient, None)
    assert message[6] == (wire.PIPE, wire.PIPE, wire.STDOUT)
    message = flows.request(SpawnSpec((b"x",), streams=(wire.NULL, 0, 0)), Ambient, None)
    assert message[6] == (wire.NULL, 1, 2)


def test_a_request_says_what_was_asked():
    """Each field is where the protocol has it; umask and ignored signals are the application's and the caller's."""
    spec = SpawnSpec((b"x",), b"exe", {b"A": b"1"}, b"/d", (0, 1, 2), (), b"in", 3, 5, 0o77, (1,), (1, 2))
    assert flows.request(spec, Ambient, "carried") == (
        wire.SPAWN, (b"x",), b"exe", "carried", {b"A": b"1"}, b"/d", (1, 2, 3), (), b"in", 3, 5, 0o77, (1, 13), (1, 2),
    )  # fmt: skip
    plain = flows.request(SpawnSpec((b"x",)), Ambient, None)
    assert plain[11:13] == (0o22, (13,))
    assert flows.request(SpawnSpec((b"x",), umask=0), Ambient, None)[11] == 0


def test_the_ambient_goes_once_on_a_connection(stage):
    """What the connection has already is not sent again; the descriptors come in the order of the message."""
    for expected in (Ambient.carried, None):
        flows.send_request(stage.connection, SpawnSpec((b"x",), streams=(wire.NULL, wire.NULL, wire.NULL)), Ambient)
        (message,) = stage.heard()
        assert message[3] == expected
    assert stage.connection.ambient is Ambient.carried


@pytest.mark.parametrize(
    ("streams", "count"),
    [((wire.NULL, 0, wire.NULL), 2), ((wire.PIPE, 0, 0), 3), ((0, 0, 0), 4), ((wire.NULL,) * 3, 1)],
)
def test_each_stream_that_is_a_descriptor_goes_along(stage, streams, count):
    """Also 0 in the place of another one."""
    flows.send_request(stage.connection, SpawnSpec((b"x",), streams=streams), Ambient)
    _, fds, _, _ = socket.recv_fds(stage.theirs, 65536, 16)
    for fd in fds:
        os.close(fd)
    assert len(fds) == count


@pytest.mark.parametrize("closed", [None, 0, 2])
@pytest.mark.parametrize("error", [False, True])
def test_the_own_streams_are_looked_at(stage, monkeypatch, closed, error):
    """What the application would not hand down is /dev/null in the request: closed, or not inheritable."""

    def look(fd):
        if fd == closed and error:
            raise OSError(errno.EBADF, "closed")
        return fd != closed

    monkeypatch.setattr(flows.os, "get_inheritable", look)
    flows.send_request(stage.connection, SpawnSpec((b"x",)), Ambient)
    monkeypatch.undo()
    (message,) = stage.heard()
    assert message[6] == {None: (1, 2, 3), 0: (wire.NULL, 1, 2), 2: (1, 2, wire.NULL)}[closed]


def test_the_directory_comes_first(stage, tmp_path, monkeypatch):
    """The first descriptor is the current directory; closed again here, whatever happens."""
    monkeypatch.chdir(tmp_path)
    read_fd, write_fd = os.pipe()
    spec = SpawnSpec((b"x",), streams=(read_fd, wire.NULL, wire.NULL), pass_fds=(write_fd,))
    before = len(os.listdir("/proc/self/fd"))
    flows.send_request(stage.connection, spec, Ambient)
    assert len(os.listdir("/proc/self/fd")) == before
    _, fds, _, _ = socket.recv_fds(stage.theirs, 65536, 16)
    assert [os.readlink(f"/proc/self/fd/{fd}") for fd in fds] == [
        str(tmp_path), os.readlink(f"/proc/self/fd/{read_fd}"), os.readlink(f"/proc/self/fd/{write_fd}"),
    ]  # fmt: skip
    for fd in (*fds, read_fd, write_fd):
        os.close(fd)


def test_a_request_that_cannot_be_sent_is_told(stage):
    """A descriptor that is closed is the caller's error; a zygote that is gone is passed on as it is."""
    before = len(os.listdir("/proc/self/fd"))
    spec = SpawnSpec((b"x",), streams=(wire.NULL, wire.NULL, wire.NULL), pass_fds=(PIDFD,))
    with pytest.raises(errors.SpawnError) as caught:
        flows.send_request(stage.connection, spec, Ambient)
    assert (caught.value.errno, caught.value.stage, caught.value.argv) == (errno.EBADF, "fds", (b"x",))
    stage.theirs.close()
    with pytest.raises(BrokenPipeError):
        flows.send_request(stage.connection, SpawnSpec((b"x",), streams=(wire.NULL,) * 3), Ambient)
    assert len(os.listdir("/proc/self/fd")) == before - 1
    assert stage.connection.ambient is None


@pytest.mark.parametrize(
    ("number", "stage_name"), [(errno.EMFILE, "fds"), (errno.ENFILE, "fds"), (errno.ENOENT, "cwd")]
)
def test_no_current_directory(stage, monkeypatch, number, stage_name):
    """Where it cannot be opened, errno says whether descriptors are short or the directory is gone."""

    def refuse(path, flags):
        assert (path, flags) == (".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(flows.os, "open", refuse)
    with pytest.raises(errors.SpawnError) as caught:
        flows.send_request(stage.connection, SpawnSpec((b"x",)), Ambient)
    monkeypatch.undo()
    assert (caught.value.errno, caught.value.stage, caught.value.filename) == (number, stage_name, ".")
    assert caught.value.argv == (b"x",)


@pytest.mark.parametrize("closed", [(), (0,), (1, 2), (0, 1, 2)])
def test_a_standard_stream_that_is_not_inherited_is_null(monkeypatch, closed):
    """Each of the application's own that no child would have is replaced, and no other stream."""
    monkeypatch.setattr(flows, "is_inheritable", lambda fd: fd not in closed)
    spec = SpawnSpec((b"x",))
    expected = tuple(wire.NULL if fd in closed else fd for fd in (0, 1, 2))
    assert flows.handed_down(spec).streams == expected
    assert (flows.handed_down(spec) is spec) == (not closed)
    other = SpawnSpec((b"x",), streams=(wire.PIPE, 7, 1))
    assert flows.handed_down(other) is other


def test_who_would_inherit_a_descriptor():
    """One that is open and inheritable; not a closed one, nor one that Python opened."""
    read_fd, write_fd = os.pipe()
    os.set_inheritable(write_fd, True)
    assert [flows.is_inheritable(fd) for fd in (read_fd, write_fd, PIDFD)] == [False, True, False]
    os.close(read_fd)
    os.close(write_fd)


def test_a_killed_child_that_ends_late(stage):
    """Without a pidfd the zygote's word is all there is: it has its five seconds."""
    stage.zygote.stopped = True
    stage.play(flows.kill_flow(stage.child, whole=True), stage.silence, stage.say(*exited(9)))
    assert stage.child.returncode == -9
    assert stage.zygote.told == ["suspect"]
    assert signals_heard(stage) == [("SIGKILL", True)]


def test_a_late_start_whose_answer_cannot_be_read(stage, monkeypatch):
    """Is given up."""

    def refuse(_self):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(type(stage.connection), "receive", refuse)
    stage.play(flows.unanswered_flow(stage.child), stage.nothing)


def test_a_pidfd_may_be_any_number(stage, signalled, monkeypatch):
    """0 is one, in a program whose stdin is closed."""
    monkeypatch.setattr(flows, "kept_status", lambda _: None)
    child = stage.child
    child.pidfd = 0
    flows.tell(child, signal.SIGHUP, whole=False)
    with pytest.raises(errors.SpawnLost):
        stage.play(flows.lost_flow(child))
    assert signalled == [(0, signal.SIGHUP), (0, signal.SIGKILL)]
    stage.zygote.stopped = True
    with pytest.raises(errors.Unkillable):
        stage.play(flows.kill_flow(child, whole=False), stage.silence, stage.silence)
    assert stage.play(flows.exit_flow(child, BEGAN + 20), stage.silence, stage.silence) is False
    assert stage.watched[-1] == {stage.connection.fileno(), 0}
    closed = []
    monkeypatch.setattr(flows.os, "close", closed.append)
    child.close()
    child.close()
    monkeypatch.undo()
    assert (closed, child.pidfd) == ([0], -1)
