"""
Time limits: what runs out of time is ended with everything below it, and what it printed is kept.
"""

import os
import signal
import subprocess
import time

import pytest

import safespawn
from safespawn import DEVNULL, PIPE
from support.children import alive, program, survivors

LIMIT = 0.4  # seconds for a tree to come up and say so; no test measures it


async def test_a_timeout_is_that_of_subprocess(face):
    """TimeoutExpired is subprocess's, with the command, the limit and the output so far; the child is gone."""
    args = ["sh", "-c", "echo out; echo err >&2; exec sleep 1000"]
    with pytest.raises(subprocess.TimeoutExpired) as failure:
        await face.run(args, capture_output=True, timeout=LIMIT)
    error = failure.value
    assert isinstance(error, safespawn.TimeoutExpired)
    assert (error.cmd, error.timeout, error.stdout, error.stderr) == (args, LIMIT, b"out\n", b"err\n")
    assert error.output == error.stdout
    assert str(error).splitlines()[0] == str(subprocess.TimeoutExpired(args, LIMIT))
    assert survivors([error.pid], seconds=0) == []


async def test_partial_output_as_text(face):
    """In text mode the partial output is str, even where it ends in the middle of a character."""
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await face.run(["sh", "-c", "printf 'z\\303'; exec sleep 1000"], stdout=PIPE, timeout=LIMIT, encoding="utf-8")
    assert failure.value.stdout == "z\ufffd"


async def test_nothing_captured_is_none(face):
    """Without capture the partial output is None."""
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await face.run(["sleep", "1000"], timeout=0.05)
    assert (failure.value.stdout, failure.value.stderr) == (None, None)


@pytest.mark.parametrize("extra", ["stubborn", "silent"])
async def test_the_whole_tree_is_dead_afterwards(face, extra):
    """Children, grandchildren, those in groups and sessions of their own are gone when the error comes."""
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await face.run(program("tree.py", "child", "grandchild", "session", "group", extra), stdout=PIPE, timeout=LIMIT)
    pids = list(map(int, failure.value.stdout.split()))
    assert len(pids) == 5
    assert pids[0] == failure.value.pid
    assert survivors(pids, seconds=0.5) == []
    assert failure.value.held_by == ()


async def test_kill_tree_off_ends_the_leader_alone(face):
    """With kill_tree=False only the child is ended; who holds its output is named."""
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await face.run(program("tree.py", "child"), stdout=PIPE, timeout=LIMIT, kill_tree=False)
    leader, child = map(int, failure.value.stdout.split())
    try:
        assert survivors([leader]) == []
        assert alive(child)
        assert failure.value.held_by == (child,)
        assert str(child) in str(failure.value)
    finally:
        os.kill(child, signal.SIGKILL)
    assert survivors([child]) == []


async def test_a_limit_of_zero_and_less(face):
    """A limit that has passed before the start ends what has started, and is no success."""
    for timeout in (0, -1, 0.0):
        with pytest.raises(safespawn.TimeoutExpired):
            await face.run(["sleep", "1000"], timeout=timeout)


async def test_a_limit_that_is_not_reached(face):
    """A command that ends in time is untouched by its limit, and so is one with a limit beyond any clock."""
    for timeout in (60, 1e9, 10**12, float("inf")):
        assert (await face.run(["echo", "x"], stdout=PIPE, timeout=timeout)).stdout == b"x\n"


async def test_a_limit_while_input_is_being_fed(face):
    """A child that never reads its input runs into its limit."""
    with pytest.raises(safespawn.TimeoutExpired):
        await face.run(["sleep", "1000"], input=b"x" * 1_000_000, stdout=PIPE, timeout=0.1)


async def test_a_limit_while_output_flows(face):
    """A child that prints without end runs into its limit, and what it printed is kept up to there."""
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await face.run(["yes"], stdout=PIPE, timeout=0.05)
    for part in (failure.value.stdout[:100_000], failure.value.stdout[100_000:200_000]):
        assert part == b"y\n" * 50_000


async def test_a_stopped_child_runs_into_its_limit(face):
    """A child that has stopped itself is ended all the same."""
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await face.run(["sh", "-c", "kill -STOP $$"], timeout=0.1)
    assert survivors([failure.value.pid], seconds=0) == []


async def test_a_background_process_does_not_hold_run_up(face):
    """`run` ends soon after the child although somebody in the background holds its output, and says who that is."""
    begun = time.monotonic()
    result = await face.run(program("tree.py", "child", "exits"), stdout=PIPE)
    assert time.monotonic() - begun < 5
    leader, child = map(int, result.stdout.split())
    assert result.returncode == 0
    assert result.pid == leader
    assert result.held_by == (child,)
    assert f"held_by=({child},)" in repr(result)
    assert alive(child)
    os.kill(child, signal.SIGKILL)
    assert survivors([child]) == []


async def test_wait_eof_waits_as_subprocess_does(face):
    """With wait_eof=True the output of who is in the background is waited for and complete."""
    script = "(sleep 0.3; echo late) & echo early"
    result = await face.run(["sh", "-c", script], stdout=PIPE, wait_eof=True)
    assert result.stdout == b"early\nlate\n"
    assert result.held_by == ()
    result = await face.run(["sh", "-c", script], stdout=PIPE)
    assert result.stdout == b"early\n"
    assert result.held_by
    assert survivors(result.held_by, seconds=5) == []


async def test_wait_eof_has_the_same_limit(face):
    """When the child has ended, the limit ends who is left of its group; whoever had gone from that is named."""
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await face.run(program("tree.py", "child", "group", "exits"), stdout=PIPE, wait_eof=True, timeout=LIMIT)
    leader, *others = map(int, failure.value.stdout.split())
    left = survivors([leader, *others], seconds=0.3)
    try:
        assert len(left) == 1
        assert failure.value.held_by == tuple(left)
        assert left[0] in others
        assert os.getpgid(left[0]) == left[0]
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert survivors(left) == []


async def test_wait_eof_of_a_process(face):
    """`communicate` of a process opened with wait_eof=True waits for the last holder of its output."""
    process = await face.open(["sh", "-c", "(sleep 0.3; echo late) & echo early"], stdout=PIPE, wait_eof=True)
    assert (await process.communicate())[0] == b"early\nlate\n"
    assert process.held_by == ()


async def test_a_background_process_with_streams_of_its_own_is_left_alone(face):
    """A process in the background that holds no output outlives its command, and ends with the supervisor."""
    async with face.supervisor() as inner:
        result = await inner.run(program("tree.py", "child", "exits", "silent"), stdout=PIPE, stderr=DEVNULL)
        _, child = map(int, result.stdout.split())
        assert result.held_by == ()
        assert alive(child)
    assert survivors([child], seconds=0.1) == []
