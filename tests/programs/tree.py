"""
A tree of processes: `tree.py MEMBER...`. Prints the pids of all when all are there, the leader's first, and waits.

Members: `child`, `grandchild`, `session` (a child in a session of its own), `daemon` (a double fork with a session of
its own, whose parent has ended), `group` (a child in a group of its own). With `stubborn` all ignore SIGTERM; with
`silent` none holds the leader's output; with `exits` the leader ends at once instead of waiting.
"""

import os
import signal
import sys

members = sys.argv[1:]
read_fd, write_fd = os.pipe()
if "stubborn" in members:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def live():
    """Say that this one is there, and wait for its end."""
    if "silent" in members:
        null_fd = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null_fd, fd)
    os.write(write_fd, b"%d\n" % os.getpid())
    while True:
        signal.pause()


def fork(what):
    """Have *what* run in a child."""
    pid = os.fork()
    if pid == 0:
        what()
        os._exit(0)
    return pid


def session():
    """One in a session of its own."""
    os.setsid()
    live()


def group():
    """One in a group of its own."""
    os.setpgid(0, 0)
    live()


def daemon():
    """One whose parent ends."""
    os.setsid()
    fork(live)


KINDS = {
    "child": live,
    "grandchild": lambda: fork(live) and signal.pause(),
    "session": session,
    "daemon": daemon,
    "group": group,
}
chosen = [name for name in members if name in KINDS]
for name in chosen:
    pid = fork(KINDS[name])
    if name == "daemon":
        os.waitpid(pid, 0)
pids = b""
while pids.count(b"\n") < len(chosen):
    pids += os.read(read_fd, 1000)
os.write(1, b"%d %b\n" % (os.getpid(), b" ".join(pids.split())))
while "exits" not in members:
    signal.pause()
