"""The second zygote, which is there while many starts wait for the first one."""

import errno
import os
import signal
import threading
import time

import pytest

import safespawn
from safespawn import errors
from safespawn._core.flow import DeadlinePassed
from safespawn._drive import engine as engines

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="on one CPU there is no relief: it cannot help"
)
THREADS = 8
LIMIT_SECONDS = 30  # for what takes a second on an idle machine


@pytest.fixture
def owner(monkeypatch):
    """A supervisor whose zygote counts as crowded soon."""
    monkeypatch.setattr(engines, "CROWDED_STARTS", 5)
    with safespawn.Supervisor("crowd", guard="off") as owner:
        yield owner


def crowd(owner, until):
    """Run commands from many threads until *until* says so; returns what they ended with."""
    ends = []
    over = threading.Event()  # for all: without the others the last ones are no crowd
    limit = time.monotonic() + LIMIT_SECONDS

    def work():
        while not over.is_set() and time.monotonic() < limit:
            if until():
                over.set()
            try:
                ends.append(owner.run(["true"]).returncode)
            except safespawn.SpawnLost as error:
                ends.append(type(error))

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ends


def relief(owner):
    """The second zygote, or None."""
    return owner._engine._current.get(engines.RELIEF)


def is_used(owner):
    """Whether the second zygote has children just now."""
    second = relief(owner)
    return second is not None and bool(second.leased)


def test_a_crowd_gets_a_second_zygote(owner):
    """When starts queue again and again a second zygote comes and takes its share; all commands end as they should."""
    ends = crowd(owner, lambda: is_used(owner))
    assert set(ends) == {0}
    assert len(owner.statistics()["zygotes"]) == 2


def test_one_caller_never_gets_one(owner):
    """One command after another needs no second zygote, however many there are."""
    for _ in range(50):
        owner.run(["true"])
    assert relief(owner) is None


def test_the_death_of_the_second_one_harms_its_own_commands_only(owner):
    """Each command ends with its status or SpawnLost; the first zygote goes on."""
    first = owner.statistics()["zygotes"][0]
    crowd(owner, lambda: is_used(owner))
    os.kill(relief(owner).pid, signal.SIGKILL)
    later = iter(range(200))
    ends = crowd(owner, lambda: next(later, None) is None)
    assert set(ends) <= {0, safespawn.SpawnLost}
    assert ends.count(0) > len(ends) // 2
    assert owner.run(["true"]).returncode == 0
    assert owner.statistics()["zygotes"][0] == first


def test_it_is_dismissed_when_nobody_is_crowded(owner, monkeypatch):
    """Some time after the last crowd the second zygote gets no new children, and ends."""
    crowd(owner, lambda: is_used(owner))
    second = relief(owner)
    monkeypatch.setattr(engines, "RELIEF_SECONDS", 0.0)
    owner.run(["true"])
    assert relief(owner) is None
    limit = time.monotonic() + LIMIT_SECONDS
    while not second.closed and time.monotonic() < limit:
        owner._engine.prune()
    assert second.closed
    assert len(owner.statistics()["zygotes"]) == 1


def test_one_of_another_world_is_dismissed(owner):
    """A second zygote that was started from an application with other rights gets no child."""
    crowd(owner, lambda: is_used(owner))
    second = relief(owner)
    second.world = ("another",)
    owner.run(["true"])
    assert relief(owner) is None
    assert not second.usable


@pytest.mark.parametrize(
    "error", [errors.BootError("no memory", executable="python"), OSError(errno.EMFILE, ""), DeadlinePassed()], ids=repr
)
def test_a_crowd_goes_on_where_no_second_one_can_be_had(owner, monkeypatch, error):
    """If the second zygote cannot be started, or not soon, every command runs in the first one."""
    tried = []

    def fail(**_options):
        tried.append(None)
        raise error
        yield

    monkeypatch.setattr(engines, "boot_flow", fail)
    assert set(crowd(owner, lambda: bool(tried))) == {0}
    assert tried
    assert relief(owner) is None
