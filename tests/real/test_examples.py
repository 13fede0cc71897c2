"""The examples run, as somebody who has just cloned the project would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

from support.applications import Census

EXAMPLES = Path(__file__).parents[2] / "examples"

# What each prints among other things, in this order.
SAYS = {
    ("commands.py",): [
        "sorted: ['apple', 'fig', 'pear']",
        "shell: 42",
        "limited: ['64', '0027', ",
        "lines: ['1', '2', '3']",
        "echo: hello",
        "exit code: 0",
        "timeout, with what was printed: 'begun\\n'",
        "killed: True",
        "[command-not-found]",
    ],
    ("async_commands.py", "asyncio"): ["right: True", "line 1", "line 3", "exit code: 0", "cancelled: True"],
    ("async_commands.py", "trio"): ["right: True", "line 1", "line 3", "exit code: 0", "cancelled: True"],
    ("agent/agent.py", "agent.log", "1"): [
        "up: ",
        "ends: its time is over",
        "commands run: True, restarts: 0",
        "children: done, done",
    ],
    ("agent/chaos.py", "2"): ["up", "blows: ", "; whole again: True", "exit code: 0; left: 0"],
    ("process.py",): [
        "Ada greets you, child of MainProcess",
        "exit code: 0",
        "ended: 3",
        "ended: SIGTERM",
        "counted: 1000",
        "squares: [0, 1, 4, 9, 16]",
        "beside a thread: True",
    ],
    ("pool.py",): [
        "apply: 144",
        "map: [0, 1, 4, 9, 16, 25, 36, 49, 64, 81]",
        "starmap: [8, 9]",
        "the callback has 25",
        "apply_async: 25",
        "imap over an endless input: [0, 1, 4, 9]",
        "stream: ['line 0', 'line 1', 'line 2']",
        "died: worker PID was killed by SIGKILL while running __main__.crash_at",
        "results: 19 of 20",
        "workers lost: 1",
        "the workers have gone",
    ],
    ("pool_arrays.py",): [
        *["read in a worker: (67108864, 1, 2)"] * 3,
        "written in a worker: 99 and here still 1",
        "result: 67108864 8 7",
    ],
    ("pool_timeouts.py",): [
        "(cleaned up)",
        "too long, ended by: exception",
        "it was in wait",
        "much too long, ended by: SIGKILL",
        "cancelled: True",
        "after it had begun: True",
        "too much memory, over the limit: True",
        "retried: the second time it went well",
        "a healthy call: 1",
    ],
    ("pool_logging.py",): [
        "INFO    shop.orders: order 0: begun",
        "ERROR   shop.orders: order 1: trouble",
        "ZeroDivisionError: division by zero",
        "ERROR   shop.orders: order 2: the worker is about to be killed",
        "--> worker lost with order",
        "INFO    shop.orders: order 3: begun",
    ],
    ("rotating_log.py",): ["4100 records in rotated files", "complete and in order: 41 of 41 tasks"],
    ("incident_pool.py", "5"): ["multiprocessing: ", "safespawn: all 5 rounds are through; round 5: 100 records"],
    ("incident_process.py", "5"): ["multiprocessing: ", "safespawn: all 5 rounds are through, 5 with exit code 0"],
    ("incident_records.py", "5"): ["multiprocessing: ", "safespawn: all 5 rounds are through, 5 of them with all"],
}


def test_every_example_is_run_here() -> None:
    """No example is without a test; those of other libraries have theirs in tests/integration."""
    ours = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py") if path.parent.name != "integrations"}
    assert {name for name, *_ in SAYS} == ours
    theirs = (EXAMPLES.parent / "tests/integration/test_examples.py").read_text("utf-8")
    assert [path.name for path in EXAMPLES.glob("integrations/*.py") if path.stem not in theirs] == []


@pytest.mark.parametrize("command", SAYS, ids=" ".join)
def test_example(command, tmp_path) -> None:
    """The example ends with exit code 0, within two minutes, says what it shall, and leaves nobody."""
    name, *arguments = command
    argv = [sys.executable, "-W", "ignore::DeprecationWarning", EXAMPLES / name, *arguments]
    census = Census()
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert census.gone(5.0) == {}
    # A shell says so of its command.
    assert not (done.stderr.replace("Killed\n", "") if name == "agent/chaos.py" else done.stderr)
    rest = done.stdout
    for words in SAYS[command]:
        _, found, rest = rest.partition(words)
        assert found, f"{words!r} is missing, or comes too early, in:\n{done.stdout}"
