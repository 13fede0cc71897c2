"""The looks at supervised children: what a look says, and that one which comes late says nothing."""

import os
import time
from types import SimpleNamespace

import pytest

from safespawn._core import upkeep
from safespawn._drive import vigil


@pytest.fixture
def looked(monkeypatch):
    """A child that has stood still, and not beaten, for a hundred seconds; and what is reported of it."""
    reports = []
    monkeypatch.setattr(vigil, "report", lambda *_what, **_act: reports.append(1))
    monkeypatch.setattr(vigil, "seen", lambda _run: (1, 1, 1))
    now = time.monotonic()
    terms = SimpleNamespace(heartbeat=50.0, hang_after=50.0, on_hung="report", memory_max_bytes=None, max_age=None)
    run = SimpleNamespace(state=upkeep.UP, pid=os.getpid(), beats=None, terms=terms, ready_at=now)
    keeper = SimpleNamespace(closing=False, later=lambda _seconds, _action: None)
    charge = SimpleNamespace(run=run, terms=terms, keeper=keeper, state=upkeep.UP)
    watch = vigil.Watch(run, (1, 1, 1), now - 100, now - 100, now, float("inf"))
    return charge, watch, reports


def test_what_stands_still_and_does_not_beat_is_reported(looked):
    """Each of the two, once."""
    charge, watch, reports = looked
    vigil.look(charge, watch)
    assert len(reports) == 2


def test_a_look_that_comes_late_says_nothing(looked):
    """It was this process that was given no time: all begins anew."""
    charge, watch, reports = looked
    watch.last_look -= 60
    vigil.look(charge, watch)
    assert reports == []
    assert watch.since == watch.beat_at == watch.last_look
