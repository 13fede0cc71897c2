"""What `import safespawn` does to a program that may not use it yet: as good as nothing."""

import importlib.util
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_SECONDS = 0.015  # the promise of the README: over a bare interpreter
INTERPRETERS = 9  # arbitrary; odd, so that the median is a measurement

HEAVY = ("anyio", "asyncio", "attr", "attrs", "concurrent.futures", "multiprocessing", "subprocess", "trio")

# The fd that listdir itself needs is closed again when it is looked at, so it shows in neither list.
LOOK = """
import json, os, sys

def fds():
    links = [f"/proc/self/fd/{n}" for n in os.listdir("/proc/self/fd")]
    return {link: os.readlink(link) for link in links if os.path.lexists(link)}

def has_children():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True

STARTS = (
    "_thread.start", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system",
    "socket.__new__", "subprocess.",
)
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event.startswith(STARTS) else None)
before_fds, before_modules = fds(), set(sys.modules)
import safespawn
after_fds = fds()
print(json.dumps({
    "fds": [before_fds, after_fds],
    "threads": len(os.listdir("/proc/self/task")),
    "children": has_children(),
    "events": seen,
    "modules": sorted(set(sys.modules) - before_modules),
}))
"""

# The thread's CPU time, not the wall clock: another process on the same core does not count against us.
COST = """
import time
began = time.thread_time()
import {module}
print(time.thread_time() - began)
"""


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory):
    """Run a program in a new interpreter with its own, warm bytecode cache, and return what it printed."""
    dropped = ("COV", "PYTHONDONTWRITE", "SAFESPAWN_")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(dropped)}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path_factory.mktemp("pycache"))

    def run(program: str) -> str:
        argv = [sys.executable, "-c", program]
        done = subprocess.run(argv, env=environment, check=True, capture_output=True, text=True, timeout=60)
        return done.stdout

    run("import safespawn")
    return run


def test_import_starts_and_opens_nothing(fresh) -> None:
    """`import safespawn` starts no thread and no process and leaves the descriptors as they were."""
    seen = json.loads(fresh(LOOK))
    assert seen["events"] == []
    assert seen["threads"] == 1
    assert not seen["children"]
    before, after = seen["fds"]
    assert after == before


def test_import_loads_no_heavy_module(fresh) -> None:
    """`import safespawn` loads neither an event loop, nor attrs, nor subprocess."""
    loaded = set(json.loads(fresh(LOOK))["modules"])
    assert loaded.isdisjoint(HEAVY), loaded.intersection(HEAVY)


def test_import_is_cheap(fresh) -> None:
    """`import safespawn` costs under 15 ms of CPU time; on a slow machine under twice what `logging` costs there."""
    costs, others = [], []
    for _ in range(INTERPRETERS):
        costs.append(float(fresh(COST.format(module="safespawn"))))
        others.append(float(fresh(COST.format(module="logging"))))
    limit = max(LIMIT_SECONDS, 2 * statistics.median(others))
    assert statistics.median(costs) < limit, [f"{c * 1000:.1f} ms" for c in sorted(costs)]


def test_package_is_typed() -> None:
    """The package carries the marker that tells type checkers to believe its annotations."""
    spec = importlib.util.find_spec("safespawn")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    assert (Path(spec.submodule_search_locations[0]) / "py.typed").is_file()


def test_the_door_lists_what_it_can_give() -> None:
    """`__all__`, written out for the type checkers, names what the lazy door has a home for, and nothing else."""
    import safespawn

    homes = {*safespawn._HOMES, *safespawn._MODULES}
    assert {*safespawn.__all__} == {*homes, "DEVNULL", "PIPE", "STDOUT"}
    assert all(getattr(safespawn, name) is not None for name in safespawn.__all__)
