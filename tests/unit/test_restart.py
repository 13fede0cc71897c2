"""Whether, when and with whom a child comes again: the rules as pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safespawn._core import restart
from safespawn._core.restart import Backoff, Intensity, affected, comes_again
from safespawn._core.terms import readiness
from safespawn.errors import BadArgument, BadArgumentType

SECONDS = st.floats(min_value=0, max_value=1e6)
NAMES = (
    st.permutations("abcdefgh")
    .map("".join)
    .flatmap(lambda names: st.integers(1, 8).map(lambda size: list(names[:size])))
)


@given(
    st.builds(
        Backoff, initial=SECONDS, factor=st.floats(min_value=1, max_value=10), max=SECONDS,
        jitter=st.floats(min_value=0, max_value=1), reset_after=SECONDS,
    ),
    st.integers(min_value=1, max_value=10_000),
    st.floats(min_value=0, max_value=1),
)  # fmt: skip
def test_a_delay_is_bounded_and_grows(backoff, failures, random):
    """The first failure waits for nothing, none is negative or above the most, and without jitter none is shorter."""
    delay = backoff.delay(failures, random)
    assert backoff.delay(1, random) == 0.0
    assert 0.0 <= delay <= backoff.max * (1 + backoff.jitter) * (1 + 1e-9)
    assert backoff.delay(failures, 0.5) <= backoff.delay(failures + 1, 0.5)


def test_a_delay_doubles():
    """The defaults: at once, 0.2 s, 0.4 s, and so on up to 30 s."""
    delays = [Backoff(jitter=0).delay(failures, 0.9) for failures in (1, 2, 3, 4, 100, 5000)]
    assert delays == [0.0, 0.2, 0.4, 0.8, 30.0, 30.0]


@pytest.mark.parametrize(
    ("options", "error"),
    [({"initial": -1}, BadArgument), ({"factor": 0.5}, BadArgument), ({"jitter": 2}, BadArgument),
     ({"max": "x"}, BadArgumentType), ({"reset_after": float("nan")}, BadArgument), ({"max": True}, BadArgumentType)],
)  # fmt: skip
def test_a_backoff_is_checked(options, error):
    """What is no such number is refused where it is written."""
    with pytest.raises(error):
        Backoff(**options)


@given(
    st.integers(min_value=0, max_value=5),
    st.floats(min_value=0.1, max_value=100),
    st.lists(st.floats(min_value=0, max_value=50), max_size=40),
)
def test_no_window_has_more_restarts_than_allowed(restarts, per, steps):
    """Whatever the times, no span shorter than the window holds more allowed restarts than the number."""
    intensity, now, allowed = Intensity(restarts, per), 0.0, []
    for step in steps:
        now += step
        before = [each for each in allowed if now - each < per]
        assert intensity.count(now) == len(before)
        if intensity.allow(now):
            allowed.append(now)
            assert len(before) < restarts
        else:
            assert len(before) >= restarts


def test_a_restart_leaves_the_window_at_its_very_end():
    """After exactly so many seconds it does not count any more."""
    intensity = Intensity(1, 10.0)
    assert [intensity.allow(now) for now in (0.0, 9.5, 10.0)] == [True, False, True]
    assert [intensity.count(now) for now in (19.5, 20.0)] == [1, 0]


@given(st.sampled_from(restart.RESTARTS), st.sampled_from(restart.ENDS), st.sampled_from([None, 0, 1, 7, -9]))
def test_who_comes_again(policy, end, code):
    """Under "never" none, a stopped one never, nor with a code that is excepted; "on-failure" after failures only."""
    assert comes_again(policy, end, code, {7}) == (
        policy != "never" and end != "stopped" and code != 7 and (policy == "always" or end in restart.FAILURES)
    )


@pytest.mark.parametrize(("code", "end"), [(None, "lost"), (0, "ok"), (3, "error"), (-11, "signal")])
def test_how_a_process_ended_by_itself(code, end):
    """A status that nobody knows is lost, and never taken for a good one."""
    assert restart.end_of(code) == end


@pytest.mark.parametrize(
    ("size", "age", "expected"),
    [(101, 0.0, True), (101, 9.9, True), (101, 10.0, False), (100, 0.0, False)],
)
def test_what_needs_more_than_its_limit(size, age, expected):
    """Too large within ten seconds of being ready is too large at all; later it has grown, and a new one is a cure."""
    assert restart.outgrows(size, 100, age) == expected
    assert restart.OUTGROWN in restart.FAILURES


@given(NAMES, st.data())
def test_who_is_taken_along(names, data):
    """The failed one is always among them, in the children's order; rest_for_one takes no earlier one along."""
    failed = data.draw(st.sampled_from(names))
    assert affected("one_for_one", names, failed) == [failed]
    assert affected("one_for_all", names, failed) == names
    rest = affected("rest_for_one", names, failed)
    assert rest[0] == failed
    assert names[-len(rest) :] == rest


@pytest.mark.parametrize(
    ("value", "is_command", "said"),
    [("notify", False, "notify"), ("started", True, "started"), (8080, True, "port 8080 of 127.0.0.1"),
     (("::1", 80), False, "port 80 of ::1"), (print, False, "print() to be true")],
)  # fmt: skip
def test_what_ready_may_be(value, is_command, said):
    """Each kind is understood, and said in words."""
    assert str(readiness(value, is_command=is_command)) == said


@pytest.mark.parametrize("value", ["soon", 0, 70000, True, ("host", "port"), None])
def test_what_ready_may_not_be(value):
    """Anything else is refused."""
    with pytest.raises(BadArgument):
        readiness(value, is_command=True)
