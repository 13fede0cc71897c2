"""Who was adopted, by what /proc says of it: a zombie that may be a child of this process is none of them."""

import os

import pytest

from safespawn._drive import orphans
from safespawn._drive.orphans import Kin, Zombie, is_adopted

OWN = 100  # the session of this process


@pytest.mark.parametrize(
    ("session", "adopted"),
    [(OWN, False), (500, False), (OWN - 1, True), (0, True)],
    ids=["of our session", "leads its own", "of another one", "from outside"],
)
def test_who_was_adopted(session, adopted):
    """A child is in the session of its parent or leads its own; whoever does neither came from elsewhere."""
    assert is_adopted(Zombie(500, session, born=10), Kin.of(200, OWN, now=20), OWN) == adopted


@pytest.mark.parametrize(
    ("pid", "first", "session", "born", "adopted"),
    [
        (200, 77, 200, 10, False),  # a child from before setsid() in this process, which was seen before it too
        (200, 77, 200, 30, False),
        (200, 200, 200, 20, False),  # a leader may have been in any session before
        (200, 200, 200, 21, True),
        (1, 1, 1, 10, True),  # of the first process it is known
    ],
)
def test_a_session_that_was_left(pid, first, session, born, adopted):
    """A session that this process was in, or may have been in, is as its present one."""
    kin = Kin.of(pid, first, now=20)
    assert is_adopted(Zombie(500, 77, born), kin, session) == adopted


def test_the_first_process_may_come_from_outside():
    """What is seen as session 0 is where the first process of a namespace was before it led one."""
    assert not is_adopted(Zombie(500, 0, born=10), Kin.of(1, 1, now=5), 1)


def test_a_zombie_is_reaped_at_the_second_look(monkeypatch):
    """Whoever knows its number may read its status until then; and the number alone is not enough."""
    there, done = [[Zombie(5, 7, 1)], [Zombie(5, 7, 2)], [Zombie(5, 7, 2)], []], []
    monkeypatch.setattr(orphans, "zombies", lambda: there.pop(0))
    monkeypatch.setattr(orphans, "reap", lambda zombie: done.append(zombie) is None)
    home = orphans.Orphanage()
    home.kin = Kin.of(1, 1, 0)
    for expected in (0, 0, 1, 1):
        home.look()
        assert home.reaped == expected
    assert done == [Zombie(5, 7, 2)]


def test_only_whom_it_means_is_reaped():
    """A process that runs, and one that was born at another time, are left alone; a zombie is reaped once."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    (zombie,) = (each for each in orphans.zombies() if each.pid == pid)
    assert zombie.session == os.getsid(0)
    assert not orphans.reap(Zombie(pid, zombie.session, zombie.born + 1))
    assert orphans.reap(zombie)
    assert not orphans.reap(zombie)
    assert not orphans.reap(Zombie(os.getpid(), 0, 0))
