"""Workers have the modules that the program has, wherever those lie."""

import subprocess
import sys

import pytest

from support.applications import Census
from support.children import complaints

TASKS = """
import pathlib
import threading
import safespawn

{extra}

class Box:
    pass

def where(box=None):
    return __file__

def started():
    for _ in range(2):  # the pool's thread has done all that it was asked to
        done = threading.Event()
        pool._crew.pump.call_soon(done.set)
        done.wait()
    tasks = pathlib.Path("/proc/self/task").iterdir()
    return [pid for task in tasks for pid in (task / "children").read_text().split()]

def nested():
    with safespawn.Pool(1) as pool:
        return pool.apply(where)
"""

PROGRAM = """
import asyncio, os, sys
import safespawn

sys.path.insert(0, sys.argv[1])
from tasks_of_mine import tasks
import single
del sys.path[0]

def main():
    with safespawn.Pool(1) as pool:
        assert pool.apply(tasks.where, (single.Box(),)) == tasks.__file__
        assert pool.apply(single.nested) == single.__file__
    with safespawn.Pool(1, preload=["single"]) as pool:
        assert pool.apply(single.where, (tasks.Box(),)) == single.__file__

    process = safespawn.Process(target=single.where, args=(tasks.Box(),))
    process.start()
    process.join()
    assert process.exitcode == 0

    async def run():
        async with safespawn.AsyncPool(1) as pool:
            assert await pool.run(tasks.where) == tasks.__file__

    asyncio.run(run())

    sys.path.insert(0, sys.argv[1])
    import late
    del sys.path[0]
    with safespawn.Pool(1) as pool:  # the template is there already
        assert pool.apply(late.where) == late.__file__
        assert pool.apply(late.started) == [], "the pool of the module has started something"

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize("package", [True, False], ids=["package", "namespace"])
def test_modules_that_no_path_leads_to(package, tmp_path) -> None:
    """
    What was imported from a directory that is not in sys.path any more is found in workers and processes, and so is
    what a module of it needs; a pool that such a module makes for itself starts nothing there.
    """
    home = tmp_path / "home"
    (home / "tasks_of_mine").mkdir(parents=True)
    if package:
        (home / "tasks_of_mine" / "__init__.py").touch()
    (home / "tasks_of_mine" / "tasks.py").write_text(TASKS.format(extra=""))
    (home / "single.py").write_text(TASKS.format(extra="import helper_of_mine"))
    (home / "helper_of_mine.py").touch()
    (home / "late.py").write_text(TASKS.format(extra="pool = safespawn.Pool(1)"))
    (tmp_path / "single.py").write_text("raise ImportError('this one the program has not')")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    census = Census()
    argv = [sys.executable, "-X", "dev", "-W", "error", program, home]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not complaints(done.stderr)
    assert census.gone(5.0) == {}


def test_a_module_that_has_gone_is_said() -> None:
    """Where the module's file is, is no promise that it is there: the error names the module."""
    from safespawn._worker import elsewhere

    finder = elsewhere._Finder()
    finder.places = {"gone_for_good": "/nowhere"}
    assert finder.find_spec("gone_for_good") is None
    assert finder.find_spec("another") is None
    assert finder.find_spec("gone_for_good", ["/a/package"]) is None
