"""No descriptors, no processes: the call that meets it has an error that says so, the next one works."""

import pytest

from support.applications import Application, Census

FACES = ("run", "captured", "lasting", "popen", "forked", "arun")


def play(what, face):
    """Run the program, which leaves nothing; what it tells."""
    census = Census()
    with Application("fault_resources", what, face) as app:
        facts = app.facts(60)
        app.finish()
    assert census.gone(2.0) == {}
    assert facts["left"] == []
    assert set(facts["after"]) == {3}
    return facts


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("what", ["fds", "cold", "zygote_fds"])
def test_want_of_descriptors_is_an_error_of_that_call(what, face):
    """With every number of free descriptors, here or in the zygote, a call works or raises EMFILE; the next works."""
    facts = play(what, face)
    assert facts["short"][0] == "SpawnError 24"
    assert facts["short"][-1] == 3
    assert set(facts["short"]) == {"SpawnError 24", 3}
    if what != "cold":
        assert facts["boots"] == 1


@pytest.mark.parametrize("face", ["run", "popen", "forked", "arun"])
@pytest.mark.parametrize("what", ["processes", "cold_processes"])
def test_want_of_processes_is_an_error_of_that_call(what, face):
    """Where the user may have no further process, zygote or command, a call raises EAGAIN; the next one works."""
    facts = play(what, face)
    assert facts["short"] == ["SpawnWouldBlock 11"]
    assert facts["boots"] == 1
