"""
`safespawn.Pool` in ordinary life: what it has of multiprocessing.Pool, and what it has beyond.
"""

import itertools
import logging
import multiprocessing
import multiprocessing.pool
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import resource_tracker

import pytest

import safespawn
from safespawn import errors
from support import log_tasks
from support import pool_tasks as tasks
from support.children import becomes

try:  # here, and not in a test: it starts threads
    import numpy  # noqa: ICN001 - by its whole name, as in the rest of the tests
except ImportError:
    numpy = None
needs_numpy = pytest.mark.skipif(numpy is None, reason="arrays are numpy's, which is not installed")


@pytest.fixture(scope="module", autouse=True)
def _tracker():
    """The tracker of named semaphores lives as long as the program, and so do the first pages of its shared heap."""
    resource_tracker.ensure_running()
    multiprocessing.get_context("spawn").Value("i", 0)


@pytest.fixture
def pool():
    """A pool of two workers."""
    with safespawn.Pool(2, name="tests") as pool:
        yield pool


# --- one call ---------------------------------------------------------------------------------------------------------
def test_apply_gives_the_result(pool):
    """A call runs in another process and its result comes back."""
    assert pool.apply(tasks.add, (2,), {"y": 3}) == 5
    assert pool.apply(tasks.pid) != os.getpid()


def test_an_exception_comes_back_with_its_traceback(pool):
    """What the call raised is raised here, with the worker's traceback as the standard class for a cause."""
    with pytest.raises(ValueError, match="not this") as caught:
        pool.apply(tasks.fail, ("not this",))
    assert type(caught.value.__cause__) is multiprocessing.pool.RemoteTraceback
    assert "in fail" in str(caught.value.__cause__)
    assert "safespawn/_worker" not in str(caught.value.__cause__)


def test_an_exception_with_a_constructor_of_its_own_survives(pool):
    """An exception whose `args` do not fit its constructor arrives as itself, and the pool is whole."""
    with pytest.raises(tasks.Odd, match="this and that") as caught:
        pool.apply(tasks.raise_odd)
    assert (caught.value.left, caught.value.right) == ("this", "that")
    assert pool.apply(tasks.square, (3,)) == 9


def test_apply_async_calls_back(pool):
    """The callbacks get the result, or the exception; `ready`, `successful` and `wait` tell the truth."""
    heard = []
    good = pool.apply_async(tasks.square, (4,), callback=heard.append)
    good.wait(10)
    bad = pool.apply_async(tasks.fail, error_callback=heard.append)
    bad.wait(10)
    assert good.ready()
    assert good.successful()
    assert not bad.successful()
    assert heard[0] == 16
    assert isinstance(heard[1], ValueError)
    slow = pool.apply_async(tasks.nap, (0.2,))
    with pytest.raises(ValueError, match="not ready"):
        slow.successful()
    with pytest.raises(multiprocessing.TimeoutError):
        slow.get(0.01)
    with pytest.raises(TimeoutError):
        slow.get(0.01)
    assert slow.get(10) == 0.2


def test_submit_gives_a_future(pool):
    """`submit` is concurrent.futures' own, positional-only."""
    assert pool.submit(tasks.add, 1, y=2).result(10) == 3


def test_a_callback_that_raises_does_not_end_the_pool(pool, monkeypatch):
    """What a callback raises is reported as a thread's would be, and the result is there all the same."""
    seen = []
    monkeypatch.setattr(threading, "excepthook", seen.append)
    result = pool.apply_async(tasks.square, (2,), callback=lambda _: 1 / 0)
    assert result.get(10) == 4
    assert pool.apply(tasks.square, (3,)) == 9
    assert [each.exc_type for each in seen] == [ZeroDivisionError]


def test_from_many_threads_at_once(pool):
    """Eight threads that call `apply` all get their own results."""
    wrong = []

    def work(base):
        numbers = range(base, base + 100)
        wrong.extend(each for each in numbers if pool.apply(tasks.square, (each,)) != each * each)

    threads = [threading.Thread(target=work, args=(1000 * each,)) for each in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- many calls -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("chunksize", [None, 1, 7, 1000])
@pytest.mark.parametrize("count", [0, 1, 2, 100, 5000])
def test_map_keeps_the_order(pool, count, chunksize):
    """The results of `map` are in the order of the items, whatever the chunks."""
    assert pool.map(tasks.square, range(count), chunksize) == [each * each for each in range(count)]


def test_map_takes_any_iterable(pool):
    """Generators, sets and iterators will do."""
    assert pool.map(tasks.square, (each for each in range(10))) == [each * each for each in range(10)]
    assert sorted(pool.map(tasks.square, {1, 2, 3})) == [1, 4, 9]


def test_starmap_spreads_the_arguments(pool):
    """`starmap` and `starmap_async` call with each item's elements."""
    pairs = [(1, 2), (3, 4)]
    assert pool.starmap(tasks.add, pairs) == [3, 7]
    assert pool.starmap_async(tasks.add, pairs).get(10) == [3, 7]


def test_map_raises_the_first_exception(pool):
    """The first exception is the map's, and the pool goes on."""
    with pytest.raises(ValueError, match="at 5"):
        pool.map(tasks.fail_at, range(1000))
    assert pool.map(tasks.square, [2]) == [4]


def test_map_calls_back_and_tells_the_progress(pool):
    """`map_async` has callbacks, and `progress` hears of every step up to the last."""
    heard, steps = [], []
    result = pool.map_async(
        tasks.square, range(100), 10, heard.append, progress=lambda done, total: steps.append((done, total))
    )
    result.wait(10)
    assert heard == [[each * each for each in range(100)]]
    assert steps[-1] == (100, 100)
    assert [done for done, _ in steps] == sorted(done for done, _ in steps)


def test_progress_draws_a_bar(pool, capsys):
    """`progress=True` draws with rich, or says that it is not there."""
    try:
        import rich  # noqa: F401
    except ImportError:
        with pytest.raises(errors.UnsupportedOption, match="progress"):
            pool.map(tasks.square, range(10), progress=True)
    else:
        assert pool.map(tasks.square, range(10), progress=True) == [each * each for each in range(10)]
        assert "100%" in capsys.readouterr().out


@pytest.mark.parametrize("chunksize", [1, 3])
def test_imap_keeps_the_order(pool, chunksize):
    """`imap` gives the results in order, `imap_unordered` all of them."""
    assert list(pool.imap(tasks.square, range(500), chunksize)) == [each * each for each in range(500)]
    assert sorted(pool.imap_unordered(tasks.square, range(500), chunksize)) == [each * each for each in range(500)]


def test_imap_is_lazy_and_bounded(pool):
    """No more than *buffersize* items are taken from the input ahead of the reader, so it may be endless."""
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = pool.imap(tasks.square, endless(), buffersize=10)
    assert [next(results) for _ in range(25)] == [each * each for each in range(25)]
    assert len(taken) <= 25 + 10


def test_imap_goes_on_after_an_exception(pool):
    """An item's exception is raised in its place, and the next items follow."""
    results = pool.imap(tasks.fail_at, range(8))
    seen = []
    while True:
        try:
            seen.append(next(results))
        except StopIteration:
            break
        except ValueError as error:
            seen.append(str(error))
    assert seen == [0, 1, 2, 3, 4, "at 5", 6, 7]


def test_imap_with_a_slow_input_gives_what_is_there(pool):
    """A result that is there is given before the next item is waited for."""
    gate = threading.Event()

    def slowly():
        yield 1
        yield 2
        assert gate.wait(10)
        yield 3

    results = pool.imap(tasks.square, slowly(), buffersize=2)
    assert next(results) == 1
    time.sleep(0.3)  # the second one is there by now
    assert next(results) == 4
    gate.set()
    assert list(results) == [9]


def test_imap_raises_what_its_input_raises(pool):
    """The input's exception comes after the results of what it had given."""

    def broken():
        yield 1
        raise KeyError("input")

    results = pool.imap(tasks.square, broken())
    assert next(results) == 1
    with pytest.raises(KeyError, match="input"):
        next(results)


# --- what only this pool has ------------------------------------------------------------------------------------------
def test_a_timeout_ends_the_call_and_says_where_it_stood(pool):
    """`TaskTimeout` has the Python stack of the call; the worker, which heard the exception, lives on."""
    before = {pool.apply(tasks.pid) for _ in range(20)}
    with pytest.raises(safespawn.TaskTimeout) as caught:
        pool.apply(tasks.nap, (30,), timeout=0.1)
    assert isinstance(caught.value, TimeoutError)
    assert "in nap" in caught.value.stack
    assert caught.value.ended_by == "exception"
    assert caught.value.seconds == 0.1
    assert {pool.apply(tasks.pid) for _ in range(20)} <= before | {pool.apply(tasks.pid)}
    assert pool.statistics()["died"] == 0


def test_a_running_call_can_be_cancelled(pool):
    """`cancel` ends a call that runs, and only that."""
    victim = pool.apply_async(tasks.nap, (30,))
    other = pool.apply_async(tasks.nap, (0.3,))
    time.sleep(0.1)
    assert victim.cancel()
    with pytest.raises(safespawn.TaskCancelled):
        victim.get(10)
    assert other.get(10) == 0.3


def test_a_queued_call_can_be_cancelled(pool, tmp_path):
    """`cancel` takes a call out of the queue: it never runs."""
    busy = [pool.apply_async(tasks.nap, (0.2,)) for _ in range(2)]
    waiting = pool.apply_async(tasks.touch, (str(tmp_path / "ran"),))
    assert waiting.cancel(running=False)
    with pytest.raises(safespawn.TaskCancelled):
        waiting.get(10)
    assert [each.get(10) for each in busy] == [0.2, 0.2]
    assert not (tmp_path / "ran").exists()
    assert not busy[0].cancel()


def test_retries_run_the_call_again(pool, tmp_path):
    """A call that lost its worker is run again as often as was asked; then it fails."""
    assert pool.apply(tasks.touch_and_die, (str(tmp_path / "a"), 3), retries=2) == 3
    with pytest.raises(safespawn.WorkerDied):
        pool.apply(tasks.touch_and_die, (str(tmp_path / "b"), 3), retries=1)


def test_priorities(tmp_path):
    """Of the calls that wait, the one with the highest priority is next."""
    order = []
    with safespawn.Pool(1) as pool:
        gate = pool.apply_async(tasks.wait_for, (str(tmp_path / "gate"),))
        results = [pool.apply_async(tasks.square, (each,), callback=order.append, priority=each) for each in (1, 3, 2)]
        (tmp_path / "gate").touch()
        assert gate.get(10)
        for each in results:
            each.wait(10)
    assert order == [9, 4, 1]


def test_equal_keys_go_to_the_same_worker(pool):
    """Calls with one key run in one process, in the order of their submission."""
    for key in ("a", "b", "c", 4):
        assert len({pool.apply_async(tasks.pid, key=key).get(10) for _ in range(10)}) == 1


def test_a_generator_streams(pool):
    """The items of a generator come as they are made, synchronous or not."""
    assert list(pool.stream(tasks.count_to, (100,), buffersize=5)) == list(range(100))
    assert list(pool.stream(tasks.count_slowly, (10,))) == list(range(10))
    with pytest.raises(ValueError, match="after the last"):
        list(pool.stream(tasks.fail_after, (3,)))


def test_an_asynchronous_generator_runs_in_one_task(pool, tmp_path):
    """What it opens before one item it can close after another; its end is run also when its reader has enough."""
    path = tmp_path / "ended"
    assert list(pool.stream(tasks.count_in_a_span, (3, str(path)))) == [(0, "open"), (1, "open"), (2, "open")]
    path.unlink()
    with pool.stream(tasks.count_in_a_span, (1000, str(path)), buffersize=1) as stream:
        assert next(stream) == (0, "open")
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_stream_is_held_back_by_its_reader(pool, tmp_path):
    """The generator is never more than *buffersize* items ahead."""
    path = tmp_path / "at"
    with pool.stream(tasks.count_and_note, (1000, str(path)), buffersize=4) as stream:
        assert next(stream) == 0
        time.sleep(0.2)
        assert int(path.read_text()) <= 1 + 4 + 4


def test_what_a_worker_has_put_into_a_queue_is_not_lost():
    """A worker that ends in order writes first what its queues' threads have not written yet."""
    queue = safespawn.get_context().Queue()
    found = []
    reader = threading.Thread(target=lambda: found.extend(queue.get(timeout=60) for _ in range(2000)))
    with safespawn.Pool(1, log_tasks.keep_queue, (queue,)) as pool:
        assert pool.apply(log_tasks.put_much, (2000,)) == 2000
        reader.start()
    reader.join()
    assert [int(data[4000:]) for data in found] == list(range(2000))
    queue.close()
    queue.join_thread()


def test_a_pool_may_be_larger_than_the_machine():
    """More workers than a message has room for connections: all come up."""
    with safespawn.Pool(20) as pool:
        assert pool.map(abs, range(-40, 0), chunksize=1) == list(range(40, 0, -1))
        deadline = time.monotonic() + 60
        while len({worker["pid"] for worker in pool.statistics()["workers"]} - {None}) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_log_records_arrive(pool, caplog):
    """What a worker logs comes to this process's handlers, before the result, with its extras."""
    caplog.set_level(logging.WARNING)
    assert pool.apply(tasks.log, (["one", "two"],)) == 2
    records = [each for each in caplog.records if each.name == "tests.worker"]
    assert [each.getMessage() for each in records] == ["says one", "says two"]
    assert [each.word for each in records] == ["one", "two"]
    assert records[0].process not in (None, os.getpid())


def test_stacks_say_what_the_workers_run(pool, tmp_path):
    """`stacks` has the stack of a busy worker, and says of an idle one that it waits."""
    gate, begun = tmp_path / "gate", tmp_path / "begun"
    busy = pool.apply_async(tasks.begin_and_wait, (str(begun), str(gate)))
    becomes(begun.exists)
    becomes(lambda: "idle" in {each["state"] for each in pool.statistics()["workers"]})
    stacks = pool.stacks(timeout=30)
    assert sorted(stacks) == [0, 1]
    assert sum("in wait_for" in each for each in stacks.values()) == 1
    assert sum("waits for a task" in each for each in stacks.values()) == 1
    gate.touch()
    busy.get(30)


def test_statistics_and_events(pool):
    """The figures add up, and every worker's coming is told."""
    pool.map(tasks.nap, [0.01] * 10, chunksize=1)
    with pytest.raises(ValueError, match="no"):
        pool.apply(tasks.fail)
    figures = pool.statistics()
    assert figures["submitted"] == 11
    assert (figures["completed"], figures["failed"], figures["unfinished"]) == (10, 1, 0)
    assert figures["running_seconds"] >= 0.1
    assert figures["pickling_seconds"] > 0
    assert {each["state"] for each in figures["workers"]} == {"idle"}
    kinds = [event.kind for event in pool.events()]
    assert kinds.count("started") == 2
    assert kinds.count("ready") == 2


def test_on_event_is_called():
    """`on_event` hears what `events` has."""
    heard = []
    with safespawn.Pool(1, on_event=heard.append) as pool:
        pool.apply(tasks.square, (1,))
    assert [event.kind for event in heard] == ["started", "ready", "stopped"]


def test_resize(pool):
    """The number of workers changes while it runs."""
    pool.map(tasks.square, range(10))
    pool.resize(4)
    assert len(set(pool.map(tasks.pid, [0.05] * 0 + list(range(4)), 1)) | _pids(pool, 4)) == 4
    pool.resize(1)
    deadline = time.monotonic() + 10
    while len(pool.statistics()["workers"]) != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(_pids(pool, 1)) == 1


def _pids(pool, count):
    """The workers that there are, found by keeping them all busy at once."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        states = [each for each in pool.statistics()["workers"] if each["state"] == "idle"]
        if len(states) == count:
            return {each["pid"] for each in states}
        time.sleep(0.01)
    raise AssertionError(pool.statistics()["workers"])


# --- what a worker is -------------------------------------------------------------------------------------------------
def test_a_worker_knows_who_it_is(pool):
    """Pool, index and pid are `current_worker()`'s, and ps shows the name; here it is None."""
    seen = {pool.apply_async(tasks.who, key=each).get(10) for each in range(20)}
    assert seen == {("tests", 0, True, "tests-0"), ("tests", 1, True, "tests-1")}
    assert safespawn.current_worker() is None


def test_a_worker_has_the_surroundings_of_its_start(tmp_path, monkeypatch):
    """Environment, directory, argv and path are those of this process when the worker starts; stdin is empty."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SAFESPAWN_TESTS_HERE", "yes")
    with safespawn.Pool(1) as pool:
        seen = pool.apply(tasks.surroundings)
    assert seen["cwd"] == str(tmp_path)
    expected = dict(os.environ)
    assert {name: seen["environ"].get(name) for name in expected} == expected
    assert seen["argv"] == sys.argv
    assert seen["path"] == sys.path
    assert seen["stdin"] == "/dev/null"
    assert seen["threads"] == 1


def test_a_worker_has_the_surroundings_that_are_asked(tmp_path):
    """`env`, `cwd` and `affinity` are the workers' own."""
    cpu = min(os.sched_getaffinity(0))
    env = {"PATH": os.environ["PATH"], "ONLY": "this"}
    with safespawn.Pool(1, env=env, cwd=tmp_path, affinity=[cpu], library_threads=3) as pool:
        seen = pool.apply(tasks.surroundings)
    assert seen["cwd"] == str(tmp_path)
    assert seen["affinity"] == {cpu}
    assert {name: value for name, value in seen["environ"].items() if not name.endswith("_THREADS")} == env
    assert seen["environ"]["OMP_NUM_THREADS"] == "3"


def test_a_spare_becomes_what_it_replaces():
    """A spare that takes a seat has the seat's name, index and CPUs."""
    cpus = sorted(os.sched_getaffinity(0))
    with safespawn.Pool(2, name="seats", affinity=[[cpus[0]], [cpus[-1]]], spares=1) as pool:
        for key in range(2, 8):
            with pytest.raises(safespawn.WorkerDied):
                pool.apply(os._exit, (3,), key=key)
            assert pool.apply(tasks.who, key=key) == ("seats", key % 2, True, f"seats-{key % 2}")
            assert pool.apply(tasks.surroundings, key=key)["affinity"] == {cpus[-(key % 2)]}


def test_a_worker_has_fresh_signals(pool):
    """Nothing is blocked or handled, but for what Python itself ignores, Ctrl-C, and the pool's own signal."""
    odd, mask = pool.apply(tasks.signals)
    assert mask == set()
    assert {signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ} <= set(odd)
    assert len(odd) == 4


def test_a_worker_holds_nothing_of_the_application(pool):
    """Its descriptors are stdin, stdout and stderr, the task socket, its journal, its parent."""
    kinds = sorted(each.partition(":")[0] for number, each in pool.apply(tasks.descriptors).items() if int(number) > 2)
    assert kinds.count("socket") == 1
    assert set(kinds) == {"/memfd", "anon_inode", "socket"}  # anon_inode: the pidfd of parent_process()


def test_random_numbers_differ():
    """Two workers of one template do not draw the same numbers."""
    with safespawn.Pool(2) as pool:
        drawn = {pool.apply_async(tasks.draw, (0,), key=each).get(10) for each in range(20)}
    assert len(drawn) == 20


def test_initializer_and_finalizer(tmp_path):
    """The initializer runs before the first task of each worker, the finalizer when it leaves."""
    with safespawn.Pool(1, tasks.greet, ("hello",)) as pool:
        assert pool.apply(tasks.greeting) == "hello"
    from functools import partial

    with safespawn.Pool(2, finalizer=partial(tasks.touch, str(tmp_path / "ended"))) as pool:
        pool.map(tasks.nap, [0.05] * 4, 1)
    assert (tmp_path / "ended").stat().st_size == 2


def test_the_initializer_brings_locks_and_queues():
    """What multiprocessing shares by inheritance only, of our context, goes to the workers with the initializer."""
    context = safespawn.get_context()
    lock, queue, value = context.Lock(), context.Queue(), context.Value("i", 0)
    with safespawn.Pool(2, tasks.share, (lock, queue, value)) as pool:
        assert pool.map(tasks.use_shared, range(10), 1) == list(range(10))
    assert value.value == 45
    assert sorted(queue.get(timeout=10) for _ in range(10)) == list(range(10))
    queue.close()
    queue.join_thread()


def test_a_lock_of_another_context_is_refused_with_the_cure():
    """A lock that can only be inherited by fork says so where the pool is made, and what to do."""
    lock = multiprocessing.get_context("fork").Lock()
    with pytest.raises(RuntimeError, match="fork context") as caught:
        safespawn.Pool(1, tasks.share, (lock,))
    assert "safespawn.get_context()" in caught.value.__notes__[0]


def test_to_multiprocessing_a_worker_is_a_child(pool):
    """`current_process` and `parent_process` say what they say in multiprocessing's own workers."""
    name, parent, parent_pid, alive, key = pool.apply(tasks.family)
    assert name in {"tests-0", "tests-1"}
    assert (parent, parent_pid, alive) == ("MainProcess", os.getpid(), True)
    assert key == bytes(multiprocessing.current_process().authkey)


def test_preload():
    """What is preloaded is there before the worker runs its first task."""
    with safespawn.Pool(1, preload=["colorsys"]) as pool:
        assert pool.apply(eval, ("'colorsys' in __import__('sys').modules",))
    with safespawn.Pool(1) as pool:
        assert not pool.apply(eval, ("'colorsys' in __import__('sys').modules",))


def test_a_preload_that_starts_a_thread_is_named(tmp_path, monkeypatch):
    """It is refused, with the module, the thread and the line that started it; later pools are fine."""
    (tmp_path / "culprit_module.py").write_text(
        "import threading\nevent = threading.Event()\nthreading.Thread(target=event.wait, daemon=True).start()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(safespawn.PreloadError) as caught, safespawn.Pool(1, preload=["culprit_module"]) as pool:
        pool.apply(tasks.square, (1,))
    assert caught.value.module == "culprit_module"
    assert caught.value.reason == "threads"
    assert caught.value.place.endswith("culprit_module.py:3")
    with safespawn.Pool(1) as pool:
        assert pool.apply(tasks.square, (1,)) == 1


def test_a_preload_that_fails_is_told():
    """Its exception arrives as an error that has the traceback."""
    with (
        pytest.raises(safespawn.PreloadError, match="no_such_module_here") as caught,
        safespawn.Pool(1, preload=["no_such_module_here"]) as pool,
    ):
        pool.apply(tasks.square, (1,))
    assert "ModuleNotFoundError" in caught.value.traceback_text


def test_maxtasksperchild():
    """A worker is replaced after so many tasks; its index stays."""
    with safespawn.Pool(1, maxtasksperchild=3) as pool:
        pids = [pool.apply(tasks.pid) for _ in range(9)]
        assert pool.apply(tasks.who)[1] == 0
    assert [pids.count(each) for each in dict.fromkeys(pids)] == [3, 3, 3]


def test_a_nested_pool(pool):
    """A worker may have a pool of its own."""
    assert pool.apply(tasks.nested, (5,)) == [0, 1, 4, 9, 16]


# --- payloads ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [0, 1, 40_000, 70_000, 3_000_000])
def test_bytes_of_any_size(pool, size):
    """Small and large arguments and results are the same on both sides."""
    data = os.urandom(size)
    assert pool.apply(bytes, (data,)) == data
    assert pool.apply_async(bytes, (data,)).get(10) == data
    assert pool.map(bytes, [data] * 3) == [data] * 3


@needs_numpy
def test_arrays_are_private_and_writable(pool):
    """A worker may write to an array that it was sent, and this process does not see it."""
    array = numpy.ones(100_000)
    assert pool.apply(tasks.change, (array,)) == (42.0, 100_041.0)
    assert array[0] == 1
    back = pool.apply(numpy.copy, (array,))
    back[0] = 7
    assert back.sum() == 100_006


@needs_numpy
def test_an_array_that_a_worker_keeps_stays_what_it_was():
    """Memory is used again only when the worker has let go of it."""
    with safespawn.Pool(1) as pool:
        for number in range(10):
            pool.apply(tasks.hold, (numpy.full(50_000, float(number)),))
        assert pool.apply(tasks.held) == [50_000.0 * number for number in range(10)]


def test_shared_memory_is_used_again(pool):
    """A hundred large arguments, one after the other, take the memory of a few."""
    data = bytes(1_000_000)
    for _ in range(100):
        assert pool.apply(len, (data,)) == 1_000_000
    assert pool.statistics()["arena"]["bytes"] < 10_000_000


def test_what_cannot_be_pickled_fails_where_it_is_given(pool):
    """The error names the part; nothing was sent, the pool is whole."""
    with pytest.raises(safespawn.UnpicklableTask, match=r"args\[0\]\['lock'\]") as caught:
        pool.apply(tasks.square, ({"lock": threading.Lock()},))
    assert isinstance(caught.value, pickle.PicklingError)
    with pytest.raises(safespawn.UnpicklableTask):
        pool.apply_async(tasks.square, (threading.Lock(),))
    with pytest.raises(safespawn.UnpicklableTask):
        pool.map(tasks.square, [1, threading.Lock()])
    assert pool.apply(tasks.square, (2,)) == 4


def test_a_result_that_cannot_be_pickled_fails_that_task(pool):
    """It is multiprocessing's MaybeEncodingError, with the reason."""
    with pytest.raises(multiprocessing.pool.MaybeEncodingError):
        pool.apply(threading.Lock)
    assert pool.apply(tasks.square, (2,)) == 4


# --- the end ----------------------------------------------------------------------------------------------------------
def test_leaving_in_order_completes_the_work(tmp_path):
    """What was submitted is done when the block is left."""
    with safespawn.Pool(2) as pool:
        results = [pool.apply_async(tasks.nap, (0.05,)) for _ in range(6)]
    assert [each.get(0) for each in results] == [0.05] * 6


def test_leaving_by_an_exception_ends_the_work():
    """The block is left at once; whoever waits for a result hears why there is none."""
    started = time.monotonic()
    with pytest.raises(KeyError), safespawn.Pool(2) as pool:  # noqa: PT012 - it is the block that is left
        result = pool.apply_async(tasks.nap, (30,))
        raise KeyError
    assert time.monotonic() - started < 5
    with pytest.raises(safespawn.PoolClosed):
        result.get(0)


def test_leaving_with_an_endless_imap_ends():
    """What the buffer takes of an endless input is worked on; the rest is not waited for, and its reader hears so."""
    with safespawn.Pool(2) as pool:
        results = pool.imap(tasks.square, itertools.count(), buffersize=8)
        assert next(results) == 0
    rest = []
    with pytest.raises(safespawn.PoolClosed, match="Pool not running"):
        rest.extend(results)
    given = []
    with safespawn.Pool(2) as pool:
        results = pool.imap(tasks.square, iter(range(20)))
    given.extend(results)
    assert given == [each * each for each in range(20)]


def test_after_close_nothing_is_taken():
    """Each way of submitting says so; `join` before `close` too. Closing twice does nothing."""
    pool = safespawn.Pool(1)
    with pytest.raises(ValueError, match="still running"):
        pool.join()
    pool.close()
    pool.close()
    for attempt in (
        lambda: pool.apply(tasks.square, (1,)),
        lambda: pool.apply_async(tasks.square, (1,)),
        lambda: pool.map(tasks.square, [1]),
        lambda: pool.imap(tasks.square, [1]),
        lambda: pool.submit(tasks.square, 1),
        pool.__enter__,
    ):
        with pytest.raises(ValueError, match="Pool not running"):
            attempt()
    pool.join()
    pool.terminate()


def test_a_pool_that_is_never_used(pool):
    """It costs a template and no worker, and ends at once."""
    del pool


def test_a_forgotten_pool_warns_and_is_ended():
    """A pool without `close` warns as multiprocessing's does, and its workers go."""
    pool = safespawn.Pool(1)
    pid = pool.apply(tasks.pid)
    with pytest.warns(ResourceWarning, match="unclosed running multiprocessing pool"):
        del pool
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not os.path.exists(f"/proc/{pid}")


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"processes": 0}, ValueError),
        ({"processes": -1}, ValueError),
        ({"processes": "2"}, TypeError),
        ({"initializer": 3}, TypeError),
        ({"maxtasksperchild": 0}, ValueError),
        ({"preload": "numpy"}, TypeError),
    ],
)
def test_bad_arguments(arguments, error):
    """They are refused before anything is started."""
    with pytest.raises(error) as caught:
        safespawn.Pool(**arguments)
    assert isinstance(caught.value, errors.SafespawnError)


@pytest.mark.parametrize("options", [{"timout": 1}, {"timeout": "x"}, {"retries": -1}, {"priority": 1.5}, {"key": []}])
def test_bad_options_of_a_task(pool, options):
    """An unknown or impossible option is an error, and nothing runs."""
    with pytest.raises((TypeError, ValueError)):
        pool.apply(tasks.square, (1,), **options)


def test_in_a_forked_copy_it_says_so(pool):
    """A forked copy of this process is told whose pool it is; the pool itself is unharmed."""
    assert pool.apply(tasks.square, (2,)) == 4
    pid = os.fork()
    if pid == 0:
        try:
            pool.apply(tasks.square, (3,))
        except errors.ForeignCopy:
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
    assert pool.apply(tasks.square, (3,)) == 9


SCRIPT = """
import safespawn, threading
def double(x):
    return 2 * x
class Thing:
    def __init__(self, n): self.n = n
    def __eq__(self, other): return self.n == other.n
def thing(n):
    return Thing(n)
if __name__ == "__main__":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    with safespawn.Pool(2) as pool:
        assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]
        assert pool.apply(thing, (3,)) == Thing(3)
    print("done")
"""


@pytest.mark.parametrize("how", ["file", "module"])
def test_functions_of_the_program_itself(tmp_path, how):
    """A program's own functions and classes work, run as a file or with -m, without being run a second time."""
    (tmp_path / "program.py").write_text(SCRIPT + "\nprint('loaded as', __name__)\n")
    command = [sys.executable, "program.py"] if how == "file" else [sys.executable, "-m", "program"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert ended.stderr == ""
    lines = ended.stdout.splitlines()
    assert lines.count("done") == 1
    assert lines.count("loaded as __main__") == 1
    assert lines.count("loaded as __mp_main__") == 1  # by the template, once for all workers
