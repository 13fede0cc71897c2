"""
An application with a pool, whose life and death are the test's: `pool_life.py STORY [ARGUMENT]`.

Every story prints a JSON line when it is where the test wants it. Those that end by themselves print a second one.
"""

import atexit
import contextlib
import faulthandler
import gc
import json
import os
import resource
import signal
import sys
import threading
import time
import warnings
import weakref

from safespawn import supervisor
from safespawn._core import child
from safespawn._drive import engine, inbox
from safespawn.errors import BootError
from safespawn.executor import Executor
from safespawn.pool import Pool
from support import fault_tasks as tasks
from support.children import survivors

warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # some stories fork

BOUND = 20.0
SIZE = 2


def say(**facts):
    """A line for the test."""
    print(json.dumps(facts), flush=True)


def name_of(function, *args):
    """What a call gives, or the name of its exception."""
    try:
        return function(*args)
    except BaseException as error:  # noqa: BLE001 - told to the test
        return type(error).__name__


def pids(pool):
    """The workers'."""
    return [worker["pid"] for worker in pool.statistics()["workers"]]


def gone(processes, seconds=5.0):
    """Whether they end within that time."""
    deadline = time.monotonic() + seconds
    while any(os.path.exists(f"/proc/{pid}") for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.002)
    return not any(os.path.exists(f"/proc/{pid}") for pid in processes)


def busy_pool(**options):
    """A pool with one worker that computes, one that has a child, and tasks that wait."""
    pool = Pool(SIZE, **options)
    pool.map(tasks.echo, range(4))
    results = [pool.apply_async(tasks.spin), pool.apply_async(tasks.hold_socket), pool.apply_async(tasks.nap, (60,))]
    results += [pool.apply_async(tasks.echo, (index,)) for index in range(10)]
    results[1].get(BOUND)
    return pool, results


def facts_of(pool):
    """Who is who."""
    return {
        "workers": pids(pool), "template": pool._crew.template.pid,
        "zygote": supervisor.default_supervisor()._engine._current[False].pid,
    }  # fmt: skip


# --- the application dies ---------------------------------------------------------------------------------------------
def alive():
    """A busy pool; the test kills somebody, or says on stdin how to go."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pool, _results = busy_pool()
    say(**facts_of(pool))
    word = sys.stdin.readline().strip()
    if word == "exec":
        os.execv("/bin/sleep", ["sleep", "0.1"])
    elif word == "_exit":
        os._exit(0)
    elif word == "fatal":
        faulthandler.disable()
        faulthandler._fatal_error_c_thread()
        time.sleep(BOUND)


def copied():
    """The same, with a forked copy of the application that lives on."""
    pool, _results = busy_pool()
    pid = os.fork()
    if pid == 0:
        sys.stdin.readline()
        os._exit(0)
    say(**facts_of(pool), copy=pid)
    time.sleep(60)


def exits(how):
    """The interpreter ends while everything is under way."""
    pool, results = busy_pool()
    kept = [pool]
    if how == "thread":
        threading.Thread(target=results[-1].wait, daemon=True).start()
    elif how == "two":
        other, _ = busy_pool()
        kept.append(other)
    elif how == "closed":
        pool.close()
    elif how == "atexit":
        idle = Pool(SIZE)
        kept.append(idle)
        atexit.register(lambda: say(late=name_of(idle.apply, tasks.echo, (1,))))
    elif how == "cycle":
        pool.itself = pool
        del pool
    elif how == "raise":
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - for the rest of this program
        say(**facts_of(pool))
        raise ValueError("on purpose")
    say(workers=len(kept))


def interrupted(where):
    """A program of the usual form that waits for its pool, and has no handler for Ctrl-C."""
    if where == "executor":
        with Executor(SIZE) as executor:
            say(first=list(executor.map(tasks.echo, range(4))))
            list(executor.map(tasks.nap, [60] * 8))
    if where == "executor without a block":
        executor = Executor(SIZE)
        say(first=list(executor.map(tasks.echo, range(4))))
        list(executor.map(tasks.nap, [60] * 8))
    with Pool(SIZE) as pool:
        pool.map(tasks.echo, range(4))
        if where == "join":
            pool.apply_async(tasks.nap, (60,))
            pool.close()
            say(**facts_of(pool))
            pool.join()
            return
        waits = {
            "map": lambda: pool.map(tasks.nap, [60] * 8),
            "apply": lambda: pool.apply(tasks.nap, (60,)),
            "get": lambda: pool.apply_async(tasks.nap, (60,)).get(),
            "imap": lambda: list(pool.imap(tasks.nap, [60] * 8)),
            "stream": lambda: list(pool.stream(_slow_count)),
            "spin": lambda: pool.apply(tasks.spin),
        }
        say(**facts_of(pool))
        waits[where]()


def _slow_count():
    time.sleep(60)
    yield 1


def shell():
    """Ctrl-C is caught, and the same pool is used again."""
    found = []
    with Pool(SIZE) as pool:
        pool.map(tasks.echo, range(4))
        for number in range(5):
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            wait, argument = (pool.map, [60] * 4) if number % 2 else (pool.apply, (60,))
            found.append(name_of(wait, tasks.nap, argument))
            found.append(pool.map(tasks.echo, range(10)) == list(range(10)))
        workers = pids(pool)
    say(found=found, gone=gone(workers))


# --- others die -------------------------------------------------------------------------------------------------------
def template():
    """The template is killed: what runs goes on and delivers, new workers come from a new one."""
    with Pool(SIZE) as pool:
        pool.map(tasks.echo, range(4))
        before = facts_of(pool)
        running = [pool.apply_async(tasks.nap, (0.3, index)) for index in range(SIZE)]
        os.kill(before["template"], signal.SIGKILL)
        found = {"running": [result.get(BOUND) for result in running]}
        found["same"] = set(pids(pool)) == set(before["workers"])
        died = name_of(lambda: pool.apply_async(tasks.die).get(BOUND))
        found["died"] = died
        found["after"] = pool.map(tasks.echo, range(20)) == list(range(20))
        killed = [pid for pid in pids(pool) if pid]
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        survivors(killed)  # until the kernel has ended them, they may take a task
        found["later"] = pool.map(tasks.echo, range(20)) == list(range(20))
        found["new"] = pool._crew.template.pid != before["template"]
        running = [pool.apply_async(tasks.nap, (60,), timeout=0.3) for _ in range(SIZE)]
        found["limited"] = [name_of(result.get, BOUND) for result in running]
        workers = pids(pool)
    say(**found, gone=gone([*workers, *before["workers"]]))


def orphans():
    """The template is killed, the workers are not replaced: limits, recycling and the end go on to work."""
    with Pool(SIZE, grace=1.0) as pool:
        pool.map(tasks.echo, range(4))
        before = facts_of(pool)
        os.kill(before["template"], signal.SIGKILL)
        running = [pool.apply_async(function, (60,), timeout=0.3) for function in (tasks.nap, tasks.stubborn)]
        found = [name_of(result.get, BOUND) for result in running]
        began = time.monotonic()
    say(found=found, end=time.monotonic() - began, gone=gone(before["workers"]))


def zygote():
    """The zygote is killed: all below it ends, tasks say so, and the pool goes on with another one."""
    with Pool(SIZE) as pool:
        pool.map(tasks.echo, range(4))
        before = facts_of(pool)
        running = [pool.apply_async(tasks.nap, (60,)) for _ in range(SIZE)]
        queued = [pool.apply_async(tasks.echo, (index,)) for index in range(4)]
        time.sleep(0.1)
        os.kill(before["zygote"], signal.SIGKILL)
        found = [name_of(result.get, BOUND) for result in running]
        after = [name_of(result.get, BOUND) for result in queued]
        whole = pool.map(tasks.echo, range(20)) == list(range(20))
    say(found=found, after=after, whole=whole, gone=gone(before["workers"]))


def boots():
    """The template is ended while it starts, once or always."""
    boot_flow = engine.boot_template_flow
    found = {}
    for name, times in (("once", 1), ("always", 1000)):
        left = [times]

        def flow(*args, left=left, **options):
            if left[0]:
                left[0] -= 1
                raise BootError("the template ended", executable=sys.executable)
            return (yield from boot_flow(*args, **options))

        engine.boot_template_flow = flow
        with Pool(SIZE, preload=["json" if times == 1 else "csv"]) as pool:
            found[name] = name_of(pool.apply_async(tasks.echo, (1,)).get, BOUND)
    say(**found)


def stopped_template():
    """The template is stopped while workers are wanted: the pool takes another one, within its bound."""
    child.ANSWER_SECONDS = child.NEWS_SECONDS = child.KILL_SECONDS = 1.0  # not how long the bounds are is tested
    inbox.EOF_SECONDS = 1.0
    with Pool(SIZE) as pool:
        pool.map(tasks.echo, range(4))
        before = facts_of(pool)
        os.kill(before["template"], signal.SIGSTOP)
        for pid in before["workers"]:
            os.kill(pid, signal.SIGKILL)
        survivors(before["workers"])
        began = time.monotonic()
        found = name_of(pool.apply_async(tasks.echo, (3,)).get, 30.0)
        seconds = time.monotonic() - began
    with contextlib.suppress(ProcessLookupError):
        os.kill(before["template"], signal.SIGCONT)
    say(found=found, seconds=seconds, gone=gone(before["workers"]))


# --- the wrong place, the wrong time ----------------------------------------------------------------------------------
def closed():
    """Everything after close and after terminate."""
    found = {}
    for end in ("close", "terminate"):
        pool = Pool(SIZE)
        pool.map(tasks.echo, range(4))
        getattr(pool, end)()
        found[end] = sorted(
            {name_of(use, tasks.echo, [1]) for use in (pool.apply, pool.apply_async, pool.map, pool.imap)}
            | {name_of(pool.stream, tasks.count, (1,)), name_of(pool.submit, tasks.echo, 1), name_of(pool.resize, 3)}
            | {name_of(pool.start), name_of(pool.__enter__)}
        )
        again = (pool.close, pool.terminate, pool.join, pool.statistics, pool.events)
        found[end + " again"] = [isinstance(name_of(each), str) for each in again]
    pool = Pool(SIZE)
    found["join"] = name_of(pool.join)
    pool.terminate()
    say(**found)


def in_copy():
    """A forked copy uses what is not its own: each use says so at once, and its end harms nothing."""
    pool = Pool(SIZE)
    pool.map(tasks.echo, range(4))
    result = pool.apply_async(tasks.nap, (0.5, "mine"))
    iterator = pool.imap(tasks.echo, range(3000))
    stream = pool.stream(tasks.count, (100,))
    next(stream)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        began = time.monotonic()
        uses = (
            lambda: pool.apply(tasks.echo, (1,)), lambda: pool.apply_async(tasks.echo, (1,)),
            lambda: pool.map(tasks.echo, [1]), result.get, lambda: [next(iterator) for _ in range(3000)],
            lambda: [next(stream) for _ in range(100)],
        )  # fmt: skip
        found = [name_of(use) for use in uses]
        ends = [name_of(use) for use in (result.cancel, pool.close, pool.join, pool.terminate)]
        ends.append(name_of(pool.__exit__, None, None, None))
        ends.append(name_of(pool.__exit__, SystemExit, SystemExit(), None))
        del iterator, stream, result
        gc.collect()
        own = Pool(1)
        found.append(own.apply(tasks.echo, (5,)))
        own.terminate()
        os.write(writer, json.dumps([found, ends, time.monotonic() - began]).encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as file:
        told = json.loads(file.read() or "null")
    os.waitpid(pid, 0)
    mine = [result.get(BOUND), list(iterator) == list(range(3000)), list(stream) == list(range(1, 100))]
    pool.close()
    pool.join(BOUND)
    say(told=told, mine=mine)


def callbacks():
    """What a callback may do: submit, cancel, resize, close, terminate; and what it may not: wait."""
    found = {}
    pool = Pool(SIZE)
    done = threading.Event()
    got = []

    def next_one(value):
        if value < 5:
            pool.apply_async(tasks.echo, (value + 1,), callback=next_one)
        else:
            done.set()

    pool.apply_async(tasks.echo, (0,), callback=next_one)
    found["chain"] = done.wait(BOUND)
    done.clear()

    def wait_in_it(_value):
        got.append(name_of(pool.apply, tasks.echo, (1,)))
        got.append(name_of(lambda: pool.apply_async(tasks.nap, (0.1,)).get()))
        got.append(name_of(lambda: pool.map(tasks.nap, [0.1])))
        got.append(name_of(lambda: list(pool.imap(tasks.nap, [0.1]))))
        got.append(name_of(lambda: list(pool.stream(tasks.count, (3,)))))
        got.append(name_of(pool.resize, 1))
        done.set()

    pool.apply_async(tasks.echo, (0,), callback=wait_in_it)
    found["waits"] = done.wait(BOUND) and got
    found["after"] = pool.map(tasks.echo, range(10)) == list(range(10))
    for end in ("close", "terminate"):
        pool = Pool(SIZE)
        late = pool.apply_async(tasks.nap, (0.3, "late"))

        def end_it(_value, pool=pool, end=end):
            getattr(pool, end)()
            pool.join()

        pool.apply_async(tasks.echo, (0,), callback=end_it)
        found[end] = name_of(late.get, BOUND)
        pool.join(BOUND)
    say(**found)


def nested():
    """A pool in a worker's task, a pool that is left open there, and the death of such a worker."""
    with Pool(SIZE) as pool:
        found = {"inner": pool.map(_inner, range(4), chunksize=1)}
        found["open"] = pool.apply(_leave_open)
        inner = pool.apply(_leave_open)
        outer = pids(pool)
        killed = pool.apply_async(_nest_and_die)
        found["killed"] = name_of(killed.get, BOUND)
        found["after"] = pool.map(tasks.echo, range(10)) == list(range(10))
    say(**{**found, "open": gone([*found["open"], *inner, *outer])})


def _inner(number):
    with Pool(2) as pool:
        return pool.map(tasks.echo, range(number)) == list(range(number))


_open = []


def _leave_open():
    pool = Pool(1)
    pool.apply(tasks.echo, (1,))
    _open.append(pool)
    return pids(pool)


def _nest_and_die():
    _leave_open()
    tasks.die()


def threads():
    """Two pools, used by eight threads each that start at once, and by one that forks all the time."""
    stop = threading.Event()
    forked = []

    def fork():
        while not stop.is_set():
            pid = os.fork()
            if pid == 0:
                time.sleep(0.05)
                os._exit(0)
            forked.append(pid)
            time.sleep(0.005)

    wrong = []

    def use(pool, seed):
        for index in range(30):
            number = seed * 1000 + index
            if pool.apply(tasks.echo, (number,)) != number:
                wrong.append(number)
            if pool.map(tasks.echo, range(index)) != list(range(index)):
                wrong.append(number)
            if pool.apply_async(tasks.large, (100_000,)).get(BOUND) != b"x" * 100_000:
                wrong.append(number)

    forker = threading.Thread(target=fork)
    forker.start()
    with Pool(SIZE) as one, Pool(SIZE) as two:
        users = [threading.Thread(target=use, args=(pool, seed)) for seed in range(4) for pool in (one, two)]
        for user in users:
            user.start()
        for user in users:
            user.join(BOUND)
        hung = sum(user.is_alive() for user in users)
    stop.set()
    forker.join()
    for pid in forked:
        os.waitpid(pid, 0)
    say(wrong=wrong, hung=hung, forks=len(forked))


def forgotten():
    """Pools that nobody closes, with and without work: their workers are gone soon."""
    found = []
    for busy in (False, True):
        pool = Pool(SIZE)
        pool.map(tasks.echo, range(4))
        if busy:
            pool.apply_async(tasks.nap, (60,))
        workers = pids(pool)
        reference = weakref.ref(pool)
        del pool
        gc.collect()
        found.append([reference() is None, gone(workers)])
    say(found=found)


def resized():
    """The size changes under load, workers are recycled under load: every task is delivered once."""
    wrong, sizes = [], []
    stop = threading.Event()

    def load(pool, seed):
        while not stop.is_set():
            if pool.map(tasks.echo, range(seed, seed + 100)) != list(range(seed, seed + 100)):
                wrong.append(seed)
            if pool.apply(tasks.echo, (seed,)) != seed:
                wrong.append(seed)

    with Pool(SIZE, maxtasksperchild=20) as pool:
        users = [threading.Thread(target=load, args=(pool, seed)) for seed in range(3)]
        for user in users:
            user.start()
        for size in (4, 1, 3, 1, 2):
            pool.resize(size)
            deadline = time.monotonic() + 5.0
            while time.monotonic() < deadline:
                living = {post.worker.pid for post in list(pool._crew.posts) if post.seat is not None}
                if len(living) == size:
                    break
                time.sleep(0.005)
            sizes.append(len(living))
            time.sleep(0.1)
        stop.set()
        for user in users:
            user.join(BOUND)
        hung = sum(user.is_alive() for user in users)
        recycled = pool.statistics()["recycled"]
    say(wrong=wrong, sizes=sizes, hung=hung, recycled=recycled)


STORIES = {
    function.__name__: function
    for function in (
        alive, copied, exits, interrupted, shell, template, orphans, zygote, boots, stopped_template, closed, in_copy,
        callbacks, nested, threads, forgotten, resized,
    )
}  # fmt: skip

if __name__ == "__main__":
    STORIES[sys.argv[1]](*sys.argv[2:])
