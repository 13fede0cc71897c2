"""Whole programs that use processes: how they end, what they leave, what their own file has to do with it."""

import os
import pty
import signal
import subprocess
import sys

import pytest

from support.applications import Application, Census
from support.children import ENV, reap_orphans


@pytest.fixture(autouse=True)
def _wardens():
    """What a program leaves to this process, the subreaper, are its zygotes' wardens, which have ended."""
    yield
    reap_orphans()


def output(*arguments, seconds=60):
    """What the program prints; it ends in order."""
    with Application("mp_program", *arguments) as app:
        return app.finish(seconds).splitlines()


def test_the_programs_file_is_loaded_when_it_is_needed():
    """Not for a target of another module; for its own ones once, in the template."""
    assert output("lazy") == [
        "exit 0", "loaded by MainProcess", "own: __mp_main__", "exit 0", "own: __mp_main__", "exit 0",
    ]  # fmt: skip


def test_a_program_whose_file_starts_a_thread():
    """Each process that needs it loads it for itself; a warning says why."""
    with Application("mp_program", "threaded-main") as app:
        out, err = app.process.communicate(timeout=60)
    lines = out.decode().splitlines()
    assert lines.count("exit 0") == 3
    assert [line for line in lines if line.startswith("loaded by Process")] == [
        "loaded by Process-2",
        "loaded by Process-3",
    ]
    assert err.count(b"RuntimeWarning: the program's own file starts a thread") == 1


def test_a_program_without_a_guard():
    """It does not start processes without end: the process that loads it says what is wrong, and ends."""
    census = Census()
    with Application("mp_program", "unguarded") as app:
        out, err = app.process.communicate(timeout=60)
    assert out.decode().splitlines()[-1] == "exit 1"
    assert out.count(b"unguarded in") == 3  # the program, the template, the process
    assert b"MainReentered: Process.start was called while" in err
    assert b"mp_program.py:" in err
    assert census.gone(5.0) == {}


@pytest.mark.parametrize("program", ["-c", "-m"])
def test_programs_that_are_not_a_file(program, tmp_path):
    """`python -m` is loaded by its name; what `python -c` defines goes by value."""
    code = "import safespawn, sys\nfrom support import mp_targets\ndef own(): sys.exit(4)\nif __name__ == '__main__':\n"
    code += "    for target in (own, mp_targets.nothing):\n"
    code += "        p = safespawn.Process(target=target); p.start(); p.join(); print(p.exitcode)\n"
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "tool.py").write_text(code)
    arguments = ["-c", code] if program == "-c" else ["-m", "package.tool"]
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tmp_path, env=ENV, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["4", "0"]
    assert not done.stderr


def test_no_tracker_is_started():
    """A program that shares nothing by name has no resource tracker, nor have its processes."""
    assert output("no-tracker") == ["(False, None) None"]


def test_as_the_programs_start_method():
    """multiprocessing.Process is ours then, and a process of another method knows the name as well."""
    census = Census()
    assert output("by-name") == ["safespawn safespawn.context 0", "spawn multiprocessing.popen_spawn_posix 0"]
    assert census.gone(5.0) == {}  # its resource tracker is the last to go


def test_the_end_of_a_program():
    """It waits for its processes, but for daemons; then exit functions run; nothing is left."""
    census = Census()
    lines = output("at-exit")
    assert lines in (["late", "late", "last words"], ["late", "last words", "late"])
    assert census.gone(2.0) == {}


def test_a_killed_program_leaves_nothing():
    """Its processes end, theirs, the commands of those, and one that ignores SIGTERM."""
    census = Census()
    with Application("mp_program", "killed") as app:
        pids = app.facts()
        assert len(pids) == 4
        app.signal()
        app.process.wait()
        assert census.gone(5.0) == {}


def test_the_parents_death_is_told():
    """`parent_process()` of a process whose parent was killed is not alive, and its `join` returns."""
    assert output("parent-dies") == ["True", "False"]


def test_ctrl_c_at_a_terminal():
    """It reaches the program and its process, as with multiprocessing."""
    ours, theirs = pty.openpty()
    with (
        open(ours, "wb", buffering=0),
        open(theirs, "rb", buffering=0),
        Application("mp_program", "terminal", stdin=theirs, start_new_session=True) as app,
    ):
        assert {"group True", "process waits"} < {app.line() for _ in range(3)}
        os.write(ours, b"\x03")
        assert {app.line(), app.line()} == {"process interrupted", "program interrupted"}
        assert app.line() == "exit 5"
        app.process.wait(20)


def test_without_a_terminal():
    """A process has a group of its own; SIGINT for the program is the program's alone."""
    with Application("mp_program", "alone", start_new_session=True) as app:
        lines = {app.line() for _ in range(3)}
        assert {"group False", "process waits"} < lines
        os.killpg(app.pid, signal.SIGINT)
        assert app.line() == "program interrupted"
        (pid,) = [int(line.split()[1]) for line in lines if line.startswith("pid")]
        os.kill(pid, signal.SIGINT)
        assert app.line() == "process interrupted"
        assert app.line() == "exit 5"
        app.process.wait(20)


def test_the_second_incident():
    """A hundred processes that log, from four threads while two log and one forks: none hangs."""
    with Application("mp_program", "storm") as app:
        facts = app.facts(120)
        app.process.wait(20)
    assert facts["codes"] == [0] * 100
    assert facts["slowest"] < 10


@pytest.mark.parametrize("cloudpickle", [True, False], ids=["cloudpickle", "plain"])
def test_what_was_typed_in_goes_by_value_or_is_refused(cloudpickle):
    """
    A process runs a function of an interactive session, with a lock and a connection; without cloudpickle `start` says
    what to do, and nothing is started.
    """
    program = """
import multiprocessing, safespawn
def double(lock, connection, number):
    with lock:
        connection.send(Number(number).value * 2)
class Number:
    def __init__(self, value):
        self.value = value
here, there = multiprocessing.Pipe()
lock = safespawn.get_context().Lock()
process = safespawn.Process(target=double, args=(lock, there, 21))
process.start()
there.close()
print(here.recv())
process.join()
print(process.exitcode)
"""
    if not cloudpickle:
        program = "import sys; sys.modules['cloudpickle'] = None" + program
    census = Census()
    done = subprocess.run(
        [sys.executable], input=program, env=ENV, capture_output=True, text=True, timeout=60, check=False
    )
    if cloudpickle:
        assert (done.stdout, done.stderr) == ("42\n0\n", "")
    else:
        assert done.stdout == ""
        assert "UnpicklableTask: the process cannot be pickled: process._target" in done.stderr
        assert "safespawn[cloudpickle]" in done.stderr
    assert census.gone(10.0) == {}
