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


SIGNALS = """
import signal, sys
sys.path.insert(0, sys.argv[1])
import lend
for number in lend.changed_signals():  # Python's own, and what whoever runs this ignores
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
signal.signal(signal.SIGTERM, print)
signal.signal(signal.SIGRTMAX, print)
print(lend.changed_signals() == (signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMAX))
"""


def test_the_signals_that_a_child_must_have_set_back_are_known():
    """Those that are ignored or caught, whoever has done that."""
    argv = [sys.executable, "-I", "-c", SIGNALS, str(ZYGOTE)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "True\n"
