"""The incidents of pools and processes, as the programs in examples/ tell them: threads log, workers log."""

import contextlib
import os
import signal
import subprocess
import time

import pytest

from support.applications import Application, Census

PROGRAMS = {
    "pool": ("../../examples/incident_pool", "round {}: {} records of the workers are in the handlers here"),
    "process": ("../../examples/incident_process", "round {}: exit code 0"),
    "records": ("../../examples/incident_records", "round {}: 400 records of 400"),
}
ROUNDS = 20
HANG_SECONDS = 2.0  # without a finished round; one takes 0.02 to 0.05
TURNS = 5  # programs started until one hangs


def expected(incident, number):
    """What the program says after that round: 20 tasks a round, one record each."""
    return PROGRAMS[incident][1].format(number, number * 20)


def go_through(incident, rounds, seconds):
    """All rounds end, within *seconds* for each; nothing is lost and nothing left."""
    census = Census()
    with Application(PROGRAMS[incident][0], "safespawn", rounds) as app:
        for number in range(1, rounds + 1):
            assert app.line(seconds) == expected(incident, number)
        app.finish()
    assert census.gone(2.0) == {}


def end_all(census):
    """What a hanging program leaves is ended by its pids."""
    while left := census.strangers():
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)


def hangs_or_loses(incident):
    """Run multiprocessing's side until it stands still or loses a record; says what happened, in words."""
    for _ in range(TURNS):
        census = Census()
        try:
            with Application(PROGRAMS[incident][0], "multiprocessing", ROUNDS, stderr=subprocess.DEVNULL) as app:
                for number in range(1, ROUNDS + 1):
                    try:
                        line = app.line(HANG_SECONDS)
                    except AssertionError as error:
                        return f"round {number}: {str(error).partition(';')[0]}"
                    if incident == "records" and line != expected(incident, number):
                        return f"lost: {line}"
                app.finish()
        finally:
            end_all(census)
    return ""


@pytest.mark.parametrize("incident", PROGRAMS)
def test_every_round_ends_and_no_record_is_lost(incident):
    """While threads log, pools and processes are started and end, twenty times; every record has arrived."""
    go_through(incident, ROUNDS, 20.0)


@pytest.mark.parametrize("incident", PROGRAMS)
def test_the_standard_library_shows_that_the_incident_is_one(incident, record_property):
    """The same programs over multiprocessing are ended when they hang; what happened is kept as evidence."""
    what = hangs_or_loses(incident)
    print(what or "it got through")
    record_property("multiprocessing", what)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "SIGKILL"])
@pytest.mark.parametrize("incident", PROGRAMS)
def test_the_end_of_the_program_is_the_end_of_its_workers(incident, how):
    """After stop, Ctrl-C or kill -9 in the midst of the rounds nothing is left of the program."""
    census = Census()
    with Application(PROGRAMS[incident][0], "safespawn", 10**6) as app:
        for number in range(1, 4):
            assert app.line() == expected(incident, number)
        app.signal(signal.Signals[how])
        app.process.wait(20)
        assert app.process.returncode in {-signal.Signals[how], 1}
    assert census.gone(3.0) == {}


@pytest.mark.stress
@pytest.mark.parametrize("incident", PROGRAMS)
def test_a_hundred_rounds_of_a_hundred(incident):
    """Each program, started anew ten times with ten rounds each and once with a hundred, gets through every one."""
    for _ in range(10):
        go_through(incident, 10, 20.0)
    go_through(incident, 100, 20.0)
