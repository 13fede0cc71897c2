"""
A program with supervised children of every stubborn kind: `children_app.py HOW...`. Prints the pids of all that it has
started, and then is told what to do by its arguments.

    serve        serves until a signal, and says when it has left
    loop         the same in an event loop; "loop trio", "loop uvloop"
    deaf         its last child ignores SIGTERM, and has much time
    starting     its last child is never ready
    exit, exec, crash, raise    ends in that way as soon as its stdin ends
"""

import contextlib
import ctypes
import json
import os
import re
import signal
import sys
import time

import safespawn

HERE = os.path.dirname(os.path.abspath(__file__))
TREE = [sys.executable, "-S", os.path.join(HERE, "tree.py"), "child", "grandchild", "session", "group", "daemon"]


def deaf():
    """A function that ignores SIGTERM, and its child that does too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    copy = os.fork()
    if copy:
        safespawn.ready([os.getpid(), copy])
    while True:
        time.sleep(1000)


def polite():
    """A function that ends when it is asked."""
    safespawn.stop_requested()
    safespawn.ready()
    safespawn.stop_requested(None)


def say(**facts):
    """Print one line."""
    print(json.dumps(facts), flush=True)


def note(event):
    """Tell of the end of children."""
    kind = type(event).__name__
    if kind in ("Exited", "Killed", "Stopping"):
        line = json.dumps({"event": kind, "child": event.child, "pid": event.pid})
        os.write(2, f"{line}\n".encode())  # in one piece, beside the log


def wanted(how):
    """Names, targets and options of the children."""
    yield "polite", polite, {"ready": "notify"}
    yield "tree", [*TREE, "stubborn"], {"ready": re.compile(r"^\d+ .*"), "on_line": len, "stop_timeout": 0.3}
    time_limit = 1000.0 if "deaf" in how else 0.3
    yield "deaf", deaf, {"ready": "notify", "stop_timeout": time_limit}


def pids_of(children):
    """All processes of these children."""
    found = [child.pid for child in children]
    for child in children:
        if child.name == "tree":
            found += map(int, child.value.group(0).split())
        elif child.name == "deaf":
            found += child.value
    return sorted(set(found))


def blocking(how):
    """The program with threads."""
    with safespawn.Supervisor("app", guard="off", on_event=note) as supervisor:
        children = [supervisor.start(name, target, **options) for name, target, options in wanted(how)]
        zygotes = supervisor.statistics()["zygotes"]
        say(pids=pids_of(children), zygotes=zygotes)
        if "starting" in how:
            with contextlib.suppress(KeyboardInterrupt):
                supervisor.start("late", ["sleep", "1000"], ready="notify", ready_timeout=1000)
            say(left="start")
        elif "serve" in how:
            say(signal=supervisor.serve())
        else:
            sys.stdin.readline()
            end(how)
    say(left="supervisor")


def end(how):
    """End at once."""
    if "exit" in how:
        os._exit(3)
    elif "exec" in how:
        os.execv("/bin/sleep", ["sleep", "0.1"])
    elif "crash" in how:
        ctypes.string_at(0)
    elif "raise" in how:
        raise LookupError("mine")


async def looping(how):
    """The program with an event loop."""
    async with safespawn.AsyncSupervisor("app", guard="off", on_event=note) as supervisor:
        children = [await supervisor.start(name, target, **options) for name, target, options in wanted(how)]
        say(pids=pids_of(children), zygotes=supervisor._engine.statistics()["zygotes"])
        say(signal=await supervisor.serve())
    say(left="supervisor")


def main():
    """Do as the arguments say."""
    how = sys.argv[1:]
    if "loop" not in how:
        blocking(how)
    elif "trio" in how:
        import trio

        trio.run(looping, how)
    elif "uvloop" in how:
        import uvloop

        uvloop.run(looping(how))
    else:
        import asyncio

        asyncio.run(looping(how))


if __name__ == "__main__":
    main()
