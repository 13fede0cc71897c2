"""
What a second pair of eyes found: each of these once hung, leaked, lied or lost something.
"""

import asyncio
import gc
import math
import os
import signal
import threading
import time

import anyio
import pytest

import safespawn
from safespawn import PIPE
from support.children import alive

STUBBORN = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.05; done"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_block_ends_what_its_supervisor_started(backend):
    """Leaving an async Supervisor by a cancellation still ends everything before it goes on."""

    async def main():
        with anyio.move_on_after(0.2):
            async with safespawn.Supervisor("cancelled", guard="off", stop_timeout=3) as inner:
                process = await inner.aopen_process(["sleep", "1000"])
                await anyio.sleep_forever()
        assert not alive(process.pid)
        assert await process.wait() in (-signal.SIGTERM, -signal.SIGKILL)

    anyio.run(main, backend=backend)


def test_a_stream_outlives_its_process_object():
    """A stdout that was taken from a process which nobody else refers to can be read to its end."""

    async def main():
        stdout = (await safespawn.aopen_process(["seq", "3"], stdout=PIPE)).stdout
        gc.collect()
        assert await stdout.read() == b"1\n2\n3\n"
        await stdout.aclose()

    with _no_matter(ResourceWarning):
        asyncio.run(main())
    safespawn.statistics()  # collects what was forgotten


def _no_matter(category):
    """Whether the process has ended when it is forgotten is a race that does not matter here."""
    import warnings

    class Ignored(warnings.catch_warnings):
        def __enter__(self):
            super().__enter__()
            warnings.simplefilter("ignore", category)

    return Ignored()


def test_a_boot_in_a_loop_that_stands_still_holds_nobody_up():
    """When the task that starts the zygote is never resumed, others start one themselves."""
    owner = safespawn.Supervisor("late", guard="off")  # not entered: its zygote starts at the first use
    loop = asyncio.new_event_loop()
    task = loop.create_task(owner.arun(["true"]))
    loop.run_until_complete(asyncio.sleep(0))  # it has begun, and is not run any more
    codes = []
    other = threading.Thread(target=lambda: codes.append(owner.run(["true"]).returncode))
    other.start()
    other.join(5)
    assert codes == [0]
    assert loop.run_until_complete(task).returncode == 0
    loop.close()
    owner.close()


def test_a_lost_process_says_so_every_time():
    """After its zygote died, wait, communicate and poll all raise SpawnLost; none says that it runs."""
    with safespawn.Supervisor("lost", guard="off") as owner:
        process = owner.Popen(["sleep", "1000"], stdout=PIPE)
        os.kill(owner.statistics()["zygotes"][0], signal.SIGKILL)
        for ask in (process.wait, process.communicate, process.communicate, process.poll):
            with pytest.raises(safespawn.SpawnLost):
                ask()
        process.stdout.close()


def test_communicate_beside_another_waiter_keeps_its_grace():
    """A grandchild that holds stdout does not hold communicate up when another task saw the exit first."""

    async def main():
        process = await safespawn.aopen_process(["sh", "-c", "sleep 30 & echo $!; sleep 0.1"], stdout=PIPE)
        waiter = asyncio.create_task(process.wait())
        await asyncio.sleep(0)
        begun = time.monotonic()
        out, _ = await process.communicate()
        assert time.monotonic() - begun < 10
        assert process.held_by == (int(out),)
        assert await waiter == 0
        os.kill(int(out), signal.SIGKILL)

    asyncio.run(main())
    assert safespawn.run(["true"]).returncode == 0


@pytest.mark.parametrize("timeout", [math.inf, 86400.0 * 365 * 100])
def test_a_timeout_may_be_longer_than_poll_can_wait(timeout):
    """An infinite timeout is none, and a century is no overflow."""
    assert safespawn.run(["true"], timeout=timeout).returncode == 0
    with safespawn.Popen(["true"]) as process:
        assert process.wait(timeout=timeout) == 0


def test_a_timeout_that_is_no_number_is_refused():
    """NaN never passes; it is an error instead of a busy loop."""
    with pytest.raises(safespawn.errors.BadArgument, match="timeout"):
        safespawn.run(["true"], timeout=math.nan)


@pytest.mark.parametrize("options", [{"cwd": "/" + "a" * 5000}, {"cwd": "/" + "a/" * 5000, "nice": 1}])
def test_a_long_name_comes_back_whole(options):
    """The error for a directory whose name is longer than a message's limit has errno and filename."""
    with pytest.raises(OSError, match="too long") as caught:
        safespawn.run(["true"], **options)
    assert caught.value.filename == options["cwd"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_closing_a_stream_wakes_its_reader(backend):
    """A task that reads a stream which another one closes gets ClosedError, and does not wait for ever."""

    async def main():
        process = await safespawn.aopen_process(["sleep", "1000"], stdout=PIPE)
        raised = anyio.Event()

        async def read():
            with pytest.raises(safespawn.errors.ClosedError):
                await process.stdout.read()
            raised.set()

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await anyio.sleep(0.05)  # until it waits
                await process.aclose()
                await raised.wait()

    anyio.run(main, backend=backend)


def test_a_cancelled_stop_is_cancelled():
    """A cancellation while stop() waits for its grace ends the child at once and is not lost."""

    async def main():
        process = await safespawn.aopen_process(STUBBORN, stdout=PIPE)
        await process.stdout.readline()
        task = asyncio.create_task(process.stop(grace=30))
        await asyncio.sleep(0.05)  # until it waits
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await process.wait() == -signal.SIGKILL
        await process.aclose()

    asyncio.run(main())


def test_failed_starts_leave_nothing_in_the_zygote():
    """The zygote's memory is level over a thousand failed starts with a large environment."""
    env = {"PATH": "/bin", **{f"V{number}": "x" * 1000 for number in range(100)}}

    def resident():
        (zygote,) = owner.statistics()["zygotes"]
        with open(f"/proc/{zygote}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE")

    def fail(times):
        for _ in range(times):
            with pytest.raises(FileNotFoundError):
                owner.run(["/nonexistent"], env=env)

    with safespawn.Supervisor("failing", guard="off") as owner:
        fail(300)
        before = resident()
        fail(700)
        assert resident() - before < 4 * 1024 * 1024
