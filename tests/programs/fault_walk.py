"""
A child that makes every kind of call while one failpoint is armed: `fault_walk.py KIND...`, in this order.

It prints one JSON line for each call: kind, outcome, seconds, and whether a failure is one of ours. When the point has
done its work (the log file says so) it is disarmed for zygotes to come; the last call, "after", must succeed.
"""

import gc
import json
import os
import sys
import time

import safespawn
from safespawn import errors, supervisor
from safespawn._core import child
from safespawn._drive import zygote

child.ANSWER_SECONDS = 2.0  # the bounds are what is tested, not how long they are
child.NEWS_SECONDS = 2.0
child.KILL_SECONDS = 2.0
zygote.DEATH_SECONDS = 1.0


def popen():
    """Start, talk, wait: the child is held until its exit has been seen."""
    process = safespawn.Popen(["cat"], stdin=safespawn.PIPE, stdout=safespawn.PIPE)
    try:
        out, _ = process.communicate(b"hello", timeout=10)
    except BaseException:
        process.stop()
        raise
    assert out == b"hello", out
    return process.returncode


def captured():
    """A command with output."""
    done = safespawn.run(["sh", "-c", "echo out; exit 3"], capture_output=True)
    assert done.stdout == b"out\n", done.stdout
    return done.returncode


KINDS = {
    "run": lambda: safespawn.run(["true"]).returncode,
    "captured": captured,
    "forked": lambda: safespawn.run(["sh", "-c", "exit 4"], nice=1).returncode,
    "popen": popen,
    "timeout": lambda: safespawn.run(["sleep", "60"], timeout=0.1).returncode,
    "missing": lambda: safespawn.run(["/does/not/exist"]).returncode,
}
RIGHT = {
    "run": 0, "captured": 3, "forked": 4, "popen": 0, "timeout": "TimeoutExpired", "missing": "CommandNotFound",
}  # fmt: skip


def descriptors():
    """What the descriptors of this process point at."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue  # the one that listed the others
    return found


def call(kind):
    """Make one call and tell of it."""
    began = time.monotonic()
    try:
        outcome, ours = KINDS[kind](), True
    except Exception as error:  # noqa: BLE001 - told to the test
        outcome, ours = type(error).__name__, isinstance(error, errors.SafespawnError)
        text = repr(error)
    else:
        text = ""
    facts = {
        "kind": kind, "outcome": outcome, "ours": ours, "right": outcome == RIGHT[kind], "text": text,
        "seconds": time.monotonic() - began,
    }  # fmt: skip
    print(json.dumps(facts), flush=True)
    if os.path.exists(os.environ["SAFESPAWN_FAILPOINTS_LOG"]):
        os.environ.pop("SAFESPAWN_FAILPOINTS", None)


def main():
    """Make the calls, end the supervisor, say what is left."""
    before = descriptors()
    for kind in sys.argv[1:]:
        call(kind)
    os.environ.pop("SAFESPAWN_FAILPOINTS", None)
    call("run")
    began = time.monotonic()
    supervisor.default_supervisor()._stop_timeout = 1.0
    supervisor.default_supervisor().close()
    gc.collect()  # an error that a process keeps refers to the frames that had the process
    left = [what for what in descriptors() if what not in before]
    print(json.dumps({"closed": time.monotonic() - began, "left": left}), flush=True)


main()
