"""
`Supervisor`, `init` and the default one: who starts, and ends, everything.
"""

# ruff: noqa: PT012 - what is raised comes in the middle of a block

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

import safespawn
from safespawn import DEVNULL, PIPE, supervisor
from safespawn.errors import BadArgument
from support.children import ENV, PYTHON, alive, program, state, survivors

KERNEL_KEEPS_STATUS = tuple(map(int, os.uname().release.split("-")[0].split(".")[:2])) >= (6, 15)  # PIDFD_INFO_EXIT
TREE = program("tree.py", "child", "grandchild", "session", "group", "daemon", "stubborn")


@contextlib.asynccontextmanager
async def entered(face, supervisor):
    """Enter *supervisor* as a program of this face does."""
    if face.is_async:
        async with supervisor:
            yield
    else:
        with supervisor:
            yield


async def ended_by_us(process):
    """Its status after its supervisor was left: what the kernel keeps of a reaped process, or an honest SpawnLost."""
    if KERNEL_KEEPS_STATUS:
        assert await process.wait() in (-signal.SIGTERM, -signal.SIGKILL)
    else:
        with pytest.raises(safespawn.SpawnLost):
            await process.wait()


LOST = "lost"  # before Linux 6.15 nobody can say how a process ended that the zygote's own end took along


async def fate(process):
    """
    The exit code, or that it is lost.
    """
    try:
        return await process.wait()
    except safespawn.SpawnLost:
        return LOST


async def test_leaving_ends_everything(face):
    """Children that ignore SIGTERM, sessions and daemons are gone when the block is left, within a bound."""
    async with face.supervisor(stop_timeout=5) as inner:
        process = await inner.open(TREE, stdout=PIPE)
        pids = list(map(int, (await process.readline()).split()))
        other = await inner.open(["sleep", "1000"])
        zygotes = inner.runner.statistics()["zygotes"]
        begun = time.monotonic()
    assert time.monotonic() - begun < 6
    assert len(pids) == 6
    assert survivors([*pids, other.pid, *zygotes], seconds=0) == []
    for each in (process, other):
        await ended_by_us(each)
        each._close_pipes() if face.is_async else None
    if not face.is_async:
        process.stdout.close()


async def test_leaving_waits_for_nothing_that_has_ended(face):
    """A block whose commands are over is left at once."""
    async with face.supervisor() as inner:
        await inner.run(["true"])
        begun = time.monotonic()
    assert time.monotonic() - begun < 1


async def test_leaving_by_an_exception(face):
    """An exception ends everything as well, and comes out as it is."""
    with pytest.raises(LookupError, match="mine"):
        async with face.supervisor() as inner:
            process = await inner.open(["sleep", "1000"])
            raise LookupError("mine")
    assert survivors([process.pid], seconds=0) == []
    await ended_by_us(process)


async def test_a_stopped_zygote_does_not_hold_leaving_up(face):
    """Leaving with a zygote that is stopped ends everything within the bound."""
    async with face.supervisor(stop_timeout=0.5) as inner:
        process = await inner.open(["sleep", "1000"])
        (zygote,) = inner.runner.statistics()["zygotes"]
        os.kill(zygote, signal.SIGSTOP)
        begun = time.monotonic()
    assert time.monotonic() - begun < 5
    assert survivors([zygote, process.pid]) == []
    assert await fate(process) in (-signal.SIGTERM, -signal.SIGKILL, LOST)


async def test_the_modules_functions_use_the_one_entered_last(face):
    """While a Supervisor is entered run uses its zygote; nested, the innermost; afterwards the default one again."""
    default = safespawn.statistics()["zygotes"]
    async with face.supervisor() as outer:
        assert safespawn.statistics()["zygotes"] == outer.runner.statistics()["zygotes"] != default
        await face.run(["true"])
        async with face.supervisor(name="inner") as inner:
            assert safespawn.statistics()["name"] == "inner"
            parent = int((await face.run(["sh", "-c", "echo $PPID"], stdout=PIPE)).stdout)
            assert [parent] == inner.runner.statistics()["zygotes"]
            parent = int((await outer.run(["sh", "-c", "echo $PPID"], stdout=PIPE)).stdout)
            assert [parent] == outer.runner.statistics()["zygotes"]
        assert safespawn.statistics()["zygotes"] == outer.runner.statistics()["zygotes"]
    assert safespawn.statistics()["zygotes"] == default


async def test_an_inner_one_ends_only_its_own(face):
    """Leaving an inner Supervisor leaves what the outer one started."""
    async with face.supervisor() as outer:
        kept = await outer.open(["sleep", "1000"])
        async with face.supervisor() as inner:
            ended = await inner.open(["sleep", "1000"])
        assert survivors([ended.pid], seconds=0) == []
        assert alive(kept.pid)
        assert await kept.stop() == -signal.SIGTERM
    assert await fate(ended) in (-signal.SIGTERM, LOST)


async def test_use_after_the_end(face):
    """A Supervisor that was left refuses every call by its name; leaving it again does nothing."""
    async with face.supervisor(name="web") as inner:
        await inner.run(["true"])
    for call in (inner.run(["true"]), inner.check_output(["true"]), inner._open(["true"], {})):
        with pytest.raises(safespawn.errors.ClosedError, match="web"):
            await call
    inner.runner.close()
    with pytest.raises(safespawn.errors.ClosedError), inner.runner:
        pass


async def test_a_process_that_outlived_its_supervisor(face):
    """What was collected before the end keeps its result; closing happens once."""
    async with face.supervisor() as inner:
        process = await inner.open(["sh", "-c", "echo x; exit 3"], stdout=PIPE)
        assert await process.communicate() == (b"x\n", None)
    assert await process.wait() == 3
    assert await process.stop() == 3
    assert process.returncode == 3


async def test_a_run_under_way_when_its_supervisor_is_left(face):
    """A command that another thread runs when its Supervisor is closed ends with SpawnLost or its signal, not later."""
    outcomes = []
    async with face.supervisor() as inner:
        ready = threading.Event()

        def work():
            try:
                outcomes.append(inner.runner.run(["sh", "-c", "echo; exec sleep 1000"], on_line=lambda _: ready.set()))
            except safespawn.SafespawnError as error:
                outcomes.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        assert ready.wait(30)
    thread.join(10)
    assert not thread.is_alive()
    (outcome,) = outcomes
    assert isinstance(outcome, safespawn.SpawnLost) or outcome.returncode == -signal.SIGTERM


async def test_statistics(face):
    """The figures tell boots, connections, running children, and what the zygote says of itself."""
    async with face.supervisor(name="counted") as inner:
        figures = inner.runner.statistics()
        assert figures["name"] == "counted"
        assert figures["boots"] == 1
        assert figures["leased"] == 0
        assert figures["zygote"]["threads"] == 1
        level = figures["zygote"]["descriptors"]
        processes = [await inner.open(["cat"], stdin=PIPE) for _ in range(3)]
        figures = inner.runner.statistics()
        assert figures["leased"] == 3
        assert figures["zygote"]["running"] == 3
        assert figures["zygote"]["children"] == 3
        assert figures["zygote"]["started"] == 3
        for process in processes:
            await process.close_stdin()
            await process.wait()
        with pytest.raises(FileNotFoundError):
            await inner.run(["no-such-program"])
        figures = inner.runner.statistics()
        assert figures["leased"] == 0
        assert figures["zygote"]["running"] == 0
        assert figures["zygote"]["failed"] == 1
        assert figures["boots"] == 1
        assert figures["zygote"]["descriptors"] <= level + 2  # a third connection, both ends of nothing else
    figures = inner.runner.statistics()
    assert (figures["zygotes"], figures["zygote"], figures["idle_connections"]) == ([], {}, 0)


async def test_the_zygote_stays_level(face):
    """After three hundred commands of all kinds the zygote has the descriptors that it had."""
    async with face.supervisor() as inner:
        await inner.run(["true"])
        before = inner.runner.statistics()["zygote"]
        for turn in range(100):
            await inner.run(["true"], input=b"x" * (turn * 1000), capture_output=True)
            await inner.run(["true"], nice=0)
            with pytest.raises(OSError, match="no-such"):
                await inner.run(["no-such-program"], capture_output=True, nice=turn % 2)
        after = inner.runner.statistics()["zygote"]
        assert after["descriptors"] == before["descriptors"]
        assert (after["running"], after["held"], after["children"]) == (0, 0, 0)
        assert after["threads"] == 1


async def test_a_killed_zygote_is_replaced(face):
    """After kill -9 of the zygote what was in flight is lost, named as such, and the next command runs from another."""
    async with face.supervisor() as inner:
        process = await inner.open(["sleep", "1000"])
        (zygote,) = inner.runner.statistics()["zygotes"]
        os.kill(zygote, signal.SIGKILL)
        with pytest.raises(safespawn.SpawnLost):
            await process.wait()
        assert survivors([process.pid]) == []
        assert (await inner.run(["echo", "x"], stdout=PIPE)).stdout == b"x\n"
        assert zygote not in inner.runner.statistics()["zygotes"]
        assert inner.runner.statistics()["boots"] == 2


@pytest.mark.parametrize("timeout", ["soon", None])
def test_a_stop_timeout_that_is_none(timeout):
    """stop_timeout is a number of seconds."""
    with pytest.raises(TypeError):
        safespawn.Supervisor(stop_timeout=timeout)


def test_a_policy_that_is_none():
    """An unknown policy is refused, and no zygote starts."""
    with pytest.raises(ValueError, match="never"), safespawn.Supervisor(guard="never"):
        pass
    with pytest.raises(ValueError, match="never"):
        safespawn.init(guard="never")


def test_the_guard_of_a_supervisor():
    """With a thread running, "error" refuses and names it, "warn" warns at this line, "off" is silent."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait, name="too early")
    thread.start()
    try:
        with pytest.raises(safespawn.OrderError, match="too early"), safespawn.Supervisor(guard="error"):
            pass
        with (
            pytest.warns(safespawn.ThreadOrderWarning, match="too early") as caught,
            safespawn.Supervisor(guard="warn"),
        ):
            safespawn.run(["true"])
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with safespawn.Supervisor(guard="off"):
                safespawn.run(["true"])
    finally:
        go.set()
        thread.join()


def test_init_starts_the_zygote_once():
    """init() starts the default zygote in a program without threads, silently; a second call does nothing."""
    code = (
        "import os, sys, safespawn\n"
        "before = os.listdir('/proc/self/task/%d/..' % os.getpid())\n"
        "safespawn.init(guard='error'); first = safespawn.statistics()['zygotes']; safespawn.init(guard='error')\n"
        "print(len(first), safespawn.statistics()['zygotes'] == first, safespawn.statistics()['boots'])"
    )
    result = subprocess.run([*PYTHON, "-W", "error", "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("1 True 1\n", "")


def test_the_default_one_ends_with_the_program():
    """A program that just ends leaves nothing running of what it started, and says nothing but ResourceWarning."""
    code = (
        "import os, sys, safespawn\n"
        "p = safespawn.Popen(sys.argv[1:], stdout=safespawn.PIPE)\n"
        "print(p.stdout.readline().decode(), *safespawn.statistics()['zygotes'], flush=True)"
    )
    result = subprocess.run(
        [*PYTHON, "-c", code, *TREE], env=ENV, capture_output=True, text=True, timeout=30, check=False
    )
    pids = list(map(int, result.stdout.split()))
    assert result.stderr == ""
    assert len(pids) == 7
    assert survivors(pids, seconds=2) == []


def test_a_killed_application_takes_everything_along():
    """`kill -9` of the application ends its zygote and everything below, daemonised ones too, within two seconds."""
    code = (
        "import os, sys, signal, safespawn\n"
        "p = safespawn.Popen(sys.argv[1:], stdout=safespawn.PIPE)\n"
        "print(p.stdout.readline().decode(), *safespawn.statistics()['zygotes'], flush=True); signal.pause()"
    )
    from support.children import reap_orphans

    with subprocess.Popen([*PYTHON, "-c", code, *TREE], env=ENV, stdout=PIPE, text=True) as application:
        pids = []
        while len(pids) < 7:
            pids += map(int, application.stdout.readline().split())
        application.kill()
    assert survivors(pids, seconds=2) == []
    reap_orphans()


def test_a_supervisor_forgotten_without_leaving():
    """A Supervisor that was entered by hand and is closed by hand works like a block."""
    sup = safespawn.Supervisor(guard="off")
    sup.__enter__()
    process = sup.Popen(["sleep", "1000"], stdin=DEVNULL)
    sup.close()
    assert survivors([process.pid], seconds=0) == []
    sup.close()
    gc.collect()
    assert state(process.pid) is None


def test_many_supervisors_in_a_row():
    """Ten Supervisors one after another leave nothing that grows."""
    for _ in range(10):
        with safespawn.Supervisor(guard="off") as sup:
            assert sup.run(["true"]).returncode == 0
    assert sys.getrefcount(sup) < 6


def test_init_with_preload_has_a_template_ready():
    """`init(preload=...)` imports the modules in the template, once; a bad list is refused."""
    safespawn.init("off", preload=["colorsys"])
    templates = supervisor.current_engine().templates
    assert [key.preload for key in supervisor.current_engine()._templates] == [("colorsys",)]
    with safespawn.Pool(1, preload=["colorsys"]) as pool:
        pool.apply(abs, (1,))
        assert supervisor.current_engine().templates == templates
    with pytest.raises(TypeError):
        safespawn.init("off", preload="colorsys")


async def test_leaving_is_bounded_whatever_a_stop_does(face):
    """A declared stop that hangs is left behind at stop_timeout; what runs is ended."""
    release = threading.Event()
    supervisor = safespawn.Supervisor(guard="off", stop_timeout=0.3)
    supervisor.start_soon_after_boot(int, name="hangs", stop=release.wait)
    began = time.monotonic()
    async with entered(face, supervisor):
        pass
    assert time.monotonic() - began < 3.0
    release.set()


async def test_an_error_is_not_replaced_by_that_of_a_stop(face):
    """The body's error comes out, with a note; the declared thread was stopped, and waited for."""
    done = threading.Event()
    supervisor = safespawn.Supervisor(guard="off")
    supervisor.thread(done.wait, name="waits", stop=done.set)
    supervisor.start_soon_after_boot(int, name="fails", stop=lambda: 1 // 0)
    with pytest.raises(KeyError) as caught:
        async with entered(face, supervisor):
            raise KeyError("the body's")
    assert "ZeroDivisionError" in caught.value.__notes__[0]
    assert not supervisor.declared["waits"].is_alive()


async def test_a_stop_that_raises_is_told(face):
    """Without another error its own comes out, after everything has ended."""
    supervisor = safespawn.Supervisor(guard="off")
    supervisor.start_soon_after_boot(int, name="fails", stop=lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        async with entered(face, supervisor):
            pass


async def test_it_is_entered_once(face):
    """A second time, inside of the first, is refused, and changes nothing."""
    count = []
    supervisor = safespawn.Supervisor(guard="off")
    supervisor.declare(lambda: count.append(1), name="one")
    async with entered(face, supervisor):
        with pytest.raises(BadArgument, match="entered already"):
            async with entered(face, supervisor):
                pass
        assert not supervisor._engine.closed
    assert count == [1]


async def test_a_start_that_fails_leaves_nothing(face):
    """What came up before is stopped, and the Supervisor is not entered."""
    log = []
    supervisor = safespawn.Supervisor(guard="off")
    supervisor.start_soon_after_boot(int, name="first", stop=lambda: log.append("stopped"))
    supervisor.start_soon_after_boot(lambda: 1 // 0, name="second")
    with pytest.raises(ZeroDivisionError):
        async with entered(face, supervisor):
            log.append("never")
    assert log == ["stopped"]
