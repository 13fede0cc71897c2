"""What happens to supervised children, as records."""

import os

import attrs
import pytest

from safespawn._core import events, failpoints
from safespawn._core.dispatch import CALL, EACH, EACH_STAR, STREAM, Task
from safespawn._core.spec import SpawnSpec
from safespawn._core.terms import Program
from safespawn._zygote import wire
from support.stage import is_open, null_fds

USAGE = tuple(range(16))
KINDS = [each for each in vars(events).values() if isinstance(each, type) and issubclass(each, events.Event)]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_event_is_a_record(kind):
    """Its fields are given by name, and cannot be changed; who had no process has no pid."""
    needed = {field.name: 1 for field in attrs.fields(kind) if field.default is attrs.NOTHING}
    event = kind(**needed)
    assert (event.child, event.pid, event.time) == (1, None, 0.0)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        event.pid = 2
    with pytest.raises(TypeError):
        kind("x")


def test_an_exit_tells_what_was_used():
    """As the record that os.wait4 gives, and not in its repr; nothing where nobody could say."""
    event = events.Exited(child="x", end="ok", returncode=0, duration=1.0, usage=USAGE)
    assert tuple(event.rusage) == USAGE
    assert "usage" not in repr(event)
    plain = events.Exited(child="x", end="ok", returncode=0, duration=1.0)
    assert (plain.rusage, plain.error, plain.stderr, plain.oom) == (None, None, "", False)
    assert events.Leaked(child="x", count=1).stuck is False


def test_what_a_plain_command_is():
    """Everything that was not asked for is the application's, and its output is not listened to."""
    spec = SpawnSpec((b"tool",))
    assert attrs.astuple(spec) == (
        (b"tool",), None, None, None, (0, 1, 2), (), None, 0, wire.GROUP_AUTO, None, (), None, False,
    )  # fmt: skip
    assert (spec.name, SpawnSpec((b"x",), b"/bin/\xff").name) == ("tool", "/bin/\\xff")
    assert Program(["x"], spec).pipes_output is False


def test_what_a_plain_task_is():
    """One call, without a limit, a second try, a key, or anything that came of it."""
    task = Task(CALL, b"", None, len, sink := object())
    assert (task.mode, task.payload, task.parts, task.function, task.sink) == (CALL, b"", None, len, sink)
    assert (task.id, task.items, task.timeout, task.retries, task.priority, task.key) == (0, 1, None, 0, 0, None)
    assert (task.submitted, task.sent, task.pickling, task.deaths, task.thread, task.head) == (0.0, 0.0, 0.0, 0, 0, b"")
    assert len({CALL, EACH, EACH_STAR, STREAM}) == 4


@pytest.fixture
def plain():
    """A class with the two methods that failpoints wrap."""

    class Plain:
        log = []  # noqa: RUF012 - of one test
        fds = []  # noqa: RUF012

        def send(self, message, fds=()):
            self.log.append(("send", message, fds))

        def receive(self, *, peek=False):
            self.log.append(("receive", peek))
            return "message", self.fds

    return Plain


@pytest.mark.parametrize("point", ["before_send", "after_send", "before_recv", "after_recv"])
def test_a_point_fails_where_it_is_said_to(plain, monkeypatch, point):
    """Before, the step is not done; after, it is."""
    monkeypatch.setenv("SAFESPAWN_FAILPOINTS", f"client.{point}=errno:5")
    failpoints.arm(plain)
    made = plain()
    made.fds = null_fds(1)
    call = made.send if point.endswith("send") else made.receive
    with pytest.raises(OSError, match="error"):
        call(("message",)) if point.endswith("send") else call(peek=True)
    done = [("send", ("message",), ())] if point.endswith("send") else [("receive", True)]
    assert made.log == (done if point.startswith("after") else [])
    assert is_open(made.fds[0]) == (point != "after_recv")
    made.log.clear()
    if point.endswith("send"):
        assert made.receive() == ("message", made.fds)
        assert made.log == [("receive", False)]
        os.close(made.fds[0])
    else:
        made.send("x", (5,))
        assert made.log == [("send", "x", (5,))]
        if point == "before_recv":
            os.close(made.fds[0])


def test_other_points_leave_it_as_it_is(plain, monkeypatch):
    """Those of the zygote are none of the application's; a name that nobody has is an error."""
    before = plain.send
    monkeypatch.setenv("SAFESPAWN_FAILPOINTS", "zygote.booted=exit")
    failpoints.arm(plain)
    assert plain.send is before
    monkeypatch.setenv("SAFESPAWN_FAILPOINTS", "client.nonsense=exit")
    with pytest.raises(ValueError, match="nonsense"):
        failpoints.arm(plain)
