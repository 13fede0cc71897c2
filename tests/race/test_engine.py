"""A boot that is interrupted by a signal handler which itself boots, step by step."""

import pytest

from safespawn._drive import engine as engines
from safespawn._drive.blocking import drive


class FakeZygote:
    """As much of a zygote as its engine needs to know of one that it does not use."""

    def __init__(self):
        self.usable = True
        self.world = None
        self.closed = False

    def retire(self):
        self.usable = False

    def release_if_gone(self):
        """It never is."""


class Interrupted(dict):
    """A mapping in whose n-th use a signal handler comes, just behind the step that is atomic."""

    def __init__(self, passage, handler):
        super().__init__()
        self.passage, self.handler = passage, handler

    def _step(self, result):
        self.passage -= 1
        if self.passage == 0:
            self.handler()
        return result

    def get(self, *args):
        return self._step(super().get(*args))

    def pop(self, *args):
        return self._step(super().pop(*args))

    def setdefault(self, *args):
        return self._step(super().setdefault(*args))


@pytest.mark.parametrize("passage", range(1, 8))
def test_no_zygote_is_forgotten_when_a_boot_interrupts_a_boot(monkeypatch, passage):
    """Whichever step the handler's own boot comes behind, each zygote is the present one or among the earlier ones."""
    booted = []

    def fake_boot(*, keeps, deadline=None):
        booted.append(FakeZygote())
        return booted[-1]
        yield keeps

    monkeypatch.setattr(engines, "boot_flow", fake_boot)
    engine = engines.Engine("interrupted")
    engine._current = Interrupted(passage, lambda: drive(engine._boot_flow(("handler's",), role=False)))
    drive(engine._boot_flow(("first",), role=False))
    drive(engine._boot_flow(("second",), role=False))
    assert len(booted) == 2 + (engine._current.passage <= 0)
    assert len({id(zygote) for zygote in engine.zygotes}) == len(booted)
    assert sum(zygote.usable for zygote in booted) == 1
    engine._current.clear()
    engine._earlier.clear()
