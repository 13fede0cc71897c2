"""Everything at once, with somebody who kills and stops at random."""

import os

from support.applications import Application, Census

RIGHT = {"right", "SpawnLost", "ZygoteUnresponsive", "BootError"}


def let_loose(seconds, seed):
    """Run the program; every outcome is a right one or an error of ours, and nothing is left."""
    census = Census()
    with Application("race_nemesis", seconds, seed) as app:
        facts = app.facts(seconds + 90)
        app.process.wait(10)
    print(facts)
    assert set(facts["outcomes"]) <= RIGHT, facts
    assert facts["outcomes"]["right"] > facts["calls"] / 2
    assert facts["after"] == 5
    assert facts["left"] == []
    assert facts["below"] == 0
    assert census.gone(2.0) == {}


def test_a_short_time_with_the_nemesis():
    """Six threads make calls while zygote, warden and commands are killed and stopped: all stays right."""
    let_loose(5, int(os.environ.get("SAFESPAWN_NEMESIS_SEED", "1")))
