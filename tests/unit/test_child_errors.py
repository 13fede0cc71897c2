"""The errors of supervised children: what every class keeps to, what it is caught by, and what the help says."""

import copy
import pickle
from pathlib import Path

import pytest

from safespawn import child_errors, errors

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"
SAMPLES = {
    child_errors.ChildError: lambda c: c("something happened", known=("a",), help="do"),
    child_errors.ChildFailed: lambda c: c(
        child="db", pid=4127, returncode=-11, end="signal", seconds=2.5, stderr="a\nb\n", oom=None, known=("more",)
    ),
    child_errors.ChildNotReady: lambda c: c(child="db", pid=4127, seconds=30.0, ready="notify", stacks="File x\n"),
    child_errors.ChildrenGaveUp: lambda c: c(
        "it failed", [ValueError("a"), KeyError("b")], supervisor="app", child="db", restarts=5, per=60.0
    ),
}
PUBLIC = [
    c
    for c in vars(child_errors).values()
    if isinstance(c, type) and issubclass(c, errors.SafespawnError) and c.__module__ == child_errors.__name__
]


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda c: c.__name__)
def test_every_error_keeps_the_promises(cls):
    """An error of each class has facts, an anchor and the shape, is found in errors, and survives pickling, copying."""
    error = SAMPLES[cls](cls)
    assert cls is child_errors.ChildError or error.facts()
    assert f"\n## {cls.slug}\n" in DOCS.read_text(encoding="utf-8")
    assert str(error).endswith(f"[{cls.slug}]")
    assert getattr(errors, cls.__name__) is cls
    for again in (copy.copy(error), copy.deepcopy(error), pickle.loads(pickle.dumps(error))):
        assert type(again) is cls
        assert (str(again), again.facts(), again.known, again.help) == (
            str(error), error.facts(), error.known, error.help,
        )  # fmt: skip


def test_they_are_caught_by_what_people_catch():
    """A late child is a TimeoutError, a giving up is an exception group that except* takes apart."""
    assert issubclass(child_errors.ChildNotReady, TimeoutError)
    error = SAMPLES[child_errors.ChildrenGaveUp](child_errors.ChildrenGaveUp)
    assert isinstance(error, ExceptionGroup)
    match, rest = error.split(ValueError)
    assert [type(match), match.child, len(match.exceptions), len(rest.exceptions)] == [type(error), "db", 1, 1]


@pytest.mark.parametrize(
    ("facts", "advice"),
    [
        ({"returncode": -11}, "a crash in C code"),
        ({"returncode": -9}, "somebody killed it"),
        ({"returncode": -9, "oom": True}, "memory_max="),
        ({"end": "failed"}, "the cause below"),
        ({"returncode": 1}, "its own output"),
    ],
)
def test_the_help_fits_the_end(facts, advice):
    """What to do depends on how the child ended."""
    assert advice in child_errors.ChildFailed(child="db", pid=1, **facts).help


@pytest.mark.parametrize(
    ("code", "words"),
    [(None, "process 1 ended, and nobody can say how"), (-9, "process 1 was killed by SIGKILL"),
     (3, "process 1 exited with code 3")],
)  # fmt: skip
def test_how_it_ended_in_words(code, words):
    """A status that is not known is not made up."""
    assert child_errors.how_it_ended(code, 1) == words
