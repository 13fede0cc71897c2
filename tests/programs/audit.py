"""
Runs one command with an audit hook in place and prints what that heard: `audit.py FACE`.
"""

import sys

import anyio

import safespawn

safespawn.init(guard="off")
heard = []
sys.addaudithook(lambda event, args: heard.append(args) if event == "subprocess.Popen" else None)
if sys.argv[1] == "blocking":
    safespawn.run(["echo", "heard"], stdout=safespawn.DEVNULL)
else:
    backend = "trio" if sys.argv[1] == "trio" else "asyncio"
    anyio.run(lambda: safespawn.arun(["echo", "heard"], stdout=safespawn.DEVNULL), backend=backend)
print([tuple(args) for args in heard if "heard" in args[1]])  # importing may run commands of its own
