"""Who dies, and when: the application, the zygote, the warden, each with everything that it had started."""

import os
import resource
import signal
import subprocess

import pytest

from support.applications import Application, Census
from support.children import state

SECONDS = 2.0  # what is promised after the application's death
LOST = {"SpawnLost", "ZygoteUnresponsive"}


@pytest.fixture
def census():
    """Who is below this process before the test."""
    return Census()


def application(*arguments, **options):
    """The program, with a stdin through which it is told what to do."""
    return Application("fault_app", *arguments, stdin=subprocess.PIPE, **options)


def tell(app, line):
    """Say *line* to the program."""
    app.process.stdin.write(line.encode() + b"\n")
    app.process.stdin.flush()


def ask(app, line, seconds=30.0):
    """Say *line* to the program, and take its answer."""
    tell(app, line)
    return app.facts(seconds)


# --- the application ends ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT])
def test_a_signal_that_ends_the_application_ends_all_that_it_started(census, number):
    """Commands, stubborn ones, daemons and their grandchildren are gone 2 s after the application's death."""
    with application("forest", 10) as app:
        assert app.facts()["below"] >= 19
        resource.prlimit(app.pid, resource.RLIMIT_CORE, (0, 0))
        app.signal(number)
        app.process.wait()
        assert census.gone(SECONDS) == {}


@pytest.mark.parametrize("how", ["exit", "exec"])
def test_an_application_that_skips_its_exit_leaves_nothing(census, how):
    """os._exit and os.execv end all that the application started, within 2 s."""
    with application("forest", 10) as app:
        app.facts()
        tell(app, how)
        app.process.wait()
        assert census.gone(SECONDS) == {}


def test_an_orderly_exit_leaves_nothing(census):
    """An application that closes its supervisor while commands run sees them end, and so do their callers."""
    with application("forest", 10) as app:
        app.facts()
        assert ask(app, "close")["seconds"] < 5.0
        outcomes = ask(app, "join")["results"]
        assert len(outcomes) == 10
        assert {outcome for outcome, _ in outcomes} <= LOST | {"ClosedError", -signal.SIGTERM, -signal.SIGKILL}
        app.process.stdin.close()
        app.process.wait(10)
        assert census.gone(SECONDS) == {}


@pytest.mark.parametrize("kind", ["python", "exec"])
def test_a_forked_copy_that_lives_on_does_not_keep_the_commands(census, kind):
    """The application is killed while its copy holds every socket: the commands are gone within 2 s all the same."""
    with application("copied", 5, kind) as app:
        app.facts()
        app.signal(signal.SIGKILL)
        app.process.wait()
        assert census.gone(SECONDS).keys() == {
            pid for pid, what in census.strangers().items() if "fault_app" in what or "read line" in what
        }
        app.process.stdin.close()
        assert census.gone(SECONDS) == {}


def test_the_application_dies_while_its_zygote_is_stopped(census):
    """A stopped zygote cannot end anything; when it goes on, or its warden's patience ends, nothing is left."""
    with application("forest", 5) as app:
        facts = app.facts()
        os.kill(facts["zygote"], signal.SIGSTOP)
        app.signal(signal.SIGKILL)
        app.process.wait()
        assert census.gone(0.2)
        os.kill(facts["zygote"], signal.SIGCONT)
        assert census.gone(SECONDS) == {}


@pytest.mark.parametrize("how", ["end", "close"])
def test_a_stopped_zygote_and_a_stopped_warden_do_not_stop_an_exit(census, how):
    """The application leaves with zygote and warden both stopped: it takes a bounded time, and nothing is left."""
    with application("forest", 5) as app:
        facts = app.facts()
        for name in ("warden", "zygote"):
            os.kill(facts[name], signal.SIGSTOP)
        if how == "close":
            assert ask(app, "close")["seconds"] < 10.0
        app.process.stdin.close()
        app.process.wait(30)
        assert census.gone(SECONDS) == {}


# --- the zygote ends --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("victim", ["zygote", "warden"])
def test_an_idle_one_is_replaced(census, victim):
    """With nothing in flight, the death of zygote or warden is noticed by nobody: the next call works."""
    with application("idle") as app:
        facts = app.facts()
        os.kill(facts[victim], signal.SIGKILL)
        after = ask(app, "run")
        assert after["outcome"] in (7, "SpawnLost")  # the request may have reached the dying one
        assert ask(app, "run")["outcome"] == 7
        assert ask(app, "run")["zygote"] != facts["zygote"]
        app.process.stdin.close()
        app.process.wait(10)
        assert census.gone(SECONDS) == {}


@pytest.mark.parametrize("victim", ["zygote", "warden"])
def test_running_commands_are_lost_and_ended(census, victim):
    """50 running commands: each caller gets SpawnLost soon, every process is gone, the next call works."""
    with application("forest", 50) as app:
        facts = app.facts()
        known = census.strangers().keys()
        assert len(known) > 90
        os.kill(facts[victim], signal.SIGKILL)
        outcomes = ask(app, "join")["results"]
        assert [outcome for outcome, _ in outcomes] == ["SpawnLost"] * 50
        left = {pid: what for pid, what in census.gone(0.0).items() if pid in known and pid != app.pid}
        deadline_passed = census.gone(1.0) if left else {}
        assert not {pid for pid in deadline_passed if pid in known and pid != app.pid}, deadline_passed
        assert ask(app, "run")["outcome"] == 7
        app.process.stdin.close()
        app.process.wait(10)
        assert census.gone(SECONDS) == {}


@pytest.mark.parametrize("victim", ["zygote", "warden"])
def test_a_held_child_is_told_of_truly(census, victim):
    """The zygote dies with an ended child unread: the status is the true one, or SpawnLost is raised."""
    with application("held") as app:
        facts = app.facts()
        os.kill(facts[victim], signal.SIGKILL)
        tell(app, "go")
        ((outcome, seconds),) = ask(app, "join")["results"]
        assert outcome in (0, "SpawnLost")
        assert seconds < 4.0
        assert ask(app, "run")["outcome"] in (7, "SpawnLost")
        assert ask(app, "run")["outcome"] == 7
        app.process.stdin.close()
        app.process.wait(10)
        assert census.gone(SECONDS) == {}


# --- the zygote stands still ------------------------------------------------------------------------------------------
def test_a_timeout_is_kept_without_the_zygotes_help(census):
    """With a stopped zygote run(timeout=) raises soon after its time, and the calls after it have a new zygote."""
    with application("idle") as app:
        facts = app.facts()
        os.kill(facts["zygote"], signal.SIGSTOP)
        late = ask(app, "run 0.3")
        assert late["outcome"] == "TimeoutExpired"
        assert late["seconds"] < 1.0
        for _ in range(3):
            next_one = ask(app, "run 5")
            assert next_one["outcome"] == 7
            assert next_one["zygote"] != facts["zygote"]
            assert next_one["seconds"] < 2.0
        app.process.stdin.close()
        app.process.wait(30)
        assert census.gone(SECONDS) == {}


def test_a_call_before_a_stopped_zygote_goes_to_another_one(census):
    """With a stopped zygote run() takes back what that has not read; nothing is left at the end."""
    with application("idle") as app:
        facts = app.facts()
        os.kill(facts["zygote"], signal.SIGSTOP)
        late = ask(app, "run")
        assert late["outcome"] == 7
        assert 1.0 <= late["seconds"] < 9.0
        assert ask(app, "run")["outcome"] == 7
        app.process.stdin.close()
        app.process.wait(30)
        assert state(facts["zygote"]) is None
        assert census.gone(SECONDS) == {}


@pytest.mark.parametrize("options", ["{}", '{"capture_output":true}', '{"user":"nobody"}'])
def test_the_timeout_of_a_running_command_is_kept_without_the_zygotes_help(census, options):
    """A command runs, the zygote stops, the command's time is over: it is killed, and its caller is told soon after."""
    with application("idle") as app:
        app.facts()
        late = ask(app, f"stopped 0.5 {options}")
        assert late["outcome"] == "TimeoutExpired"
        assert late["seconds"] < 0.5 + 2.0
        assert ask(app, "run 5")["outcome"] == 7
        app.process.stdin.close()
        app.process.wait(30)
        assert census.gone(SECONDS) == {}
