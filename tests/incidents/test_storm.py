"""The third incident, as a program: commands from threads while another thread forks."""

import pytest

from support.applications import Application, Census


def storm(*arguments, seconds=300):
    """Run the program; it and its copies leave nobody."""
    census = Census()
    with Application("incident_storm", *arguments) as app:
        facts = app.facts(seconds)
        app.process.wait(30)
    assert census.gone(5.0) == {}
    print(facts)
    return facts


def assert_unharmed(facts, calls):
    """No call was blocked, no outcome was wrong, nothing is left."""
    assert facts["calls"] == calls
    assert facts["wrong"] == 0, facts["examples"]
    assert facts["blocked"] == 0, facts
    assert facts["boots"] == 1
    assert set(facts["left"].values()) == {0}
    assert facts["fds"] == 0
    assert facts["children"] == 1  # the warden


def test_no_command_is_blocked_by_foreign_forks():
    """1,500 commands from 8 threads while a thread forks every 10 ms: none takes a second, all outcomes are right."""
    facts = storm("ours", 1500, 8)
    assert facts["foreign_forks"] >= 20
    assert_unharmed(facts, 1500)


def test_the_standard_library_shows_that_the_storm_is_one(record_property):
    """The same storm over subprocess ends as well; how many of its calls were blocked is kept as evidence."""
    facts = storm("theirs", 200, 8, 1.5)
    record_property("blocked", facts["blocked"])
    assert facts["calls"] == 200


@pytest.mark.stress
def test_no_command_of_ten_thousand_is_blocked():
    """Of 10,000 commands in the storm none is blocked or wrong, and nothing is left; subprocess beside."""
    theirs = storm("theirs", 1000, 8)
    ours = storm("ours", 10_000, 8)
    print(f"subprocess: {theirs['blocked']} of {theirs['calls']} blocked, {theirs['foreign_forks']} forks")
    assert_unharmed(ours, 10_000)
    assert ours["foreign_forks"] >= 100
