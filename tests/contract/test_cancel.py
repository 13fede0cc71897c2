"""
What is interrupted, by a cancellation of any kind or by Ctrl-C, takes its child and the whole tree with it.
"""

# ruff: noqa: ASYNC110, PT012 - the zygote has no event to wait for; what is raised comes in the middle of a block

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time

import anyio
import pytest
import trio

import safespawn
from safespawn import PIPE
from support.children import ENV, alive, program, survivors

TREE = program("tree.py", "child", "grandchild", "session", "group")


class Watch:
    """
    Collects the pids that a tree prints, and then does something, once.
    """

    def __init__(self, action=lambda: None):
        self.pids = []
        self.action = action

    def __call__(self, line):
        self.pids = list(map(int, line.split()))
        self.action()

    def assert_gone(self, seconds=0.5):
        assert len(self.pids) == 5
        assert survivors(self.pids, seconds) == []


async def test_a_cancelled_scope(async_face):
    """Cancelling the scope around arun ends the tree before the scope is left."""
    with anyio.CancelScope() as scope:
        watch = Watch(scope.cancel)
        await async_face.run(TREE, on_line=watch)
    assert scope.cancelled_caught
    watch.assert_gone()


@pytest.mark.parametrize("extra", ["stubborn", "silent"])
async def test_a_cancelled_tree_that_does_not_listen(async_face, extra):
    """A tree that ignores SIGTERM, or holds no output, is gone as well, after the grace."""
    with anyio.CancelScope() as scope:
        watch = Watch(scope.cancel)
        await async_face.run([*TREE, extra], on_line=watch)
    watch.assert_gone()


async def test_a_deadline_of_the_loop(async_face):
    """move_on_after ends the tree."""
    watch = Watch()
    with anyio.move_on_after(0.5) as scope:
        await async_face.run(TREE, on_line=watch)
    assert scope.cancelled_caught
    watch.assert_gone()


async def test_a_failing_sibling(async_face):
    """A task that fails cancels its siblings, and the tree of one of them is gone when the group is left."""
    ready = anyio.Event()
    watch = Watch(ready.set)

    async def fail():
        await ready.wait()
        raise LookupError("sibling")

    with pytest.raises(ExceptionGroup) as failure:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: async_face.run(TREE, on_line=watch))
            group.start_soon(fail)
    assert isinstance(failure.value.exceptions[0], LookupError)
    watch.assert_gone()


async def test_a_cancellation_before_the_first_step(async_face):
    """In a scope that is cancelled already nothing starts, or what started is gone; the connection is not lost."""
    for _ in range(20):
        with anyio.CancelScope() as scope:
            scope.cancel()
            await async_face.run(["sleep", "1000"])
        assert scope.cancelled_caught
    assert (await async_face.run(["echo", "x"], stdout=PIPE)).stdout == b"x\n"


async def test_a_cancellation_at_any_moment(async_face):
    """Cancelled after any short time, a command leaves nothing; forty times at forty moments."""
    for turn in range(40):
        with anyio.move_on_after(turn / 10_000):
            await async_face.run(["sleep", "1000"], input=b"x" * 100_000, capture_output=True)
    figures = safespawn.statistics()
    assert figures["leased"] == 0
    deadline = time.monotonic() + 5
    while safespawn.statistics()["zygote"]["children"] and time.monotonic() < deadline:
        await anyio.sleep(0.01)
    assert safespawn.statistics()["zygote"]["children"] == 0


async def test_a_cancelled_start_of_a_process(async_face):
    """aopen_process that is cancelled while it starts leaves nothing."""
    for turn in range(20):
        with anyio.move_on_after(turn / 10_000):
            process = await async_face.open(["sleep", "1000"], stdin=PIPE, stdout=PIPE)
            await process.wait()
        with contextlib.suppress(UnboundLocalError):
            await process.stop()
            del process


async def test_a_cancelled_wait_leaves_the_process(async_face):
    """Cancelling wait, communicate or a read ends the wait only: the process and its streams go on as they were."""
    async with async_face.open(["sh", "-c", "read x; echo $x; exit 4"], stdin=PIPE, stdout=PIPE) as process:
        for method in (process.wait, process.readline):
            with anyio.move_on_after(0.05) as scope:
                await method()
            assert scope.cancelled_caught
            assert alive(process.pid)
        await process.write(b"word\n")
        assert await process.readline() == b"word\n"
        assert await process.wait() == 4


async def test_a_cancelled_communicate_goes_on(async_face):
    """A cancelled communicate loses nothing: called again it gives everything."""
    read_fd, write_fd = os.pipe()
    process = await async_face.open(
        ["bash", "-c", f"echo one; read x <&{read_fd}; echo two"], stdout=PIPE, pass_fds=[read_fd]
    )
    os.close(read_fd)
    with anyio.move_on_after(0.1) as scope:
        await process.communicate()
    assert scope.cancelled_caught
    os.close(write_fd)
    assert await process.communicate() == (b"one\ntwo\n", None)


async def test_leaving_a_process_by_cancellation(async_face):
    """A cancelled block around a process ends its tree, shielded from the same cancellation."""
    with anyio.CancelScope() as scope:
        async with async_face.open([*TREE, "stubborn"], stdout=PIPE) as process:
            pids = list(map(int, (await process.readline()).split()))
            scope.cancel()
            await anyio.sleep_forever()
    assert process.returncode == -signal.SIGKILL
    assert survivors(pids, 0.5) == []


async def test_a_cancelled_stop_still_ends_the_process(async_face):
    """A stop that is cancelled in its grace goes on to its end."""
    process = await async_face.open([*TREE, "stubborn"], stdout=PIPE)
    pids = list(map(int, (await process.readline()).split()))
    with anyio.move_on_after(0.1):
        await process.stop(grace=30)
    await process.stop()
    assert survivors(pids, 0.5) == []


async def test_many_cancelled_at_once(async_face):
    """Fifty commands in one cancelled scope are all gone."""
    pids = []
    with anyio.CancelScope() as scope:

        def ready(line):
            pids.append(int(line))
            if len(pids) == 50:
                scope.cancel()

        async with anyio.create_task_group() as group:
            for _ in range(50):
                group.start_soon(lambda: async_face.run(["sh", "-c", "echo $$; exec sleep 1000"], on_line=ready))
    assert len(pids) == 50
    assert survivors(pids, 0.5) == []


@pytest.mark.parametrize("async_face", ["asyncio", "uvloop"], indirect=True)
async def test_asyncio_cancel(async_face):
    """task.cancel(), asyncio.wait_for and asyncio.timeout end the tree; the exception is that of asyncio."""
    ready = asyncio.Event()
    watch = Watch(ready.set)
    task = asyncio.create_task(async_face.run(TREE, on_line=watch))
    await ready.wait()
    task.cancel("why")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    watch.assert_gone()
    watch = Watch()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(async_face.run(TREE, on_line=watch), 0.5)
    watch.assert_gone()
    watch = Watch()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await async_face.run(TREE, on_line=watch)
    watch.assert_gone()
    assert not asyncio.current_task().cancelling()


@pytest.mark.parametrize("async_face", ["asyncio", "uvloop"], indirect=True)
async def test_asyncio_cancelled_twice(async_face):
    """A second cancel during the grace does not leave the tree behind."""
    ready = asyncio.Event()
    watch = Watch(ready.set)
    task = asyncio.create_task(async_face.run([*TREE, "stubborn"], on_line=watch))
    await ready.wait()
    task.cancel()
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    watch.assert_gone()


@pytest.mark.parametrize("async_face", ["trio"], indirect=True)
async def test_trio_cancel(async_face):
    """Trio's own scopes end the tree."""
    with trio.CancelScope() as scope:
        watch = Watch(scope.cancel)
        await async_face.run(TREE, on_line=watch)
    assert scope.cancelled_caught
    watch.assert_gone()
    watch = Watch()
    with pytest.raises(trio.TooSlowError), trio.fail_after(0.5):
        await async_face.run(TREE, on_line=watch)
    watch.assert_gone()


def interrupt_when(fd, times=1):
    """
    A thread that sends SIGINT to this process's main thread when *fd* has given a byte.
    """

    def work():
        os.read(fd, 1)
        for turn in range(times):
            if turn:
                time.sleep(0.1)
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("extra", ["silent", "stubborn"])
def test_ctrl_c_in_run(times, extra):
    """KeyboardInterrupt in run, once or twice, ends the tree and comes out."""
    read_fd, write_fd = os.pipe()
    watch = Watch(lambda: os.write(write_fd, b"x"))
    thread = interrupt_when(read_fd, times)
    with pytest.raises(KeyboardInterrupt):
        safespawn.run([*TREE, extra], on_line=watch)
        time.sleep(5)  # the second one may come after run has raised; the first cannot come later than this
    with contextlib.suppress(KeyboardInterrupt):
        thread.join()
    os.close(read_fd)
    os.close(write_fd)
    watch.assert_gone()


def test_an_exception_of_a_signal_handler():
    """What a signal handler raises during run ends the child and comes out; one that returns disturbs nothing."""

    class Alarm(Exception):
        pass

    calls = []

    def fail(_number, _frame):
        calls.append(1)
        if len(calls) == 3:
            raise Alarm

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
    try:
        with pytest.raises(Alarm):
            safespawn.run(["sleep", "1000"])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(calls) >= 3


def test_ctrl_c_in_wait_leaves_the_process():
    """KeyboardInterrupt in wait leaves the process to its owner, who ends it by leaving its block."""
    read_fd, write_fd = os.pipe()
    with pytest.raises(KeyboardInterrupt), safespawn.Popen([*TREE, "stubborn"], stdout=PIPE) as process:
        pids = list(map(int, process.stdout.readline().split()))
        thread = interrupt_when(read_fd)
        os.write(write_fd, b"x")
        process.wait()
    thread.join()
    os.close(read_fd)
    os.close(write_fd)
    assert process.returncode == -signal.SIGKILL
    assert survivors(pids, 0.5) == []


@pytest.mark.parametrize("name", ["blocking", "asyncio", "trio"])
def test_ctrl_c_in_a_program(name):
    """A program that gets SIGINT while it runs a command ends with KeyboardInterrupt, and the tree with it."""
    with subprocess.Popen(
        program("interrupted.py", name, *TREE), env=ENV, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True
    ) as application:
        pids = list(map(int, application.stdout.readline().split()))
        assert len(pids) == 5
        application.send_signal(signal.SIGINT)
        out, err = application.communicate(timeout=30)
    assert (out, err) == ("KeyboardInterrupt\n", "")
    assert survivors(pids, 0.5) == []
