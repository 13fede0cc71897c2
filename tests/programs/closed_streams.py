"""
Runs commands in an application whose streams may be closed: `closed_streams.py FACE REPORT`.

Each command writes what its descriptors 0 to 2 are to the file REPORT.
"""

import sys

import anyio

import safespawn

name, report = sys.argv[1:]
SCRIPT = 'x=; for n in 0 1 2; do x="$x $n=$(readlink /proc/$$/fd/$n | sed s/:.*//)"; done; echo $x >>"$0"'


async def main():
    """Start one plainly, one by a fork, one with pipes."""
    for options in ({}, {"nice": 0}, {"capture_output": True}):
        if name == "blocking":
            result = safespawn.run(["sh", "-c", SCRIPT, report], **options)
        else:
            result = await safespawn.arun(["sh", "-c", SCRIPT, report], **options)
        assert result.returncode == 0, result


anyio.run(main, backend="trio" if name == "trio" else "asyncio")
