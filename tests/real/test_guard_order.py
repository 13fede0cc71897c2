"""The order guard in real programs: who runs already, where they were started, and what each policy does."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAMS = Path(__file__).parents[1] / "programs"
THREADS = PROGRAMS / "guard_threads.py"
ORDER = PROGRAMS / "guard_order.py"


def run_program(program, *args, python=()):
    """Run *program* to its end, with the package under test: the checkout's or an installed one."""
    spec = importlib.util.find_spec("safespawn")
    package = Path(next(iter(spec.submodule_search_locations)))
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    env["PYTHONPATH"] = str(package.parent)
    argv = [sys.executable, *python, str(program), *args]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


def mark(program, name):
    """The place of the line of *program* that ends in `# mark: name`, as JSON has it."""
    lines = program.read_text().splitlines()
    (number,) = [number for number, line in enumerate(lines, 1) if line.endswith(f"# mark: {name}")]
    return [str(program), number]


@pytest.fixture(scope="module")
def census():
    """What guard_threads.py printed."""
    return json.loads(run_program(THREADS).stdout)


@pytest.fixture(scope="module")
def facts(census):
    """The census by name; what `threading` does not know as `raw` and `native`."""
    found = {fact["name"]: fact for fact in census["facts"] if fact["in_threading"]}
    (found["raw"],) = [fact for fact in census["facts"] if fact["kind"] == "python" and not fact["in_threading"]]
    (found["native"],) = [fact for fact in census["facts"] if fact["kind"] == "native"]
    assert len(found) == len(census["facts"])
    return found


def test_census_counts_each_thread_once(facts):
    """A census has one entry for each thread, with an id of its own, and none for the main thread."""
    (listener,) = [name for name in facts if name.startswith("Thread-")]
    assert set(facts) == {"poller", "watcher", "pool_0", "timer", "raw", "native", listener}
    ids = {fact["native_id"] for fact in facts.values()}
    assert len(ids) == 7
    assert None not in ids


def test_census_names_a_python_thread(facts):
    """A thread made with a target is told with its target, both places, and the line that it executes."""
    fact = facts["poller"]
    assert fact["kind"] == "python"
    assert not fact["daemon"]
    assert fact["target"] == "__main__.poll"
    assert fact["target_at"] == mark(THREADS, "poll")
    assert fact["started_at"] == mark(THREADS, "poller")
    assert fact["running_at"] == mark(THREADS, "poll runs")


def test_census_names_a_subclass(facts):
    """A subclass of Thread that has its own run() is told with that run() as its target, and as a daemon."""
    fact = facts["watcher"]
    assert fact["daemon"]
    assert fact["target"] == "__main__.Watcher.run"
    assert fact["target_at"] == mark(THREADS, "watcher")
    assert fact["started_at"] == mark(THREADS, "watcher starts")
    assert fact["running_at"] == mark(THREADS, "watcher runs")


def test_census_names_who_submitted(facts):
    """A worker of a ThreadPoolExecutor was started at the user's line that called submit()."""
    assert facts["pool_0"]["started_at"] == mark(THREADS, "submit")
    assert facts["pool_0"]["running_at"] == mark(THREADS, "poll runs")


def test_census_names_the_users_line_not_the_librarys(facts):
    """A thread that the standard library starts is told with the user's line that made it do so."""
    (listener,) = [fact for name, fact in facts.items() if name.startswith("Thread-")]
    assert listener["started_at"] == mark(THREADS, "listener")
    assert listener["target"] == "logging.handlers.QueueListener._monitor"


def test_census_names_what_a_timer_will_run(facts):
    """A Timer is told with the function that it will call, not with its own run()."""
    assert facts["timer"]["target"] == "__main__.poll"
    assert facts["timer"]["started_at"] == mark(THREADS, "timer")


def test_census_tells_a_raw_thread_from_a_native_one(facts):
    """A thread that runs Python unknown to `threading` is a Python thread with its function and line."""
    fact = facts["raw"]
    assert fact["target"] == "__main__.raw"
    assert fact["target_at"] == mark(THREADS, "raw")
    assert fact["running_at"] == mark(THREADS, "raw runs")
    assert fact["started_at"] is None
    assert "started by _thread or by C code: place unknown" in fact["text"]


def test_census_names_a_native_thread(facts):
    """A thread that runs no Python is native, and has the kernel's name for it, brackets and all."""
    fact = facts["native"]
    assert fact["comm"] == fact["name"] == "a (native) one"
    assert fact["target"] is None
    assert fact["text"] == f"'a (native) one' (native, id {fact['native_id']}): started by C code, place unknown"


def test_census_from_another_thread_counts_that_thread(census):
    """A census that is taken from another thread has that thread in it, and still not the main one."""
    assert "asker_0" in census["seen_by_thread"]
    assert "MainThread" not in census["seen_by_thread"]
    assert len(census["seen_by_thread"]) == len(census["facts"]) + 1


def test_recorded_counts_threads_with_a_place(census):
    """The recorder has the place of each living thread that `threading` started."""
    started = [fact["name"] for fact in census["facts"] if fact["in_threading"]]
    assert census["recorded"] == len(started) == 5


def test_error_names_the_threads():
    """Under the policy "error" a running thread raises OrderError, with its line and with a cure."""
    out = run_program(ORDER, "error", "early").stdout
    assert out.startswith("OrderError\nsafespawn.init() is called while 1 other thread(s) run\n")
    assert "thread 'worker' (daemon) runs __main__.work" in out
    assert "started at {}:{}".format(*mark(ORDER, "start")) in out
    assert "help:  start these threads after this line" in out


def test_warning_is_about_the_users_line():
    """Under the policy "warn" the program goes on, and the warning stands at the line that declared."""
    done = run_program(ORDER, "warn", "early")
    assert done.stdout == "went on\n"
    head, *_ = done.stderr.splitlines()
    place = "{}:{}".format(*mark(ORDER, "declare"))
    assert head == f"{place}: ThreadOrderWarning: safespawn.init() is called while 1 other thread(s) run"
    assert "  declare(policy)  # mark: declare" in done.stderr.splitlines()


def test_warning_is_issued_once_per_line():
    """A line that declares three times warns once, though the thread is at another line each time."""
    done = run_program(ORDER, "warn", "thrice")
    assert done.stdout == "went on\n"
    assert done.stderr.count("ThreadOrderWarning") == 1


def test_warning_filter_always_is_respected():
    """Under `-W always` a line that declares three times warns thrice, each time with the new line."""
    stderr = run_program(ORDER, "warn", "thrice", python=["-W", "always"]).stderr
    assert stderr.count("ThreadOrderWarning") == 3
    assert len(set(re.findall(r"now at (\S+);", stderr))) == 3


def test_warning_becomes_an_error_when_asked():
    """Under `-W error` the warning is raised, with the same text."""
    done = run_program(ORDER, "warn", "early", python=["-W", "error"])
    assert done.stdout.startswith("ThreadOrderWarning\nsafespawn.init() is called while 1 other thread(s) run\n")
    assert done.stderr == ""


def test_place_before_the_import_is_said_to_be_unknown():
    """A thread that was started before the import is told of, with the reason for its missing place."""
    out = run_program(ORDER, "error", "late").stdout
    assert "thread 'worker' (daemon) runs __main__.work" in out
    assert "started before 'import safespawn': place unknown" in out
    assert "started at" not in out


def test_off_says_nothing():
    """Under the policy "off" a running thread is nobody's business."""
    done = run_program(ORDER, "off", "early", python=["-W", "error"])
    assert done.stdout == "went on\n"
    assert done.stderr == ""


@pytest.mark.parametrize("story", ["alone", "joined"])
def test_no_threads_no_complaint(story):
    """A program that has started no thread, or has joined them all, passes under the strictest policy."""
    assert run_program(ORDER, "error", story).stdout == "went on\n"


def test_bad_policy_is_refused():
    """A policy that does not exist is a BadArgument, even if no thread runs."""
    out = run_program(ORDER, "strict", "alone").stdout
    assert out.startswith("BadArgument\nguard must be one of 'error', 'warn', 'off'\n")
