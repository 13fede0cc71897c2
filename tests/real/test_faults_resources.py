"""No descriptors, no processes: the call that meets it has an error that says so, the next one works."""

import subprocess
import sys

import pytest

from support.applications import Application, Census
from support.children import ENV

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


WITHOUT = """
import resource, sys
import safespawn
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
try:
    with safespawn.Supervisor("app", guard="off"):
        pass
except safespawn.SafespawnError as error:
    print(type(error).__name__, "ulimit -n" in str(error))
"""


@pytest.mark.parametrize("limit", [8, 10])
def test_a_supervisor_without_descriptors_says_what_is_wanting(limit):
    """It cannot start its zygote, and that is no bare OSError."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(limit)], env=ENV, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "BootError True\n", done.stderr
