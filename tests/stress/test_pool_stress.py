"""Pools for minutes: levels of memory and descriptors, and every fault many times over."""

import json

import pytest

from support.applications import Application, Census, kill_many_times

pytestmark = pytest.mark.stress
MEGABYTE = 1 << 20
ROUNDS = 20
SECONDS = 900.0


def told(program, *arguments):
    """What a program says at its end; it has left nobody, and complained of nothing."""
    census = Census()
    with Application(program, *arguments) as app:
        out, err = app.process.communicate(timeout=SECONDS)
        assert app.process.returncode == 0, err[-4000:].decode(errors="replace")
        assert err == b"", err[-4000:].decode(errors="replace")
    assert census.gone(2.0) == {}
    return json.loads(out)


@pytest.mark.parametrize(
    ("story", "count", "growth"), [("tiny", 1_000_000, 8), ("large", 200, 64), ("deaths", 200, 4), ("limits", 100, 4)]
)
def test_memory_and_descriptors_stay_level(story, count, growth):
    """A million tasks, gigabytes, 200 deaths, 100 workers that keep the GIL: the application does not grow."""
    facts = told("pool_load", story, count)
    before, after = facts["resident"]
    assert after - before < growth * MEGABYTE
    before, after = facts["descriptors"]
    assert after <= before + 2


@pytest.mark.parametrize("name", ["error", "exit", "vanish", "crash", "kill"])
def test_every_fault_many_times(name):
    """Each fault at each place, 20 times in one pool: always the right error, the innocents, a whole pool."""
    rows = told("pool_faults", "matrix", name, ROUNDS)["facts"]
    assert len(rows) >= 8 * ROUNDS
    assert all(innocents and whole for _, _, innocents, whole, _ in rows)


@pytest.mark.parametrize("how", ["plain", "thread", "two", "closed", "cycle"])
def test_a_hundred_exits(how):
    """The interpreter ends with a busy pool, a hundred times: never late, never a word."""
    census = Census()
    for _ in range(100):
        with Application("pool_life", "exits", how) as app:
            app.facts()
            app.finish(10)
    assert census.gone(2.0) == {}


def test_a_hundred_kills_of_the_application():
    """SIGKILL of an application with busy workers, a hundred times: they are gone within 2 s."""
    kill_many_times(100, 2.0, "pool_life", "alive")


@pytest.mark.parametrize("victims", ["worker", "worker,template,zygote", "interrupt"])
def test_a_minute_of_attack(tmp_path, victims):
    """Random kills, or Ctrl-C, for a minute: nothing is lost, twice, late or left."""
    facts = told("pool_nemesis", 60, victims, tmp_path / "ran")
    assert facts["wrong"] == []
    assert facts["unfinished"] == 0
