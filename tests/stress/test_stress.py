"""Minutes of load; `-s` shows the figures."""

import os

import pytest

from race.test_nemesis import let_loose
from support.applications import Application, Census, kill_many_times

pytestmark = pytest.mark.stress

ROUNDS = int(os.environ.get("SAFESPAWN_STRESS_ROUNDS", "100"))
NEMESIS_SECONDS = int(os.environ.get("SAFESPAWN_NEMESIS_SECONDS", "60"))
CROWD = 100
GONE_SECONDS = 2.0
RESIDENT_KIB = 1024


def test_a_killed_application_leaves_nobody():
    """After kill -9 of an application with 100 running commands, half of them stubborn, all are gone within 2 s."""
    kill_many_times(ROUNDS, GONE_SECONDS, "fault_crowd", CROWD, crowd=CROWD, says="ready")


def test_ten_thousand_children_leave_the_zygote_as_it_was():
    """After 10,000 children the zygote has the same descriptors, no child, and at most 1 MiB more resident memory."""
    census = Census()
    with Application("fault_many", 10_000) as app:
        facts = app.facts(300)
        app.finish()
    print(facts)
    assert facts["children"] == 0
    assert facts["after"]["descriptors"] == facts["before"]["descriptors"]
    assert facts["after"]["resident_kib"] - facts["before"]["resident_kib"] <= RESIDENT_KIB
    assert facts["after"]["resident_kib"] < 15 * 1024
    assert facts["boot_ms_median"] < 100  # thirty on a machine that does nothing else
    assert census.gone(2.0) == {}


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_long_time_with_the_nemesis(seed):
    """Random calls from six threads with a nemesis for a minute: every outcome is right or ours, nothing is left."""
    let_loose(NEMESIS_SECONDS, seed)
