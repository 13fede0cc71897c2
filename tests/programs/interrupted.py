"""
Runs a command that prints one line, passes that on, and says what ended the wait: `interrupted.py FACE COMMAND...`.
"""

import sys

import anyio

import safespawn


def pass_on(line):
    """Have the test read it."""
    print(line.decode(), flush=True)


name, *command = sys.argv[1:]
try:
    if name == "blocking":
        safespawn.run(command, on_line=pass_on)
    else:
        anyio.run(lambda: safespawn.arun(command, on_line=pass_on), backend=name)
except KeyboardInterrupt:
    print("KeyboardInterrupt")
