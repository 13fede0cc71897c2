"""The declared order: children first, then threads, each after those that it names."""

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safespawn._order import Declared, Plan
from safespawn.errors import BadArgument, BadArgumentType


def declared(name, log=None, *, thread=False, after=(), stop=None):
    """A declaration that writes its start down."""
    return Declared(name, thread, lambda: None if log is None else log.append(name), tuple(after), stop)


def plan_of(*entries):
    """A plan with these."""
    plan = Plan()
    for entry in entries:
        plan.add(entry)
    return plan


def test_threads_start_when_the_last_child_is_up():
    """Whatever the order of declaration, the children come first; each kind keeps its own order."""
    log = []
    plan = plan_of(
        declared("t1", log, thread=True), declared("c1", log), declared("t2", log, thread=True), declared("c2", log)
    )
    plan.start()
    assert log == ["c1", "c2", "t1", "t2"]


def test_after_is_kept():
    """One that is to come after another does, though it was declared first."""
    log = []
    plan_of(
        declared("c2", log, after=["c1"]), declared("c1", log), declared("t2", log, thread=True, after=["t1"]),
        declared("t1", log, thread=True, after=["c2"]),
    ).start()  # fmt: skip
    assert log == ["c1", "c2", "t1", "t2"]


def test_a_circle_is_named():
    """A circle is refused before anything starts, and its members are named in order."""
    log = []
    plan = plan_of(declared("a", log, after=["b"]), declared("b", log, after=["c"]), declared("c", log, after=["a"]))
    with pytest.raises(BadArgument, match="a -> b -> c -> a"):
        plan.start()
    assert log == []


def test_a_thread_that_is_too_early_is_named():
    """A child that waits for a thread is refused, with the names of both."""
    plan = plan_of(declared("poller", thread=True), declared("database", after=["poller"]))
    with pytest.raises(BadArgument, match="thread 'poller' is declared too early: 'database'"):
        plan.start()


def test_an_unknown_name_is_refused():
    """So is one that waits for nobody."""
    with pytest.raises(BadArgument, match="'a' is to start after 'b', which is not declared"):
        plan_of(declared("a", after=["b"])).start()


def test_a_name_is_given_once():
    """A second declaration of that name is refused, and the first one stays."""
    log = []
    plan = plan_of(declared("a", log))
    with pytest.raises(BadArgument, match="'a' is declared already"):
        plan.add(declared("a"))
    plan.start()
    assert log == ["a"]


@pytest.mark.parametrize(("start", "stop"), [(None, None), ("x", None), (print, 3)])
def test_what_cannot_be_called_is_refused(start, stop):
    """Start and stop are functions; stop may be missing."""
    with pytest.raises(BadArgumentType):
        Plan().add(Declared("a", False, start, (), stop))


def test_a_late_declaration_starts_at_once():
    """When the program runs, what is declared is started; what cannot be is forgotten."""
    log = []
    plan = plan_of(declared("a", log))
    plan.start()
    plan.add(declared("t", log, thread=True, after=["a"]))
    assert log == ["a", "t"]
    with pytest.raises(BadArgument, match="not declared"):
        plan.add(declared("u", log, after=["nobody"]))
    assert list(plan.declared) == ["a", "t"]


def test_stop_goes_backwards_and_to_the_end():
    """The last one started is stopped first; a stop that raises does not keep the others from it, and is told."""
    log = []

    def fail():
        log.append("stop b")
        raise ValueError("on purpose")

    plan = plan_of(
        declared("a", stop=lambda: log.append("stop a")), declared("b", stop=fail),
        declared("c", stop=lambda: log.append("stop c")),
    )  # fmt: skip
    plan.start()
    stopping = plan.stop()
    stopping.wait(time.monotonic() + 10)
    assert stopping.is_over
    with pytest.raises(ValueError, match="on purpose"):
        stopping.check()
    assert log == ["stop c", "stop b", "stop a"]
    assert plan.stop().is_over


def test_a_stop_that_hangs_holds_nobody_up():
    """Whoever waits goes on at his deadline."""
    release = threading.Event()
    plan = plan_of(declared("a", stop=release.wait))
    plan.start()
    stopping = plan.stop()
    stopping.wait(time.monotonic() + 0.01)
    assert not stopping.is_over
    release.set()
    stopping.wait(time.monotonic() + 10)
    assert stopping.is_over
    stopping.check()


def test_a_start_that_fails_is_raised_and_those_before_it_can_be_stopped():
    """The reason is raised; what was up is asked to stop."""
    log = []

    def fail():
        raise ValueError("on purpose")

    plan = plan_of(declared("a", log, stop=lambda: log.append("stop a")), Declared("b", False, fail, ()))
    with pytest.raises(ValueError, match="on purpose"):
        plan.start()
    assert not plan.running
    plan.stop().wait(time.monotonic() + 10)
    assert log == ["a", "stop a"]


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 9), max_size=3)), min_size=1, max_size=10))
def test_any_order_is_right_or_refused(rows):
    """Each comes once, after those that it names, and no thread before a child; or the whole is refused."""
    plan = plan_of(*[declared(str(n), thread=thread, after=map(str, after)) for n, (thread, after) in enumerate(rows)])
    try:
        found = plan.order()
    except BadArgument:
        return
    names = [entry.name for entry in found]
    assert sorted(names) == sorted(str(n) for n in range(len(rows)))
    for place, entry in enumerate(found):
        assert set(entry.after) <= set(names[:place])
    kinds = [entry.is_thread for entry in found]
    assert kinds == sorted(kinds)
