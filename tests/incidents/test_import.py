"""The fourth incident, as a program: a module whose import waits for a thread that runs a command."""

import pytest

from support.applications import Application, Census


@pytest.mark.parametrize("when", ["first", "later"])
def test_an_import_may_wait_for_a_thread_that_runs_commands(when):
    """Importing a module that starts a thread, which runs commands and is joined, takes no longer than the commands."""
    census = Census()
    with Application("incident_import", when) as app:
        assert app.line(20) == "fine"
        app.finish()
    assert census.gone(2.0) == {}
