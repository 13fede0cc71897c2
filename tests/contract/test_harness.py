"""
The fixtures themselves: each thing that they promise to find is found.
"""

import os
import subprocess
import threading
import time

import pytest

import safespawn
from safespawn import PIPE
from support import faces, leaks


def test_a_descriptor_that_is_left_is_named():
    """An open descriptor shows as a difference, and no longer once it is closed."""
    before = leaks.Holdings.look()
    read_fd, write_fd = os.pipe()
    target = os.readlink(f"/proc/self/fd/{read_fd}")
    lines = leaks.wait_level(before, seconds=0)
    assert lines == [f"descriptor left open: {target}, 2 time(s)"]
    os.close(read_fd)
    os.close(write_fd)
    assert leaks.wait_level(before) == []


def test_a_child_that_is_left_is_named():
    """A process of this one's own shows as a difference, running or as a zombie."""
    before = leaks.Holdings.look()
    child = subprocess.Popen(["sleep", "60"])
    assert [line for line in leaks.wait_level(before, seconds=0) if line.startswith(f"child left: {child.pid} sleep")]
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert f"child left: {child.pid} sleep [Z] " in leaks.wait_level(before, seconds=0)
    child.wait()
    assert leaks.wait_level(before) == []


def test_a_running_command_is_named():
    """A command that still runs shows in the application's descriptors and in the zygote's figures."""
    before = leaks.Holdings.look()
    with safespawn.Popen(["cat"], stdin=PIPE):
        lines = "\n".join(leaks.wait_level(before, seconds=0))
        for what in (
            "descriptor left open: pipe:",
            "zygote: descriptors is",
            "zygote: running is 1",
            "zygote: children is 1",
        ):
            assert what in lines
    assert leaks.wait_level(before) == []


def test_a_thread_that_is_left_is_named():
    """A thread shows in both lists."""
    before = leaks.Holdings.look()
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="left over")
    thread.start()
    lines = leaks.wait_level(before, seconds=0)
    assert f"thread left: left over ({thread.ident})" in lines
    assert f"native thread left: {thread.native_id}" in lines
    go.set()
    thread.join()


def test_a_killed_default_zygote_is_no_difference():
    """Another default zygote than before, with nothing on it, counts as level."""
    before = leaks.Holdings.look()
    (pid,) = safespawn.statistics()["zygotes"]
    os.kill(pid, 9)
    assert leaks.wait_level(before) == []
    assert safespawn.statistics()["zygotes"] != [pid]


@pytest.mark.parametrize("name", faces.ASYNC_NAMES)
def test_a_blocked_loop_fails_the_test(name):
    """A test that blocks its event loop for longer than the bound fails, on every loop."""

    async def block():
        time.sleep(faces.STALL_SECONDS + 0.2)  # noqa: ASYNC251 - that is the point

    with pytest.raises(faces.Stalled):
        faces.Face(name).execute(block, {})


def test_a_blocking_test_that_awaits_fails():
    """On the blocking face nothing may suspend."""

    class Suspends:
        def __await__(self):
            yield

    async def wait():
        await Suspends()

    with pytest.raises(AssertionError, match="awaited something"):
        faces.Face("blocking").execute(wait, {})


async def test_a_waiting_face_lets_the_loop_run(async_face):
    """While a child sleeps for longer than the bound, the loop goes on."""
    result = await async_face.run(["sleep", "0.8"])
    assert result.returncode == 0
