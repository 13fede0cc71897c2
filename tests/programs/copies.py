"""
Forks while a zygote and a process of it are there, and runs commands in the copy and in the original.
"""

import os
import sys

import safespawn

with safespawn.Popen(["sh", "-c", "read x; exit $x"], stdin=safespawn.PIPE, text=True) as kept:
    zygotes = safespawn.statistics()["zygotes"]
    pid = os.fork()
    if pid == 0:
        ran = safespawn.run(["sh", "-c", "exit 5"]).returncode
        print("copy: own zygote" if safespawn.statistics()["zygotes"] != zygotes else "copy: the original's")
        try:
            kept.wait()
        except safespawn.errors.ForeignCopy:
            print("copy: ForeignCopy")
        print("copy: ran", ran, flush=True)
        sys.exit(0)
    os.waitpid(pid, 0)
    print("original: ran", safespawn.run(["sh", "-c", "exit 6"]).returncode)
    kept.communicate("3\n")
print("original: kept", kept.returncode)
