"""
A pool that meets with bad luck: `pool_faults.py STORY [ARGUMENT]`.

Each story prints one JSON line with what became of it. Beside every fault run innocent tasks; after it the pool must be
whole: each seat has a worker that works.
"""

import contextlib
import functools
import gc
import itertools
import json
import logging
import os
import resource
import signal
import sys
import threading
import time

from safespawn import errors
from safespawn.pool import Pool
from support import fault_tasks as tasks
from support.children import state, survivors

SIZE = 2
INNOCENTS = 8
LIMIT = 0.3  # seconds, for what ends by a limit alone
BOUND = 20.0  # seconds; far above what anything takes, so that a hang is told


def outcome(function, *args, **options):
    """What a call gives: its value, or the name of its exception with what is known of it."""
    try:
        return function(*args, **options)
    except BaseException as error:  # noqa: BLE001 - SystemExit is a result too
        facts = {"error": type(error).__name__, "text": str(error)[:300]}
        for name in ("returncode", "ended_by", "oom", "errno", "task"):
            if hasattr(error, name):
                facts[name] = getattr(error, name)
        return facts


def is_whole(pool, size=SIZE):
    """Every seat has a worker, and each of them works."""
    deadline = time.monotonic() + BOUND
    seen = set()
    while len(seen) < size and time.monotonic() < deadline:
        results = [pool.apply_async(tasks.who, (0.004,)) for _ in range(4 * size)]
        seen = {result.get(BOUND) for result in results}
    workers = pool.statistics()["workers"]
    return len(seen) == size == len(workers) and pool.map(tasks.echo, range(50)) == list(range(50))


def pids(pool):
    """The workers'."""
    return [worker["pid"] for worker in pool.statistics()["workers"]]


def descriptors():
    """What this process has open."""
    return len(os.listdir("/proc/self/fd"))


def targets():
    """What these are."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


# --- every fault at every place ---------------------------------------------------------------------------------------
def at_run(pool, name):
    """In the task itself."""
    return pool.apply_async(tasks.fault, (name,), timeout=LIMIT if name in ("stop", "spin") else None)


def at_unpickle(pool, name):
    """When the worker unpickles an argument."""
    trap = tasks.Trap("unpickle", name, os.getpid())
    return pool.apply_async(tasks.echo, (trap,), timeout=LIMIT if name in ("stop", "spin") else None)


def at_result_pickle(pool, name, size=0):
    """When the worker pickles the result."""
    arguments = ("pickle", name, os.getpid(), size)
    return pool.apply_async(tasks.give_trap, arguments, timeout=LIMIT if name in ("stop", "spin") else None)


def at_large_result(pool, name):
    """In the middle of a result of 1 MB."""
    return at_result_pickle(pool, name, 1 << 20)


def at_result_unpickle(pool, name):
    """When the application unpickles the result."""
    return pool.apply_async(tasks.give_trap, ("unpickle", name))


def at_pickle(pool, name):
    """When the application pickles an argument."""
    return pool.apply_async(tasks.echo, (tasks.Trap("pickle", name),))


def at_callback(pool, name):
    """In the callback."""
    return pool.apply_async(tasks.echo, (1,), callback=lambda _value: tasks.fault(name))


def at_error_callback(pool, name):
    """In the error callback."""
    return pool.apply_async(tasks.error, error_callback=lambda _value: tasks.fault(name))


class _Later:
    """A call as something with a `get`."""

    def __init__(self, function):
        self.get = lambda _timeout: function()


def at_map(pool, name):
    """For one item of a map."""
    functions = [tasks.echo, tasks.echo, functools.partial(tasks.fault, name), tasks.echo]
    return _Later(lambda: pool.map(_call, [(each, index) for index, each in enumerate(functions)], chunksize=1))


def at_imap(pool, name):
    """For one item of an imap; the items before and after it come."""
    functions = [(tasks.echo, 0), (functools.partial(tasks.fault, name), 1), (tasks.echo, 2)]

    def read():
        iterator = pool.imap(_call, functions)
        found = [outcome(iterator.next, BOUND) for _ in functions]
        assert found[0] == 0, found
        assert found[2] == 2, found
        return found[1]

    return _Later(read)


def at_stream(pool, name):
    """In the middle of a generator; the items before it come."""
    options = {"timeout": LIMIT} if name in ("stop", "spin") else {}

    def read():
        found = []
        stream = pool.stream(tasks.stream_fault, (name, 5), **options)
        for item in stream:
            found.append(item)
            if len(found) == 5:
                break
        assert found == list(range(5)), found
        return next(stream)

    return _Later(read)


def at_apply(pool, name):
    """While the caller talks to the worker directly."""
    return _Later(lambda: pool.apply(tasks.fault, (name,)))


def _call(pair):
    function, value = pair
    return function(value) if function is tasks.echo else function()


PLACES = {
    "run": at_run, "unpickle": at_unpickle, "result_pickle": at_result_pickle, "large_result": at_large_result,
    "result_unpickle": at_result_unpickle, "pickle": at_pickle, "callback": at_callback,
    "error_callback": at_error_callback, "map": at_map, "imap": at_imap, "stream": at_stream, "apply": at_apply,
}  # fmt: skip
IN_APPLICATION = ("result_unpickle", "pickle", "callback", "error_callback")
UNLIMITED = ("map", "imap", "apply")  # what has no time limit here cannot end what never ends


def matrix(name, rounds="1"):
    """One fault at each of the places that it can come to."""
    threading.excepthook = lambda _arguments: None  # what callbacks raise is told there
    rows = []
    with Pool(SIZE) as pool:
        for _, (place, submit) in itertools.product(range(int(rounds)), PLACES.items()):
            if (place in IN_APPLICATION and name not in ("error", "exit")) or (
                place in UNLIMITED and name in ("stop", "spin")
            ):
                continue
            began = time.monotonic()
            before = [pool.apply_async(tasks.nap, (0.005, index)) for index in range(INNOCENTS)]
            found = outcome(lambda submit=submit: submit(pool, name).get(BOUND))
            after = [pool.apply_async(tasks.nap, (0.002, index)) for index in range(INNOCENTS)]
            innocents = [result.get(BOUND) for result in before + after] == [*range(INNOCENTS)] * 2
            rows.append([place, found, innocents, is_whole(pool), time.monotonic() - began])
    return rows


def initializer(name):
    """A pool whose initializer has the fault: every task fails soon, with its reason."""
    options = {"grace": 0.2}
    pool = Pool(SIZE, tasks.fault, (name,), **options)
    waiting = pool.apply_async(tasks.echo, (1,))
    if name in ("stop", "spin"):
        time.sleep(0.5)  # nothing says that it is too long; it ends by terminate
        began = time.monotonic()
        pool.terminate()
        return {"task": outcome(waiting.get, BOUND), "end": time.monotonic() - began}
    found = outcome(waiting.get, BOUND)
    later = outcome(pool.apply, tasks.echo, (1,))
    began = time.monotonic()
    pool.close()
    pool.join(BOUND)
    return {"task": found, "later": later, "end": time.monotonic() - began}


def await_end_or_stop(processes):
    """Until the kernel has done what a signal says, a worker may take a task."""
    deadline = time.monotonic() + BOUND
    while any(state(pid) not in (None, "Z", "X", "T") for pid in processes) and time.monotonic() < deadline:
        time.sleep(0.001)


def idle(name):
    """Workers that are killed or stopped while they have nothing to do."""
    number = getattr(signal, name)
    found = []
    with Pool(SIZE) as pool:
        for _ in range(1 if number == signal.SIGSTOP else 3):
            assert is_whole(pool)
            killed = pids(pool)[: 1 if number == signal.SIGSTOP else None]
            for pid in killed:
                os.kill(pid, number)
            await_end_or_stop(killed)
            options = {"timeout": 0.5} if number == signal.SIGSTOP else {}
            results = [pool.apply_async(tasks.echo, (index,), **options) for index in range(4)]
            found.append([outcome(result.get, BOUND) for result in results])
        deadline = time.monotonic() + BOUND
        while number == signal.SIGSTOP and set(killed) & set(pids(pool)) and time.monotonic() < deadline:  # no task yet
            results = [pool.apply_async(tasks.nap, (0.05, index), timeout=0.5) for index in range(2 * SIZE)]
            found.append([outcome(result.get, BOUND) for result in results])
        return {"found": found, "whole": is_whole(pool)}


# --- single stories ---------------------------------------------------------------------------------------------------
def hostile(name):
    """A task that spoils its worker, and tasks after it."""
    function = getattr(tasks, name)
    with Pool(SIZE, grace=1.0) as pool:
        first = outcome(pool.apply_async(function).get, BOUND)
        results = [pool.apply_async(tasks.nap, (0.01, index)) for index in range(INNOCENTS)]
        large = [outcome(pool.apply_async(len, (b"x" * (1 << 20),)).get, BOUND) for _ in range(4)]
        innocents = [outcome(result.get, BOUND) for result in results] == list(range(INNOCENTS))
        facts = {"first": first, "innocents": innocents, "large": large, "whole": is_whole(pool)}
        facts["end"] = -time.monotonic()
    facts["end"] += time.monotonic()
    return {**facts, "left": survivors(first if isinstance(first, tuple) else ())}


def all_descriptors_of_a_worker():
    """A worker without a free descriptor: what needs one fails by itself, the rest works."""
    with Pool(1) as pool:
        pool.apply(tasks.all_descriptors)
        pid = pids(pool)[0]
        found = {
            "small": outcome(pool.apply, tasks.echo, (3,)),
            "argument": outcome(pool.apply_async(len, (b"x" * (1 << 20),)).get, BOUND),
            "result": outcome(lambda: len(pool.apply_async(tasks.large, (1 << 20,)).get(BOUND))),
        }
        pool.apply(tasks.give_descriptors_back)
        found["after"] = outcome(lambda: len(pool.apply_async(tasks.large, (1 << 20,)).get(BOUND)))
        found["same"] = pids(pool) == [pid]
    return found


@contextlib.contextmanager
def no_descriptors():
    """Nothing can be opened in this process."""
    kept = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        try:
            while True:
                kept.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        yield kept
    finally:
        for fd in kept:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def application_without_descriptors():
    """The application has none left: small tasks work, large ones fail by themselves, later everything works."""
    with Pool(1) as pool:
        assert is_whole(pool, 1)
        with no_descriptors():
            found = {
                "small": outcome(pool.apply, tasks.echo, (3,)),
                "argument": outcome(pool.apply_async(len, (b"x" * (1 << 20),)).get, BOUND),
                "result": outcome(pool.apply_async(tasks.large, (1 << 20,)).get, BOUND),
            }
        found["after"] = outcome(lambda: len(pool.apply_async(tasks.large, (1 << 20,)).get(BOUND)))
        found["whole"] = is_whole(pool, 1)
    return found


def replacement_without_descriptors():
    """A worker dies while none can be started: the others go on, and later the pool is whole."""
    with Pool(SIZE) as pool:
        assert is_whole(pool)
        with no_descriptors():
            killed = pids(pool)[:1]
            os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.01)  # nothing can be opened to look whether it has gone
            meanwhile = [outcome(pool.apply_async(tasks.nap, (0.05, index)).get, BOUND) for index in range(INNOCENTS)]
        return {"meanwhile": meanwhile == list(range(INNOCENTS)), "whole": is_whole(pool)}


def start_without_descriptors():
    """None is left when the pool is made, or when its first task comes: an error within a bound, or a result."""
    with no_descriptors():
        made = outcome(Pool, SIZE)
    found = {"made": made if isinstance(made, dict) else "made"}
    if not isinstance(made, dict):
        found["task"] = outcome(made.apply_async(tasks.echo, (3,)).get, BOUND)
        made.terminate()
    pool = Pool(SIZE)
    with no_descriptors():
        first = pool.apply_async(tasks.echo, (3,))
        found["first"] = outcome(first.get, BOUND)
    pool.terminate()
    return found


def logs(size):
    """Records of any size come in order, before the result; none is lost by a kill."""
    came = []

    class Keep(logging.Handler):
        def emit(self, record):
            if record.name == "fault":  # a death is a record, too
                came.append(record.getMessage())

    logging.getLogger().addHandler(Keep())
    size = int(size)
    with Pool(1) as pool:
        result = pool.apply_async(tasks.log_lines, (50, size), callback=lambda _value: came.append("result"))
        found = {"value": outcome(result.get, BOUND)}
        found["order"] = [each.split()[0] for each in came] == [*map(str, range(50)), "result"]
        sizes = {len(each) for each in came[:50]}  # with the number; or cut to 12 KiB, with a mark
        found["bytes"] = sizes <= {size + 2, size + 3} if size < 50_000 else max(sizes) < 13_000
        came.clear()
        found["killed"] = outcome(pool.apply_async(tasks.log_lines, (200, size, "kill")).get, BOUND)["error"]
        found["kept"] = len(came)
        found["whole"] = is_whole(pool, 1)
    return found


def log_wrongly():
    """A record that cannot be made is told on stderr, as logging does; the task does not suffer."""
    with Pool(1) as pool:
        return outcome(pool.apply, tasks.log_wrongly)


def long_words():
    """More in sys.argv than a datagram takes, and an initializer that fails with a long message."""
    sys.argv += [f"file-{number:08d}" for number in range(20_000)]
    with Pool(1) as pool:
        found = {"value": outcome(pool.apply, tasks.echo, (3,))}
    pool = Pool(1, _fail_at_length)
    found["failed"] = outcome(pool.apply, tasks.echo, (3,))
    pool.terminate()
    return found


def _fail_at_length():
    raise ValueError("long " * 100_000)


def copies(how):
    """A task that forks and forgets to leave the copy is run once, and the copy is not a worker."""
    with Pool(SIZE) as pool:
        found = [outcome(pool.apply_async(tasks.come_back_twice, (how,)).get, BOUND) for _ in range(4)]
        return {"found": found, "whole": is_whole(pool)}


def memory():
    """A worker that takes too much is ended before the kernel chooses; one without room says so."""
    with Pool(SIZE, max_rss_bytes=200 << 20) as pool:
        innocents = [pool.apply_async(tasks.nap, (0.05, index)) for index in range(INNOCENTS)]
        eaten = outcome(pool.apply_async(tasks.eat_memory, (300 << 20,)).get, BOUND)
        found = {"eaten": eaten, "innocents": [each.get(BOUND) for each in innocents] == list(range(INNOCENTS))}
        found["whole"] = is_whole(pool)
    with Pool(1, tasks.limit_memory, (64 << 20,)) as pool:
        found["limited"] = outcome(pool.apply_async(tasks.large, (256 << 20,)).get, BOUND)
        found["after"] = outcome(pool.apply, tasks.echo, (3,))
    return found


def timeouts():
    """Tasks that do not hear: the limit holds, each says what ended it, the innocents are unharmed."""
    rows = []
    with Pool(SIZE) as pool:
        assert is_whole(pool)
        for function, arguments in (
            (tasks.nap, (60,)), (tasks.swallow, (60,)), (tasks.stubborn, (60,)), (tasks.stop, ()), (tasks.spin, ()),
        ):  # fmt: skip
            began = time.monotonic()
            result = pool.apply_async(function, arguments, timeout=LIMIT)
            innocents = [pool.apply_async(tasks.nap, (0.01, index)) for index in range(INNOCENTS)]
            found = outcome(result.get, BOUND)
            seconds = time.monotonic() - began
            fine = [each.get(BOUND) for each in innocents] == list(range(INNOCENTS))
            rows.append([function.__name__, found, seconds, fine])
        return {"rows": rows, "whole": is_whole(pool)}


def timer_memory():
    """Limits of tasks that are over long ago keep nothing."""
    with Pool(1) as pool:
        for _ in range(500):
            pool.apply(tasks.echo, (1,), timeout=3600.0)
        time.sleep(0.05)
        return {"timers": len(pool._crew.pump._timers)}


def cancels():
    """A task is cancelled in every state: queued, sent and not begun, running, over; the others are unharmed."""
    found = {}
    with Pool(1) as pool:
        pool.map(tasks.nap, [0.0] * 20)  # known as quick, so that several are sent together
        running = pool.apply_async(tasks.nap, (0.5, "innocent"))
        behind = [pool.apply_async(tasks.nap, (0.0, index)) for index in range(6)]
        time.sleep(0.1)
        found["behind"] = behind[0].cancel(), behind[5].cancel()
        found["told"] = [outcome(behind[index].get, BOUND)["error"] for index in (0, 5)]
        found["before"] = not running.ready()
        found["innocent"] = outcome(running.get, BOUND)
        found["others"] = [outcome(behind[index].get, BOUND) for index in (1, 2, 3, 4)]
        found["over"] = running.cancel()
        for function in (tasks.nap, tasks.swallow, tasks.stubborn):
            pool.apply(tasks.echo, (1,))
            result = pool.apply_async(function, (60,))
            time.sleep(0.1)
            began = time.monotonic()
            result.cancel()
            found[function.__name__] = outcome(result.get, BOUND)["error"], time.monotonic() - began < 3.0
        result = pool.apply_async(tasks.nap, (0.2,))
        time.sleep(0.05)
        found["not_running"] = result.cancel(running=False), outcome(result.get, BOUND)
        found["whole"] = is_whole(pool, 1)
        found["unfinished"] = pool.statistics()["unfinished"]
    return found


def retries(path):
    """retries= runs a task again when its worker died; tasks that stood behind it are run once."""
    with Pool(SIZE) as pool:
        pool.map(tasks.nap, [0.0] * 20)
        poison = pool.apply_async(_note_and_die, (path, "poison"), retries=2)
        innocents = [pool.apply_async(tasks.note, (path, f"innocent {index}")) for index in range(50)]
        found = {"poison": outcome(poison.get, BOUND)}
        found["innocents"] = [each.get(BOUND) for each in innocents] == [f"innocent {index}" for index in range(50)]
        once = pool.apply_async(_die_once, (path + ".once",), retries=1)
        found["once"] = outcome(once.get, BOUND)
        found["whole"] = is_whole(pool)
        found["retried"] = pool.statistics()["retried"]
    return found


def _note_and_die(path, word):
    tasks.note(path, word)
    tasks.die()


def _die_once(path):
    if not os.path.exists(path):
        tasks.note(path, "was here")
        tasks.die()
    return "done"


def streams():
    """A stream that is dropped, closed, or not read to its end leaves its worker free."""
    found = {}
    with Pool(1) as pool:
        stream = pool.stream(tasks.endless)
        found["first"] = [next(stream) for _ in range(100)] == list(range(100))
        del stream
        found["dropped"] = outcome(pool.apply_async(tasks.echo, (1,)).get, BOUND)
        with pool.stream(tasks.endless) as stream:
            next(stream)
        found["closed"] = outcome(pool.apply_async(tasks.echo, (2,)).get, BOUND)
        kept = pool.stream(tasks.endless)
        next(kept)
        began = time.monotonic()
    found["end"] = time.monotonic() - began
    found["kept"] = outcome(lambda: [next(kept) for _ in range(100)])["error"]
    return found


def imaps():
    """An imap that is dropped wants nothing more; one that is open at `close` is read to its end."""
    found = {}
    began = time.monotonic()
    with Pool(SIZE) as pool:
        for value in pool.imap(tasks.nap, itertools.repeat(0.05)):
            found["first"] = value
            break
    found["dropped"] = time.monotonic() - began
    for name, join_first in (("read", False), ("joined", True)):
        pool = Pool(SIZE)
        iterator = pool.imap(tasks.echo, range(5000) if join_first else iter(range(5000)))
        pool.close()
        if join_first:
            pool.join(BOUND)
        found[name] = list(iterator) == list(range(5000))
        pool.join(BOUND)
    pool = Pool(SIZE)
    iterator = pool.imap(tasks.echo, range(5000))
    found["before"] = next(iterator)
    pool.terminate()
    got = [outcome(iterator.next, BOUND) for _ in range(2500)]
    found["terminated"] = got[-1]["error"]
    return found


def readers():
    """Several threads read one imap, and one stream: each item comes to one of them."""
    found = {}
    with Pool(SIZE) as pool:
        for name, source in (
            ("imap", pool.imap_unordered(tasks.echo, range(3000))),
            ("stream", pool.stream(tasks.count, (3000,))),
        ):
            got = []
            threads = [threading.Thread(target=lambda it=source, got=got: got.extend(it)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(BOUND)
            found[name] = sorted(got) == list(range(3000))
    return found


def holders():
    """A worker dies, its child keeps the task socket: the death is told soon, by the lifeline."""
    rows = []
    with Pool(SIZE) as pool:
        for call in (lambda: pool.apply(tasks.hold_and_die), lambda: pool.apply_async(tasks.hold_and_die).get(BOUND)):
            assert is_whole(pool)
            began = time.monotonic()
            rows.append([outcome(call)["error"], time.monotonic() - began])
        return {"rows": rows, "whole": is_whole(pool)}


def slow_draw():
    """The worker that a map's chunk is meant for dies while the chunk is pickled: another one gets it."""
    with Pool(1) as pool:
        pool.apply(tasks.echo, (1,))
        pid = pids(pool)[0]
        threading.Timer(0.1, os.kill, (pid, signal.SIGKILL)).start()
        return {"value": outcome(pool.map_async(tasks.echo, [_Slow()]).get, BOUND), "whole": is_whole(pool, 1)}


class _Slow:
    """Takes its time to pickle."""

    def __reduce__(self):
        time.sleep(0.4)
        return int, ()


def late_items():
    """Items that a killed worker had sent and not crossed out come once."""
    with Pool(1, _die_after_send) as pool:
        got = []
        stream = pool.stream(_slow_count, (3,))
        found = outcome(lambda: got.extend(stream))
        return {"got": got, "error": found["error"]}


def _die_after_send():
    from safespawn._worker import worker

    send = worker.Worker.send_bytes

    def send_and_die(self, data, fd=-1):
        send(self, data, fd)
        if bytes(data[:1]) == b"C":  # results
            os.kill(os.getpid(), signal.SIGKILL)

    worker.Worker.send_bytes = send_and_die


def _slow_count(limit):
    for number in range(limit):
        yield number
        time.sleep(0.01)


def broken():
    """A pool that breaks fails everybody who waits, and whoever comes later, at once."""
    pool = Pool(SIZE)
    assert is_whole(pool)
    waiting = [pool.apply_async(tasks.nap, (60,)) for _ in range(2)]
    lent = []
    thread = threading.Thread(target=lambda: lent.append(outcome(pool.apply, tasks.nap, (60,))))
    thread.start()
    queued = [pool.apply_async(tasks.echo, (index,)) for index in range(5)]
    many = pool.map_async(tasks.nap, [60] * 10)
    time.sleep(0.1)
    began = time.monotonic()
    pool._crew.pump.call_soon(lambda: pool._crew.break_down(errors.BrokenError("on purpose")))
    found = {outcome(each.get, BOUND)["error"] for each in (*waiting, *queued, many)}
    thread.join(BOUND)
    found |= {each["error"] for each in lent}
    seconds = time.monotonic() - began
    found |= {outcome(pool.apply, tasks.echo, (1,))["error"] for _ in range(50)}
    pool.close()
    pool.join(BOUND)
    return {"found": sorted(found), "seconds": seconds, "lent": len(lent)}


def lost_engine():
    """The pool's own thread fails: nobody waits for ever."""
    threading.excepthook = lambda _arguments: None
    pool = Pool(SIZE)
    assert is_whole(pool)
    lent = []
    thread = threading.Thread(target=lambda: lent.append(outcome(pool.apply, tasks.nap, (60,))))
    thread.start()
    time.sleep(0.1)
    waiting = pool.apply_async(tasks.nap, (60,))
    pool._crew.pump.epoll.close()
    pool._crew.pump.call_soon(lambda: None)
    found = [outcome(waiting.get, BOUND)["error"]]
    thread.join(BOUND)
    found.append(lent[0]["error"] if lent else "hangs")
    pool.close()
    pool.join(BOUND)
    return found


def terminated():
    """terminate() fails whoever waits, with PoolClosed, whichever way he waits."""
    pool = Pool(SIZE)
    assert is_whole(pool)
    lent = []
    threads = [threading.Thread(target=lambda: lent.append(outcome(pool.apply, tasks.nap, (60,)))) for _ in range(SIZE)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    queued = pool.apply_async(tasks.echo, (1,))
    many = pool.map_async(tasks.echo, range(10))
    iterator = pool.imap(tasks.echo, range(10))
    stream = pool.stream(tasks.count, (10,))
    began = time.monotonic()
    pool.terminate()
    seconds = time.monotonic() - began
    for thread in threads:
        thread.join(BOUND)
    found = [outcome(each.get, BOUND)["error"] for each in (queued, many)] + [each["error"] for each in lent]
    found += [outcome(iterator.next, BOUND)["error"], outcome(lambda: next(stream))["error"]]
    return {"found": found, "seconds": seconds, "left": pool.statistics()["unfinished"]}


STORIES = {
    function.__name__: function
    for function in (
        matrix, initializer, idle, hostile, all_descriptors_of_a_worker, application_without_descriptors,
        replacement_without_descriptors, start_without_descriptors, logs, log_wrongly, long_words, copies, memory,
        timeouts, timer_memory, cancels, retries, streams, imaps, readers, holders, slow_draw, late_items, broken,
        lost_engine, terminated,
    )
}  # fmt: skip


def main():
    """Tell the story, and say whether it left a descriptor behind."""
    from safespawn import run

    run(["true"])  # what belongs to the program's own zygote is there
    with Pool(SIZE) as pool:
        assert is_whole(pool)
        del pool
    gc.collect()
    before = descriptors()
    facts = STORIES[sys.argv[1]](*sys.argv[2:])
    deadline = time.monotonic() + 3.0
    while (descriptors() > before or threading.active_count() > 1) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    left = [what for what in targets() if what] if descriptors() > before else []
    print(json.dumps({"facts": facts, "left": left, "threads": threading.active_count()}), flush=True)


if __name__ == "__main__":
    main()
