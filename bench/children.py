"""
How soon is a crashed Python child ready again? A child is killed by SIGKILL; what is timed ends when its successor,
with the same imports done, has written its pid into a pipe. No side has a delay configured.

The peers are installed by ``pip install supervisor circus`` (the group "peers" of pyproject.toml); one that is not
there is not measured.
"""

import contextlib
import importlib.util
import logging
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import safespawn
from bench.harness import Figure, milliseconds

TITLE = "supervised children: from a crash to ready again"
LATE_SECONDS = 30.0
CHILD = """
import json, logging, os, sys, time
with open(sys.argv[1], "w") as file:
    file.write(f"{os.getpid()}\\n")
time.sleep(100000)
"""
SUPERVISORD = """
[supervisord]
nodaemon=true
silent=true
logfile={directory}/log
pidfile={directory}/pid
[program:child]
command={python} {directory}/child.py {directory}/fifo
startsecs=0
startretries=100000
autorestart=true
"""
CIRCUS = """
[circus]
check_delay = 1
endpoint = ipc://{directory}/endpoint
pubsub_endpoint = ipc://{directory}/pubsub
[watcher:child]
cmd = {python} {directory}/child.py {directory}/fifo
max_retry = -1
warmup_delay = 0
"""
# Our child is a function; what the program of the others imports, its module does.
FUNCTION = """
import json, logging, os, time
import safespawn
def child(path):
    with open(path, "w") as file:
        file.write(f"{os.getpid()}\\n")
    safespawn.ready()
    time.sleep(100000)
"""


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    logging.getLogger("safespawn.supervisor").setLevel(logging.ERROR)  # each kill would be told
    rounds = 5 if quick else 30
    figures = []
    with tempfile.TemporaryDirectory() as directory:
        ours = [milliseconds_of(ours_in(directory), directory, rounds) for _ in range(2)]
        mine = statistics.median(ours)
        for name, start in (("supervisord", supervisord), ("circus", circus)):
            if importlib.util.find_spec(name.removesuffix("d") if name == "supervisord" else name) is None:
                figures.append(Figure(f"ours / {name}", 0.0, "", "", f"{name} is not installed"))
                continue
            theirs = milliseconds_of(start(directory), directory, max(3, rounds // 3))
            detail = f"{milliseconds(mine)} against {milliseconds(theirs)}"
            figures.append(Figure(f"ours / {name}", mine / theirs, "x", "<= 0.2", detail))
        plain = milliseconds_of(plain_command(directory), directory, rounds)
        figures.append(Figure("a command of ours (a Python program)", plain * 1000, "ms"))
    return figures


def milliseconds_of(opened, directory: str, rounds: int) -> float:
    """
    The median time, in seconds, from a kill to the next pid in the pipe.
    """
    fifo = os.path.join(directory, "fifo")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(fifo)
    os.mkfifo(fifo)
    fd = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(os.path.join(directory, "child.py"), "w", encoding="ascii") as file:
        file.write(CHILD)
    took = []
    try:
        with opened:
            pid = next_pid(fd)
            for _ in range(rounds):
                time.sleep(0.05)  # it is in its sleep
                began = time.perf_counter()
                os.kill(pid, signal.SIGKILL)
                pid = next_pid(fd)
                took.append(time.perf_counter() - began)
    finally:
        os.close(fd)
    return statistics.median(took)


def next_pid(fd: int) -> int:
    """
    What the next child writes.
    """
    if not select.select([fd], [], [], LATE_SECONDS)[0]:
        raise TimeoutError("no child came")
    return int(os.read(fd, 100).split()[-1])


@contextlib.contextmanager
def ours_in(directory: str):
    """
    A function under our Supervisor.
    """
    with open(os.path.join(directory, "bench_child.py"), "w", encoding="ascii") as file:
        file.write(FUNCTION)
    sys.path.insert(0, directory)
    try:
        from bench_child import child  # type: ignore[import-not-found]

        with safespawn.Supervisor(guard="off", restarts=10**6) as supervisor:
            backoff = safespawn.Backoff(0.0)
            supervisor.start(
                "child", child, os.path.join(directory, "fifo"), ready="notify", backoff=backoff,
                preload=["bench_child"],
            )  # fmt: skip
            yield
    finally:
        sys.path.remove(directory)


@contextlib.contextmanager
def plain_command(directory: str):
    """
    The program of the others under our Supervisor.
    """
    with safespawn.Supervisor(guard="off", restarts=10**6) as supervisor:
        command = [sys.executable, os.path.join(directory, "child.py"), os.path.join(directory, "fifo")]
        supervisor.start("child", command, backoff=safespawn.Backoff(0.0))
        yield


@contextlib.contextmanager
def daemon(argv: list[str], directory: str, config: str):
    """
    A peer with its configuration.
    """
    path = os.path.join(directory, "config")
    with open(path, "w", encoding="ascii") as file:
        file.write(config.format(directory=directory, python=sys.executable))
    process = subprocess.Popen([*argv, path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def supervisord(directory: str):
    return daemon([sys.executable, "-m", "supervisor.supervisord", "-c"], directory, SUPERVISORD)


def circus(directory: str):
    return daemon([sys.executable, "-m", "circus.circusd"], directory, CIRCUS)
