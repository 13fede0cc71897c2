"""
A program to which the kernel gives orphans: `children_orphans.py [HOW]`. Beside them it has children of its own that
have ended, and asks for their status only when the orphans are reaped. Prints what became of each.

    subreaper    it makes itself one; else it is the first process of a namespace
"""

import ctypes
import json
import os
import subprocess
import sys
import time

import safespawn
from safespawn._drive import orphans
from support.children import state

SECONDS = 30.0
ORPHAN = "setsid sh -c 'sleep 0.1 & echo $!'"  # what it leaves is in a session that it does not lead


def becomes(condition):
    """Wait until *condition* is true."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(condition)
        time.sleep(0.01)


def main():
    """Do all that."""
    if "subreaper" in sys.argv and ctypes.CDLL(None).prctl(36, 1, 0, 0, 0):
        raise OSError
    orphans.LOOK_SECONDS = 0.1
    with safespawn.Supervisor(guard="off") as supervisor:
        supervisor.start("x", ["sleep", "1000"])
        popen = subprocess.Popen(["sh", "-c", "exit 7"])
        leader = subprocess.Popen(["sh", "-c", "exit 8"], start_new_session=True)
        copy = os.fork()
        if copy == 0:
            os._exit(9)
        own = (popen.pid, leader.pid, copy)
        becomes(lambda: [state(pid) for pid in own] == ["Z"] * 3)
        # one of this session, whose parent goes before it
        alike = int(subprocess.run(["sh", "-c", "sleep 0.1 & echo $!"], stdout=subprocess.PIPE, check=True).stdout)
        becomes(lambda: state(alike) == "Z")
        found = [int(subprocess.run(["sh", "-c", ORPHAN], stdout=subprocess.PIPE, check=True).stdout) for _ in range(3)]
        becomes(lambda: not any(map(state, found)))
        becomes(lambda: supervisor.statistics()["orphans_reaped"] == 3)
        said = {"states": [state(pid) for pid in (*own, alike)]}
        said["ends"] = [popen.wait(), leader.wait(), os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])]
        os.waitpid(alike, 0)
    print(json.dumps(said))


if __name__ == "__main__":
    main()
