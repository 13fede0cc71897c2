"""A Supervisor is left, and there are pools in it: they end with it, and say that this is why."""

import asyncio
import os
import signal
import threading
import time

import pytest

import safespawn
from safespawn._core.procfs import stat_fields
from safespawn.errors import ClosedError
from support import pool_tasks
from support.children import reap_orphans

SECONDS = 20  # for what should take a moment
ROUNDS = 8  # each worker may be seen to die before the pool hears of the end


def becomes(condition):
    """Wait until *condition* returns something true."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def busy_pools():
    """A pool and an executor with a task in each worker; and results that are waited for."""
    pool, executor = safespawn.Pool(2), safespawn.Executor(1)
    results = [pool.apply_async(pool_tasks.spin) for _ in range(3)]
    future = executor.submit(pool_tasks.spin)
    becomes(lambda: all(worker["state"] == "busy" for worker in pool.statistics()["workers"]))
    return pool, results, future


def is_told(results, future):
    """Everybody who waited hears of the Supervisor's end, not of a signal that somebody has sent."""
    for result in results:
        with pytest.raises(ClosedError, match="Supervisor 'shop'"):
            result.get(SECONDS)
    with pytest.raises(ClosedError, match="Supervisor 'shop'"):
        future.result(SECONDS)


def test_what_they_run_ends_with_it_and_is_told_why():
    """No task's worker "was killed by SIGTERM"; no thread and no descriptor stays."""
    for _ in range(ROUNDS):
        with safespawn.Supervisor("shop", guard="off"):
            pool, results, future = busy_pools()
        assert not [each.name for each in threading.enumerate() if each.name.startswith("safespawn pool")]
        is_told(results, future)
        with pytest.raises(ClosedError):
            pool.apply(abs, (1,))


def test_a_caller_who_talks_to_its_worker_directly_is_told_too():
    """`apply` has no thread of the pool's between itself and the worker."""
    errors = []
    begun = threading.Event()

    def call(pool):
        begun.set()
        try:
            pool.apply(pool_tasks.spin)
        except safespawn.SafespawnError as error:
            errors.append(error)

    with safespawn.Supervisor("shop", guard="off"):
        pool = safespawn.Pool(1)
        pool.apply(abs, (1,))
        caller = threading.Thread(target=call, args=(pool,))
        caller.start()
        begun.wait(SECONDS)
        becomes(lambda: pool.statistics()["workers"][0]["task"])
    caller.join(SECONDS)
    assert [type(error) for error in errors] == [ClosedError]


def test_it_is_the_same_for_one_of_an_event_loop():
    """The loop goes on meanwhile."""

    async def main():
        async with safespawn.AsyncSupervisor("shop", guard="off"):
            return busy_pools()

    _, results, future = asyncio.run(main())
    is_told(results, future)


def test_a_pool_that_was_left_in_order_is_left_alone():
    """Its results stand."""
    with safespawn.Supervisor("shop", guard="off"):
        with safespawn.Pool(2) as pool:
            result = pool.map_async(abs, [-1, -2])
        assert result.get(SECONDS) == [1, 2]
    assert result.get(0) == [1, 2]


@pytest.mark.parametrize("whom", ["zygote", "warden"])
def test_a_worker_that_goes_with_its_zygote_says_so(whom):
    """It was killed by SIGKILL, but not by whoever kills workers."""
    with safespawn.Supervisor("shop", guard="off") as supervisor, safespawn.Pool(1) as pool:
        pool.apply(abs, (1,))
        (zygote,) = supervisor.statistics()["zygotes"]
        victim = zygote if whom == "zygote" else int(stat_fields(zygote)[1])
        result = pool.apply_async(pool_tasks.spin)
        becomes(lambda: pool.statistics()["workers"][0]["task"])
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(safespawn.WorkerDied) as caught:
            result.get(SECONDS)
        assert f"zygote {zygote} was lost" in str(caught.value)
        assert pool.apply(abs, (-2,)) == 2
    reap_orphans()  # a zygote without its warden
