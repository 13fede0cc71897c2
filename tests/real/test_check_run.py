"""`check --run` and the guard on real programs: each incident's original shape is found where it happens."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time

import pytest

import safespawn
from support.applications import Census
from support.children import ENV, PROGRAMS

SHAPES = os.path.join(PROGRAMS, "incident_shapes")
SECONDS = "2"  # for the shapes that go on for ever, or hang as they did
SEEN = {"SPN101", "SPN201", "SPN204"}  # what the static rules say of a line that is told of at run time as well


def expected(shape):
    """Line and code of what happens when the shape runs, from its comments."""
    found = set()
    with open(os.path.join(SHAPES, shape)) as file:
        for number, line in enumerate(file, 1):
            codes = set(re.findall(r"SPN\d+", line.partition("# expect: ")[2]))
            if codes & SEEN:
                found |= {(number, code) for code in codes & SEEN}
            elif "SPN301" in codes:
                found.add((number, "SPN301"))
    return found


def words_of(shape):
    """How to run it: the shape of an import is one of a module that is imported."""
    if shape == "import_lock.py":
        return ["-c", "import import_lock"]
    return [os.path.join(SHAPES, shape)]


@pytest.fixture(autouse=True)
def _names_of_semaphores():
    """
    The shapes are killed as they run. One that is just making a semaphore of multiprocessing's leaves its name, which
    lives for some microseconds otherwise: one that has come meanwhile and stays for half a second is nobody's.
    """
    before = semaphores()
    yield
    deadline = time.monotonic() + 0.5
    while semaphores() - before and time.monotonic() < deadline:
        time.sleep(0.02)
    for name in semaphores() - before:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - os.stat(f"/dev/shm/{name}").st_mtime >= 0.5:
                os.unlink(f"/dev/shm/{name}")


def semaphores():
    """The names of multiprocessing's semaphores that are there now."""
    return {name for name in os.listdir("/dev/shm") if name.startswith("sem.mp-")}


def run(*words, cwd, **options):
    """A Python program with these words, in a directory that it may write to; nothing is left of it."""
    census = Census()
    env = {**ENV, "PYTHONPATH": os.pathsep.join([ENV["PYTHONPATH"], SHAPES])}
    done = subprocess.run(
        [sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True, timeout=60, check=False, **options
    )
    assert census.gone(5.0) == {}
    return done


def check_run(*words, cwd, options=()):
    """What `safespawn check --run` finds, as its JSON; and its exit code and stderr."""
    done = run("-m", "safespawn", "check", "--format=json", *options, "--run", *words, cwd=cwd)
    assert done.returncode in (0, 1), done.stderr
    return json.loads(done.stdout), done.returncode, done.stderr


@pytest.mark.parametrize("shape", sorted(name for name in os.listdir(SHAPES) if name.endswith(".py")))
def test_an_incidents_shape_is_found_as_it_runs(shape, tmp_path):
    """The findings are those lines and codes that happen; the program may hang as it did, and is ended."""
    told, code, _ = check_run(*words_of(shape), cwd=tmp_path, options=("--timeout", SECONDS))
    found = {(each["line"], each["code"]) for each in told["findings"] if each["path"].endswith(shape)}
    assert expected(shape)
    assert found >= expected(shape), told
    assert {code for _, code in found - expected(shape)} <= {"SPN102", "SPN203"}, told
    assert code == 1


GUARDED = """
import runpy, sys, safespawn
safespawn.init(guard="warn", start_method=None)
if sys.argv[1] == "-c":
    exec(sys.argv[2])
else:
    runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.mark.parametrize("shape", sorted(name for name in os.listdir(SHAPES) if name.endswith(".py")))
def test_an_incidents_shape_is_told_by_the_guard(shape, tmp_path):
    """Every line that forks, or starts a command in an import, has its warning."""
    argv = [sys.executable, "-c", GUARDED, *words_of(shape)]
    env = {**ENV, "PYTHONPATH": os.pathsep.join([ENV["PYTHONPATH"], SHAPES])}
    try:
        said = safespawn.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=float(SECONDS)).stderr
    except safespawn.TimeoutExpired as error:
        said = error.stderr
    file = os.path.join(SHAPES, shape)
    found = {int(line) for line in re.findall(re.escape(file) + r":(\d+): UnsafeStartWarning", said)}
    wanted = {line for line, code in expected(shape) if code != "SPN101"}
    if shape == "import_lock.py":  # the guard meets what the thread starts, for whose end the import may wait
        with open(file) as source:
            wanted |= {number for number, line in enumerate(source, 1) if "subprocess.run(" in line}
        assert "while import_lock" in said
    assert wanted
    assert found >= wanted, said


PROGRAM = """
import os
import sys
print("said by the program", sys.argv)
pid = os.fork()  # without a thread: nothing to say
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
sys.exit(3)
"""


def test_a_clean_program_has_no_findings(tmp_path):
    """What it prints goes to stderr; that it failed by itself is said, and is no finding."""
    (tmp_path / "program.py").write_text(PROGRAM)
    told, code, said = check_run("program.py", "--its-own", "x", cwd=tmp_path)
    assert told["findings"] == []
    assert code == 0
    assert "said by the program ['program.py', '--its-own', 'x']" in said
    assert "exit code 3" in said


CLOSES = """
import os
import threading
os.closerange(3, 256)
files = [open(f"data{number}", "w+") for number in range(6)]
threading.Thread(target=threading.Event().wait, daemon=True).start()
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
print("through")
"""


def test_nothing_is_written_where_the_program_closed_everything(tmp_path):
    """Its own files, which have the numbers now, stay empty, and it runs through."""
    (tmp_path / "daemon.py").write_text(CLOSES)
    _, code, said = check_run("daemon.py", cwd=tmp_path)
    assert code == 0
    assert "through" in said
    assert {(tmp_path / f"data{number}").read_bytes() for number in range(6)} == {b""}


def test_noqa_and_select_count(tmp_path):
    """A remark at the line silences it; --ignore leaves a code out."""
    source = "import os, threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    source += "os.system('true')\n" + "pid = os.fork(){}\nos._exit(0) if pid == 0 else os.waitpid(pid, 0)\n"
    (tmp_path / "loud.py").write_text(source.format(""))
    (tmp_path / "quiet.py").write_text(source.format("  # noqa: SPN201"))
    assert [each["code"] for each in check_run("loud.py", cwd=tmp_path)[0]["findings"]] == ["SPN201"]
    assert check_run("quiet.py", cwd=tmp_path)[0]["findings"] == []
    assert check_run("loud.py", cwd=tmp_path, options=("--ignore", "SPN2"))[0]["findings"] == []


@pytest.mark.parametrize("words", [["--run"], [], ["--run", "-m"], ["a.py", "--run", "b.py"]])
def test_a_bad_command_line(tmp_path, words):
    """It is a usage error, with a sentence."""
    done = run("-m", "safespawn", "check", *words, cwd=tmp_path)
    assert done.returncode == 2
    assert "safespawn check" in done.stderr
