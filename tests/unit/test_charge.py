"""What a child makes of what comes late: it counts for the process that it was meant for."""

import threading
from types import SimpleNamespace

import pytest

from safespawn._core import upkeep
from safespawn._drive import relay, vigil
from safespawn._drive.charge import Charge


class Idle(Charge):
    """A child that is up, of no keeper."""

    def __init__(self, run):
        self.machine = upkeep.Machine(upkeep.CHILD_TABLE, upkeep.UP)
        self.run = run
        self.failures = 3

    def show(self):
        """To nobody."""


def test_calm_is_the_present_process_s():
    """Failures are forgotten when the present process was ready for a while, not when one before it would have been."""
    earlier, present = object(), object()
    charge = Idle(present)
    charge.on_settled(earlier)
    assert charge.failures == 3
    charge.on_settled(present)
    assert charge.failures == 0


@pytest.mark.parametrize(("age", "story"), [(0.5, ["outgrown", "recycle"]), (1000.0, ["recycle"])])
def test_a_process_that_is_too_large(monkeypatch, age, story):
    """One that grew is replaced; one that was as large from the start counts as a failure too, once."""
    told = []
    run = SimpleNamespace(pid="self", outgrown="", state=upkeep.UP, ready_at=2000.0 - age)
    charge = SimpleNamespace(terms=SimpleNamespace(memory_max_bytes=1), send=told.append)

    def on_outgrown(which, size, how_old):
        assert (which, size > 1, how_old) == (run, True, age)
        run.outgrown = "so"
        told.append("outgrown")

    charge.on_outgrown = on_outgrown
    watch = SimpleNamespace(run=run, too_old_at=float("inf"))
    vigil.look_at_size(charge, watch, 2000.0)
    assert told == story
    vigil.look_at_size(charge, watch, 2000.0)
    assert told == [*story, "recycle"]
    run.state = upkeep.ASKED
    vigil.look_at_size(charge, watch, 2000.0)
    assert told == [*story, "recycle"]


def test_an_exit_is_said_where_threads_are_silent(capsys, monkeypatch):
    """The usual hook says nothing of SystemExit: a callback that calls sys.exit() is reported all the same."""
    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
    relay.report(SystemExit(3))
    said = capsys.readouterr().err
    assert "called sys.exit(3), which ends nothing here" in said
    assert "SystemExit: 3" in said
