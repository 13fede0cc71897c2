"""
Limits: a task that takes too long, one that is not wanted any more, one that uses too much memory, one
that is run again.

Run it with `python examples/pool_timeouts.py`.
"""

import os
import signal
import tempfile
import time
from pathlib import Path

import safespawn


def wait(seconds):
    """
    Ends early when it is asked to, and cleans up.
    """
    try:
        time.sleep(seconds)
    finally:
        print("  (cleaned up)", flush=True)


def refuse_to_end(seconds):
    """
    Does not obey anything but SIGKILL.
    """
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            time.sleep(1)
        except BaseException:  # noqa: BLE001 - as careless code does
            continue


def take(mebibytes):
    """
    Uses memory, and goes on.
    """
    data = [bytearray(b"x") * (1 << 20) for _ in range(mebibytes)]
    time.sleep(10)
    return len(data)


def fail_once(marker):
    """
    Kills its worker the first time.
    """
    if not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "the second time it went well"


def main():
    with safespawn.Pool(2, max_rss_bytes=300 << 20) as pool:
        try:
            pool.apply(wait, (60,), timeout=0.3)
        except safespawn.errors.TaskTimeout as error:  # it is a TimeoutError too
            print("too long, ended by:", error.ended_by)
            line = next(line for line in error.stack.splitlines() if "in wait" in line)
            print("  it was in", line.rpartition(" ")[2])

        try:
            pool.apply(refuse_to_end, (60,), timeout=0.3)
        except safespawn.errors.TaskTimeout as error:
            print("much too long, ended by:", error.ended_by)

        result = pool.apply_async(wait, (60,))
        time.sleep(0.2)
        print("cancelled:", result.cancel())
        try:
            result.get()
        except safespawn.errors.TaskCancelled as error:
            print("  after it had begun:", error.seconds is not None)

        try:
            pool.apply(take, (500,))
        except safespawn.errors.WorkerMemoryExceeded as error:  # it is a MemoryError too
            print("too much memory, over the limit:", error.rss_bytes > error.limit_bytes)

        with tempfile.TemporaryDirectory() as directory:
            marker = os.path.join(directory, "marker")
            print("retried:", pool.apply(fail_once, (marker,), retries=1))

        print("a healthy call:", pool.apply(abs, (-1,)))


if __name__ == "__main__":
    main()
