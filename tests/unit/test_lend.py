"""
What the zygote may take on for the moment of a start, and what only the child may set.
"""

import pathlib
import resource
import subprocess
import sys

import pytest

import safespawn

ZYGOTE = pathlib.Path(safespawn.__file__).parent / "_zygote"
PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
import lend
lender = lend.Lender()
rows = tuple((number, *pair) for number, pair in lender.limits.items())
number, hard = int(sys.argv[2]), lender.limits[int(sys.argv[2])][1]
asked = (None, None, None, ((number, 1, hard),), None, None, None)
print(lender.needs_fork(({}, rows, lender.cpus, lender.nice, 0), asked))
"""


FORKS = {"CORE": False, "NOFILE": False, "NPROC": True, "CPU": True, "AS": True, "STACK": True}


@pytest.mark.parametrize(("name", "forks"), FORKS.items())
def test_limits_that_would_hit_the_zygote_or_the_start_are_for_the_child(name, forks):
    """A soft limit is lent, unless it could hit the zygote in that moment or refuse the start itself."""
    argv = [sys.executable, "-I", "-c", PROGRAM, str(ZYGOTE), str(getattr(resource, f"RLIMIT_{name}"))]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == f"{forks}\n"
