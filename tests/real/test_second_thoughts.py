"""
What a second pair of eyes found: each of these once hung, leaked, lied or lost something.
"""

import asyncio
import gc
import math
import os
import signal
import sys
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


def test_an_interrupted_wait_leaves_its_connection_right():
    """A wait that is cancelled while the child is being reaped can be repeated, and later commands are not harmed."""
    program = """
import asyncio, safespawn
async def main():
    process = await safespawn.aopen_process(["true"])
    while not process._process.looks_ended():
        await asyncio.sleep(0.01)
    try:
        await asyncio.wait_for(process.wait(), 0.1)
    except asyncio.TimeoutError:
        print("cancelled", end=" ")
    print(await process.wait(), [(await safespawn.arun(["true"])).returncode for _ in range(4)])
asyncio.run(main())
"""
    env = {**os.environ, "SAFESPAWN_FAILPOINTS": "zygote.before_reap=sleep:0.3#1"}
    done = safespawn.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("cancelled 0 [0, 0, 0, 0]\n", "")


def test_a_start_that_nobody_waits_for_any_more_is_killed(tmp_path):
    """A timeout shorter than the zygote's first word ends the command all the same, before run returns."""
    program = """
import safespawn, sys, time
safespawn.run(["true"])
try:
    safespawn.run(["sh", "-c", f"echo start > {sys.argv[1]}; sleep 0.3; echo end > {sys.argv[1]}"], timeout=0.05)
except safespawn.TimeoutExpired:
    time.sleep(0.6)  # longer than the command would take
    print(open(sys.argv[1]).read().split())
"""
    env = {**os.environ, "SAFESPAWN_FAILPOINTS": "zygote.before_started=sleep:0.1#1"}
    argv = [sys.executable, "-c", program, str(tmp_path / "file")]
    done = safespawn.run(argv, env=env, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("['start']\n", "")


def test_a_codec_that_does_not_exist_is_found_before_the_command_runs(tmp_path):
    """An unknown encoding or error handler is a LookupError, as from subprocess, and nothing has run."""
    for options in ({"encoding": "klingon"}, {"text": True, "errors": "shrug"}):
        with pytest.raises(LookupError):
            safespawn.run(["touch", str(tmp_path / "ran")], capture_output=True, **options)
    assert not (tmp_path / "ran").exists()


def test_a_program_that_is_its_own_interpreter_does_not_start_itself():
    """A frozen program, whose sys.executable is itself, gets a BootError with the cure."""
    program = "import sys; sys.frozen = True; import safespawn; safespawn.run(['true'])"
    done = safespawn.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "BootError" in done.stderr
    assert "frozen" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root may take on groups and drop capabilities")
def test_six_hundred_groups_do_not_hide_dropped_capabilities():
    """However long /proc/self/status is, a dropped capability calls for a new zygote, and an ignored signal is told."""
    program = """
import ctypes, os, signal, safespawn
os.setgroups(range(100000, 100600))
safespawn.run(["true"])
signal.signal(signal.SIGUSR1, signal.SIG_IGN)
libc = ctypes.CDLL(None)
for capability in range(41):
    libc.prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP
asked = ["grep", "-E", "SigIgn|CapEff", "/proc/self/status"]
status = safespawn.run(asked, capture_output=True, text=True).stdout.split()
print(int(status[1], 16) >> 9 & 1, int(status[3], 16))
"""
    done = safespawn.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("1 0\n", "")


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


def test_an_interpreter_that_may_not_be_run(tmp_path) -> None:
    """After its rights were dropped a program cannot run its own interpreter any more: it is told so, by its name."""
    python = tmp_path / "python"
    python.touch()
    program = f"import sys, safespawn; sys.executable = {str(python)!r}; safespawn.run(['true'])"
    done = safespawn.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert "BootError: the zygote did not come up: [Errno 13] Permission denied" in done.stderr
    assert str(python) in done.stderr
