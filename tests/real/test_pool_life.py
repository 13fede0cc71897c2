"""The life of an application with a pool: how it ends, who else ends, and what is used in the wrong place."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.applications import Application, Census
from support.children import ENV, PROGRAMS

SECONDS = 60.0
STRESS = pytest.mark.stress  # as the others of their kind
GONE_SECONDS = 2.0  # what is promised after the application's death
CTRL_C_SECONDS = 0.5  # what is promised after Ctrl-C
LOAD_SECONDS = 1.0  # allowed on top, for a busy machine
MAINS = os.path.join(PROGRAMS, "pool_mains.py")


@pytest.fixture
def census():
    """Who is below this process before the test."""
    return Census()


def application(*arguments, **options):
    """The program, with a stdin through which it is told what to do."""
    return Application("pool_life", *arguments, stdin=subprocess.PIPE, **options)


def story(census, *arguments):
    """The facts of a story that ends by itself, silently, and has left nobody."""
    with application(*arguments) as app:
        told = app.finish(SECONDS)
    assert census.gone(GONE_SECONDS) == {}
    return json.loads(told.splitlines()[-1])


# --- the application dies ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=STRESS), signal.SIGSEGV])
def test_a_signal_that_ends_the_application_ends_its_busy_workers(census, number):
    """Workers that compute, that sleep, and their children are gone 2 s after the application's death."""
    with application("alive") as app:
        app.facts()
        app.signal(number)
        app.process.wait()
        assert census.gone(GONE_SECONDS) == {}


@pytest.mark.parametrize("word", ["exec", "_exit", "fatal"])
def test_an_application_that_skips_its_exit_leaves_no_worker(census, word):
    """os.execv, os._exit and a fatal error of the interpreter end the workers within 2 s."""
    with application("alive") as app:
        app.facts()
        app.process.stdin.write(word.encode() + b"\n")
        app.process.stdin.flush()
        app.process.wait(10)
        assert census.gone(GONE_SECONDS) == {}


def test_a_forked_copy_that_lives_on_does_not_keep_the_workers(census):
    """The application is killed while its copy has every socket: the workers are gone within 2 s all the same."""
    with application("copied") as app:
        facts = app.facts()
        app.signal()
        app.process.wait()
        deadline = time.monotonic() + GONE_SECONDS
        while set(census.strangers()) - {facts["copy"]} and time.monotonic() < deadline:
            time.sleep(0.005)
        assert set(census.strangers()) == {facts["copy"]}
        app.process.stdin.close()
        assert census.gone(GONE_SECONDS) == {}


@pytest.mark.parametrize("first", ["template", "zygote"])
def test_the_application_dies_right_after_its_helper(census, first):
    """Template or zygote is killed, then the application: nobody is left."""
    with application("alive") as app:
        facts = app.facts()
        os.kill(facts[first], signal.SIGKILL)
        app.signal()
        app.process.wait()
        assert census.gone(GONE_SECONDS) == {}


@pytest.mark.parametrize("how", ["plain", "two", "closed", "atexit", pytest.param("cycle", marks=STRESS)])
def test_the_interpreter_ends_with_a_busy_pool(census, how):
    """The end of the program with tasks under way takes less than two seconds, and says nothing."""
    with application("exits", how) as app:
        app.facts()
        began = time.monotonic()
        told = app.finish(10)
        assert time.monotonic() - began < 2.0
        assert how != "atexit" or json.loads(told) == {"late": 1}
    assert census.gone(GONE_SECONDS) == {}


def test_an_exception_ends_the_program_and_its_pool(census):
    """The program ends by an exception with tasks under way: soon, and nobody is left."""
    with application("exits", "raise") as app:
        app.facts()
        assert app.process.wait(3) == 1
        assert census.gone(GONE_SECONDS) == {}


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("where", "whole"),
    [
        ("map", False),
        ("apply", True),
        ("join", False),
        ("spin", True),
        ("executor", False),
        ("executor without a block", True),
        *[pytest.param(*each, marks=STRESS) for each in (("get", False), ("imap", True), ("stream", False))],
    ],
)
def test_ctrl_c_ends_the_program_at_once(census, where, whole):
    """SIGINT to the application, or to its group: it ends within 0.5 s, with one traceback, and leaves nobody."""
    with application("interrupted", where, start_new_session=True) as app:
        app.facts()
        time.sleep(0.1)  # until it waits; where it is does not matter otherwise
        began = time.monotonic()
        if whole:
            os.killpg(app.pid, signal.SIGINT)
        else:
            app.signal(signal.SIGINT)
        _, err = app.process.communicate(timeout=10)
        seconds = time.monotonic() - began
        assert app.process.returncode == -signal.SIGINT, err.decode()
        assert err.count(b"Traceback") == 1, err.decode()
        assert err.rstrip().endswith(b"KeyboardInterrupt")
        assert seconds < CTRL_C_SECONDS + LOAD_SECONDS
    assert census.gone(GONE_SECONDS) == {}


def test_a_pool_can_be_used_after_ctrl_c(census):
    """A program that catches KeyboardInterrupt has its workers back, and its pool whole, five times over."""
    assert story(census, "shell") == {"found": ["KeyboardInterrupt", True] * 5, "gone": True}


# --- others die -------------------------------------------------------------------------------------------------------
def test_running_work_survives_its_template(census):
    """The template is killed: running tasks deliver, from the same workers; later workers come from a new one."""
    facts = story(census, "template")
    assert facts["running"] == [0, 1]
    assert facts["same"]
    assert facts["died"] == "WorkerDied"
    assert facts["after"]
    assert facts["later"]
    assert facts["new"]
    assert facts["limited"] == ["TaskTimeout", "TaskTimeout"]
    assert facts["gone"]


def test_workers_without_a_template_end_in_order(census):
    """With the template dead, limits are kept, even by what ignores signals, and the pool ends within its grace."""
    facts = story(census, "orphans")
    assert facts["found"] == ["TaskTimeout", "TaskTimeout"]
    assert facts["end"] < 1.0
    assert facts["gone"]


def test_a_pool_survives_its_zygote(census):
    """The zygote is killed, and all below it with it: running tasks say WorkerDied, the others go to new workers."""
    facts = story(census, "zygote")
    assert facts == {"found": ["WorkerDied"] * 2, "after": [0, 1, 2, 3], "whole": True, "gone": True}


def test_a_template_that_is_ended_while_it_starts_is_started_again(census):
    """Once ended it is tried again, and the pool works; ended each time, tasks get BootError."""
    assert story(census, "boots") == {"once": 1, "always": "BootError"}


def test_a_stopped_template_is_replaced(census):
    """Workers are wanted of a template that is stopped: the pool takes a new one, within bounds of a second."""
    facts = story(census, "stopped_template")
    assert facts["found"] == 3
    assert facts["seconds"] < 5.0
    assert facts["gone"]


# --- the wrong place, the wrong time ----------------------------------------------------------------------------------
def test_a_closed_pool_says_so(census):
    """After close and terminate every use raises PoolClosed; ending it again does nothing; join wants one of them."""
    facts = story(census, "closed")
    assert facts["close"] == facts["terminate"] == ["PoolClosed"]
    assert facts["close again"] == facts["terminate again"] == [False] * 5
    assert facts["join"] == "ValueError"


def test_a_forked_copy_cannot_use_the_pool_and_does_not_harm_it(census):
    """In a copy each use is ForeignCopy, each end does nothing, a pool of its own works; the original goes on."""
    facts = story(census, "in_copy")
    uses, ends, seconds = facts["told"]
    assert uses == ["ForeignCopy"] * 6 + [5]
    assert ends == [False] + [None] * 5
    assert seconds < 5.0
    assert facts["mine"] == ["mine", True, True]


def test_a_callback_may_do_anything_but_wait(census):
    """Callbacks submit, resize, close and terminate; a wait for the pool's own result is WaitInCallback."""
    facts = story(census, "callbacks")
    assert facts["chain"]
    assert facts["waits"] == ["WaitInCallback"] * 5 + [None]
    assert facts["after"]
    assert facts["close"] == "late"
    assert facts["terminate"] in ("PoolClosed", "late")


def test_pools_may_be_nested(census):
    """A task has a pool of its own, leaves one open, is killed with one: all end with their worker."""
    assert story(census, "nested") == {"inner": [True] * 4, "open": True, "killed": "WorkerDied", "after": True}


def test_two_pools_and_eight_threads_under_a_storm_of_forks(census):
    """Eight threads use two pools while another one forks every 5 ms: every result is right, none is late."""
    facts = story(census, "threads")
    assert facts["wrong"] == []
    assert facts["hung"] == 0
    assert facts["forks"] > 5


def test_a_forgotten_pool_ends(census):
    """Nobody closes them, idle or busy: the workers are gone soon after the last reference, without a word."""
    assert story(census, "forgotten") == {"found": [[True, True], [True, True]]}


def test_the_size_may_change_under_load(census):
    """Under load, with workers recycled every 20 tasks, the size follows resize() and every result is right."""
    facts = story(census, "resized")
    assert facts["wrong"] == []
    assert facts["hung"] == 0
    assert facts["sizes"] == [4, 1, 3, 1, 2]
    assert facts["recycled"] > 5


# --- the program's own functions --------------------------------------------------------------------------------------
def mains(argv, **options):
    """Run that program; what it says and what it complains of."""
    done = subprocess.run(
        argv, env=ENV, capture_output=True, text=True, timeout=SECONDS, check=False, cwd=PROGRAMS, **options
    )
    return done.returncode, done.stdout, done.stderr


def source():
    """The program as text."""
    return Path(MAINS).read_text(encoding="utf-8")


@pytest.mark.parametrize("argv", [[MAINS], ["-m", "pool_mains"]], ids=["script", "module"])
def test_functions_of_the_program_are_tasks(census, argv):
    """Functions and classes of a script, or of a module run by -m, work in a pool."""
    assert mains([sys.executable, *argv]) == (0, "right\n", "")
    assert census.gone(GONE_SECONDS) == {}


@pytest.mark.parametrize("cloudpickle", [True, False], ids=["cloudpickle", "plain"])
@pytest.mark.parametrize("how", ["-c", "stdin", "notebook"])
def test_functions_without_a_file_go_by_value_or_are_refused(census, how, cloudpickle):
    """From -c, stdin or a notebook they work with cloudpickle; without it the error names function and remedy."""
    text = source()
    if not cloudpickle:
        text = "import sys; sys.modules['cloudpickle'] = None\n" + text
    options = {}
    if how == "-c":
        argv = [sys.executable, "-c", text]
    elif how == "stdin":
        argv, options = [sys.executable], {"input": text}
    else:
        argv = [sys.executable, "-c", f"__file__ = '<ipython-input-1>'; __IPYTHON__ = True\nexec({text!r})"]
    code, out, err = mains(argv, **options)
    if cloudpickle:
        assert (code, out, err) == (0, "right\n", "")
    else:
        assert code == 1
        assert "UnpicklableTask" in err
        assert "double" in err
        assert "cloudpickle" in err
    assert census.gone(GONE_SECONDS) == {}


def test_a_missing_guard_is_no_fork_bomb(census):
    """A program that makes its pool at the top level: the copy in a worker gets MainReentered, and no worker more."""
    code, out, err = mains([sys.executable, MAINS, "unguarded"])
    assert code == 0, err
    assert "MainReentered from __mp_main__" in out
    assert out.endswith("right\n")
    assert census.gone(GONE_SECONDS) == {}


def test_a_program_that_starts_a_thread_at_import_works_with_a_warning(census):
    """The thread would be cut off by a fork: each worker loads the program for itself, and the warning says why."""
    code, out, err = mains([sys.executable, MAINS, "thread"])
    assert (code, out) == (0, "right\n")
    assert "starts a thread when it is imported" in err
    assert census.gone(GONE_SECONDS) == {}
