"""
Runs a command that prints one line, passes that on, and says what ended the wait: `interrupted.py FACE COMMAND...`.
"""

import os
import sys

sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)

import anyio

import safespawn


def pass_on(line):
    print(line.decode(), flush=True)


name, *command = sys.argv[1:]
try:
    if name == "blocking":
        safespawn.run(command, on_line=pass_on)
    else:
        anyio.run(lambda: safespawn.arun(command, on_line=pass_on), backend=name)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
