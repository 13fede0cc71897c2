"""
The measures, as they run in the process of one pool: each gives one number, of one round.
"""

import gc
import json
import os
import random
import sys
import time
import traceback

from bench import pool_peers, pool_tasks

WARM_UP = 20  # calls, arbitrary: both workers have had some, and what is imported at a first call is
ARRAY_MIB = 64
SETTLE_SECONDS = 0.5
REST_SECONDS = 2.0


class Side:
    """
    One pool in this process, made when it is first needed.
    """

    def __init__(self, name):
        self.make, prepare = pool_peers.peer_of(name)
        prepare()
        self.pool = None
        self.array = None
        self.marks = 0
        self.held = None

    def warm(self):
        """
        The pool, made and used a little.
        """
        if self.pool is None:
            self.pool = self.make()
            if not is_async(self.pool):
                for number in range(WARM_UP):
                    self.pool.call(pool_tasks.tiny, number)
        gc.collect()
        return self.pool

    def close(self):
        """
        End the pool; the next measure makes another.
        """
        if self.pool is not None:
            self.pool.close()
            self.pool = None

    def round_trip(self, times):
        """
        The median of a tiny task's round trips, one after another, in seconds.
        """
        pool = self.warm()
        if is_async(pool):
            return pool.run(async_round_trip, times)
        took = []
        for number in range(times):
            began = time.perf_counter()
            pool.call(pool_tasks.tiny, number)
            took.append(time.perf_counter() - began)
        return median(took)

    def submit(self, count):
        """
        Tiny tasks a second, each submitted by itself, all before the first result is asked for.
        """
        pool = self.warm()
        began = time.perf_counter()
        handles = [pool.submit(pool_tasks.tiny, number) for number in range(count)]
        results = [pool.result(handle) for handle in handles]
        took = time.perf_counter() - began
        assert results == list(range(count))
        return count / took

    def imap_unordered(self, count):
        """
        Tiny tasks a second, one by one through imap_unordered.
        """
        pool = self.warm()
        list(pool.imap_unordered(pool_tasks.tiny, range(100), chunksize=1))
        began = time.perf_counter()
        results = sum(pool.imap_unordered(pool_tasks.tiny, range(count), chunksize=1))
        took = time.perf_counter() - began
        assert results == sum(range(count))
        return count / took

    def map(self, count):
        """
        Tiny items a second through map, in chunks of its own choice.
        """
        pool = self.warm()
        pool.map(pool_tasks.tiny, range(100))
        began = time.perf_counter()
        results = pool.map(pool_tasks.tiny, range(count))
        took = time.perf_counter() - began
        assert results == list(range(count))
        return count / took

    def skewed(self, func, short, long, count, method):
        """
        How much longer *count* tasks take, of which every hundredth is long, than by the ideal schedule of just these:
        each says how long it was, so neither the machine's mood nor a neighbour's load is in the ratio.
        """
        task, items = getattr(pool_tasks, func), skewed_items(short, long, count)
        pool = self.warm()
        began = time.perf_counter()
        lengths = pool.map(task, items) if method == "map" else list(pool.imap_unordered(task, items, chunksize=1))
        took = time.perf_counter() - began
        return took / ideal(lengths)

    def array_rate(self, task):
        """
        MiB a second of one array that goes to a worker; its content is new each time, so none can be remembered.
        """
        import numpy as np

        first = self.array is None
        if first:
            self.array = np.arange(ARRAY_MIB * 2**20 // 8, dtype=np.float64)
        pool = self.warm()
        if first:  # numpy's import in the workers is not part of it
            for _ in range(4):
                pool.call(getattr(pool_tasks, task), self.array)
        self.marks += 1
        self.array[0] = self.array[-1] = self.marks
        began = time.perf_counter()
        result = pool.call(getattr(pool_tasks, task), self.array)
        took = time.perf_counter() - began
        if task == "ends":
            assert tuple(result) == (self.marks, self.marks)
        elif task != "total":
            assert abs(result[0]) == abs(result[-1]) == self.marks
            assert result.nbytes == self.array.nbytes
        return ARRAY_MIB / took

    def memcpy(self, task):
        """
        MiB a second of a copy into an array whose pages are there already.
        """
        del task
        import numpy as np

        if self.array is None:
            self.array = np.ones((2, ARRAY_MIB * 2**20 // 8))
        began = time.perf_counter()
        np.copyto(self.array[1], self.array[0])
        return ARRAY_MIB / (time.perf_counter() - began)

    def hold(self, mebibytes):
        """
        Make this process large: memory that it has written.
        """
        from bench.forked import touched

        self.held = touched(mebibytes)
        return mebibytes

    def start(self, task="tiny", preload=(), workers=pool_peers.WORKERS):
        """
        Seconds from the making of a pool to its first result.
        """
        self.close()
        gc.collect()
        options = {"preload": preload} if preload else {}
        if workers != pool_peers.WORKERS:
            options["workers"] = workers
        began = time.perf_counter()
        self.pool = self.make(**options)
        self.pool.call(getattr(pool_tasks, task), 1)
        took = time.perf_counter() - began
        self.close()
        return took

    def level(self, count):
        """
        Resident KiB of this process after a quarter and at the end of *count* tasks through imap, and its peak.
        """
        pool = self.warm()
        seen = []
        marks = (count // 4, count)
        began = time.perf_counter()
        for number, result in enumerate(pool.imap(pool_tasks.tiny, range(count)), 1):
            assert result == number - 1
            if number in marks:
                seen.append(status_kib("VmRSS"))
        return [*seen, status_kib("VmHWM"), count / (time.perf_counter() - began)]

    def at_rest(self):
        """
        What a pool costs that has nothing to do: threads, descriptors, processes, and milliseconds of CPU a second.
        """
        gc.collect()
        before = own_threads(), own_fds(), len(family())
        pool = self.make()
        if is_async(pool):
            return pool.run(async_at_rest, before)
        for number in range(200):
            pool.call(pool_tasks.tiny, number)
        time.sleep(SETTLE_SECONDS)
        pids = sorted(family() - {os.getpid()})
        used = cpu_seconds([*pids, os.getpid()])
        time.sleep(REST_SECONDS)
        used = cpu_seconds([os.getpid(), *pids]) - used
        seen = standing(before, used)
        pool.close()
        return seen


async def async_round_trip(call, times):
    for number in range(WARM_UP):
        await call(pool_tasks.tiny, number)
    gc.collect()
    took = []
    for number in range(times):
        began = time.perf_counter()
        await call(pool_tasks.tiny, number)
        took.append(time.perf_counter() - began)
    return median(took)


async def async_at_rest(call, before):
    import anyio

    async def some():
        for number in range(100):
            await call(pool_tasks.tiny, number)

    async with anyio.create_task_group() as group:
        group.start_soon(some)
        group.start_soon(some)
    await anyio.sleep(SETTLE_SECONDS)
    pids = sorted(family() - {os.getpid()})
    used = cpu_seconds([*pids, os.getpid()])
    await anyio.sleep(REST_SECONDS)
    return standing(before, cpu_seconds([os.getpid(), *pids]) - used)


def is_async(pool):
    return isinstance(pool, pool_peers.AsyncPeer)


def median(values):
    return sorted(values)[len(values) // 2]


def skewed_items(short, long, count):
    items = [long if number % 100 == 0 else short for number in range(count)]
    random.Random(1).shuffle(items)
    return items


def ideal(lengths):
    """
    Seconds that tasks of these lengths take when they are known beforehand and nothing else costs anything: the longest
    first, each to whoever is free.
    """
    loads = [0.0] * pool_peers.WORKERS
    for length in sorted(lengths, reverse=True):
        loads[loads.index(min(loads))] += length
    return max(loads)


def standing(before, used):
    now = own_threads(), own_fds(), len(family())
    return [*(after - earlier for after, earlier in zip(now, before, strict=True)), used / REST_SECONDS * 1000]


def own_threads():
    return len(os.listdir("/proc/self/task"))


def own_fds():
    return len(os.listdir("/proc/self/fd"))


def family():
    """
    The pids of this process and all that stem from it.
    """
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
            except OSError:  # it has gone
                continue
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def cpu_seconds(pids):
    """
    What all threads of these have had of the cores: this process last before a wait and first after it, so that
    looking is not part of it.

    Source: /proc/<pid>/task/<tid>/schedstat, nanoseconds on a core.
    """
    total = 0
    for pid in pids:
        try:
            for tid in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{tid}/schedstat", "rb") as file:
                    total += int(file.read().split()[0])
        except OSError:  # it has gone
            continue
    return total / 1e9


def status_kib(field):
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(f"{field}:"))


def serve(name):
    """
    Answer one line of JSON with one, until the input ends.
    """
    side = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            side = side or Side(name)
            reply = {"value": getattr(side, request.pop("what"))(**request)}
        except ImportError as error:
            reply = {"out": f"not installed ({error.name})"}
        except pool_peers.NotBuiltError:
            reply = {"out": "not built yet"}
        except Exception as error:  # noqa: BLE001 - a peer may raise what it likes; it is told, and the others go on
            traceback.print_exc()
            reply = {"out": f"failed: {type(error).__name__}: {error}".splitlines()[0]}
        print(json.dumps(reply), flush=True)
    if side is not None:
        side.close()
