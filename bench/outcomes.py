"""
What becomes of a pool's tasks when something goes wrong: `python -m bench.outcomes [NAME ...]`.

It measures no time. Each pool meets each trouble in a process of its own, with two workers and its defaults, and the
outcome is printed in words; docs/peers.md and the README have the table. A pool that is not installed is named.
"""

import contextlib
import ctypes
import json
import logging
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time

from bench import pool_tasks
from bench.pool_peers import BLOCKING, WORKERS, Executor

FOR_EVER = "waits for ever"
PATIENCE_SECONDS = 10.0  # without an answer; arbitrary, far above what any of these takes
LIMIT_SECONDS = 60.0  # for one pool and one trouble, the end of the process included
BUSY_SECONDS = 15.0  # what a worker that outlives its program goes on for
ORPHAN_SECONDS = 2.0  # for what a pool leaves, before it is killed; arbitrary
GONE_SECONDS = 8.0  # in which a worker may notice that its program is dead


class Anyio(Executor):
    """
    anyio.to_process, through a loop in a thread.
    """

    def __init__(self):
        from anyio import to_process
        from anyio.from_thread import start_blocking_portal

        self.loop = start_blocking_portal()
        self.portal = self.loop.__enter__()
        self.run = to_process.run_sync

    def submit(self, func, *args):  # noqa: D102 - as of every other pool
        return self.portal.start_task_soon(self.run, func, *args)


PEERS = {
    name: BLOCKING[name]
    for name in ("multiprocessing forkserver", "ProcessPoolExecutor", "loky", "pebble", "safespawn.Pool")
} | {"anyio.to_process": Anyio}


# --- in the process of one pool --------------------------------------------------------------------------------------
def outcome(pool, handle) -> str:
    """
    What comes of a task, in words.
    """
    found = [FOR_EVER]

    def wait() -> None:
        try:
            value = pool.result(handle)
        except BaseException as error:  # noqa: BLE001 - that is the outcome
            found[0] = type(error).__name__
        else:
            found[0] = "its result" if value is None else repr(value)

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    return found[0]


def killed(pool, _directory) -> dict[str, str]:
    """
    One of two workers is killed while both work.
    """
    for handle in [pool.submit(pool_tasks.rest, 0.2) for _ in range(WORKERS)]:
        pool.result(handle)  # both workers are up
    victim, other = pool.submit(pool_tasks.die, 0.3), pool.submit(pool_tasks.rest, 1.0)
    found = {"a worker is killed: its task": outcome(pool, victim), "the other task": outcome(pool, other)}
    try:
        found["the next task"] = outcome(pool, pool.submit(pool_tasks.rest, 0.0))
    except Exception as error:  # noqa: BLE001 - that is the outcome
        found["the next task"] = type(error).__name__
    return found


def odd(pool, _directory) -> dict[str, str]:
    """
    A task raises an exception that cannot be unpickled.
    """
    return {"an exception that pickle cannot make again": outcome(pool, pool.submit(pool_tasks.fail_oddly))}


def records(pool, _directory) -> dict[str, str]:
    """
    A task logs.
    """
    heard = []
    handler = logging.Handler()
    handler.emit = heard.append
    logging.getLogger("bench").addHandler(handler)
    pool.result(pool.submit(pool_tasks.say, "words"))
    return {"a worker's log record": "comes to the program's handler" if heard else "does not come"}


def busy(pool, directory) -> dict[str, str]:
    """
    Print who works, and wait to be killed.
    """
    path = os.path.join(directory, "pid")
    handle = pool.submit(pool_tasks.stay, path, BUSY_SECONDS)
    while not os.path.exists(path):
        time.sleep(0.02)
    with open(path, encoding="ascii") as file:
        print(file.read(), flush=True)
    pool.result(handle)
    return {}


TROUBLES = {each.__name__: each for each in (killed, odd, records, busy)}


def side(name: str, trouble: str, directory: str) -> None:
    try:
        pool = PEERS[name]()
    except ImportError as error:
        print(json.dumps({"not installed": str(error.name)}), flush=True)
        return
    print(json.dumps(TROUBLES[trouble](pool, directory)), flush=True)
    os._exit(0)  # some cannot be closed any more


# --- from outside ----------------------------------------------------------------------------------------------------
def ask(name: str, trouble: str, directory: str) -> dict[str, str]:
    """
    One pool, one trouble; nothing is left of it.
    """
    argv = [sys.executable, "-W", "ignore", "-m", "bench.outcomes", "--side", name, trouble, directory]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    watchdog = threading.Timer(LIMIT_SECONDS, process.kill)
    watchdog.start()
    try:
        line = process.stdout.readline()
        found = json.loads(line) if line else {trouble: "died"}
        return after_kill(process, found) if trouble == "busy" and isinstance(found, int) else found
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        process.stdout.close()
        end_orphans()


def adopt_orphans() -> None:
    """
    Whoever loses his parent below this process becomes its child: some pools leave workers and trackers behind.

    Source: prctl(2), PR_SET_CHILD_SUBREAPER.
    """
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)


def end_orphans() -> None:
    """
    Those that end by themselves get a moment for it; then none is left.
    """
    deadline = time.monotonic() + ORPHAN_SECONDS
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        with open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            left = [int(pid) for pid in file.read().split()]
        if not left:
            return
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def after_kill(process, worker: int) -> dict[str, str]:
    """
    Kill the program, and see whether its worker goes on.
    """
    worker_fd = os.pidfd_open(worker)
    process.kill()
    process.wait()
    ends = select.poll()
    ends.register(worker_fd, select.POLLIN)
    ended = bool(ends.poll(GONE_SECONDS * 1000))
    if not ended:
        signal.pidfd_send_signal(worker_fd, signal.SIGKILL)
    os.close(worker_fd)
    return {"kill -9 of the program: a busy worker": "ends" if ended else "stays"}


def main(names: list[str]) -> None:
    adopt_orphans()
    for name in names or PEERS:
        found: dict[str, str] = {}
        for trouble in TROUBLES:
            with tempfile.TemporaryDirectory() as directory:
                found |= ask(name, trouble, directory)
            if "not installed" in found:
                break
        print(name)
        for what, words in found.items():
            print(f"  {what:<44} {words}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        side(*sys.argv[2:])
    else:
        main(sys.argv[1:])
