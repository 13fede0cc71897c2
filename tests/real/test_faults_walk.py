"""Every failpoint of both sides, with every action that makes sense there, in a real program."""

import errno
import importlib.util
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.applications import Census
from support.children import ENV, PROGRAMS

PACKAGE = Path(next(iter(importlib.util.find_spec("safespawn").submodule_search_locations)))
WORKERS = 10  # nearly all of the time they wait for a bound to pass
CALL_SECONDS = 8.0  # the bounds in fault_walk.py are 2 s each, and a call may meet two of them; the rest is the load
KINDS = ("run", "captured", "forked", "popen", "timeout", "missing")
TURNED = ("popen", "timeout", "forked", "captured", "missing", "run")


def registry():
    """The two lists of points, from the zygote's file."""
    spec = importlib.util.spec_from_file_location("failpoints", PACKAGE / "_zygote" / "system.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.FAILPOINTS, module.CLIENT_FAILPOINTS


ZYGOTE, CLIENT = registry()
ACTIONS = ("kill", "stop", "exit:9", f"errno:{errno.ENOMEM}", "sleep:0.05")
DEATHS = {"kill": -signal.SIGKILL, "exit:9": 9}


def cases():
    """Each point with each of its actions, and the passage at which it fails: (point, action, passage, order)."""
    for point in ZYGOTE:
        for action in ACTIONS:
            yield point, action, 1, KINDS
            if action in ("kill", "stop") and not point.startswith("child."):
                yield point, action, 1, TURNED
    for point in CLIENT:
        for action in (f"errno:{errno.ENOMEM}", "sleep:0.05", *DEATHS):
            for passage in (1, 2, 6):
                yield point, action, passage, KINDS
    for passage in (1, 2, 5):
        yield "client.before_send", f"errno:{errno.EPIPE}", passage, KINDS
        yield "client.before_recv", f"errno:{errno.EAGAIN}", passage, KINDS


def walk(case, log):
    """Run the program for *case*; returns what is wrong, and the points that were passed."""
    point, action, passage, order = case
    armed = {"SAFESPAWN_FAILPOINTS": f"{point}={action}#{passage}", "SAFESPAWN_FAILPOINTS_LOG": str(log)}
    done = subprocess.run(
        [sys.executable, os.path.join(PROGRAMS, "fault_walk.py"), *order],
        env={**ENV, **armed},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    passed = set(log.read_text().split()) if log.exists() else set()
    wrong = []
    if point in CLIENT and action in DEATHS:  # the application itself dies: what it leaves is seen at the end
        if done.returncode != DEATHS[action]:
            wrong.append(f"ended with {done.returncode}: {done.stderr}")
        return wrong, passed
    if done.returncode or done.stderr:
        return [f"ended with {done.returncode}: {done.stderr}"], passed
    *calls, after, end = map(json.loads, done.stdout.splitlines())
    wrong += [f"not an error of ours: {call}" for call in calls if not call["ours"]]
    wrong += [f"too late: {call}" for call in calls if call["seconds"] > CALL_SECONDS]
    if action.startswith("sleep") or action == f"errno:{errno.EAGAIN}":
        wrong += [f"only late, and yet: {call}" for call in calls if not call["right"]]
    if sum(not call["right"] for call in calls) > (len(calls) if point == "zygote.booted" else 1):
        wrong.append(f"one fault, and several calls have failed: {calls}")
    if not after["right"]:
        wrong.append(f"the next call: {after}")
    if end["left"]:
        wrong.append(f"descriptors left: {end['left']}")
    return wrong, passed


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Every case, walked: case -> what is wrong; the points that were passed; who is left."""
    folder = tmp_path_factory.mktemp("walk")
    census = Census()
    todo = sorted(cases(), key=lambda case: case[1] != "stop")  # those that wait longest come first
    with ThreadPoolExecutor(WORKERS) as executor:
        results = list(executor.map(walk, todo, [folder / str(number) for number in range(len(todo))]))
    left = census.gone(5.0)
    passed = {}
    for case, (_, points) in zip(todo, results, strict=True):
        passed.setdefault(case[0], set()).update(points)
    return dict(zip(todo, (wrong for wrong, _ in results), strict=True)), passed, left


@pytest.mark.parametrize("point", [*ZYGOTE, *CLIENT])
def test_a_fault_at_this_point_is_one_calls_own(walked, point):
    """Each action ends in a result or an error of ours within a bound, for one call; the next call works."""
    trouble = {case: wrong for case, wrong in walked[0].items() if case[0] == point and wrong}
    assert not trouble, json.dumps([[*case, wrong] for case, wrong in trouble.items()], indent=1)


@pytest.mark.parametrize("point", [*ZYGOTE, *CLIENT])
def test_the_walk_has_been_here(walked, point):
    """Each point of the registry has failed at least once, as its log says."""
    assert walked[1].get(point) == {point}


def test_nothing_is_left_of_the_walk(walked):
    """When the last program has ended nobody is left below this process."""
    assert walked[2] == {}


def test_a_misspelt_point_is_an_error():
    """A name in SAFESPAWN_FAILPOINTS that neither side has ends the program that loads safespawn."""
    done = subprocess.run(
        [sys.executable, "-c", "import safespawn; safespawn.run(['true'])"],
        env={**ENV, "SAFESPAWN_FAILPOINTS": "zygote.never=kill"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "no failpoint 'zygote.never'" in done.stderr
