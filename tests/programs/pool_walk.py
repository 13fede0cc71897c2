"""
A pool whose workers have a failpoint armed: `pool_walk.py FILE COUNT LIMIT`; every task adds its line to the
file. After LIMIT seconds, for all tasks together, nobody waits any more.

It prints what each task came to, and how long its end took.
"""

import json
import sys
import time

from safespawn.pool import Pool
from support import fault_tasks as tasks

BOUND = 20.0


def outcome(function, *args):
    """A value, or the name of an exception."""
    try:
        return function(*args)
    except Exception as error:  # noqa: BLE001 - told to the test
        return type(error).__name__


def main():
    """Tasks, sent together."""
    path, count, limit = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    pool = Pool(2, grace=0.5)
    began = time.monotonic()
    results = [outcome(pool.apply_async, tasks.note, (path, index)) for index in range(count)]
    found = [
        result if isinstance(result, str) else outcome(result.get, max(0.01, limit - (time.monotonic() - began)))
        for result in results
    ]
    late = [index for index, each in enumerate(found) if each == "ResultTimeout"]
    took = time.monotonic() - began
    began = time.monotonic()
    if late:
        pool.terminate()
    else:
        pool.close()
    pool.join(BOUND)
    print(json.dumps({"found": found, "seconds": took, "end": time.monotonic() - began}), flush=True)


if __name__ == "__main__":
    main()
