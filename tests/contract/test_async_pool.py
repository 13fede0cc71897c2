"""
`AsyncPool` on asyncio, uvloop and trio.
"""

# ruff: noqa: PT012 - what is raised comes in the middle of a block
# ruff: noqa: ASYNC110, ASYNC240 - what a worker does shows in files, which are looked at

import asyncio
import errno
import functools
import gc
import os
import threading
import time

import anyio
import pytest
from anyio.lowlevel import checkpoint

import safespawn
from safespawn import AsyncPool
from safespawn._drive.crew import Crew
from support import tasks
from support.children import survivors

SOON = 30.0  # seconds; a bound that only a hang passes


async def appears(path):
    """Wait until *path* is there."""
    with anyio.fail_after(SOON):
        while not os.path.exists(path):
            await anyio.sleep(0.002)


async def becomes(condition):
    """Wait until *condition* returns something true."""
    with anyio.fail_after(SOON):
        while not condition():
            await anyio.sleep(0.002)


async def numbers(limit):
    """Count, asynchronously."""
    for number in range(limit):
        await checkpoint()
        yield number


# --- calls


async def test_a_call_has_its_result(async_face):
    """`run` and `apply` give what the function returned, with positional and keyword arguments."""
    async with AsyncPool(1) as pool:
        assert await pool.run(tasks.add, 1, second=2) == 3
        assert await pool.apply(tasks.add, (1,), {"second": 4}) == 5
        assert await pool.run(tasks.keywords, func=1, self=2) == {"func": 1, "self": 2}


async def test_many_calls_at_once(async_face):
    """Tasks of the loop that call at the same time each get their own result, from all the workers."""
    found = {}

    async def call(number):
        found[number] = await pool.run(tasks.same, number)

    async with AsyncPool(2) as pool:
        async with anyio.create_task_group() as group:
            for number in range(300):
                group.start_soon(call, number)
        first, second = await pool.map(tasks.pid, range(2), 1), await pool.map(tasks.pid, range(2), 1)
    assert found == {number: number for number in range(300)}
    assert os.getpid() not in {*first, *second}


async def test_no_thread_is_started(async_face):
    """The pool is served by the loop's own thread."""
    before = len(os.listdir("/proc/self/task"))
    async with AsyncPool(1) as pool:
        await pool.run(tasks.same, 1)
        assert len(os.listdir("/proc/self/task")) == before


async def test_the_loop_goes_on(async_face):
    """Other tasks run while a call and a map are waited for."""
    async with AsyncPool(1) as pool:
        await pool.run(tasks.nap, 0.7)  # the face fails a test that blocks its loop for half a second
        await pool.map(tasks.nap, [0.4, 0.3], 1)


async def test_what_a_call_raises(async_face):
    """An exception arrives as itself, with the worker's traceback as its cause."""
    async with AsyncPool(1) as pool:
        with pytest.raises(ValueError, match="no way") as caught:
            await pool.run(tasks.fail, "no way")
        assert "in fail" in str(caught.value.__cause__)
        assert await pool.run(tasks.same, 1) == 1


async def test_a_dead_worker_fails_its_own_call(async_face):
    """Others go on, and the seat gets a new worker."""
    outcome = []

    async def call():
        outcome.append(await pool.run(tasks.nap, 0.2, "alive"))

    async with AsyncPool(2) as pool, anyio.create_task_group() as group:
        group.start_soon(call)
        with pytest.raises(safespawn.WorkerDied) as caught:
            await pool.run(tasks.die)
        assert caught.value.returncode == -9
        assert await pool.run(tasks.same, 1) == 1
    assert outcome == ["alive"]


async def test_what_cannot_be_pickled(async_face):
    """It fails where it is sent, or as its own result, and the pool goes on."""
    async with AsyncPool(1) as pool:
        with pytest.raises(safespawn.UnpicklableTask):
            await pool.run(tasks.same, threading.Lock())
        with pytest.raises(safespawn.UnpicklableResult):
            await pool.run(tasks.lock)
        assert await pool.run(tasks.same, 1) == 1


async def test_the_options_of_apply(async_face, tmp_path):
    """A timeout ends the call, a retry survives a death, equal keys meet the same worker."""
    async with AsyncPool(2) as pool:
        with pytest.raises(safespawn.TaskTimeout) as caught:
            await pool.apply(tasks.nap, (30,), timeout=0.1)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.ran < SOON
        assert await pool.apply(tasks.die_once, (str(tmp_path / "died"),), retries=1) == "survived"
        assert len({await pool.apply(tasks.pid, key="a") for _ in range(10)}) == 1


async def test_large_values(async_face):
    """Megabytes go and come whole."""
    async with AsyncPool(1) as pool:
        data = os.urandom(3_000_000)
        assert await pool.run(tasks.same, data) == data


async def test_a_failing_initializer(async_face):
    """Whoever calls is told, with the initializer's own exception as the cause."""
    async with AsyncPool(1, tasks.refuse) as pool:
        for _ in range(2):
            with pytest.raises(safespawn.InitializerFailed) as caught:
                await pool.run(tasks.same, 1)
            assert "never works" in str(caught.value.__cause__)


async def test_an_initializer_and_its_arguments(async_face):
    """It runs in the worker before the first task."""
    async with AsyncPool(1, tasks.remember, ("here",)) as pool:
        assert await pool.run(tasks.remembered) == ["here"]


async def test_a_preload_that_fails(async_face):
    """Whoever calls is told which module it was."""
    async with AsyncPool(1, preload=["no_such_module"]) as pool:
        with pytest.raises(safespawn.PreloadError) as caught:
            await pool.run(tasks.same, 1)
        assert caught.value.module == "no_such_module"


async def test_what_workers_log_comes_here(async_face, caplog):
    """A worker's record is handled by this process's handlers, before its call returns."""
    async with AsyncPool(1) as pool:
        await pool.run(tasks.log, "from afar")
    assert [record.getMessage() for record in caplog.records if record.name == "tasks"] == ["from afar"]


# --- many calls


async def test_maps(async_face):
    """`map` and `starmap` are the built-in ones, whatever the chunks and the kind of input."""
    async with AsyncPool(2) as pool:
        wanted = list(range(1000))
        assert await pool.map(tasks.same, range(1000)) == wanted
        assert await pool.map(tasks.same, iter(range(1000)), 7) == wanted
        assert await pool.map(tasks.same, numbers(1000)) == wanted
        assert await pool.starmap(tasks.add, [(n, n) for n in range(100)]) == [2 * n for n in range(100)]
        assert await pool.map(tasks.same, []) == []


async def test_a_map_has_its_first_exception(async_face):
    """The map ends with it; the pool goes on."""
    async with AsyncPool(2) as pool:
        with pytest.raises(ValueError, match="1"):
            await pool.map(tasks.fail_if_odd, [0, 1, 2], 1)
        assert await pool.run(tasks.same, 1) == 1


async def test_a_map_tells_its_progress(async_face):
    """*progress* is called up to the end."""
    seen = []
    async with AsyncPool(2) as pool:
        await pool.map(tasks.same, range(100), 10, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100, 100)
    assert len(seen) == 10


async def test_imap_in_order(async_face):
    """The results come in order, of a synchronous and of an asynchronous input, in chunks and without."""
    async with AsyncPool(2) as pool:
        for chunksize in (1, 3):
            wanted = list(range(400))
            assert [x async for x in pool.imap(tasks.same, range(400), chunksize)] == wanted
            assert [x async for x in pool.imap(tasks.same, numbers(400), chunksize)] == wanted
            assert [x async for x in pool.imap(tasks.same, range(400), chunksize, buffersize=2)] == wanted
            assert [x async for x in pool.imap(tasks.same, numbers(400), chunksize, buffersize=2)] == wanted
        assert [x async for x in pool.imap(tasks.same, [])] == []
        assert [x async for x in pool.imap(tasks.same, numbers(0))] == []


async def test_imap_unordered(async_face):
    """Each result comes as soon as it is there."""
    async with AsyncPool(2) as pool:
        await pool.run(tasks.same, 1)
        found = [x async for x in pool.imap_unordered(functools.partial(tasks.nap, value=1), [0.5, 0, 0])]
        assert found == [1, 1, 1]
        order = [x async for x in pool.imap_unordered(tasks.nap_itself, [0.5, 0, 0.01])]
        assert order == [0, 0.01, 0.5]
        assert sorted([x async for x in pool.imap_unordered(tasks.same, numbers(300))]) == list(range(300))


async def test_imap_takes_no_more_than_its_window(async_face):
    """An endless input is read as results are read, *buffersize* items ahead; also an asynchronous one."""

    def endless(taken):
        while True:
            taken.append(None)
            yield 1

    async def aendless(taken):
        while True:
            taken.append(None)
            yield 1

    async with AsyncPool(1) as pool:
        for kind in (endless, aendless):
            taken = []
            async with pool.imap(tasks.same, kind(taken), buffersize=5) as results:
                for number in range(1, 21):
                    await anext(results)
                    await checkpoint()
                    assert len(taken) <= number + 5 + 1
        assert await pool.run(tasks.same, 1) == 1


async def test_an_item_of_imap_that_fails(async_face):
    """Its exception comes in its place, and the iterator goes on after it; as one that cannot be sent."""
    async with AsyncPool(1) as pool:
        results = pool.imap(tasks.fail_if_odd, [0, 1, 2])
        assert await anext(results) == 0
        with pytest.raises(ValueError, match="1"):
            await anext(results)
        assert [x async for x in results] == [2]
        results = pool.imap(tasks.same, [0, threading.Lock(), 2])
        assert await anext(results) == 0
        with pytest.raises(safespawn.UnpicklableTask):
            await anext(results)
        assert [x async for x in results] == [2]


async def test_an_input_of_imap_that_fails(async_face):
    """Its exception comes after the results of what it gave before."""

    def broken():
        yield from range(3)
        raise KeyError("input")

    async def abroken():
        for number in range(3):
            yield number
        raise KeyError("input")

    async with AsyncPool(1) as pool:
        for kind in (broken, abroken):
            found = []
            with pytest.raises(KeyError, match="input"):
                async for each in pool.imap(tasks.same, kind(), 2):
                    found.append(each)  # noqa: PERF401 - those before the exception are kept
            assert found == [0, 1, 2]


async def test_an_imap_that_is_left(async_face, tmp_path):
    """What no worker has is taken back when the iterator is closed, and when it is forgotten."""
    async with AsyncPool(1) as pool:
        for way in ("close", "forget"):
            marks = [str(tmp_path / f"{way}{number}") for number in range(20)]
            results = pool.imap(tasks.touch_and_nap_shortly, marks)
            await anext(results)
            if way == "close":
                await results.aclose()
                with pytest.raises(StopAsyncIteration):
                    await anext(results)
            else:
                del results
                gc.collect()
            await becomes(lambda: pool.statistics()["unfinished"] == 0)
            assert not os.path.exists(marks[-1])


async def test_the_input_of_an_imap_is_closed(async_face):
    """An asynchronous generator that is not read to its end is ended when the pool's block is left."""
    closed = []

    async def source():
        try:
            while True:
                yield 1
                await checkpoint()
        finally:
            closed.append(True)

    async with AsyncPool(1) as pool:
        results = pool.imap(tasks.same, source(), buffersize=3)
        await anext(results)
    gc.collect()
    await becomes(lambda: closed)


async def test_streams(async_face):
    """The items of a generator in a worker come one by one, also of an asynchronous one; then what it raised."""
    async with AsyncPool(1) as pool:
        assert [x async for x in pool.stream(tasks.count_to, (100,))] == list(range(100))
        assert [x async for x in pool.stream(tasks.acount_to, (50,), buffersize=1)] == list(range(50))
        found = []
        with pytest.raises(ValueError, match="the end of it"):
            async for each in pool.stream(tasks.count_and_die, (5,)):
                found.append(each)  # noqa: PERF401 - those before the exception are kept
        assert found == list(range(5))


async def test_a_stream_is_never_far_ahead(async_face, tmp_path):
    """The generator waits while its items are not read."""
    path = tmp_path / "count"
    async with AsyncPool(1) as pool, pool.stream(tasks.produced, (str(path), 10_000), buffersize=8) as stream:
        for number in range(200):
            assert await anext(stream) == number
        await anyio.sleep(0.05)
        assert int(path.read_text()) <= 200 + 8


async def test_a_stream_that_is_left(async_face, tmp_path):
    """The generator is ended when its iterator is closed, and when it is forgotten."""
    async with AsyncPool(1) as pool:
        for way in ("close", "forget"):
            path = str(tmp_path / way)
            stream = pool.stream(tasks.count_for_ever, (path,))
            assert [await anext(stream) for _ in range(20)] == list(range(20))
            if way == "close":
                await stream.aclose()
                assert os.path.exists(path)
            else:
                del stream
                gc.collect()
                await appears(path)
        assert await pool.run(tasks.same, 1) == 1


# --- cancellation


async def test_a_running_call_is_cancelled(async_face, tmp_path):
    """It has been ended, its `finally` run, before the cancellation goes on; its worker lives."""
    begun, ended = str(tmp_path / "begun"), str(tmp_path / "ended")
    async with AsyncPool(1) as pool:
        before = await pool.run(tasks.pid)
        async with anyio.create_task_group() as group:
            group.start_soon(pool.run, tasks.note_then_nap, begun, ended, 30)
            await appears(begun)
            group.cancel_scope.cancel()
        assert os.path.exists(ended)
        assert await pool.run(tasks.pid) == before


async def test_a_stubborn_call_is_cancelled(async_face, tmp_path):
    """One that ignores everything is ended with its worker, within a second; the next call has a new one."""
    path = str(tmp_path / "begun")
    async with AsyncPool(1) as pool:
        before = await pool.run(tasks.pid)
        async with anyio.create_task_group() as group:
            group.start_soon(pool.run, tasks.stubborn, path, 30)
            await appears(path)
            started = time.monotonic()
            group.cancel_scope.cancel()
        assert time.monotonic() - started < 5
        assert survivors([before], seconds=5) == []
        assert await pool.run(tasks.pid) != before


async def test_a_queued_call_is_cancelled(async_face, tmp_path):
    """It is never run, and whoever runs does not notice."""
    path, begun, results = str(tmp_path / "never"), str(tmp_path / "begun"), []

    async def first():
        results.append(await pool.run(tasks.touch_and_nap, begun, 0.3))

    async with AsyncPool(1) as pool, anyio.create_task_group() as group:
        group.start_soon(first)
        await appears(begun)
        with anyio.move_on_after(0.05):
            await pool.run(tasks.touch_and_nap, path, 0)
        assert results == []
        assert pool.statistics()["waiting"] == 0
    assert results == ["slept"]
    assert not os.path.exists(path)


async def test_a_map_is_cancelled(async_face, tmp_path):
    """Its chunks that run are ended, and nothing more is begun."""
    marks = [str(tmp_path / str(number)) for number in range(6)]
    async with AsyncPool(2) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(functools.partial(pool.map, tasks.touch_and_nap_long, marks, 1))
            await appears(marks[0])
            await appears(marks[1])
            started = time.monotonic()
            group.cancel_scope.cancel()
        assert time.monotonic() - started < 2
        assert await pool.run(tasks.same, 1) == 1
    assert not any(os.path.exists(mark) for mark in marks[2:])


# --- the block


async def test_leaving_in_order_waits_for_the_work(async_face, tmp_path):
    """Calls of other tasks have their results; then the workers are gone."""
    results, begun = [], str(tmp_path / "begun")

    async def call():
        results.append(await pool.run(tasks.touch_and_nap, begun, 0.3))

    async with anyio.create_task_group() as group:
        async with AsyncPool(1) as pool:
            group.start_soon(call)
            await appears(begun)
            pids = [worker["pid"] for worker in pool.statistics()["workers"]]
        assert survivors(pids, seconds=0) == []
    assert results == ["slept"]


async def test_leaving_by_an_exception_ends_the_work(async_face, tmp_path):
    """The exception is the block's own, not one of a group; calls of other tasks get PoolClosed, soon."""
    results, begun = [], str(tmp_path / "begun")

    async def call():
        try:
            await pool.run(tasks.touch_and_nap, begun, 30)
        except safespawn.PoolClosed as error:
            results.append(error)

    async with anyio.create_task_group() as group:
        started = time.monotonic()
        with pytest.raises(KeyError, match="mine"):
            async with AsyncPool(1) as pool:
                group.start_soon(call)
                await appears(begun)
                pids = [worker["pid"] for worker in pool.statistics()["workers"]]
                raise KeyError("mine")
        assert time.monotonic() - started < SOON
        assert survivors(pids, seconds=0) == []
    assert len(results) == 1


async def test_a_cancelled_block_ends_the_work(async_face, tmp_path):
    """A cancellation in the block, and one while it waits for the work, end everything within a bound."""
    for inside in (True, False):
        begun = str(tmp_path / f"begun{inside}")
        started = time.monotonic()
        async with anyio.create_task_group() as outer:
            with anyio.CancelScope() as scope:
                async with AsyncPool(1) as pool:

                    async def call(pool=pool, begun=begun):
                        with pytest.raises(safespawn.PoolClosed):
                            await pool.run(tasks.touch_and_nap, begun, 30)

                    outer.start_soon(call)
                    await appears(begun)
                    pids = [worker["pid"] for worker in pool.statistics()["workers"]]
                    if inside:
                        scope.cancel()
                        await anyio.sleep(SOON)
                    else:
                        scope.deadline = anyio.current_time() + 0.1
            assert scope.cancelled_caught
            assert survivors(pids, seconds=0) == []
        assert time.monotonic() - started < SOON


async def test_a_block_that_does_nothing(async_face):
    """A pool that is left at once leaves nothing behind, nor one that was never entered."""
    async with AsyncPool(2):
        pass
    unused = AsyncPool(2)
    assert "AsyncPool" in repr(unused)
    del unused
    gc.collect()


async def test_closed_and_terminated(async_face, tmp_path):
    """`aclose` waits for the work, `terminate` ends it; after both the pool is closed."""
    begun = str(tmp_path / "begun")
    async with AsyncPool(1) as pool:
        assert await pool.run(tasks.same, 1) == 1
        await pool.aclose()
        for call in (pool.run(tasks.same, 1), pool.map(tasks.same, [1])):
            with pytest.raises(safespawn.PoolClosed):
                await call
        with pytest.raises(safespawn.PoolClosed):
            pool.imap(tasks.same, [1])
        await pool.aclose()
    async with AsyncPool(1) as pool, anyio.create_task_group() as group:

        async def call_it():
            with pytest.raises(safespawn.PoolClosed):
                await pool.run(tasks.touch_and_nap, begun, 30)

        group.start_soon(call_it)
        await appears(begun)
        pool.terminate()


async def test_a_pool_is_of_its_block_and_its_loop(async_face):
    """Before its block, twice, after it, in another thread: each is told plainly."""
    pool = AsyncPool(1)
    with pytest.raises(safespawn.PoolClosed, match="not open yet"):
        await pool.run(tasks.same, 1)
    troubles = []

    def elsewhere():
        coroutine = pool.run(tasks.same, 1)
        try:
            coroutine.send(None)
        except safespawn.errors.WrongLoop as error:
            troubles.append(error)

    async with pool:
        with pytest.raises(safespawn.PoolClosed, match="entered before"):
            await pool.__aenter__()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert await pool.run(tasks.same, 1) == 1
    assert len(troubles) == 1
    with pytest.raises(safespawn.PoolClosed):
        await pool.run(tasks.same, 1)
    with pytest.raises(safespawn.PoolClosed, match="entered before"):
        await pool.__aenter__()


# --- facts


async def test_what_a_pool_tells_of_itself(async_face, tmp_path):
    """Statistics, events and stacks are of the workers that there are."""
    begun, seen = str(tmp_path / "begun"), []
    async with AsyncPool(1, name="images", on_event=seen.append) as pool:
        async with anyio.create_task_group() as group:
            group.start_soon(pool.run, tasks.touch_and_nap, begun, 0.5)
            await appears(begun)
            (worker,) = pool.statistics()["workers"]
            assert worker["task"] == "support.tasks.touch_and_nap"
            assert "touch_and_nap" in (await pool.stacks())[0]
        assert await pool.run(tasks.where) == ("images", 0)
    kinds = [event.kind for event in pool.events()]
    assert kinds == ["started", "ready", "stopped"]
    assert seen == pool.events()


async def test_resizing(async_face):
    """More workers, and fewer, while it works."""
    async with AsyncPool(1) as pool:
        await pool.run(tasks.same, 1)
        pool.resize(3)
        await becomes(lambda: [w["state"] for w in pool.statistics()["workers"]] == ["idle"] * 3)
        pool.resize(1)
        await becomes(lambda: sum(event.kind == "stopped" for event in pool.events()) == 2)
        assert await pool.map(tasks.same, range(100)) == list(range(100))


async def test_started_ahead(async_face):
    """`start` brings the workers up before the first task."""
    async with AsyncPool(2) as pool:
        pool.start()
        await becomes(lambda: [w["state"] for w in pool.statistics()["workers"]] == ["idle"] * 2)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda pool: pool.resize(0), ValueError),
        (lambda pool: pool.imap(tasks.same, [], 0), ValueError),
        (lambda pool: pool.imap(tasks.same, [], buffersize=0), ValueError),
        (lambda pool: pool.imap(tasks.same, [], "2"), TypeError),
        (lambda pool: pool.stream(tasks.same, buffersize=0), ValueError),
    ],
)
async def test_bad_arguments(async_face, call, error):
    """What cannot be is refused where it is said."""
    async with AsyncPool(1) as pool:
        with pytest.raises(error):
            call(pool)


def test_two_loops_one_after_the_other():
    """A pool that is open in one loop is refused in another one of the same thread."""

    async def use(pool):
        with pytest.raises(safespawn.errors.WrongLoop):
            await pool.run(tasks.same, 1)

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        pool = AsyncPool(1)

        async def hold():
            async with pool:
                entered.set()
                await release.wait()

        entered, release = asyncio.Event(), asyncio.Event()
        task = first.create_task(hold())
        first.run_until_complete(entered.wait())
        second.run_until_complete(use(pool))
        release.set()
        first.run_until_complete(task)
    finally:
        first.close()
        second.close()


@pytest.mark.parametrize("steps", range(6))
def test_a_task_that_is_cancelled_while_it_enters_a_pool_ends(steps):
    """`Task.cancel()`, as Ctrl-C in asyncio.run does it, comes through every shield."""

    async def use():
        async with AsyncPool(1) as pool:
            await pool.run(time.sleep, 1000)

    async def main():
        task = asyncio.create_task(use())
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=SOON)
        assert done
        assert task.cancelled()

    asyncio.run(main())


async def test_a_time_limit_that_has_passed_when_a_pool_is_entered(async_face):
    """The block ends at its first wait."""
    with anyio.fail_after(SOON, shield=True):
        with anyio.CancelScope() as scope:
            scope.cancel()
            async with AsyncPool(1) as pool:
                await pool.run(time.sleep, 1000)
        assert scope.cancelled_caught


async def test_a_pool_that_cannot_be_entered_says_why(async_face, monkeypatch):
    """The error itself, not a group around it; its task has ended, and its descriptors are closed."""

    def warm(crew):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Crew, "warm", warm)
    with anyio.fail_after(SOON):
        with pytest.raises(OSError, match="Too many open files"):
            async with AsyncPool(1):
                pass
