"""
An application that runs out of something: `fault_resources.py fds|zygote_fds|processes FACE`.

For each number of descriptors that are still free, from none to enough, it makes one call, lifts the limit, and makes
another one. It prints how the short calls ended, how many of the others were wrong, and which descriptors are left.
"""

import asyncio
import gc
import json
import os
import resource
import sys

import fault_user

import safespawn
from safespawn import errors, supervisor

ENOUGH = 24
runner = asyncio.Runner()


def run(owner):
    """A quiet command."""
    return owner.run(["sh", "-c", "exit 3"]).returncode


def captured(owner):
    """A command with three pipes."""
    done = owner.run(["sh", "-c", "cat; exit 3"], input=b"in", capture_output=True)
    assert done.stdout == b"in", done
    return done.returncode


def lasting(owner):
    """A quiet command that lasts long enough to be announced."""
    return owner.run(["sh", "-c", "sleep 0.02; exit 3"]).returncode


def popen(owner):
    """A process that is talked to."""
    with owner.Popen(["sh", "-c", "cat; exit 3"], stdin=-1, stdout=-1, stderr=-1) as process:
        out, err = process.communicate(b"in")
        assert (out, err) == (b"in", b""), (out, err)
        return process.returncode


def forked(owner):
    """A command that must be forked."""
    return owner.run(["sh", "-c", "exit 3"], nice=1, stdout=safespawn.PIPE).returncode


FACES = {each.__name__: each for each in (run, captured, lasting, popen, forked)}


def outcome(face, owner):
    """How one call ends, in a word."""
    try:
        if face == "arun":
            return runner.run(task(owner))
        return FACES[face](owner)
    except Exception as error:  # noqa: BLE001 - told to the test
        ours = isinstance(error, errors.SafespawnError)
        number = getattr(error, "errno", None) if isinstance(error, OSError) else None
        return f"{type(error).__name__} {number}{'' if ours else ' not ours: ' + repr(error)}"


async def task(owner):
    """A command in an event loop."""
    return (await owner.arun(["sh", "-c", "cat; exit 3"], input=b"in", capture_output=True)).returncode


def taken(limit):
    """Take every descriptor below *limit*."""
    found = []
    try:
        while True:
            found.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        return found


def targets():
    """What the descriptors point at."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return sorted(found)


def short_of_descriptors(face, owner, soft, hard, *, warm):
    """One call with each number of free descriptors, and one after it."""
    short, after = [], []
    for free in range(ENOUGH):
        if not warm:
            owner = safespawn.Supervisor("cold", guard="off")
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
        occupied = taken(64)
        for fd in [occupied.pop() for _ in range(min(free, len(occupied)))]:
            os.close(fd)
        short.append(outcome(face, owner))
        for fd in occupied:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        after.append(outcome(face, owner))
        if not warm:
            owner.close()
    return short, after


def short_zygote(face, owner, what):
    """As above, the zygote being short."""
    short, after = [], []
    owner.run(["true"])
    for free in range(ENOUGH):
        zygote = owner._engine._current[False]
        room = 4 + free if what == resource.RLIMIT_NOFILE else 0
        before = resource.prlimit(zygote.pid, what)
        resource.prlimit(zygote.pid, what, (min(room, before[1]) if before[1] >= 0 else room, before[1]))
        short.append(outcome(face, owner))
        resource.prlimit(zygote.pid, what, before)
        after.append(outcome(face, owner))
        if what != resource.RLIMIT_NOFILE:
            break
    return short, after


def main():
    """Do it, and tell."""
    what, face = sys.argv[1:]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if face == "arun":
        runner.run(asyncio.sleep(0))  # the loop is there before anything is short
    if "processes" in what and os.getuid() == 0:
        fault_user.become_nobody()  # root may have as many as there are
    outcome(face, supervisor.default_supervisor())
    supervisor.default_supervisor().close()
    owner = safespawn.Supervisor("resources", guard="off")
    before = targets()
    if what == "fds":
        owner.run(["true"])
        short, after = short_of_descriptors(face, owner, soft, hard, warm=True)
    elif what == "cold":
        short, after = short_of_descriptors(face, owner, soft, hard, warm=False)
    elif what == "zygote_fds":
        short, after = short_zygote(face, owner, resource.RLIMIT_NOFILE)
    elif what == "processes":
        short, after = short_zygote(face, owner, resource.RLIMIT_NPROC)
    else:
        resource.setrlimit(resource.RLIMIT_NPROC, (0, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
        short = [outcome(face, owner)]
        resource.setrlimit(resource.RLIMIT_NPROC, [resource.getrlimit(resource.RLIMIT_NPROC)[1]] * 2)
        after = [outcome(face, owner)]
    boots = owner._engine.boots
    owner.close()
    runner.close()
    gc.collect()
    left = targets()
    for each in before:
        if each in left:
            left.remove(each)
    print(json.dumps({"short": short, "after": after, "left": left, "boots": boots}))


main()
