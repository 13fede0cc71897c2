"""
What tests say to and about child processes.
"""

import os
import re
import subprocess
import sys
import time

from support import leaks

PROGRAMS = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "programs")
PYTHON = [sys.executable, "-S"]
ENV = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # for programs that load the package
STATUS = ["cat", "/proc/self/status"]


def program(name, *arguments):
    """
    The command line of a file in tests/programs.
    """
    return [*PYTHON, os.path.join(PROGRAMS, name), *map(str, arguments)]


def complaints(stderr):
    """
    What a program in development mode says on stderr, without asyncio's word on steps over 0.1 s: on a busy machine, or
    where nothing has been compiled yet, any step may be one. How long the library holds a loop up, `bench loop` tells.
    """
    return re.sub(r"^Executing <.*> took \d+\.\d+ seconds\n", "", stderr, flags=re.MULTILINE)


def fields(text):
    """
    The lines of /proc/PID/status as a mapping.
    """
    return {name: value.strip() for name, _, value in (line.partition(":") for line in os.fsdecode(text).splitlines())}


def signals(mask):
    """
    The signals in a mask of /proc/PID/status.
    """
    bits = int(mask, 16)
    return {number for number in range(1, 65) if bits >> (number - 1) & 1}


def state(pid):
    """
    The state letter of a process; None when it is gone.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None


def alive(pid):
    """
    Whether a process runs: neither gone nor a zombie.
    """
    return state(pid) not in (None, "Z", "X")


def survivors(pids, seconds=1.0):
    """
    Those of *pids* that still run after *seconds*, or as soon as there is none.
    """
    deadline = time.monotonic() + seconds
    while True:
        left = [pid for pid in pids if alive(pid)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(0.002)


def becomes(condition, seconds=30.0):
    """
    Wait until *condition* returns something true.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def reap_orphans(seconds=2.0):
    """
    Reap what a program that has exited left to this process, the subreaper, and what ends soon.
    """
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        orphans = [pid for pid, what in leaks.children().items() if "[Z]" in what]
        for pid in orphans:
            os.waitpid(pid, 0)
        if not orphans and not any("safespawn" in what for what in leaks.strangers().values()):
            return
        time.sleep(0.002)


async def both(face, args, **options):
    """
    The outcomes of `subprocess.run` and of the face's `run`, in a form that can be compared.
    """
    try:
        theirs = _result(subprocess.run(args, check=False, **options))  # noqa: ASYNC221 - that is the comparison
    except (OSError, ValueError, TypeError, subprocess.SubprocessError) as error:
        theirs = error
    try:
        ours = _result(await face.run(args, **options))
    except Exception as error:  # noqa: BLE001 - compared by the caller
        ours = error
    if isinstance(theirs, Exception) and isinstance(ours, type(theirs)):
        return _facts(theirs), _facts(ours)
    return theirs, ours


def _result(completed):
    return completed.returncode, completed.stdout, completed.stderr


def _facts(error):
    names = ("errno", "strerror", "filename", "returncode", "cmd", "timeout", "stdout", "stderr")
    return {name: getattr(error, name) for name in names if hasattr(error, name)}
