"""The plugin in real runs of pytest: the guard at the user's line, and what a test leaves behind."""

import os
import subprocess
import sys

import pytest

from support.applications import Census
from support.children import ENV

FORKS = """
import os
import threading

def test_forks():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, name="poller")
    thread.start()
    try:
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
    finally:
        release.set()
        thread.join()
"""

LEAKS = """
import os
import subprocess
import time
import pytest
import safespawn

kept = []

def test_clean(safespawn_leaks):
    safespawn.run(["true"])
    with safespawn.Popen(["cat"], stdin=-1) as process:
        process.communicate(b"")
    subprocess.run(["true"], check=True)
    with safespawn.Pool(1) as pool:
        assert pool.apply(abs, (-1,)) == 1

def test_descriptor(safespawn_leaks):
    kept.append(os.open("/dev/null", os.O_RDONLY))

def test_process(safespawn_leaks):
    kept.append(subprocess.Popen(["sleep", "60"]))

def test_safespawns_process(safespawn_leaks):
    kept.append(safespawn.Popen(["sleep", "60"]))

def test_zombie(safespawn_leaks):
    kept.append(os.posix_spawn("/bin/true", ["true"], {}))

def test_unwatched():
    kept.append(os.open("/dev/null", os.O_RDONLY))

def test_the_end():
    kept[1].kill()
    kept[1].wait()
    kept[2].stop()
"""


def run(tmp_path, source, *options, ini=""):
    """Run pytest over *source* in a process of its own; returns its exit code and what it said. Nothing is left."""
    (tmp_path / "test_it.py").write_text(source)
    (tmp_path / "pytest.ini").write_text(f"[pytest]\n{ini}\n")
    census = Census()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-psafespawn.pytest_plugin", "-pno:cacheprovider", "-rA", *options, "."],
        cwd=tmp_path, env={**ENV, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert census.gone(2.0) == {}
    return done.returncode, done.stdout + done.stderr


def line_of(source, words):
    """The number of the line of *source* with these words."""
    return next(number for number, line in enumerate(source.splitlines(), 1) if words in line)


@pytest.mark.parametrize("by", ["option", "ini"])
def test_error_fails_the_test_that_forks(tmp_path, by):
    """The test fails with the error, which names its line and the thread."""
    options, ini = (["--safespawn-guard=error"], "") if by == "option" else ([], "safespawn_guard = error")
    code, said = run(tmp_path, FORKS, *options, ini=ini)
    assert code == 1, said
    assert f"os.fork() at {tmp_path}/test_it.py:{line_of(FORKS, 'os.fork')}" in said
    assert "'poller'" in said
    assert "safespawn: guard error" in said


def test_warn_tells_the_line(tmp_path):
    """The test passes; pytest's summary of warnings has the line of the test's file."""
    code, said = run(tmp_path, FORKS, "--safespawn-guard=warn")
    assert code == 0, said
    assert f"test_it.py:{line_of(FORKS, 'os.fork')}: UnsafeStartWarning" in said


def test_off_is_the_default(tmp_path):
    """Without the option nothing is said."""
    code, said = run(tmp_path, FORKS)
    assert code == 0, said
    assert "UnsafeStart" not in said


def test_who_is_allowed_passes(tmp_path):
    """Modules of the ini file's list may fork."""
    code, said = run(tmp_path, FORKS, "--safespawn-guard=error", ini="safespawn_guard_allow =\n    test_i*")
    assert code == 0, said


def test_a_bad_ini_value_is_a_usage_error(tmp_path):
    """It names the setting and what may be given."""
    code, said = run(tmp_path, FORKS, ini="safespawn_guard = loud")
    assert code == 4, said
    assert "safespawn_guard" in said
    assert "'warn'" in said


def test_what_is_left_fails_its_test(tmp_path):
    """Descriptors, processes of either library and zombies are named; clean tests and unwatched ones pass."""
    code, said = run(tmp_path, LEAKS)
    assert code == 1, said
    assert "4 errors" in said, said
    for name in ("test_clean", "test_unwatched", "test_the_end"):
        assert f"ERROR test_it.py::{name}" not in said, said
    assert "/dev/null" in said
    assert said.count("sleep 60") >= 2 or ("sleep 60" in said and "anon_inode:[pidfd]" in said), said
    assert "zombie" in said


def test_leaks_of_every_test_by_the_ini_file(tmp_path):
    """With the ini value every test is watched."""
    code, said = run(tmp_path, LEAKS, ini="safespawn_leaks = true")
    assert code == 1, said
    assert "ERROR test_it.py::test_unwatched" in said


def test_the_plugin_is_found_by_its_entry_point():
    """Whoever installs the package has the option."""
    env = {key: value for key, value in ENV.items() if key not in ("PYTHONPATH", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--help"], cwd=os.sep, env=env, capture_output=True, text=True, timeout=60,
        check=True,
    )  # fmt: skip
    assert "--safespawn-guard" in done.stdout
