"""
A pool for a long time: `pool_load.py STORY COUNT`.
"""

import gc
import json
import os
import resource
import sys
import time

from safespawn.pool import Pool
from support import fault_tasks as tasks


def resident():
    """Bytes of this process in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def descriptors():
    """What this process has open."""
    return len(os.listdir("/proc/self/fd"))


def tiny(pool, count):
    """Tasks in every way of submitting, a hundred thousand at a time."""
    for _ in range(count // 100_000):
        assert sum(pool.map(tasks.echo, range(50_000))) == sum(range(50_000))
        assert sum(pool.imap_unordered(tasks.echo, range(30_000))) == sum(range(30_000))
        results = [pool.apply_async(tasks.echo, (number,), timeout=3600.0) for number in range(5_000)]
        assert sum(result.get(60) for result in results) == sum(range(5_000))
        results = [pool.apply_async(tasks.echo, (number,)) for number in range(15_000)]
        assert sum(result.get(60) for result in results) == sum(range(15_000))


def large(pool, count):
    """Megabytes there and back."""
    data = os.urandom(4 << 20)
    for _ in range(count):
        assert pool.apply(tasks.echo, (data,)) == data
        assert all(each == data for each in pool.map(tasks.echo, [data] * 4))


def deaths(pool, count):
    """A worker dies, again and again."""
    for number in range(count):
        result = pool.apply_async(tasks.hold_and_die if number % 2 else tasks.vanish)
        began = time.monotonic()
        result.wait(20)
        assert result.ready()
        assert not result.successful()
        assert time.monotonic() - began < 1.0
        assert pool.map(tasks.echo, range(10)) == list(range(10))


def limits(pool, count):
    """A worker keeps the GIL, again and again."""
    for _ in range(count):
        began = time.monotonic()
        result = pool.apply_async(tasks.spin, timeout=0.1)
        assert pool.map(tasks.echo, range(10)) == list(range(10))
        result.wait(20)
        assert result.ready()
        assert time.monotonic() - began < 0.1 + 0.5 + 1.0


def main():
    """Once to warm up, then for good."""
    story, count = globals()[sys.argv[1]], int(sys.argv[2])
    with Pool(2) as pool:
        story(pool, max(2, count // 10))
        before = resident(), descriptors()
        story(pool, count)
        after = resident(), descriptors()
    print(json.dumps({"resident": [before[0], after[0]], "descriptors": [before[1], after[1]]}), flush=True)


main()
