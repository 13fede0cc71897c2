"""The guard in whole programs: every start that can hang is told at its line, or refused; those that cannot are not."""

import json
import os

import pytest

from support.applications import Application, Census
from support.children import PROGRAMS

FILE = os.path.join(PROGRAMS, "guard_watch.py")
KINDS = {
    "fork": "fork", "forkpty": "fork", "system": "shell", "popen": "shell", "preexec": "preexec",
    "start_method": "start-method", "forked_process": "fork",
}  # fmt: skip


def story(name, policy="warn", *arguments):
    """What a story tells; it leaves nothing."""
    census = Census()
    with Application("guard_watch", name, policy, *arguments) as app:
        told = json.loads(app.finish().splitlines()[-1])
    assert census.gone(2.0) == {}
    return told


def lines():
    """By the name in its comment, the number of each line that starts something."""
    found = {}
    with open(FILE) as file:
        for number, line in enumerate(file, 1):
            _, mark, name = line.partition("# here: ")
            if mark:
                found[name.strip()] = number
    return found


def test_every_kind_is_refused_under_error():
    """Nothing is started; the error has kind, line, the thread that was alive, and what to do instead."""
    found = story("kinds", "error")
    for name, kind in KINDS.items():
        got_kind, file, line, text = found[name]["error"]
        assert (got_kind, file, line) == (kind, FILE, lines()[name]), name
        assert "'poller'" in text, name
        assert f"started at {FILE}:" in text, name
        assert "help:" in text, name
        assert found[name]["warnings"] == [], name


def test_every_kind_is_told_under_warn():
    """It is started all the same; one warning stands at the line."""
    found = story("kinds", "warn")
    at = lines()
    for name in KINDS:
        assert found[name]["error"] is None, name
        ours = [each for each in found[name]["warnings"] if each[0] == "UnsafeStartWarning"]
        assert [each[1:3] for each in ours] == [[FILE, at[name]]], name
        assert "'poller'" in ours[0][3], name


def test_off_says_nothing():
    """Under "off" each is started, and of ours there is no word."""
    found = story("kinds", "off")
    for name in KINDS:
        assert found[name]["error"] is None, name
        assert not [each for each in found[name]["warnings"] if each[0].startswith("Unsafe")], name


def test_safe_starts_are_not_met():
    """Commands, pools and processes of ours, and a plain subprocess, pass under "error"."""
    assert story("safe") == [1, 0, "safespawn.context", "safespawn"]


def test_the_start_method_is_forced_and_kept():
    """The default is ours; the program may choose a safe one; "fork" is refused even by force."""
    before, first, second, third, last = story("methods")
    assert before in ("fork", "forkserver")
    assert [first, second, third, last] == ["safespawn", "spawn", "start-method", "spawn"]


def test_a_fork_method_of_before_is_replaced():
    """A start method "fork" that was chosen before the line is ours after it; a warning at the line says so."""
    method, ((file, line, text),) = story("chosen_fork")
    assert method == "safespawn"
    assert (file, line) == (FILE, lines()["chosen_fork"])
    assert "Locks and queues that were made before" in text


def test_the_end_of_the_interpreter_is_not_watched():
    """A finalizer that starts a process there does, without an error."""
    assert story("finalizing") == "nothing else"


def test_a_supervisors_start_method_ends_with_it():
    """While it is entered its own counts, then the program's again."""
    assert story("methods_of_supervisors") == ["safespawn", "spawn", "safespawn"]


@pytest.fixture
def modules(tmp_path):
    """A module that imports one that starts things."""
    (tmp_path / "outer_module.py").write_text("import inner_module\n")
    (tmp_path / "inner_module.py").write_text(
        "import multiprocessing\n"
        "import safespawn\n"
        "VALUES = [safespawn.run(['true']).returncode]\n"
        "with safespawn.Pool(1) as pool:\n"
        "    VALUES.append(pool.apply(abs, (-4,)))\n"
        "process = multiprocessing.Process(target=abs, args=(1,))\n"
        "process.start()\n"
        "process.join()\n"
        "VALUES.append(process.exitcode)\n"
    )
    return tmp_path


def test_a_start_in_an_import_works_and_is_told(modules):
    """The fourth incident: each has its result, and a warning with line and import chain."""
    told = story("importing", "warn", modules)
    assert told["error"] is None
    assert told["values"] == [0, 4, 0]
    inner = f"{modules}/inner_module.py"
    assert [each[:2] for each in told["warnings"]] == [[inner, 3], [inner, 5], [inner, 7]]
    for _, _, text in told["warnings"]:
        assert f"imported: inner_module ({modules}/outer_module.py:1)" in text
        assert f"imported: outer_module ({FILE}:" in text


def test_a_start_in_an_import_is_refused_under_error(modules):
    """Nothing is started, and the import fails with the line and the chain."""
    told = story("importing", "error", modules)
    kind, imports, file, line = told["error"]
    assert (kind, file, line) == ("import", f"{modules}/inner_module.py", 3)
    assert imports[0] == f"inner_module ({modules}/outer_module.py:1)"
    assert told["values"] is None


def test_a_forked_child_knows_how_it_came_about():
    """The flight recorder: who forked, which threads it had, where each was started and stood."""
    pid, who, rows, text, kept = story("flight")
    assert who == pid
    assert kept == 1
    by_name = {name: (forked, started, frames) for name, forked, started, frames in rows}
    assert set(by_name) == {"poller", "MainThread"}
    assert by_name["MainThread"][0]
    assert by_name["MainThread"][2][0][0] == FILE
    assert by_name["MainThread"][2][0][2] == "flight"
    forked, started, frames = by_name["poller"]
    assert not forked
    assert started[0] == FILE
    assert frames[0][2].endswith("wait")
    assert "forked with 2 threads" in text


def test_a_supervisors_policy_counts_while_it_is_entered():
    """Before and after it the program is as it was."""
    assert story("supervised") == ["boot", "running", "fork", "boot"]


def test_declared_threads_start_after_the_last_child():
    """They find every child up, and are asked to stop, and waited for, when the Supervisor is left."""
    log, returncode, alive, later = story("declared")
    assert log[:2] == ["child 1", "child 2"]
    assert sorted(log[2:4]) == ["listener", "thread after ['child 1', 'child 2']"]
    assert log[4:] == ["thread ends"]
    assert (returncode, alive, later) == (0, True, False)
