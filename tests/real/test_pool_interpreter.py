"""A worker's Python is the program's: the same options, the same paths, the same warnings."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import sys
import safespawn

def facts():
    hashed = hash("text") if sys.flags.hash_randomization == 0 else None
    options = tuple(sys.flags), sys._xoptions, sys.warnoptions
    return *options, sys.path, sys.argv, hashed, __debug__, "site" in sys.modules

if __name__ == "__main__":
    with safespawn.Pool(1) as pool:
        there = pool.apply(facts)
    print(*[pair for pair in zip(facts(), there) if pair[0] != pair[1]])
"""


@pytest.mark.parametrize("seed", ["0", "7", None])
@pytest.mark.parametrize(
    "options", [(), ("-O",), ("-X", "utf8", "-W", "ignore::ResourceWarning"), ("-bb", "-s")], ids=" ".join
)
def test_the_worker_has_the_programs_options(options, seed, tmp_path):
    """Flags, -X and -W options, path, arguments and, where it is fixed, hash seed are the same in the worker."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.replace("sys.flags.hash_randomization == 0", "True" if seed else "False"), "utf-8")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    if seed is not None:
        env["PYTHONHASHSEED"] = seed
    argv = [sys.executable, *options, str(program), "argument"]
    done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
