"""The examples run, as somebody who has just cloned the project would run them."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    ("agent.py", "1"): [" sockets: ", "   disks: ", "    load: ", "running at the end: 0"],
}


def test_every_example_is_run_here() -> None:
    """No example is without a test."""
    assert {name for name, *_ in SAYS} == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("command", SAYS, ids=" ".join)
def test_example(command, tmp_path) -> None:
    """The example ends with exit code 0, in seconds, and says what it shall."""
    name, *arguments = command
    argv = [sys.executable, "-W", "ignore::DeprecationWarning", EXAMPLES / name, *arguments]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    rest = done.stdout
    for words in SAYS[command]:
        _, found, rest = rest.partition(words)
        assert found, f"{words!r} is missing, or comes too early, in:\n{done.stdout}"
