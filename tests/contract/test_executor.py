"""
`Executor`, beside the standard library's.
"""

import asyncio
import concurrent.futures
import concurrent.futures.process
import functools
import gc
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError, Future, ProcessPoolExecutor, as_completed, wait
from concurrent.futures.process import BrokenProcessPool

import pytest

import safespawn
from safespawn import Executor
from support import tasks
from support.children import ENV, becomes, survivors

SOON = 30.0  # seconds; a bound that only a hang passes


def pids(executor):
    """The workers' process ids."""
    return [worker["pid"] for worker in executor.statistics()["workers"]]


def occupy(executor, path):
    """Have the only worker run a task that says so at *path*; returns its future."""
    future = executor.submit(tasks.touch_and_nap, path, 30)
    tasks.wait_for(path)
    return future


# --- one call


def test_it_is_an_executor():
    """It and its futures are of the standard classes, and a call has its result."""
    with Executor(1) as executor:
        future = executor.submit(tasks.add, 1, second=2)
        assert isinstance(executor, concurrent.futures.Executor)
        assert isinstance(future, Future)
        assert future.result() == 3
        assert (future.done(), future.running(), future.cancelled(), future.cancel()) == (True, False, False, False)
        assert executor.submit(tasks.keywords, fn=1, self=2).result() == {"fn": 1, "self": 2}


def test_what_a_call_raises():
    """An exception has the cause that the standard executor gives it, of the very class."""
    with Executor(1) as executor:
        error = executor.submit(tasks.fail, "no way").exception()
    assert type(error) is ValueError
    assert type(error.__cause__) is concurrent.futures.process._RemoteTraceback
    assert "in fail" in str(error.__cause__)


def test_a_dead_worker_fails_its_own_future():
    """Others go on; the error is BrokenProcessPool, and the executor is not broken."""
    with Executor(2) as executor:
        other = executor.submit(tasks.nap, 0.2, "alive")
        error = executor.submit(tasks.die).exception()
        assert isinstance(error, BrokenProcessPool)
        assert isinstance(error, safespawn.WorkerDied)
        assert error.returncode == -9
        assert other.result() == "alive"
        assert executor.submit(tasks.same, 1).result() == 1


def test_what_cannot_be_pickled_is_told_by_the_future():
    """The place of the trouble is named; the executor goes on."""
    with Executor(1) as executor:
        with pytest.raises(safespawn.UnpicklableTask, match=r"args\[0\]"):
            executor.submit(tasks.same, threading.Lock()).result()
        assert executor.submit(tasks.same, 1).result() == 1


def test_wait_and_as_completed():
    """The standard functions work on the futures, finished, failed and cancelled ones alike."""
    with Executor(1) as executor:
        futures = [executor.submit(tasks.fail_if_odd, number) for number in range(6)]
        assert {f for f in as_completed(futures, SOON) if f.exception() is None} == set(futures[::2])
        long = executor.submit(tasks.nap, 0.5)
        becomes(long.running)
        queued = [executor.submit(tasks.same, number) for number in range(3)]
        threading.Timer(0.05, queued[1].cancel).start()
        done, rest = wait(queued, SOON, concurrent.futures.FIRST_COMPLETED)
        assert (done, rest) == ({queued[1]}, {queued[0], queued[2]})
        assert set(as_completed(queued, SOON)) == set(queued)


def test_callbacks():
    """They are called once with the future; one that raises, and a future set by hand, do no harm."""
    seen = []
    with Executor(1) as executor:
        future = executor.submit(tasks.nap, 0.1)
        future.add_done_callback(lambda _: 1 / 0)
        future.add_done_callback(seen.append)
        future.result()
        mine = executor.submit(tasks.nap, 0.1)
        mine.set_result("mine")
        assert executor.submit(tasks.same, 1).result() == 1
        assert mine.result() == "mine"
    assert seen == [future]


def test_an_event_loop_runs_in_it():
    """`loop.run_in_executor` and `asyncio.wrap_future` have results and errors, and cancel what has not begun."""
    with Executor(1) as executor:

        async def main():
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(executor, tasks.same, 1) == 1
            with pytest.raises(ValueError, match="no"):
                await loop.run_in_executor(executor, tasks.fail)
            long = loop.run_in_executor(executor, tasks.nap, 0.3)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(loop.run_in_executor(executor, tasks.same, 1), 0.05)
            assert executor.statistics()["waiting"] == 0
            await long

        asyncio.run(main())


# --- cancelling


def test_a_queued_call_is_cancelled(tmp_path):
    """It never runs; its future is cancelled as a standard one."""
    never = str(tmp_path / "never")
    with Executor(1) as executor:
        first = occupy(executor, str(tmp_path / "begun"))
        future = executor.submit(tasks.touch_and_nap, never, 0)
        seen = []
        future.add_done_callback(seen.append)
        assert (future.cancel(), future.cancel(), future.cancelled(), future.done()) == (True,) * 4
        assert future._state == "CANCELLED_AND_NOTIFIED"
        with pytest.raises(CancelledError):
            future.result()
        assert seen == [future]
        assert first.running()
        assert not first.cancel()
        assert first.cancel(running=True)
    assert not os.path.exists(never)


def test_a_running_call_is_cancelled_when_asked(tmp_path):
    """`cancel(running=True)` raises in the call, whose `finally` runs; the future fails, and the worker lives on."""
    begun, ended = str(tmp_path / "begun"), str(tmp_path / "ended")
    with Executor(1) as executor:
        pid = executor.submit(tasks.pid).result()
        future = executor.submit(tasks.note_then_nap, begun, ended, 30)
        tasks.wait_for(begun)
        assert future.cancel(running=True)
        error = future.exception(SOON)
        assert isinstance(error, safespawn.TaskCancelled)
        assert isinstance(error, CancelledError)
        assert os.path.exists(ended)
        assert executor.submit(tasks.pid).result() == pid


def test_a_stubborn_call_is_cancelled_with_its_worker(tmp_path):
    """What ignores the exception and SIGTERM is killed, and a new worker goes on."""
    begun = str(tmp_path / "begun")
    with Executor(1) as executor:
        future = executor.submit(tasks.stubborn, begun, 30)
        tasks.wait_for(begun)
        assert future.cancel(running=True)
        assert isinstance(future.exception(SOON), safespawn.TaskCancelled)
        assert executor.submit(tasks.same, 1).result() == 1


def test_a_call_that_stands_behind_another():
    """Cancelled in its worker's hands before it has begun, it is over at once, and the one before it is left alone."""
    with Executor(1) as executor:
        for _ in range(200):
            executor.submit(tasks.nap, 0).result()  # they are quick, so a worker gets several at a time
        futures = [executor.submit(tasks.nap, 0) for _ in range(100)]
        long = executor.submit(tasks.nap, 1.0, "long")
        behind = executor.submit(tasks.nap, 0, "behind")
        becomes(lambda: (executor.statistics()["workers"][0]["seconds"] or 0) > 0.1)  # the long one runs
        assert executor.statistics()["waiting"] == 0
        assert behind.cancel(running=True)
        with pytest.raises(CancelledError):
            behind.result(SOON)
        assert behind.cancelled()
        time.sleep(0.3)
        assert long.running()
        assert long.result() == "long"
        wait(futures)
        assert executor.submit(tasks.same, 1).result() == 1
        assert executor.statistics()["died"] == 0


def test_an_import_is_not_interrupted(tmp_path):
    """A call that is cancelled while it imports leaves no half of a module to the next one; that is waited for."""
    begun = str(tmp_path / "begun")
    (tmp_path / "slow_parent").mkdir()
    (tmp_path / "slow_parent" / "__init__.py").write_text("from . import child\nvalue = child.value\n")
    (tmp_path / "slow_parent" / "child.py").write_text(
        f"import time\nvalue = 1\nopen({begun!r}, 'w').close()\nfor _ in range(100):\n    time.sleep(0.001)\n"
    )
    with Executor(1) as executor:
        pid = executor.submit(tasks.pid).result()
        future = executor.submit(tasks.import_and_nap, str(tmp_path), "slow_parent", 30)
        tasks.wait_for(begun)
        assert future.cancel(running=True)
        assert isinstance(future.exception(SOON), safespawn.TaskCancelled)
        assert executor.submit(tasks.import_and_nap, str(tmp_path), "slow_parent", 0).result() == 1
        assert executor.submit(tasks.pid).result() == pid


# --- map


def test_map_is_the_standard_one():
    """Results come in order, for one and more iterables, in chunks, with a buffer, until the shortest ends."""
    with Executor(2) as executor:
        for options in ({}, {"chunksize": 7}, {"buffersize": 3}, {"chunksize": 4, "buffersize": 2}):
            assert list(executor.map(tasks.same, range(100), **options)) == list(range(100))
            assert list(executor.map(tasks.add, range(50), range(60), **options)) == [2 * n for n in range(50)]
            assert list(executor.map(tasks.same, [], **options)) == []
        assert list(executor.map(tasks.same)) == []


def test_map_has_the_first_error_in_order():
    """It comes in its place, and the map is over."""
    with Executor(2) as executor:
        results = executor.map(tasks.fail_if_odd, [0, 2, 3, 4])
        assert (next(results), next(results)) == (0, 2)
        with pytest.raises(ValueError, match="3"):
            next(results)
        assert list(results) == []


def test_map_takes_no_more_than_its_buffer():
    """With *buffersize* an endless input is read as results are read; without, at once."""
    taken = []

    def endless():
        while True:
            taken.append(None)
            yield 1

    with Executor(1) as executor:
        results = executor.map(tasks.same, endless(), buffersize=4)
        assert len(taken) == 4
        for number in range(1, 10):
            next(results)
            assert len(taken) == 4 + number
        results.close()


def test_map_has_a_timeout(tmp_path):
    """TimeoutError comes in time, and what was queued is cancelled."""
    marks = [str(tmp_path / str(number)) for number in range(3)]
    with Executor(1) as executor:
        results = executor.map(functools.partial(tasks.nap, value=0), [0, 1.0, 0], timeout=0.4)
        assert next(results) == 0
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            next(results)
        assert time.monotonic() - started < 0.6
        executor.submit(tasks.nap, 0.2)
        waiting = executor.map(tasks.touch_and_nap, marks, [0.2] * 3, timeout=0.01)
        with pytest.raises(TimeoutError):
            next(waiting)
    assert not os.path.exists(marks[2])


# --- the end


def test_after_shutdown():
    """`submit` and `map` are refused in the standard's words, by an error of all three classes."""
    executor = Executor(1)
    future = executor.submit(tasks.nap, 0.1, "done")
    executor.shutdown()
    assert future.result(0) == "done"
    for call in (lambda: executor.submit(tasks.same, 1), lambda: list(executor.map(tasks.same, [1]))):
        with pytest.raises(RuntimeError, match=r"^cannot schedule new futures after shutdown") as caught:
            call()
        assert isinstance(caught.value, safespawn.PoolClosed)
        assert isinstance(caught.value, ValueError)
    executor.shutdown()


def test_shutdown_without_waiting():
    """It returns at once, and what was submitted is done."""
    executor = Executor(1)
    futures = [executor.submit(tasks.nap, 0.1, number) for number in range(3)]
    started = time.monotonic()
    executor.shutdown(wait=False)
    assert time.monotonic() - started < 0.1
    assert [future.result(SOON) for future in futures] == [0, 1, 2]
    executor.shutdown()


def test_shutdown_that_cancels(tmp_path):
    """What runs is done, what is queued is cancelled."""
    begun = str(tmp_path / "begun")
    executor = Executor(1)
    first = executor.submit(tasks.touch_and_nap, begun, 0.2)
    tasks.wait_for(begun)
    queued = [executor.submit(tasks.same, number) for number in range(5)]
    executor.shutdown(cancel_futures=True)
    assert first.result(0) == "slept"
    assert all(future.cancelled() for future in queued)


@pytest.mark.parametrize("way", ["terminate_workers", "kill_workers"])
def test_workers_are_ended(tmp_path, way):
    """What runs fails with BrokenProcessPool, what is queued is cancelled, and the executor takes nothing more."""
    executor = Executor(1)
    running = occupy(executor, str(tmp_path / "begun"))
    queued = [executor.submit(tasks.same, number) for number in range(5)]
    left = pids(executor)
    getattr(executor, way)()
    assert isinstance(running.exception(SOON), BrokenProcessPool)
    assert running.exception().returncode == (-15 if way == "terminate_workers" else -9)
    assert all(future.cancelled() for future in queued)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(tasks.same, 1)
    executor.shutdown()
    assert survivors(left, seconds=0) == []


def test_workers_are_ended_when_there_are_none():
    """It is a shutdown then."""
    executor = Executor(1)
    executor.kill_workers()
    executor.shutdown()


def test_a_forgotten_executor_does_its_work():
    """Futures that are kept have their results; then the workers and the thread leave."""
    executor = Executor(1)
    futures = [executor.submit(tasks.nap, 0.1, number) for number in range(3)]
    gone, left, thread = weakref.ref(executor), pids(executor), executor._thread
    del executor
    gc.collect()
    assert gone() is None
    assert [future.result(SOON) for future in futures] == [0, 1, 2]
    thread.join(SOON)
    assert survivors([pid for pid in left if pid], seconds=0) == []


def test_a_callback_may_shut_it_down():
    """In the executor's own thread `shutdown` does not wait for itself."""
    executor = Executor(1)
    over = threading.Event()

    def shut(_):
        executor.shutdown()
        over.set()

    executor.submit(tasks.same, 1).add_done_callback(shut)
    assert over.wait(SOON)
    executor._thread.join(SOON)


def run_script(tmp_path, text):
    """Run a program that imports this suite's tasks; returns what it printed."""
    path = tmp_path / "script.py"
    path.write_text(text)
    done = subprocess.run([sys.executable, str(path)], env=ENV, check=False, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_at_the_end_of_the_program_the_work_is_done(tmp_path):
    """As with the standard executor; also when the executor was forgotten or shut down without waiting."""
    script = """
import functools, gc, sys
from safespawn import Executor
from support import tasks

def say(text, future):
    sys.stdout.write(f"{text} {future.result()}\\n")  # in one piece: each executor's thread calls this
    sys.stdout.flush()

def start(text):
    executor = Executor(1, name=text)
    for number in range(3):
        executor.submit(tasks.nap, 0.15, number).add_done_callback(functools.partial(say, text))
    return executor

if __name__ == "__main__":
    kept = start("kept")
    start("forgotten")
    gc.collect()
    start("shut").shutdown(wait=False)
"""
    words = run_script(tmp_path, script).split("\n")
    assert sorted(filter(None, words)) == sorted(
        f"{kind} {number}" for kind in ("kept", "forgotten", "shut") for number in range(3)
    )


def test_nothing_is_taken_while_the_program_ends(tmp_path):
    """A callback that submits then is told so in the standard's words."""
    script = """
from safespawn import Executor
from support import tasks

def again(future):
    try:
        executor.submit(tasks.same, 1)
    except RuntimeError as error:
        print(str(error).splitlines()[0], flush=True)

if __name__ == "__main__":
    executor = Executor(1)
    executor.submit(tasks.nap, 0.3).add_done_callback(again)
"""
    assert run_script(tmp_path, script) == "cannot schedule new futures after interpreter shutdown\n"


def test_workers_are_replaced_after_their_tasks():
    """With max_tasks_per_child each process runs so many calls."""
    with Executor(1, max_tasks_per_child=2) as executor:
        found = [executor.submit(tasks.pid).result() for _ in range(6)]
    assert [found.count(pid) for pid in dict.fromkeys(found)] == [2, 2, 2]


def test_options_of_a_pool(tmp_path):
    """Those of `Pool` are taken as well; facts of the workers are told."""
    with Executor(1, name="images", initializer=tasks.remember, initargs=("here",)) as executor:
        assert executor.submit(tasks.where).result() == ("images", 0)
        assert executor.submit(tasks.remembered).result() == ["here"]
        future = occupy(executor, str(tmp_path / "begun"))
        assert "in touch_and_nap" in executor.stacks()[0]
        assert future.cancel(running=True)
        assert executor.statistics()["name"] == "images"
        assert executor._max_workers == 1


def test_a_failing_initializer_breaks_it():
    """Every future has BrokenProcessPool, and so has whoever submits later."""
    with Executor(2, initializer=tasks.refuse) as executor:
        future = executor.submit(tasks.same, 1)
        error = future.exception(SOON)
        assert isinstance(error, BrokenProcessPool)
        assert "never works" in str(error.__cause__)
        with pytest.raises(BrokenProcessPool):
            executor.submit(tasks.same, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"max_workers": 0},
        {"max_workers": -1},
        {"initializer": 1},
        {"max_tasks_per_child": 0},
        {"max_tasks_per_child": "2"},
    ],
)
def test_wrong_options_are_refused_as_the_standard_does(options):
    """The class is the standard's, and so are the words."""
    with pytest.raises((ValueError, TypeError)) as standard:
        ProcessPoolExecutor(**options)
    with pytest.raises((ValueError, TypeError)) as ours:
        Executor(**options)
    assert isinstance(ours.value, standard.type)
    assert ours.value.args[0] == str(standard.value)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"chunksize": 0}, ValueError, "chunksize must be >= 1."),
        ({"buffersize": 0}, ValueError, "buffersize must be None or > 0"),
        ({"buffersize": 1.5}, TypeError, "buffersize must be an integer or None"),
    ],
)
def test_wrong_options_of_map(options, error, words):
    """As in CPython 3.14."""
    with Executor(1) as executor, pytest.raises(error) as caught:
        executor.map(tasks.same, [1], **options)
    assert caught.value.args[0] == words


def test_a_future_of_a_pool():
    """`Pool.submit` gives the same futures."""
    with safespawn.Pool(1) as pool:
        assert pool.submit(tasks.add, 1, second=2).result() == 3


def test_a_race_of_cancels_and_results():
    """Whatever wins, each future is over once, and the count is right."""
    with Executor(2) as executor:
        futures = [executor.submit(tasks.same, number) for number in range(3000)]
        cancelled = [future.cancel() for future in reversed(futures)]
        wait(futures, SOON)
        assert all(future.done() for future in futures)
        for number, (future, taken_back) in enumerate(zip(futures, reversed(cancelled), strict=True)):
            assert future.cancelled() == taken_back
            assert taken_back or future.result() == number
        assert executor.statistics()["unfinished"] == 0
