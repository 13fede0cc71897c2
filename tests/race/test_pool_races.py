"""Faults at exactly the wrong moment: at each of a worker's points, and at random ones."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.applications import Application, Census
from support.children import ENV, PROGRAMS

PACKAGE = Path(next(iter(importlib.util.find_spec("safespawn").submodule_search_locations)))
PROGRAMS_AT_ONCE = 6
TASKS = 12
BOUND = 15.0  # seconds, for all tasks of a walk
STOPPED_SECONDS = 1.5  # what is stopped is waited for so long


def points():
    """The workers' failpoints, from the zygote's file."""
    spec = importlib.util.spec_from_file_location("failpoints", PACKAGE / "_zygote" / "system.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WORKER_FAILPOINTS


WORKER = points()
BEFORE_TASKS = ("worker.before_ready", "worker.after_ready")
AFTER_RESULTS = ("worker.before_flush", "worker.after_flush", "worker.before_exit")
DEATHS = ("kill", "exit:9")


def cases():
    """Point, action, passage."""
    for point in WORKER:
        for action in (*DEATHS, "sleep:0.05", "stop"):
            yield point, action, 1
        if point not in (*BEFORE_TASKS, "worker.before_exit"):
            yield point, "kill", 3


def walk(case, folder):
    """Run the program for *case*; returns what is wrong, and the points that were passed."""
    point, action, passage = case
    folder.mkdir()
    ran, log = folder / "ran", folder / "log"
    done = subprocess.run(
        [
            sys.executable,
            f"{PROGRAMS}/pool_walk.py",
            str(ran),
            str(TASKS),
            str(STOPPED_SECONDS if action == "stop" else BOUND),
        ],
        env={**ENV, "SAFESPAWN_FAILPOINTS": f"{point}={action}#{passage}", "SAFESPAWN_FAILPOINTS_LOG": str(log)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    passed = set(log.read_text().split()) if log.exists() else set()
    if done.returncode or done.stderr:
        return [f"ended with {done.returncode}: {done.stderr[-2000:]}"], passed
    facts = json.loads(done.stdout)
    found = facts["found"]
    times = Counter(int(line) for line in (ran.read_text().split() if ran.exists() else ()))
    wrong = [f"ran {count} times: {index}" for index, count in times.items() if count > 1]
    wrong += [
        f"delivered and not run: {index}" for index, each in enumerate(found) if each == index and not times[index]
    ]
    allowed = {"kill": {"WorkerDied"}, "exit:9": {"WorkerDied"}, "stop": {"ResultTimeout"}}.get(action, set())
    if point in BEFORE_TASKS and action in DEATHS:
        allowed = {"CrashLoop"}
    elif (point, passage) == ("worker.got_tasks", 1) and action in DEATHS:
        allowed = {"CrashLoop"}  # no worker ever begins a task
    elif point in AFTER_RESULTS and action in DEATHS:
        allowed = set()  # what was written down is delivered
    wrong += [f"{index}: {each}" for index, each in enumerate(found) if each != index and each not in allowed]
    if facts["seconds"] > BOUND or facts["end"] > BOUND:
        wrong.append(f"late: {facts}")
    return wrong, passed


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """Every case, walked: case -> what is wrong; the points that were passed; who is left."""
    folder = tmp_path_factory.mktemp("walk")
    census = Census()
    todo = sorted(cases(), key=lambda case: case[1] != "stop")  # those that wait longest come first
    with ThreadPoolExecutor(PROGRAMS_AT_ONCE) as executor:
        results = list(executor.map(walk, todo, [folder / str(number) for number in range(len(todo))]))
    left = census.gone(5.0)
    passed = set().union(*(points for _, points in results))
    return dict(zip(todo, (wrong for wrong, _ in results), strict=True)), passed, left


@pytest.mark.parametrize("point", WORKER)
def test_a_death_at_this_point_costs_what_ran_and_nothing_else(walked, point):
    """Killed, ended, stopped or late there: a task is told once and ran once at most; what was noted is delivered."""
    trouble = {case: wrong for case, wrong in walked[0].items() if case[0] == point and wrong}
    assert not trouble, json.dumps([[*case, wrong] for case, wrong in trouble.items()], indent=1)


def test_the_walk_has_been_at_every_point(walked):
    """Each point of the registry has failed at least once, as the log says."""
    assert walked[1] == set(WORKER)


def test_nothing_is_left_of_the_walk(walked):
    """When the last program has ended nobody is left below this process."""
    assert walked[2] == {}


def nemesis(seconds, victims, path):
    """The facts of that program, which has left nobody."""
    census = Census()
    with Application("pool_nemesis", seconds, victims, path) as app:
        out, err = app.process.communicate(timeout=120)
        assert app.process.returncode == 0, err[-4000:].decode(errors="replace")
        assert err == b"", err[-4000:].decode(errors="replace")
    assert census.gone(2.0) == {}
    return json.loads(out)


@pytest.mark.parametrize("victims", ["worker", "worker,template", "worker,template,zygote"])
def test_a_pool_under_attack(tmp_path, victims):
    """Workers, templates and zygotes are killed at random: each task has one result or WorkerDied, none ran twice."""
    path = tmp_path / "ran"
    facts = nemesis(2.0, victims, path)
    assert facts["wrong"] == []
    assert facts["hung"] == 0
    assert facts["unfinished"] == 0
    assert facts["whole"]
    assert facts["strikes"] >= 3
    ran = Counter(path.read_text().split())
    assert max(ran.values()) == 1
    assert facts["delivered"] <= len(ran) <= facts["delivered"] + facts["died"]


def test_ctrl_c_at_random_moments_loses_no_worker(tmp_path):
    """A thousand interrupted calls: the right result or KeyboardInterrupt, every worker still works, the pool ends."""
    facts = nemesis(3.0, "interrupt", tmp_path / "ran")
    assert facts["wrong"] == []
    assert facts["interrupted"] > 100
    assert facts["done"] > 100
    assert facts["unfinished"] == 0
    assert facts["workers"] == 2
    assert facts["end"] < 2.0
