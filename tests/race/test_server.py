"""The zygote's server against peers that say anything at any time."""

import pytest

from support.applications import Application, Census


def play(*arguments, seconds):
    """Run the state machine in a program of its own, whose children are real."""
    census = Census()
    with Application("race_server", *arguments) as app:
        facts = app.facts(seconds)
        app.process.wait(10)
    assert census.gone(2.0) == {}
    return facts


def test_no_order_of_words_brings_the_server_down():
    """Requests out of order, garbage and hang-ups harm their own connection, and leave no child and no descriptor."""
    facts = play(60, seconds=100)
    assert facts["wrong"] == []
    assert facts["examples"] >= 60
    assert facts["started"] > 60


@pytest.mark.stress
def test_no_order_of_words_brings_the_server_down_in_a_thousand_tries():
    """The same, a thousand times, otherwise each time."""
    facts = play(1000, "random", seconds=600)
    assert facts["wrong"] == []
