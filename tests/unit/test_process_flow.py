"""A process that is held, against a scripted zygote: who reads its end, who waits for that, what is kept and let go."""

import os
import signal
import warnings

import pytest

from safespawn import errors
from safespawn._core import child as child_flows
from safespawn._core import process as flows
from safespawn._core.process import Process
from safespawn._core.spec import SpawnSpec
from safespawn._core.transfer import Drain, Streams
from safespawn._zygote import wire
from support.stage import BEGAN, Lender, Stage, is_open, null_fds

USAGE = tuple(range(16))


class Engine(Lender):
    """Says whether a process has ended, and writes down what becomes of connections and processes."""

    def __init__(self):
        super().__init__()
        self.ended = False

    def is_readable(self, fd):
        assert isinstance(fd, int)
        return self.ended

    def adopt(self, process):
        self.log.append(("adopted", process.pid))


@pytest.fixture
def stage(monkeypatch):
    """A child that runs, as pid 77, with a descriptor in the place of its pidfd."""
    made = Stage()
    monkeypatch.setattr(flows, "time", made.clock)
    monkeypatch.setattr(child_flows, "time", made.clock)
    monkeypatch.setattr(flows, "holders", lambda fds: tuple(range(len(fds))))
    made.child.pid, (made.child.pidfd,) = 77, null_fds(1)
    yield made
    made.close()


@pytest.fixture
def process(stage):
    """The process of that child."""
    made = Process(Engine(), SpawnSpec((b"tool",)), ["tool"])
    made.child = stage.child
    return made


def exited(status=0, usage=USAGE):
    """The zygote's word of an exit."""
    return (wire.EXITED, 77, status, usage, None)


def ends(process, step):
    """The process ends, and then the step is done."""

    def both(interest, deadline):
        process.engine.ended = True
        return step(interest, deadline)

    return both


# --- waiting ----------------------------------------------------------------------------------------------------------
def test_a_wait_ends_with_the_process(stage, process):
    """The pidfd is waited for, then the zygote's word, then the reaping; then everything is let go."""
    pidfd = stage.child.pidfd
    stage.now += 2.0

    def later(interest, deadline):
        stage.now += 1.0  # what the reaping takes is none of its time
        return stage.say(wire.RELEASED, USAGE)(interest, deadline)

    steps = [
        stage.ready(pidfd),  # it looked so
        ends(process, stage.ready(pidfd)),
        stage.say(*exited(256, None)),
        later,
    ]
    assert stage.play(process.wait_flow(None, None), *steps) == 1
    assert stage.watched[:2] == [{pidfd}, {pidfd}]
    assert stage.heard() == [(wire.RELEASE,)]
    assert (process.returncode, process.usage, process.duration) == (1, USAGE, 2.0)
    assert process.engine.log == ["given back"]
    assert process.is_over
    assert not is_open(pidfd)
    assert process._claim == []
    assert stage.play(process.wait_flow(None, None)) == 1
    assert stage.play(process.poll_flow()) == 1


def test_a_child_that_cannot_be_reaped_takes_its_connection_along(stage, process):
    """What it used is not known; how it ended, is."""
    process.engine.ended = True
    assert stage.play(process.wait_flow(None, None), stage.say(*exited(0, None)), stage.silence) == 0
    assert process.usage is None
    assert process.engine.log == ["discarded"]


def test_a_deadline_lets_it_run_on(stage, process):
    """It can be waited for again; nothing was let go."""
    for timeout in (0.5, 0.0):
        with pytest.raises(errors.TimeoutExpired) as caught:
            stage.play(process.wait_flow(timeout, BEGAN + 0.5), stage.silence)
        assert (caught.value.cmd, caught.value.timeout, caught.value.pid) == (["tool"], timeout, 77)
    assert stage.waits == [0.5, 0.5]
    assert (process.is_over, process.engine.log, is_open(stage.child.pidfd)) == (False, [], True)
    process.engine.ended = True
    assert stage.play(process.wait_flow(None, None), stage.say(*exited(0))) == 0


def test_who_has_ended_at_the_deadline_is_not_late(stage, process):
    """The status, which is known to be there, is read; unless the zygote does not tell it."""
    steps = [ends(process, stage.silence), stage.say(*exited(9))]
    assert stage.play(process.wait_flow(0.5, BEGAN + 0.5), *steps) == -9


def test_a_zygote_that_does_not_tell_in_time(stage, process):
    """Is a timeout as well, and the next one may ask again."""
    process.engine.ended = True
    for timeout in (0.5, 0.0):
        with pytest.raises(errors.TimeoutExpired) as caught:
            stage.play(process.wait_flow(timeout, BEGAN + 0.5), stage.silence)
        assert (caught.value.cmd, caught.value.timeout, caught.value.pid) == (["tool"], timeout, 77)
    assert (process.engine.log, process.is_over) == ([], False)
    assert len(process._claim) == 1
    assert stage.play(process.wait_flow(None, None), stage.say(*exited(0))) == 0


def test_one_reads_and_the_others_wait_for_that(stage, process):
    """A second one looks again every two milliseconds, and no later than at its deadline."""
    process.engine.ended = True
    first = process.wait_flow(None, None)
    next(first)
    second = process.wait_flow(0.003, BEGAN + 0.003)
    with pytest.raises(errors.TimeoutExpired):
        stage.play(second, stage.silence, stage.silence)
    assert stage.waits == [0.002, 0.003]
    third = process.wait_flow(None, None)
    assert next(third) == ({}, pytest.approx(BEGAN + 0.005))
    assert third.send({})[0] == {}
    pidfd = stage.child.pidfd
    with pytest.raises(StopIteration):
        first.send(stage.say(*exited(0))({stage.connection.fileno(): 1}, None))
    assert is_open(pidfd)  # the third may be about to look at it
    with pytest.raises(StopIteration) as end:
        third.send({})
    assert end.value.value == 0
    assert not is_open(pidfd)
    assert process.engine.log == ["given back"]


def test_an_interrupted_reader_lets_another_one_read(stage, process):
    """Whether it was interrupted or given up."""
    process.engine.ended = True
    for interrupt in (KeyboardInterrupt, GeneratorExit):
        flow = process.wait_flow(None, None)
        next(flow)
        with pytest.raises(interrupt):
            flow.throw(interrupt())
        assert not process.is_over
        assert len(process._claim) == 1
    assert stage.play(process.wait_flow(None, None), stage.say(*exited(0))) == 0


def test_what_can_never_be_known_is_said_each_time(stage, process):
    """As a copy; the connection is closed, the pidfd too, and signals go nowhere."""
    process.engine.ended = True
    pidfd = stage.child.pidfd
    stage.zygote.keeps = True
    with pytest.raises(errors.SpawnLost) as first:
        stage.play(process.wait_flow(None, None), stage.hang_up)
    assert process.engine.log == ["discarded"]
    assert process.is_over
    assert not is_open(pidfd)
    streams = Streams(None, (None, None))
    again = [
        process.wait_flow(None, None),
        process.poll_flow(),
        process.communicate_flow(streams, timeout=None, deadline=None, wait_eof=False),
    ]
    for flow in again:
        with pytest.raises(errors.SpawnLost) as later:
            next(flow)
        assert later.value is not first.value
        assert later.value is not process.failure
    process.send_signal(signal.SIGTERM)
    for flow in (process.stop_flow(whole=True, grace=1.0), process.settle_flow()):
        stage.play(flow)


# --- polling ----------------------------------------------------------------------------------------------------------
def test_a_poll_does_not_wait_for_who_runs(stage, process):
    """None; and who has ended has 50 milliseconds for the zygote's word."""
    assert stage.play(process.poll_flow()) is None
    process.engine.ended = True
    assert stage.play(process.poll_flow(), stage.silence) is None
    assert stage.waits == [0.05]
    assert stage.play(process.poll_flow(), stage.say(*exited(15))) == -15


def test_a_poll_says_what_is_lost(stage, process):
    """None would say that it runs."""
    process.engine.ended = True
    stage.zygote.keeps = True
    with pytest.raises(errors.SpawnLost):
        stage.play(process.poll_flow(), stage.hang_up)
    with pytest.raises(errors.SpawnLost):
        stage.play(process.poll_flow())


@pytest.mark.parametrize("lost", [False, True])
def test_the_end_is_taken_down_for_later(stage, process, lost):
    """Its status, or that it is lost, is known afterwards; a second time nothing is waited for."""
    stage.zygote.keeps = True
    stage.play(process.settle_flow(), stage.hang_up if lost else stage.say(*exited(0)))
    assert (process.returncode, process.failure is not None) == ((None, True) if lost else (0, False))
    assert stage.waits == [0.05]
    stage.play(process.settle_flow())
    stage.play(Process(Engine(), SpawnSpec((b"x",)), []).settle_flow())


# --- signals and the end ----------------------------------------------------------------------------------------------
def test_a_signal_goes_to_the_pidfd(stage, process, monkeypatch):
    """Who is gone by then is no error, who is somebody else's is; after the exit nothing is sent."""
    sent, refused = [], [PermissionError(), ProcessLookupError()]

    def send(fd, number):
        sent.append((fd, number))
        if number == signal.SIGHUP:
            raise refused.pop()

    monkeypatch.setattr(flows.signal, "pidfd_send_signal", send)
    pidfd = stage.child.pidfd
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(PermissionError):
        process.send_signal(signal.SIGHUP)
    assert sent == [(pidfd, signal.SIGTERM)] + [(pidfd, signal.SIGHUP)] * 2
    process.engine.ended = True
    stage.play(process.wait_flow(None, None), stage.say(*exited(0)))
    process.send_signal(signal.SIGTERM)
    assert len(sent) == 3
    Process(Engine(), SpawnSpec((b"x",)), []).send_signal(signal.SIGTERM)
    assert len(sent) == 3


def test_a_pidfd_is_kept_while_a_signal_is_sent(stage, process, monkeypatch):
    """Another thread that sees the exit in that moment does not close it; who sent last does."""
    pidfd = stage.child.pidfd
    seen = []

    def send(fd, number):
        process.returncode = None
        if number == signal.SIGTERM:
            process.send_signal(signal.SIGHUP)
        process.returncode = 0
        process._let_go()
        seen.append(is_open(fd))

    monkeypatch.setattr(flows.signal, "pidfd_send_signal", send)
    process.send_signal(signal.SIGTERM)
    assert seen == [True, True]
    assert not is_open(pidfd)


def test_a_pidfd_may_be_any_number(stage, process, monkeypatch):
    """0 is one, in a program whose stdin is closed."""
    sent = []
    monkeypatch.setattr(flows.signal, "pidfd_send_signal", lambda fd, number: sent.append((fd, number)))
    (spare,) = null_fds(1)
    os.close(spare)
    real, stage.child.pidfd = stage.child.pidfd, 0
    process.send_signal(signal.SIGTERM)
    assert sent == [(0, signal.SIGTERM)]
    assert next(process.wait_flow(None, None)) == ({0: 1}, None)
    assert not process.looks_ended()
    stage.child.pidfd = real


def test_a_copy_of_the_program_is_refused(process):
    """With both pids in the error."""
    process.owner_pid = 1
    with pytest.raises(errors.ForeignCopy, match="process 77") as caught:
        process.send_signal(signal.SIGTERM)
    assert (caught.value.owner_pid, caught.value.pid) == (1, os.getpid())


@pytest.mark.parametrize("whole", [True, False])
def test_a_stop(stage, process, monkeypatch, whole):
    """SIGTERM, its exit, its reaping; it is collected like any other."""
    sent = []
    monkeypatch.setattr(child_flows.signal, "pidfd_send_signal", lambda _fd, number: sent.append(number))

    def over(interest, deadline):
        process.engine.ended = True
        return stage.say(*exited(15, None))(interest, deadline)

    sweep = [stage.say(wire.SWEPT, 0)] if whole else []
    stage.play(process.stop_flow(whole=whole, grace=3.0), over, *sweep, stage.say(wire.RELEASED, USAGE))
    assert stage.waits[0] == 1.0
    assert (process.returncode, process.usage, process.engine.log) == (-15, USAGE, ["given back"])
    kills = [(m[1], m[2]) for m in stage.heard() if m[0] == wire.KILL]
    both = [signal.SIGTERM, signal.SIGCONT]
    assert (kills, sent) == (
        ([(number, True) for number in (*both, signal.SIGKILL)], []) if whole else ([], both)
    )  # fmt: skip
    stage.play(process.stop_flow(whole=whole, grace=3.0))


def test_a_stop_of_what_is_being_collected(stage, process):
    """It has ended: that one's end is waited for."""
    process.engine.ended = True
    reader = process.wait_flow(None, None)
    next(reader)
    flow = process.stop_flow(whole=True, grace=1.0)
    assert next(flow)[0] == {}
    with pytest.raises(StopIteration):
        reader.send(stage.say(*exited(0))({stage.connection.fileno(): 1}, None))
    with pytest.raises(StopIteration):
        flow.send({})
    assert stage.heard() == []


def test_a_stop_that_fails_is_kept(stage, process):
    """As what is raised whenever somebody asks."""
    stage.zygote.keeps = True
    with pytest.raises(errors.SpawnLost):
        stage.play(process.stop_flow(whole=True, grace=1.0), stage.hang_up)
    assert isinstance(process.failure, errors.SpawnLost)
    assert process.engine.log == ["discarded"]
    assert stage.child.pidfd == -1


# --- its streams ------------------------------------------------------------------------------------------------------
@pytest.fixture
def output(stage):
    """The streams of a process whose stdout is captured, and the end that it writes to."""
    read_fd, write_fd = os.pipe()
    streams = Streams(None, (Drain(read_fd), None))
    yield streams, read_fd, write_fd
    streams.close()
    if is_open(write_fd):
        os.close(write_fd)


def communicate(process, streams, *, timeout=None, wait_eof=False):
    """Its flow."""
    deadline = None if timeout is None else BEGAN + timeout
    return process.communicate_flow(streams, timeout=timeout, deadline=deadline, wait_eof=wait_eof)


def test_output_and_exit(stage, process, output):
    """Both ends are waited for, whichever comes first."""
    streams, read_fd, write_fd = output
    os.write(write_fd, b"out")

    def closed(interest, deadline):
        os.close(write_fd)
        return stage.ready(read_fd)(interest, deadline)

    steps = [
        stage.ready(read_fd),
        ends(process, stage.ready(stage.child.pidfd)),
        stage.say(*exited(0)),
        closed,
    ]
    assert stage.play(communicate(process, streams), *steps) == ()
    assert streams.drains[0].result() == b"out"
    assert process.returncode == 0
    assert stage.waits == [None, None, 1.0, 0.2]


def test_the_exit_after_the_output(stage, process, output):
    """When nothing is left to move, the exit alone is waited for."""
    streams, read_fd, write_fd = output
    os.close(write_fd)
    pidfd = stage.child.pidfd
    steps = [stage.ready(read_fd), ends(process, stage.ready(pidfd)), stage.say(*exited(0))]
    assert stage.play(communicate(process, streams), *steps) == ()
    assert stage.watched[1] == {pidfd}
    assert stage.child.pidfd == -1


def test_a_deadline_while_the_zygote_is_late(stage, process):
    """All that was printed on both streams is in the error, and the deadline is kept."""
    ends_of = [os.pipe() for _ in range(2)]
    streams = Streams(None, tuple(Drain(read_fd) for read_fd, _ in ends_of))
    for (_, write_fd), text in zip(ends_of, (b"out", b"err"), strict=True):
        os.write(write_fd, text)
    steps = [
        stage.ready(ends_of[0][0]),
        stage.ready(ends_of[1][0]),
        ends(process, stage.ready(stage.child.pidfd)),
        stage.silence,
    ]
    with pytest.raises(errors.TimeoutExpired) as caught:
        stage.play(communicate(process, streams, timeout=0.5), *steps)
    assert (caught.value.output, caught.value.stderr, caught.value.timeout) == (b"out", b"err", 0.5)
    assert stage.waits[-1] == 0.5
    process.engine.ended = False
    flow = process.communicate_flow(streams, timeout=0.0, deadline=BEGAN, wait_eof=False)
    with pytest.raises(errors.TimeoutExpired) as caught:
        stage.play(flow, stage.silence)
    assert (caught.value.output, caught.value.stderr, caught.value.timeout) == (b"out", b"err", 0.0)
    streams.close()
    for _, write_fd in ends_of:
        os.close(write_fd)


@pytest.mark.parametrize("wait_eof", [False, True])
def test_output_that_somebody_else_holds(stage, process, output, wait_eof):
    """It has 0.2 seconds after the exit, and its holders are told; with wait_eof only a deadline ends the wait."""
    streams, _, _ = output
    steps = [ends(process, stage.ready(stage.child.pidfd)), stage.say(*exited(0)), stage.silence]
    if wait_eof:
        with pytest.raises(errors.TimeoutExpired) as caught:
            stage.play(communicate(process, streams, timeout=3.0, wait_eof=True), *steps)
        assert (caught.value.output, caught.value.stderr, caught.value.pid) == (b"", None, 77)
        assert stage.waits == [3.0, 1.0, 3.0]
    else:
        assert stage.play(communicate(process, streams), *steps) == (0,)
        assert stage.waits == [None, 1.0, 0.2]


@pytest.mark.parametrize("kind", ["wait", "communicate"])
def test_each_who_waits_is_counted(process, output, kind):
    """The pidfd stays open until the last one has left."""

    def start():
        return process.wait_flow(None, None) if kind == "wait" else communicate(process, output[0])

    flows_of = [start(), start()]
    for left, flow in zip((1, 2), flows_of, strict=True):
        next(flow)
        assert len(process._waiters) == left
    for left, flow in zip((1, 0), flows_of, strict=True):
        flow.close()
        assert len(process._waiters) == left


def test_a_deadline_has_the_output_so_far(stage, process, output):
    """And keeps it for the next call; the process runs on."""
    streams, read_fd, write_fd = output
    os.write(write_fd, b"so far")
    with pytest.raises(errors.TimeoutExpired) as caught:
        stage.play(communicate(process, streams, timeout=0.5), stage.ready(read_fd), stage.silence)
    assert (caught.value.output, caught.value.timeout, caught.value.cmd) == (b"so far", 0.5, ["tool"])
    assert streams.drains[0].result() == b"so far"
    assert not process.is_over
    assert process.engine.log == []


def test_a_deadline_while_only_the_exit_is_awaited(stage, process, output):
    """What has been printed is in the error here too."""
    streams, read_fd, write_fd = output
    os.write(write_fd, b"all")
    os.close(write_fd)
    steps = [stage.ready(read_fd), stage.ready(read_fd), stage.silence]
    with pytest.raises(errors.TimeoutExpired) as caught:
        stage.play(communicate(process, streams, timeout=0.5), *steps)
    assert (caught.value.output, caught.value.stderr, caught.value.timeout) == (b"all", None, 0.5)


# --- its owner is gone ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("ended", "detached", "warned"), [(False, False, 1), (True, False, 0), (False, True, 0)])
def test_a_forgotten_process_is_adopted(stage, process, ended, detached, warned):
    """One that runs on, and was not to outlive us, is told of."""
    process.engine.ended = ended
    process.spec.detached = detached
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        process.forget(self_made := object(), ["tool"])
    assert len(found) == warned
    assert all(each.category is ResourceWarning and each.source is self_made for each in found)
    assert all("process 77 is still running: ['tool']" in str(each.message) for each in found)
    assert process.engine.log == [("adopted", 77)]


def test_a_process_that_runs_on_is_adopted(stage, process):
    """As long as nothing is known of its end."""
    process.be_forgotten()
    assert process.engine.log == [("adopted", 77)]
    assert is_open(stage.child.pidfd)


def test_a_process_that_is_not_to_run_on_ends(stage, process):
    """By the end of its connection; whoever asks later is told that it is closed."""
    pidfd = stage.child.pidfd
    process.runs_on = False
    process.be_forgotten()
    assert process.engine.log == ["discarded"]
    assert not is_open(pidfd)
    with pytest.raises(errors.ClosedError, match="process 77"):
        next(process.wait_flow(None, None))
    process.be_forgotten()
    process.abandon()
    process.forget(None, None)
    assert process.engine.log == ["discarded"]


def test_a_process_that_is_being_collected_is_not_abandoned(process):
    """Whoever reads its end goes on reading."""
    process._claim.pop()
    process.abandon()
    assert process.engine.log == []
    assert process.failure is None


def test_what_has_not_started():
    """It has no pid, and nothing to collect."""
    process = Process(Engine(), SpawnSpec((b"x",)), [])
    assert (process.pid, process.is_over, process.looks_ended()) == (0, True, True)
    assert (process.returncode, process.duration, process.usage, process.failure) == (None, None, None, None)
    assert process.owner_pid == os.getpid()
    process.be_forgotten()
    process.abandon()
    list(process.stop_flow(whole=True, grace=1.0))
    assert process.engine.log == []


def test_a_start(stage, process, monkeypatch):
    """It is asked of the engine, without a deadline; the child is held then, and its pipes are the caller's."""
    asked = []

    def launch(*what, **how):
        asked.append((what, how))
        return stage.child, [5, 6]
        yield

    monkeypatch.setattr(flows, "launch_flow", launch)
    process.child = None
    assert stage.play(process.start_flow(patient=True)) == [5, 6]
    assert process.child is stage.child
    assert asked == [((process.engine, process.spec, None), {"patient": True})]
