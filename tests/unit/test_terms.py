"""What is said about a supervised child: each bound, and each refusal with the parameter that it is about."""

import math
import re
from functools import partial
from typing import get_args

import attrs
import pytest

from safespawn._core import restart
from safespawn._core.restart import Backoff, check_choice, check_number
from safespawn._core.spec import SpawnSpec
from safespawn._core.terms import (
    ON_HUNG,
    Function,
    OnHung,
    Program,
    Readiness,
    Terms,
    check_terms,
    optional_number,
    readiness,
)
from safespawn.errors import BadArgument, BadArgumentType

FUNCTION = Function("f", (b"", []))
PROGRAM = Program(["tool"], SpawnSpec((b"tool",)))
TERMS = Terms(
    name="x", what=FUNCTION, restart="always", backoff=Backoff(), no_restart_codes=frozenset(),
    ready=Readiness("started"), ready_timeout=1.0, stop_timeout=1.0, stop_signal=15, heartbeat=None, hang_after=None,
    on_hung="report", memory_max_bytes=None, max_age=None, on_line=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("choices", "literal"),
    [(restart.RESTARTS, restart.Restart), (restart.STRATEGIES, restart.Strategy), (restart.GIVE_UPS, restart.GiveUp),
     (ON_HUNG, OnHung)],
)  # fmt: skip
def test_what_may_be_chosen_is_what_the_types_say(choices, literal):
    """None more, none less."""
    assert choices == get_args(literal)


def test_what_counts_as_a_failure():
    """Every end but a good one, and one that was wanted."""
    assert set(restart.ENDS) - {"ok", "stopped", "recycled"} == restart.FAILURES
    assert len(set(restart.ENDS)) == 10


def test_what_a_plain_child_is():
    """It needs nothing of the program's, and its output is not read."""
    assert attrs.astuple(FUNCTION) == ("f", (b"", []), None, False, (), None, None, None)
    assert PROGRAM.pipes_output is False


def refused(call, cls, parameter, value):
    """The call is refused with that class, and says which parameter it is about and what it was."""
    with pytest.raises(cls) as caught:
        call()
    assert type(caught.value) is cls
    assert caught.value.parameter == parameter
    assert caught.value.value == repr(value)
    assert parameter in str(caught.value)
    assert not str(caught.value).startswith("None")


@pytest.mark.parametrize(
    ("changes", "cls"),
    [
        ({"restart": "sometimes"}, BadArgument),
        ({"on_hung": "kill"}, BadArgument),
        ({"ready_timeout": -1}, BadArgument),
        ({"ready_timeout": "soon"}, BadArgumentType),
        ({"stop_timeout": -0.5}, BadArgument),
        ({"stop_timeout": None}, BadArgumentType),
        ({"on_line": "print"}, BadArgumentType),
        ({"heartbeat": 1.0, "what": PROGRAM}, BadArgument),
    ],
)
def test_terms_that_cannot_be(changes, cls):
    """Each is refused with the parameter's name and value."""
    name = next(iter(changes))
    refused(lambda: check_terms(attrs.evolve(TERMS, **changes)), cls, name, changes[name])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"restart": "never", "on_hung": "restart"},
        {"restart": "on-failure", "ready_timeout": 0, "stop_timeout": 0},
        {"ready_timeout": math.inf},
        {"on_line": print},
        {"heartbeat": 1.0},
        {"heartbeat": 1.0, "what": PROGRAM, "ready": Readiness("notify")},
        {"what": PROGRAM},
    ],
)
def test_terms_that_can_be(changes):
    """Each is taken."""
    check_terms(attrs.evolve(TERMS, **changes))


@pytest.mark.parametrize(("value", "expected"), [(None, None), (1, 1.0), (0.25, 0.25), (math.inf, math.inf)])
def test_an_optional_number(value, expected):
    """None is no number; anything above 0 is one."""
    assert optional_number("max_age", value) == expected


@pytest.mark.parametrize(
    ("value", "cls"), [(0, BadArgument), (-1, BadArgument), ("1", BadArgumentType), (True, BadArgumentType)]
)
def test_what_is_no_optional_number(value, cls):
    """0 and less, and what is no number, is refused."""
    refused(lambda: optional_number("max_age", value), cls, "max_age", value)


def test_the_bounds_of_a_number():
    """Both are inside, the lower one is 0 if nothing else is said, and the refusal names them."""
    assert check_number("n", 0) == 0.0
    assert [check_number("n", each, least=1, most=2) for each in (1, 2)] == [1.0, 2.0]
    assert type(check_number("n", 1)) is float
    for value, options, said in [
        (-1e-9, {}, "n is a number from 0 up"),
        (0.5, {"least": 1}, "n is a number from 1 up"),
        (2.5, {"least": 1, "most": 2}, "n is a number from 1 to 2"),
        (math.nan, {}, "n is a number from 0 up"),
    ]:
        with pytest.raises(BadArgument) as caught:
            check_number("n", value, **options)
        assert str(caught.value).split("\n")[0] == said
        assert caught.value.parameter == "n"
    refused(lambda: check_number("n", "1"), BadArgumentType, "n", "1")


def test_a_choice():
    """One of the choices is taken, anything else refused, and the refusal lists them."""
    check_choice("policy", "b", ("a", "b"))
    refused(lambda: check_choice("policy", "c", ("a", "b")), BadArgument, "policy", "c")
    with pytest.raises(BadArgument, match="policy is one of 'a', 'b'"):
        check_choice("policy", None, ("a", "b"))


def test_a_delay_has_its_jitter():
    """The random number 0 shortens the delay by its share, 1 lengthens it, and 0.5 leaves it."""
    backoff = Backoff(initial=1.0, factor=3.0, jitter=0.25)
    assert [backoff.delay(3, random) for random in (0.0, 0.5, 1.0)] == [2.25, 3.0, 3.75]
    assert [backoff.delay(failures, 0.0) for failures in (0, 1)] == [0.0, 0.0]


@pytest.mark.parametrize(
    "options",
    [{"factor": 1}, {"initial": 0, "max": 0, "jitter": 0, "reset_after": 0}, {"jitter": 1}, {"factor": math.inf}],
)
def test_the_bounds_of_a_backoff(options):
    """Each bound itself is taken."""
    Backoff(**options)


@pytest.mark.parametrize("name", ["initial", "max", "jitter", "reset_after", "factor"])
def test_a_backoff_names_what_is_wrong(name):
    """The refusal has the name of the number, and how it is bounded."""
    refused(lambda: Backoff(**{name: -1}), BadArgument, name, -1)
    expected = {"jitter": "from 0 to 1", "factor": "from 1 up"}.get(name, "from 0 up")
    with pytest.raises(BadArgument, match=expected):
        Backoff(**{name: -1})


class Probe:
    """Something that can be called and has no name of its own."""

    def __call__(self):
        return True

    def __repr__(self):
        return "a probe"


@pytest.mark.parametrize(
    ("value", "kind", "what", "said"),
    [
        (1, "port", ("127.0.0.1", 1), "port 1 of 127.0.0.1"),
        (65535, "port", ("127.0.0.1", 65535), "port 65535 of 127.0.0.1"),
        (("h", 1), "port", ("h", 1), "port 1 of h"),
        (PATTERN := re.compile("up"), "line", PATTERN, "a line like 'up'"),
        (PROBE := Probe(), "probe", PROBE, "a probe() to be true"),
        (PART := partial(print), "probe", PART, f"{PART}() to be true"),
        ("started", "started", None, "started"),
        ("notify", "notify", None, "notify"),
    ],
)
def test_what_ready_means(value, kind, what, said):
    """The kind and what belongs to it, for a command."""
    found = readiness(value, is_command=True)
    assert (found.kind, found.what, str(found)) == (kind, what, said)


@pytest.mark.parametrize(
    ("value", "is_command", "cls", "about"),
    [
        (0, True, BadArgument, 0),
        (65536, True, BadArgument, 65536),
        (-1, True, BadArgument, -1),
        (("h", 0), True, BadArgument, 0),
        (("h", "1"), True, BadArgument, "1"),
        (("h", 1, 2), True, BadArgument, ("h", 1, 2)),
        ((1, 1), True, BadArgument, (1, 1)),
        (re.compile("x"), False, BadArgument, re.compile("x")),
        (re.compile(b"x"), True, BadArgumentType, re.compile(b"x")),
        (False, True, BadArgument, False),
        ("ready", True, BadArgument, "ready"),
    ],
)
def test_what_ready_cannot_mean(value, is_command, cls, about):
    """Each is refused with what is wrong in it."""
    refused(lambda: readiness(value, is_command=is_command), cls, "ready", about)
