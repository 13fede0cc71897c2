"""A whole command against a scripted zygote: which bound ends it, what becomes of its connection, what it comes to."""

import errno
import os
import signal
import sys

import pytest

from safespawn import errors
from safespawn._core import child as child_flows
from safespawn._core import command as flows
from safespawn._core.child import Child
from safespawn._core.command import CommandOptions
from safespawn._core.flow import DeadlinePassed
from safespawn._core.spec import SpawnSpec
from safespawn._core.status import CompletedProcess, decode_status, encode_status, struct_rusage
from safespawn._core.transfer import Streams
from safespawn._zygote import wire
from support.stage import BEGAN, Lender, Stage, count_of, link, null_fds

USAGE = tuple(range(16))
PIPE, NULL = wire.PIPE, wire.NULL


class Ambient:
    """What a child takes from the application."""

    carried = ({}, (), (), 0, 0)
    umask = 0o22
    ignored = ()


class Engine(Lender):
    """Lends the connections that it was given, and writes down what becomes of them."""

    def __init__(self, *stages, waits=False):
        self.stock = [stage.connection for stage in stages]
        self.waits = waits
        super().__init__()

    def lease_nowait(self, *, detached=False):
        if self.waits:
            return None
        self.log.append(("leased", detached))
        return self.stock.pop(0), Ambient

    def lease_flow(self, *, detached=False, deadline=None, patient=False):
        self.log.append(("leased late", detached, deadline, patient))
        return self.stock.pop(0), Ambient
        yield

    def discard(self, connection):
        super().discard(connection)
        connection.close()


@pytest.fixture
def stage(monkeypatch):
    """A zygote, and the clock of all that is played."""
    made = Stage()
    monkeypatch.setattr(flows, "time", made.clock)
    monkeypatch.setattr(child_flows, "time", made.clock)
    monkeypatch.setattr(child_flows, "handed_down", lambda spec: spec)
    monkeypatch.setattr(flows, "holders", lambda fds: tuple(range(len(fds))))
    yield made
    made.close()


def started(stage, *fds):
    """The command runs; its pidfd is something that is open."""
    return stage.say(wire.STARTED, 77, 0, fds=(*null_fds(1), *fds))


def exited(status=0, outputs=None):
    """The zygote's word of an exit."""
    return (wire.EXITED, 77, status, USAGE, outputs)


def run(stage, *steps, spec=None, engine=None, **options):
    """A command, and the engine that it was run on."""
    spec = spec or SpawnSpec((b"tool",), streams=(NULL, NULL, NULL))
    engine = engine or Engine(stage)
    options.setdefault("args", ["tool"])
    return stage.play(flows.command_flow(engine, spec, CommandOptions(**options)), *steps), engine


def pipe_with(data, *, closed=True):
    """The read end of a pipe with that in it, and the write end, unless that is closed."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, data)
    if closed:
        os.close(write_fd)
        return read_fd, -1
    return read_fd, write_fd


# --- the result -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("streams", "outputs", "expected"),
    [
        ((NULL, NULL, NULL), None, (None, None)),
        ((NULL, PIPE, NULL), (b"out",), (b"out", None)),
        ((NULL, NULL, PIPE), (b"err",), (None, b"err")),
        ((NULL, PIPE, PIPE), (b"out", b"err"), (b"out", b"err")),
        ((NULL, PIPE, wire.STDOUT), (b"both",), (b"both", None)),
    ],
)
def test_a_command_that_is_over_before_it_is_announced(stage, streams, outputs, expected):
    """One answer is all that is waited for, and has all that it printed."""
    stage.now = BEGAN
    outcome, engine = run(stage, stage.say(*exited(256, outputs)), spec=SpawnSpec((b"x",), streams=streams))
    assert (outcome.stdout, outcome.stderr) == expected
    assert (outcome.returncode, outcome.pid, outcome.duration, outcome.usage, outcome.held_by) == (
        1,
        77,
        0.0,
        USAGE,
        (),
    )
    assert engine.log == [("leased", False), "given back"]
    assert stage.zygote.starting == set()


def test_a_command_without_pipes_waits_for_its_exit(stage):
    """Its connection is returned, its pidfd closed."""
    spec = SpawnSpec((b"tool",), streams=(NULL, NULL, NULL), detached=True)
    engine = Engine(stage, waits=True)
    before = count_of(os.devnull)
    outcome, _ = run(
        stage, started(stage), stage.say(*exited(9)), spec=spec, engine=engine, patient=True, deadline=BEGAN + 30
    )
    assert outcome[:4] == (-9, None, None, 77)
    assert engine.log == [("leased late", True, BEGAN + 30, True), "given back"]
    assert count_of(os.devnull) == before


def test_output_and_exit(stage):
    """What was printed is whole when the exit comes first, and when it comes last."""
    for exit_first in (True, False):
        out, _ = pipe_with(b"out")
        err, _ = pipe_with(b"err")
        names = link(out), link(err)
        spec = SpawnSpec((b"x",), streams=(NULL, PIPE, PIPE), detached=exit_first)
        outputs = [stage.ready(out), stage.ready(out), stage.ready(err), stage.ready(err)]
        steps = [stage.say(*exited(0)), *outputs] if exit_first else [*outputs, stage.say(*exited(0))]
        outcome, engine = run(stage, started(stage, out, err), *steps, spec=spec)
        assert (outcome.stdout, outcome.stderr, outcome.held_by) == (b"out", b"err", ())
        assert engine.log == [("leased", exit_first), "given back"]
        assert list(map(count_of, names)) == [0, 0]
        assert set(stage.waits[1:]) == ({1.0, 0.2} if exit_first else {1.0})
        del stage.waits[:]


def test_output_that_somebody_else_holds(stage):
    """It has 0.2 seconds after the exit; then it is left, and who holds it is told."""
    out, held = pipe_with(b"out", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    steps = [stage.ready(out), stage.say(*exited(0)), stage.silence]
    outcome, engine = run(stage, started(stage, out), *steps, spec=spec)
    assert (outcome.stdout, outcome.held_by) == (b"out", (0,))
    assert stage.waits[-1] == 0.2
    assert engine.log[-1] == "given back"
    assert count_of(link(held)) == 1
    os.close(held)


def test_output_that_is_waited_for(stage):
    """With wait_eof only its end counts."""
    out, held = pipe_with(b"out", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))

    def late(interest, _deadline):
        stage.now += 50
        os.close(held)
        return dict.fromkeys(interest, 1)

    steps = [started(stage, out), stage.ready(out), stage.say(*exited(0)), stage.silence, late]
    outcome, _ = run(stage, *steps, spec=spec, wait_eof=True)
    assert (outcome.stdout, outcome.held_by, outcome.duration) == (b"out", (), 0.0)
    assert stage.waits == [1.0, 1.0, 1.0, 1.0, None]


# --- what ends it -----------------------------------------------------------------------------------------------------
def signals_heard(stage):
    """The signals that the zygote was asked for."""
    return [(signal.Signals(m[1]).name, m[2]) for m in stage.heard() if m[0] == wire.KILL]


@pytest.mark.parametrize("kill_tree", [True, False])
def test_a_deadline_kills(stage, kill_tree):
    """SIGKILL, what was printed until then, and the connection is not used again."""
    out, _ = pipe_with(b"so far")
    name = link(out)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    engine = Engine(stage)
    steps = [started(stage, out), stage.silence]
    if kill_tree:
        steps += [stage.say(*exited(9)), stage.ready(out), stage.ready(out)]
        with pytest.raises(errors.TimeoutExpired) as caught:
            run(stage, *steps, spec=spec, engine=engine, timeout=0.5, deadline=BEGAN + 0.5, kill_tree=True)
        assert (caught.value.output, caught.value.stderr, caught.value.held_by) == (b"so far", None, ())
        assert stage.waits[-1] == 0.7
        assert signals_heard(stage) == [("SIGKILL", True)]
    else:
        sent = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(child_flows.signal, "pidfd_send_signal", lambda _fd, number: sent.append(number))
            with pytest.raises(errors.TimeoutExpired) as caught:
                run(stage, *steps, stage.say(*exited(9)), stage.silence, spec=spec, engine=engine, timeout=0.5,
                    deadline=BEGAN + 0.5, kill_tree=False)  # fmt: skip
        assert sent == [signal.SIGKILL]
        assert caught.value.held_by == (0,)
        assert caught.value.output == b""
    assert (caught.value.cmd, caught.value.timeout, caught.value.pid) == (["tool"], 0.5, 77)
    assert engine.log[-1] == "discarded"
    assert count_of(name) == 0


def test_a_command_that_outlives_its_deadline_and_sigkill(stage):
    """What came of the kill is said in the timeout, with all that was printed."""
    out, held = pipe_with(b"out", closed=False)
    err, also_held = pipe_with(b"err", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, PIPE))
    stage.zygote.stopped = True
    steps = [started(stage, out, err), stage.ready(out), stage.ready(err), *[stage.silence] * 4]
    with pytest.raises(errors.TimeoutExpired) as caught:
        run(stage, *steps, spec=spec, timeout=0.0, deadline=BEGAN + 0.5)
    assert (caught.value.output, caught.value.stderr) == (b"out", b"err")
    assert (caught.value.held_by, caught.value.timeout) == ((0, 1), 0.0)
    assert "process 77 is still there 5 s after SIGKILL" in caught.value.known
    os.close(held)
    os.close(also_held)


def test_too_much_output_after_the_deadline(stage):
    """Is cut, and the timeout is what is told."""
    out, _ = pipe_with(b"0123456789")
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    steps = [started(stage, out), stage.silence, stage.say(*exited(9)), stage.ready(out)]
    with pytest.raises(errors.TimeoutExpired) as caught:
        run(stage, *steps, spec=spec, timeout=0.5, deadline=BEGAN + 0.5, max_output_bytes=4)
    assert caught.value.output == b"0123"


def test_a_deadline_after_the_exit_ends_the_rest(stage):
    """Who holds the output is killed with the tree, and told if it is still there."""
    out, held = pipe_with(b"", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    steps = [started(stage, out), stage.say(*exited(0)), stage.silence, stage.say(wire.SWEPT, 1), stage.silence]
    with pytest.raises(errors.TimeoutExpired) as caught:
        run(stage, *steps, spec=spec, timeout=0.5, deadline=BEGAN + 0.5, wait_eof=True)
    assert caught.value.held_by == (0,)
    assert (caught.value.output, caught.value.stderr) == (b"", None)
    os.close(held)


@pytest.mark.parametrize("timeout", [0.5, 0.0])
def test_a_deadline_before_the_start(stage, timeout):
    """It is a timeout like any other; what may have been started is killed."""
    engine = Engine(stage)
    with pytest.raises(errors.TimeoutExpired) as caught:
        run(stage, stage.silence, stage.silence, engine=engine, timeout=timeout, deadline=BEGAN + timeout)
    assert (caught.value.cmd, caught.value.timeout, caught.value.pid) == (["tool"], timeout, None)
    assert engine.log == [("leased", False), "discarded"]
    assert stage.zygote.starting == set()


def test_an_interruption_ends_the_command_first(stage):
    """SIGTERM, its grace, its exit; then it is raised, and the connection closed."""
    out, _ = pipe_with(b"")
    name = link(out)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    engine = Engine(stage)
    steps = [started(stage, out), KeyboardInterrupt(), stage.say(*exited(15)), stage.say(wire.SWEPT, 0)]
    with pytest.raises(KeyboardInterrupt):
        run(stage, *steps, spec=spec, engine=engine)
    assert engine.log[-1] == "discarded"
    assert count_of(name) == 0


@pytest.mark.parametrize(
    ("data", "name", "limit"),
    [
        ((b"0123456789", b""), "stdout", 4),
        ((b"01", b"0123456789"), "stderr", 4),
        ((b"0123", b"0123456789"), "stderr", 4),  # as much as is allowed is not too much
        ((b"0", b""), "stdout", 0),
    ],
)
def test_too_much_output_ends_the_command(stage, data, name, limit):
    """Which output it was, and what was kept of both, is told."""
    out, _ = pipe_with(data[0])
    err, _ = pipe_with(data[1])
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, PIPE))
    first = [] if name == "stdout" else [stage.ready(out)]
    last = [stage.ready(out if name == "stdout" else err), stage.say(*exited(15)), stage.say(wire.SWEPT, 0)]
    engine = Engine(stage)
    with pytest.raises(errors.OutputLimitExceeded) as caught:
        run(stage, started(stage, out, err), *first, *last, spec=spec, engine=engine, max_output_bytes=limit)
    assert (caught.value.stream, caught.value.limit_bytes, caught.value.pid) == (name, limit, 77)
    assert caught.value.cmd == ["tool"]
    assert (caught.value.stdout, caught.value.stderr) == (data[0][:limit], data[1][:limit])
    assert engine.log[-1] == "discarded"


# --- the kernel's word ------------------------------------------------------------------------------------------------
def test_the_pidfd_counts_after_a_second(stage):
    """While output comes too: the zygote's word is then due within five seconds."""
    out, held = pipe_with(b"", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))

    engine = Engine(stage)
    steps = [stage.silence, stage.ready_pidfd, stage.silence, stage.ready_pidfd, stage.silence]
    with pytest.raises(errors.ZygoteUnresponsive):
        run(stage, started(stage, out), *steps, spec=spec, engine=engine)
    assert list(map(len, stage.watched)) == [1, 2, 3, 1, 2, 1]
    assert stage.waits == [1.0, 1.0, None, 1.0, None, 6.0]
    assert engine.log[-1] == "discarded"
    os.close(held)


def test_a_deadline_counts_while_the_word_is_due(stage):
    """The caller does not wait longer than he said, for the status neither; the kill has bounds of its own."""
    out, held = pipe_with(b"", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    late = [stage.silence, stage.ready_pidfd, stage.silence, stage.ready_pidfd, stage.silence, stage.silence]
    steps = [started(stage, out), *late, stage.say(*exited(0)), stage.silence]
    with pytest.raises(errors.TimeoutExpired):
        run(stage, *steps, spec=spec, timeout=3.0, deadline=BEGAN + 3.0)
    assert stage.waits == [1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 3.0, 1.0, 3.2]
    os.close(held)


def test_a_deadline_without_any_output(stage):
    """The exit alone is waited for, no longer than that, and nothing was captured."""
    with pytest.raises(errors.TimeoutExpired) as caught:
        run(stage, started(stage), stage.silence, stage.say(*exited(9)), timeout=0.5, deadline=BEGAN + 0.5)
    assert stage.waits[1] == 0.5
    assert (caught.value.output, caught.value.stderr, caught.value.held_by) == (None, None, ())
    assert (caught.value.cmd, caught.value.pid) == (["tool"], 77)


def test_a_status_that_only_the_kernel_tells(stage, monkeypatch):
    """Is the end of the command too: what is held of its output has its grace from then on."""
    out, held = pipe_with(b"out", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    stage.zygote.keeps = True
    monkeypatch.setattr(child_flows, "kept_status", lambda _: 256)
    steps = [started(stage, out), stage.ready(out), stage.hang_up, stage.silence]
    outcome, _ = run(stage, *steps, spec=spec)
    assert (outcome.returncode, outcome.stdout, outcome.held_by, outcome.usage) == (1, b"out", (0,), None)
    assert stage.waits[-1] == 0.2
    os.close(held)


def test_a_pidfd_may_be_any_number(stage):
    """0 is one, in a program whose stdin is closed: it is watched when it counts, and closed."""
    kept = os.dup(0)
    out, held = pipe_with(b"", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    try:

        def start(interest, deadline):
            step = started(stage, out)
            os.close(0)
            return step(interest, deadline)

        steps = [start, stage.silence, stage.say(*exited(0)), stage.silence]
        run(stage, *steps, spec=spec)
        assert 0 in stage.watched[2]
        assert link(0) == ""
    finally:
        os.dup2(kept, 0)
        os.close(kept)
        os.close(held)


def test_a_zygote_that_dies_while_output_comes(stage):
    """Nothing is made up."""
    out, held = pipe_with(b"", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    stage.zygote.keeps = True
    with pytest.raises(errors.SpawnLost):
        run(stage, started(stage, out), stage.hang_up, spec=spec)
    os.close(held)


# --- the launch -------------------------------------------------------------------------------------------------------
def test_a_request_that_was_not_read_goes_to_the_next_zygote(stage):
    """After four that died before it the error of the last one is raised; each connection is closed."""
    dead = [stage.another() for _ in range(3)]
    for each in dead:
        each.theirs.close()
    outcome, engine = run(stage, stage.say(*exited(0)), engine=Engine(*dead, stage))
    assert outcome.returncode == 0
    assert engine.log == [("leased", False), "discarded"] * 3 + [("leased", False), "given back"]
    assert [each.zygote.told for each in dead] == [["died"]] * 3
    dead = [stage.another() for _ in range(4)]
    for each in dead:
        each.theirs.close()
    engine = Engine(*dead, stage)
    with pytest.raises(errors.SpawnLost) as caught:
        run(stage, engine=engine)
    assert caught.value.stage == "before start"
    assert engine.log == [("leased", False), "discarded"] * 4


def test_a_request_that_a_hanging_zygote_has_not_read_goes_to_the_next(stage):
    """It is taken back when that one is late, and can never be read any more."""
    hung = stage.another()
    outcome, engine = run(stage, stage.silence, stage.say(*exited(0)), engine=Engine(hung, stage))
    assert (outcome.returncode, outcome.duration) == (0, 0.0)
    assert engine.log == [("leased", False), "discarded", ("leased", False), "given back"]
    assert hung.zygote.told == ["suspect"]
    assert stage.waits == [1.0, 2.0]
    assert [each[0] for each in hung.heard()] == [wire.SPAWN]
    assert hung.theirs.recv(10) == b""


def test_a_request_that_has_been_read_is_not_taken_back(stage):
    """It may have run: this zygote is waited for."""

    def late(interest, deadline):
        assert len(stage.heard()) == 1
        return stage.silence(interest, deadline)

    outcome, engine = run(stage, late, stage.say(*exited(0)))
    assert outcome.returncode == 0
    assert engine.log == [("leased", False), "given back"]
    assert stage.waits == [1.0, 10.0]


def test_a_request_is_taken_back_three_times(stage):
    """The fourth zygote is the last, and has its ten seconds."""
    hung = [stage.another() for _ in range(3)]
    engine = Engine(*hung, stage)
    with pytest.raises(errors.ZygoteUnresponsive):
        run(stage, *[stage.silence] * 5, engine=engine)
    assert stage.waits == [1.0, 2.0, 3.0, 4.0, 13.0]
    assert engine.log == [("leased", False), "discarded"] * 4
    assert [each.zygote.told for each in hung] == [["suspect"]] * 3


@pytest.mark.parametrize(
    ("step", "log", "cls"),
    [
        (lambda s: s.say(wire.FAILED, "exec", errno.ENOENT, None), "given back", errors.CommandNotFound),
        (lambda s: s.say(wire.FAILED, "fds", errno.EMFILE, None), "discarded", errors.SpawnError),
        (lambda s: s.say(wire.FAILED, "receive", errno.EMFILE, None), "discarded", errors.SpawnError),
        (lambda s: s.say(wire.REFUSED, "?"), "discarded", errors.RemoteProtocolError),
        (lambda s: s.hang_up, "discarded", errors.SpawnLost),
    ],
)
def test_what_becomes_of_a_connection(stage, step, log, cls):
    """It is used again only when the zygote itself said that there is no child."""
    engine = Engine(stage)
    with pytest.raises(cls):
        run(stage, step(stage), engine=engine)
    assert engine.log == [("leased", False), log]
    assert stage.zygote.starting == set()


@pytest.mark.parametrize(
    ("number", "usable", "cls", "where"),
    [
        (errno.EMFILE, True, errors.SpawnError, "fds"),
        (errno.ENFILE, True, errors.SpawnError, "fds"),
        (errno.EAGAIN, True, errors.SpawnError, "zygote"),
        (errno.EACCES, True, errors.SpawnError, "zygote"),
        (errno.EACCES, False, errors.BootError, None),
        (errno.ENOENT, True, errors.BootError, None),
        (errno.ENOTDIR, True, errors.BootError, None),
    ],
)
def test_no_zygote_to_be_had(stage, monkeypatch, number, usable, cls, where):
    """Want of something is the start's failure; a missing interpreter, or /proc, is the library's."""
    monkeypatch.setattr(flows.os, "access", lambda path, mode: usable or (path, mode) != (sys.executable, os.X_OK))

    class Poor(Engine):
        def lease_nowait(self, **_):
            raise OSError(number, "none left")

    with pytest.raises(cls) as caught:
        run(stage, engine=Poor())
    if where is None:
        assert caught.value.executable == sys.executable
        assert "none left" in str(caught.value)
    else:
        assert (caught.value.errno, caught.value.stage) == (number, where)
        assert caught.value.argv == (b"tool",)


def test_a_deadline_that_passes_while_a_connection_is_awaited(stage):
    """It passes through: no child was asked for."""

    class Slow(Engine):
        def lease_flow(self, **_):
            raise DeadlinePassed
            yield

    with pytest.raises(errors.TimeoutExpired):
        run(stage, engine=Slow(waits=True), timeout=1.0)


# --- streams ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("streams", "count", "has_feed", "drains"),
    [
        ((PIPE, PIPE, PIPE), 3, True, (True, True)),
        ((PIPE, PIPE, PIPE), 2, False, (True, True)),  # the zygote has written the input itself
        ((PIPE, NULL, NULL), 0, False, (False, False)),
        ((PIPE, NULL, PIPE), 1, False, (False, True)),
        ((NULL, PIPE, NULL), 1, False, (True, False)),
        ((NULL, NULL, PIPE), 1, False, (False, True)),
        ((PIPE, NULL, NULL), 1, True, (False, False)),
    ],
)
def test_which_end_is_which(streams, count, has_feed, drains):
    """It is known from what was asked; the list that they came in is empty afterwards."""
    fds = null_fds(count)
    ends = list(fds)
    options = CommandOptions(["x"], input=b"in", max_output_bytes=5, keep_stdout=False)
    made = flows.connect(SpawnSpec((b"x",), streams=streams), ends, options)
    assert ends == []
    assert (made.feed is not None, tuple(each is not None for each in made.drains)) == (has_feed, drains)
    order = [made.feed, *made.drains]
    assert [each.fd for each in order if each is not None] == fds
    assert made.feed is None or made.feed._view == b"in"
    made.close()


def test_lines_are_of_stdout_and_stderr_is_kept():
    """Of stdout the lines are told, and nothing is kept unless that is wanted."""
    lines = []
    out, _ = pipe_with(b"one\nzw\xc3\xb6lf\n")
    err, _ = pipe_with(b"error\n")
    options = CommandOptions(["x"], on_line=lines.append, codec=("utf-8", "strict"), keep_stdout=False)
    made = flows.connect(SpawnSpec((b"x",), streams=(NULL, PIPE, PIPE)), [out, err], options)
    made.turn({out: 1, err: 1})
    assert made.feed is None
    assert lines == ["one", "zwölf"]
    assert flows.results(made) == (b"", b"error\n")
    assert flows.results(Streams(None, (None, None))) == (None, None)
    made.close()


def test_a_stdin_that_is_a_pipe_without_input():
    """Ends at once."""
    read_fd, write_fd = os.pipe()
    made = flows.connect(SpawnSpec((b"x",), streams=(PIPE, NULL, NULL)), [write_fd], CommandOptions(["x"]))
    assert not made.feed.write()
    assert os.read(read_fd, 1) == b""
    os.close(read_fd)


def test_what_a_child_comes_to(stage):
    """Its duration is from the request to the exit, or to now where that was not seen."""
    stage.now = 20.0
    child = Child(None, SpawnSpec((b"x",)), 10.0, status=0)
    assert flows.outcome(child, flows.NO_STREAMS, ()).duration == 10.0
    child = Child(
        None, SpawnSpec((b"x",), streams=(NULL, PIPE, PIPE)), 10.0, pid=7, ended=12.5, status=256, usage=USAGE
    )
    assert flows.outcome(child, flows.NO_STREAMS, (5,)) == (1, None, None, 7, 2.5, USAGE, (5,))


# --- how it ended -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("status", "code"), [(0, 0), (256, 1), (255 << 8, 255), (9, -9), (15, -15)])
def test_a_status_there_and_back(status, code):
    """The raw wait status and subprocess's number are made of each other."""
    assert decode_status(status) == code
    assert encode_status(code) == status


def test_a_result_says_what_is_known():
    """Fields by name, the usage as a record, the holders in the text only when there are any."""
    done = CompletedProcess(["x"], 3, b"o", b"e", pid=7, duration=1.5, usage=USAGE, held_by=(8, 9))
    assert (done.args, done.returncode, done.stdout, done.stderr) == (["x"], 3, b"o", b"e")
    assert (done.pid, done.duration, done.held_by) == (7, 1.5, (8, 9))
    assert tuple(done.rusage) == USAGE
    assert repr(done) == "CompletedProcess(args=['x'], returncode=3, stdout=b'o', stderr=b'e', held_by=(8, 9))"
    plain = CompletedProcess(["x"], 0)
    assert (plain.stdout, plain.stderr, plain.pid, plain.duration, plain.rusage, plain.held_by) == (
        None, None, 0, 0.0, None, (),
    )  # fmt: skip
    assert repr(plain) == "CompletedProcess(args=['x'], returncode=0)"
    plain.check_returncode()
    with pytest.raises(errors.CalledProcessError) as caught:
        done.check_returncode()
    error = caught.value
    assert (error.returncode, error.cmd, error.output, error.stderr) == (3, ["x"], b"o", b"e")
    assert (error.pid, error.duration, tuple(error.rusage)) == (7, 1.5, USAGE)
    assert struct_rusage(None) is None


# --- interruptions at bad moments -------------------------------------------------------------------------------------
def test_an_interruption_that_finds_the_zygote_dead(stage):
    """Is what the caller hears of, not that the command is lost; the connection is closed."""
    out, held = pipe_with(b"", closed=False)
    spec = SpawnSpec((b"x",), streams=(NULL, PIPE, NULL))
    engine = Engine(stage)
    stage.zygote.keeps = True
    with pytest.raises(KeyboardInterrupt):
        run(stage, started(stage, out), KeyboardInterrupt(), stage.hang_up, spec=spec, engine=engine)
    assert engine.log[-1] == "discarded"
    assert count_of(link(held)) == 1
    os.close(held)


def test_an_interruption_before_the_start_is_known(stage):
    """The connection is closed, which ends whatever comes of the request; it is not used for the next one."""
    engine = Engine(stage)
    flow = flows.command_flow(engine, SpawnSpec((b"x",), streams=(NULL, NULL, NULL)), CommandOptions(["x"]))
    next(flow)
    with pytest.raises(KeyboardInterrupt):
        flow.throw(KeyboardInterrupt())
    assert engine.log == [("leased", False), "discarded"]
    assert stage.zygote.starting == set()


def test_an_interruption_while_a_late_start_is_given_up(stage):
    """The deadline has passed, the kill is asked for; the connection is closed in any case."""
    engine = Engine(stage)
    flow = flows.command_flow(
        engine, SpawnSpec((b"x",), streams=(NULL, NULL, NULL)), CommandOptions(["x"], deadline=BEGAN + 0.5)
    )
    next(flow)
    stage.now = BEGAN + 0.5
    flow.send({})
    with pytest.raises(KeyboardInterrupt):
        flow.throw(KeyboardInterrupt())
    assert engine.log == [("leased", False), "discarded"]
