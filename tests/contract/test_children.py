"""Supervised children: started in order, ready, started again, stopped; on every face."""

# ruff: noqa: PT012 - what is raised comes in the middle of a block

import gc
import logging
import math
import multiprocessing
import os
import queue
import re
import resource
import signal
import socket
import sys
import threading
import time
import types
import weakref
from multiprocessing import resource_tracker

import anyio
import pytest

import safespawn
import safespawn.children
from safespawn import errors
from safespawn._drive import keeper
from safespawn._drive.run import Run
from safespawn._worker import journal
from safespawn.asupervisor import AsyncFamily
from safespawn.child_errors import ChildFailed, ChildNotReady, ChildrenGaveUp
from support import child_tasks
from support.child_tasks import PLAIN, SECONDS, keeping
from support.children import alive, becomes, program, survivors


@pytest.fixture(scope="module", autouse=True)
def _tracker():
    """The tracker of named semaphores lives as long as the program, and so do the first pages of its shared heap."""
    resource_tracker.ensure_running()
    multiprocessing.get_context("spawn").Value("i", 0)


QUICK = safespawn.Backoff(0.01, max=0.05)
LONG = 1000.0


async def test_a_functions_life(face, caplog, capfd):
    """It logs, prints, is ready with its value, comes again after a crash, is asked to stop, and leaves nothing."""
    seen = []
    async with keeping(face, on_event=seen.append) as kept:
        child = await kept.start("polite", child_tasks.polite, 7, ready="notify")
        first = child.pid
        assert child.value == {"value": 7, "pid": first}
        assert (child.state, child.restarts) == ("up", 0)
        os.kill(first, signal.SIGKILL)
        exited = await kept.until("Exited")
        assert (exited.pid, exited.end, exited.returncode) == (first, "signal", -signal.SIGKILL)
        assert exited.rusage.ru_maxrss > 0
        assert (await kept.until("Restarting")).delay == 0.0
        await kept.until("Ready")
        assert child.pid != first
        assert child.value["pid"] == child.pid
        assert child.restarts == 1
        second = child.pid
    assert survivors([first, second], seconds=0) == []
    assert child.state == "done"
    assert [record.getMessage() for record in caplog.records if record.name == "polite"] == [
        "starts with 7", "starts with 7", "stops with 7",
    ]  # fmt: skip
    assert capfd.readouterr().out.count("printed 7\n") == 2
    told = [type(event).__name__ for event in seen]
    assert told == ["Starting", "Ready", "Exited", "Restarting", "Starting", "Ready", "Stopping", "Exited"]
    assert (seen[-1].end, seen[-1].returncode) == ("stopped", 0)


async def test_order(face):
    """Children are stopped in the reverse order of their start, and the statistics tell of them meanwhile."""
    async with keeping(face) as kept:
        for name in ("a", "b", "c"):
            await kept.start(name, PLAIN)
        figures = await kept.supervisor.astatistics() if face.is_async else kept.supervisor.statistics()
        assert [(each["name"], each["state"], each["restarts"]) for each in figures["children"]] == [
            ("a", "up", 0), ("b", "up", 0), ("c", "up", 0),
        ]  # fmt: skip
        assert figures["events"] == {"starting": 3, "ready": 3}
        events = kept.supervisor
    stopping = [each.child for each in events.recent_events() if type(each).__name__ in ("Stopping", "Exited")]
    assert stopping == ["c", "c", "b", "b", "a", "a"]


async def test_a_start_that_fails(face):
    """What goes wrong before a child is ready comes to whoever starts it, and the name is free again."""
    async with keeping(face) as kept:
        with pytest.raises(ChildFailed, match="exited with code 1") as caught:
            await kept.start("x", child_tasks.raises_early, "mine", ready="notify")
        assert type(caught.value.__cause__) is LookupError
        assert "raises_early" in str(caught.value.__cause__.__cause__)
        assert "LookupError: mine" in caught.value.stderr
        with pytest.raises(FileNotFoundError) as missing:
            await kept.start("x", ["/nowhere/at/all"])
        assert isinstance(missing.value, errors.SpawnError)
        with pytest.raises(ChildFailed, match="exited with code 0"):
            await kept.start("x", ["true"], ready="notify")
        with pytest.raises(ChildNotReady, match=r"not ready within 0\.3 s") as late:
            await kept.start("x", child_tasks.never_ready, ready="notify", ready_timeout=0.3)
        assert "never_ready" in late.value.stacks
        assert isinstance(late.value, TimeoutError)
        assert survivors([late.value.pid], seconds=0) == []
        with pytest.raises(errors.UnpicklableTask):
            await kept.start("x", child_tasks.polite, threading.Lock())
        child = await kept.start("x", PLAIN)
        with pytest.raises(errors.BadArgument, match="there is a child 'x' already"):
            await kept.start("x", PLAIN)
        assert child.state == "up"
    with pytest.raises(errors.ClosedError):
        await kept.start("y", PLAIN)


@pytest.mark.parametrize(
    ("strategy", "story"),
    [
        ("one_for_one", ["Exited b", "Starting b", "Ready b"]),
        ("rest_for_one", ["Exited b", "Stopping c", "Exited c", "Starting b", "Ready b", "Starting c", "Ready c"]),
        (
            "one_for_all",
            ["Exited b", "Stopping c", "Exited c", "Stopping a", "Exited a", "Starting a", "Ready a", "Starting b",
             "Ready b", "Starting c", "Ready c"],
        ),
    ],
)  # fmt: skip
async def test_strategies(face, strategy, story):
    """Who is stopped and started again with a child that has failed, in which order."""
    async with keeping(face, strategy=strategy) as kept:
        children = [await kept.start(name, PLAIN) for name in ("a", "b", "c")]
        pids = [each.pid for each in children]
        for _ in range(3):
            await kept.until("Ready")
        kept.seen.clear()
        os.kill(pids[1], signal.SIGKILL)
        while kept.story("Exited", "Stopping", "Starting", "Ready") != story:
            await kept.next()
            assert (
                kept.story("Exited", "Stopping", "Starting", "Ready")
                == story[: len(kept.seen)][: len(kept.story("Exited", "Stopping", "Starting", "Ready"))]
            )
        assert [each.state for each in children] == ["up"] * 3
        changed = {"one_for_one": [1], "rest_for_one": [1, 2], "one_for_all": [0, 1, 2]}[strategy]
        assert [at for at in range(3) if children[at].pid != pids[at]] == changed


async def test_giving_up(face):
    """A crash loop ends: all children are stopped, and the owner gets the last failures as a group."""
    with pytest.raises(ChildrenGaveUp, match="failed more than 3 times") as caught:
        async with keeping(face, restarts=3) as kept:
            other = await kept.start("other", PLAIN)
            await kept.start("loop", ["sh", "-c", "exit 3"], backoff=QUICK)
            if face.is_async:
                await anyio.sleep(LONG)
            else:
                kept.supervisor.serve()
    assert [(type(each), each.returncode) for each in caught.value.exceptions] == [(ChildFailed, 3)] * 4
    assert (caught.value.child, caught.value.restarts) == ("loop", 3)
    assert other.state == "done"


async def test_degrading(face):
    """With give_up="degrade" a child that fails too often stays down, the others go on, and it can be wanted again."""
    async with keeping(face, restarts=2, give_up="degrade") as kept:
        other = await kept.start("other", PLAIN)
        loop = await kept.start("loop", ["sh", "-c", "exit 3"], backoff=QUICK)
        assert (await kept.until("GaveUp")).child == "loop"
        assert (loop.state, other.state) == ("given-up", "up")
        os.kill(other.pid, signal.SIGKILL)
        await kept.until("Ready", "other")
        assert kept.story("Starting").count("Starting loop") == 3
        await kept.call(loop.restart)
        assert (await kept.until("Ready")).child == "loop"


@pytest.mark.parametrize(
    ("restart", "code", "ends"),
    [("never", 1, True), ("on-failure", 0, True), ("on-failure", 1, False), ("always", 0, False), ("always", 7, True)],
)
async def test_who_comes_again(async_face, restart, code, ends):
    """The policy and the exceptions from it: a child that does not come again is done, and nothing else happens."""
    async with keeping(async_face, restarts=LONG) as kept:
        options = {"restart": restart, "no_restart_codes": [7], "backoff": QUICK}
        child = await kept.start("x", ["sh", "-c", f"sleep 0.02; exit {code}"], **options)
        if ends:
            assert await kept.supervisor.serve() is None
            assert child.state == "done"
            assert kept.supervisor.statistics()["events"]["starting"] == 1
        else:
            await kept.until("Restarting")
            await kept.until("Ready")


async def test_the_ladder(face):
    """A whole tree that ignores SIGTERM is gone within its time: leader, group, session, daemon; and it is told."""
    async with keeping(face) as kept:
        members = ("child", "grandchild", "session", "group", "stubborn")
        child = await kept.start(
            "stubborn", program("tree.py", *members), ready=re.compile(r"^(\d+) (.*)$"), stop_timeout=0.3
        )
        pids = [int(word) for word in child.value.group(0).split()]
        assert child.value.group(1) == str(child.pid)
        assert len(pids) == 5
        begun = time.monotonic()
        await kept.call(child.stop)
        assert time.monotonic() - begun < 10
        assert survivors(pids, seconds=0) == []
        await kept.until("Killed")
        exited = await kept.until("Exited")
        assert (exited.end, exited.returncode) == ("stopped", -signal.SIGKILL)
        assert child.state == "done"
        await kept.call(child.stop)  # once more: nothing to do


async def test_what_a_stopped_child_leaves_is_swept_up(face):
    """A leader that ends at SIGTERM leaves a daemon, and others in sessions and groups of their own: they end too."""
    async with keeping(face) as kept:
        child = await kept.start(
            "tree", program("tree.py", "child", "session", "group", "daemon"), ready=re.compile(r"\d+ .*")
        )
        pids = [int(word) for word in child.value.group(0).split()]
        await kept.call(child.stop)
        assert survivors(pids, seconds=0) == []
        assert (await kept.until("Leaked")).count >= 3


async def test_impatience(face):
    """A stop with a time limit of its own skips what is left of the grace."""
    async with keeping(face) as kept:
        child = await kept.start("deaf", ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], stop_timeout=LONG)
        begun = time.monotonic()
        await kept.call(child.stop, 0.2)
        assert time.monotonic() - begun < 30
        assert child.state == "done"


async def test_cancelled_start(async_face):
    """A start that is cancelled ends what there is of the child, and waits for that."""
    async with keeping(async_face) as kept:
        with anyio.move_on_after(0.3) as scope:
            await kept.start("x", PLAIN, ready="notify")
        assert scope.cancelled_caught
        exited = await kept.until("Exited")
        assert exited.end == "stopped"
        assert not alive(exited.pid)
        await kept.start("x", PLAIN)


@pytest.mark.parametrize("limit", [{"max_age": 0.3}, {"memory_max": 1, "hang_after": 0.2}], ids=["age", "memory"])
async def test_recycling(face, limit):
    """A child that is too old, or too large, stays until its replacement is ready, and only then it is stopped."""
    async with keeping(face) as kept:
        child = await kept.start("x", PLAIN, **limit)
        old = child.pid
        exited = await kept.until("Exited")
        assert (exited.pid, exited.end) == (old, "recycled")
        story = kept.story("Starting", "Ready", "Stopping", "Exited")
        assert story == ["Starting x", "Ready x", "Starting x", "Ready x", "Stopping x", "Exited x"]
        assert alive(child.pid)
        assert child.restarts == 0


async def test_serving_ends_with_the_last_child(face):
    """It waits for children that were started, or started again, while it waited."""
    async with keeping(face) as kept:
        first = await kept.start("first", PLAIN, restart="never")
        moved = []

        async def more():
            second = await kept.start("second", PLAIN, restart="never")
            os.kill(first.pid, signal.SIGKILL)
            await kept.until("Exited", "first")
            await kept.call(first.restart)
            os.kill(second.pid, signal.SIGKILL)
            await kept.until("Exited", "second")
            moved.append(first.state)
            os.kill(first.pid, signal.SIGKILL)

        if kept.is_async:
            with anyio.fail_after(SECONDS):
                async with anyio.create_task_group() as group:
                    group.start_soon(more)
                    assert await kept.supervisor.serve() is None
        else:
            thread = threading.Thread(target=anyio.run, args=(more,))
            thread.start()
            began = time.monotonic()
            assert kept.supervisor.serve(timeout=SECONDS) is None
            assert time.monotonic() - began < SECONDS
            thread.join()
        assert moved == ["up"]


async def test_cancelled_while_it_is_entered(async_face, monkeypatch):
    """A cancellation that comes while the task of the children is being started ends it, and the block."""
    really_open = AsyncFamily.open

    async def open_(family):
        scope.cancel()
        await really_open(family)

    monkeypatch.setattr(AsyncFamily, "open", open_)
    with anyio.fail_after(SECONDS, shield=True):
        with anyio.CancelScope() as scope:
            async with safespawn.AsyncSupervisor(guard="off") as supervisor:
                await supervisor.start("x", PLAIN)
                await anyio.sleep_forever()  # `start` may have been quicker than the cancellation
        assert scope.cancelled_caught


async def test_a_log_handler_that_waits_for_a_child(face):
    """What a supervisor logs is handled beside its work: a handler may block, or hold the lock that another wants."""
    logger = logging.getLogger("safespawn.supervisor")
    handler = logging.Handler()
    said = []
    handler.emit = lambda record: said.append(record.getMessage())
    logger.addHandler(handler)
    try:
        async with keeping(face) as kept:
            child = await kept.start("x", PLAIN, backoff=QUICK)
            first = child.pid
            with handler.lock:  # as a handler has it that is in the midst of its work
                os.kill(first, signal.SIGKILL)
                await kept.until("Exited")
                await kept.until("Ready")
                await kept.call(child.restart)
                assert said == []
    finally:
        logger.removeHandler(handler)
    assert len(said) == 1
    assert f"process {first} was killed by SIGKILL" in said[0]


async def test_times_without_end(face):
    """Every time of a child may be infinite, or longer than a system call can wait."""
    for seconds in (math.inf, 1e9):
        async with keeping(face) as kept:
            options = {"ready_timeout": seconds, "stop_timeout": seconds, "max_age": seconds, "heartbeat": seconds}
            child = await kept.start("x", child_tasks.waits_long, seconds, ready="notify", **options)
            events = kept.supervisor.events()
            await kept.call(child.stop, seconds)
            assert (await kept.until("Exited")).returncode == 0
            assert kept.is_async or type(events.get(timeout=seconds)).__name__ == "Stopping"
    with safespawn.Supervisor(guard="off") as supervisor:
        supervisor.start("y", ["true"], restart="never")
        assert supervisor.serve(timeout=1e9) is None


def test_a_successor_that_fails(supervisor, tmp_path):
    """The old process stays, and the next successor waits as a child that has failed does."""
    path = str(tmp_path / "there")
    backoff = safespawn.Backoff(LONG, max=LONG)
    child = supervisor.start("x", child_tasks.only_once, path, ready="notify", max_age=0.05, backoff=backoff)
    first = child.pid
    events = supervisor.events()
    until(events, "Starting")
    assert until(events, "Exited").end == "error"
    assert events.get(timeout=0.5) is None
    assert (child.pid, child.state, child.restarts) == (first, "up", 0)


async def test_restart_by_its_owner(face):
    """A restart waits until the new process is ready."""
    async with keeping(face) as kept:
        child = await kept.start("x", PLAIN)
        before = child.pid
        await kept.call(child.restart)
        assert child.state == "up"
        assert child.pid != before
        assert not alive(before)
        await kept.call(child.stop)
        await kept.call(child.restart)
        assert child.state == "up"


# --- readiness: one face says it for all, the engine is the same ------------------------------------------------------
@pytest.fixture
def supervisor():
    """A blocking supervisor that was entered."""
    with safespawn.Supervisor(guard="off") as entered:
        yield entered


def until(events, kind):
    """The next event of this kind."""
    while True:
        event = events.get(timeout=child_tasks.SECONDS)
        assert event is not None
        if type(event).__name__ == kind:
            return event


LISTENER = """
import socket, sys, time
time.sleep(0.1)
with socket.create_server(("127.0.0.1", int(sys.argv[1]))):
    time.sleep(1000)
"""
NOTIFIER = """
import os, socket, time
to = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
to.connect("\\0" + os.environ["NOTIFY_SOCKET"][1:])
to.send(b"STATUS=reads its files")
to.send(b"READY=1")
time.sleep(1000)
"""


def test_ready_by_port(supervisor):
    """A child is ready when somebody takes a connection at its port."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    child = supervisor.start("server", [sys.executable, "-Sc", LISTENER, str(port)], ready=port)
    assert child.value == port
    socket.create_connection(("127.0.0.1", port)).close()


SHARER = """
import socket, sys, time
time.sleep(0.1)
with socket.socket() as listener:
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind(("127.0.0.1", int(sys.argv[1])))
    listener.listen()
    open(sys.argv[2], "w").close()
    time.sleep(1000)
"""


def test_a_port_at_which_another_one_listens(supervisor, tmp_path):
    """It says nothing of a child that does not listen; one that shares the port is ready when it does so itself."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(ChildNotReady, match="another process listens there"):
            supervisor.start("x", PLAIN, ready=port, ready_timeout=0.3)
        path = tmp_path / "there"
        command = ["sh", "-c", 'python=$1; shift; "$python" "$@"; exit', "sh", sys.executable, "-Sc", SHARER, str(port)]
        supervisor.start("y", [*command, str(path)], ready=port)
        assert path.exists()


def test_ready_by_notice(supervisor):
    """A command may say it as it would to systemd; its status is in the statistics."""
    child = supervisor.start("server", [sys.executable, "-Sc", NOTIFIER], ready="notify")
    assert child.statistics()["status"] == "reads its files"


def test_ready_by_function(supervisor, tmp_path):
    """A function is asked until it says something true; one that raises is the reason why the start fails."""
    path = tmp_path / "there"
    command = ["sh", "-c", f"sleep 0.05; touch {path}; exec sleep 1000"]
    child = supervisor.start("x", command, ready=lambda: path.exists() and "here")
    assert child.value == "here"
    with pytest.raises(ChildFailed) as caught:
        supervisor.start("y", PLAIN, ready=lambda: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_no_descriptor_for_readiness(caplog):
    """A start for which no descriptor is left has failed, and is tried again; the other children do not notice."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ends = []

    def on_event(event):
        if type(event).__name__ == "Exited" and len(ends) < 2:
            ends.append(event.end)
            if len(ends) == 2:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
                return
            free = os.dup(0)
            os.close(free)
            resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))

    try:
        with safespawn.Supervisor(guard="off", on_event=on_event) as supervisor:
            other = supervisor.start("other", PLAIN)
            command = [sys.executable, "-Sc", NOTIFIER]
            child = supervisor.start("picky", command, ready="notify", backoff=QUICK)
            events = supervisor.events()
            os.kill(child.pid, signal.SIGKILL)
            until(events, "Ready")
            assert ends == ["signal", "failed"]
            assert (child.state, other.state, other.restarts) == ("up", "up", 0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert "it could not be started: " in caplog.text


def test_no_thread_for_readiness(supervisor, monkeypatch):
    """A start for which no thread is left has failed, and is tried again."""
    starts = []
    really_start = threading.Thread.start

    def start(thread):
        starts.append(thread.name)
        if starts.count("safespawn ready asked") == 2:
            starts.append("refused")
            raise RuntimeError("can't start new thread")
        really_start(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    child = supervisor.start("asked", PLAIN, ready=os.getpid, backoff=QUICK)
    events = supervisor.events()
    os.kill(child.pid, signal.SIGKILL)
    until(events, "Exited")
    exited = until(events, "Exited")
    assert (exited.end, str(exited.error)) == ("error", "can't start new thread")
    until(events, "Ready")
    assert starts[-2:] == ["refused", "safespawn ready asked"]


def test_closed_by_another_thread(monkeypatch):
    """Whoever serves returns, and the handlers of signals are put back by the main thread."""
    before = signal.getsignal(signal.SIGTERM)
    errors = []

    def close():
        until(events, "Ready")
        while signal.getsignal(signal.SIGTERM) == before:
            time.sleep(0.001)
        try:
            supervisor.close()
        except BaseException as error:
            errors.append(error)
            raise

    with safespawn.Supervisor(guard="off") as supervisor:
        events = supervisor.events()
        thread = threading.Thread(target=close)
        thread.start()
        supervisor.start("x", PLAIN)
        assert supervisor.serve(timeout=SECONDS) is None
        thread.join()
        heard = []
        if signal.getsignal(signal.SIGTERM) != before:  # the first signal is for what was there before
            family = supervisor._family
            monkeypatch.setitem(family._handlers, signal.SIGTERM, lambda *what: heard.append(what[0]))
            signal.raise_signal(signal.SIGTERM)
            assert heard == [signal.SIGTERM]
            assert family.signalled == []
            signal.signal(signal.SIGTERM, before)
    assert signal.getsignal(signal.SIGTERM) == before
    assert errors == []


def test_lines(supervisor, capfd):
    """A command's lines are looked through, given to on_line, and otherwise passed on as they are."""
    lines = []
    supervisor.start("x", ["sh", "-c", "echo one; echo port 8; echo two; sleep 1000"], on_line=lines.append,
                     ready=re.compile(r"port (\d+)"))  # fmt: skip
    child = supervisor.start("y", ["sh", "-c", "printf 'a\\nb 7\\nc'; sleep 1000"], ready=re.compile(r"b (\d)"))
    assert child.value.group(1) == "7"
    child.stop()
    supervisor.close()
    assert lines == ["one", "port 8", "two"]
    assert capfd.readouterr().out == "a\nb 7\nc"


def test_a_value_that_cannot_be_sent(supervisor):
    """ready() with something that does not pickle raises where it is called, and so fails the start."""
    with pytest.raises(ChildFailed) as caught:
        supervisor.start("x", child_tasks.unready_value, ready="notify")
    assert isinstance(caught.value.__cause__, errors.UnpicklableTask)


def test_other_functions(supervisor, tmp_path):
    """SIGTERM runs finally clauses and is the true status; a coroutine runs; a lock of multiprocessing is shared."""
    events = supervisor.events()
    path = tmp_path / "out"
    child = supervisor.start("finally", child_tasks.with_finally, str(path), ready="notify")
    child.stop()
    assert path.read_text() == "finally\n"
    assert until(events, "Exited").returncode == -signal.SIGTERM
    assert supervisor.start("async", child_tasks.coroutine, ready="notify").value == "from a coroutine"
    event = safespawn.get_context().Event()
    child = supervisor.start("inherits", child_tasks.inherits, event, ready="notify", restart="never")
    event.set()
    while (exited := until(events, "Exited")).child != "inherits":
        pass
    assert (exited.end, exited.returncode) == ("ok", 0)


def test_a_deaf_function_is_killed_with_its_stack(supervisor):
    """A function that ignores everything is killed after its time, and the event shows where it was."""
    events = supervisor.events()
    supervisor.start("deaf", child_tasks.deaf, ready="notify", stop_timeout=0.2).stop()
    assert "in deaf" in until(events, "Killed").stacks
    assert until(events, "Exited").returncode == -signal.SIGKILL


def test_a_late_failure_has_its_traceback(supervisor):
    """What a running child raises is in the event of its exit."""
    events = supervisor.events()
    supervisor.start("x", child_tasks.raises_late, "boom", ready="notify", restart="never")
    exited = until(events, "Exited")
    assert isinstance(exited.error, LookupError)
    assert exited.end == "error"


def test_an_error_that_was_told_before_a_signal(supervisor):
    """A function that raised, said so, and was killed before it had ended, ended by its error."""
    events = supervisor.events()
    supervisor.start("x", child_tasks.says_and_is_killed, ready="notify", restart="never")
    exited = until(events, "Exited")
    assert (exited.end, exited.returncode, str(exited.error)) == ("error", -signal.SIGKILL, "last words")


def test_ready_and_ended_before_anybody_listened(supervisor, monkeypatch):
    """A function that said that it is ready has started, however soon it ends, and however late that is heard."""
    watch = Run.watch

    def watch_late(run):
        deadline = time.monotonic() + child_tasks.SECONDS
        while alive(run.pid) and time.monotonic() < deadline:
            time.sleep(0.002)
        watch(run)

    monkeypatch.setattr(Run, "watch", watch_late)
    events = supervisor.events()
    supervisor.start("x", child_tasks.raises_late, "boom", ready="notify", restart="never")
    assert until(events, "Exited").end == "error"


def test_nested(supervisor):
    """A child that is itself a supervisor stops its own children, in order or when it is killed."""
    child = supervisor.start("inner", child_tasks.inner_supervisor, ready="notify")
    (first, inner), before = (child.pid, child.value), child
    os.kill(child.pid, signal.SIGKILL)
    assert survivors([inner], seconds=5) == []
    events = supervisor.events()
    until(events, "Ready") if child.pid in (None, first) else None
    assert before is child
    inner = child.value
    child.stop()
    assert survivors([inner], seconds=0) == []


# --- the watchdog -----------------------------------------------------------------------------------------------------
def test_a_missed_beat_is_evidence(supervisor):
    """A child that beats no more is reported with its stacks, and left alone."""
    events = supervisor.events()
    child = supervisor.start("x", child_tasks.beats, 10, ready="notify", heartbeat=0.3)
    pid = child.pid
    hung = until(events, "Hung")
    assert "no beat for" in hung.evidence[0]
    assert "in beats" in hung.stacks
    assert (child.pid, child.state) == (pid, "up")


def test_a_hung_child_is_replaced_if_that_is_wanted(supervisor):
    """on_hung="restart" ends a child that has not beaten for two periods, with SIGCONT for one that was stopped."""
    events = supervisor.events()
    child = supervisor.start(
        "x", child_tasks.beats, 10**6, ready="notify", heartbeat=0.2, on_hung="restart", stop_timeout=1.0
    )
    first = child.pid
    os.kill(first, signal.SIGSTOP)
    assert until(events, "Hung").pid == first
    assert until(events, "Exited").end == "hung"
    until(events, "Ready")
    assert child.pid != first


def test_standing_still(supervisor):
    """A command that uses no CPU for hang_after seconds is reported once, with what the kernel says of it."""
    events = supervisor.events()
    supervisor.start("x", PLAIN, hang_after=0.3)
    hung = until(events, "Hung")
    assert "no CPU used and no context switch" in hung.evidence[0]
    assert "state S" in hung.stacks
    assert events.get(timeout=0.5) is None


# --- what cannot be ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("target", "options", "error"),
    [
        (PLAIN, {"restart": "sometimes"}, errors.BadArgument),
        (PLAIN, {"ready": "soon"}, errors.BadArgument),
        (PLAIN, {"stop_timeout": -1}, errors.BadArgument),
        (PLAIN, {"detach": True}, errors.UnsupportedOption),
        (PLAIN, {"kwargs": {}}, errors.BadArgument),
        (PLAIN, {"heartbeat": 1.0}, errors.BadArgument),
        (PLAIN, {"memory_max": 0}, errors.BadArgument),
        (PLAIN, {"backoff": 1}, errors.BadArgumentType),
        (PLAIN, {"stdout": 1, "ready": re.compile("x")}, errors.BadArgument),
        (PLAIN, {"stderr": safespawn.PIPE}, errors.BadArgument),
        (child_tasks.never_ready, {"ready": re.compile("x")}, errors.BadArgument),
        (child_tasks.never_ready, {"user": "nobody"}, errors.BadArgument),
        (child_tasks.never_ready, {"on_line": print}, errors.BadArgument),
    ],
)
def test_what_cannot_be_is_refused(target, options, error):
    """A wrong option is named before anything is started."""
    with pytest.raises(error) as caught:
        safespawn.children.make_terms("x", target, (), options)
    assert next(iter(options)) in str(caught.value)


def test_outside_of_a_supervisor():
    """In a process that nobody supervises the functions of a child do nothing."""
    safespawn.ready(1)
    safespawn.beat()
    assert not safespawn.stop_requested(0.01)
    for sup in (safespawn.Supervisor(guard="off"), safespawn.AsyncSupervisor(guard="off")):
        with pytest.raises((errors.ClosedError, errors.BadArgument)):
            sup.events()
    with pytest.raises(errors.BadArgument, match="async with"), safespawn.AsyncSupervisor(guard="off"):
        pass
    with pytest.raises(errors.BadArgument, match="strategy"):
        safespawn.Supervisor(strategy="two_for_one")


async def test_the_blocking_face_does_not_block_a_loop(async_face):
    """A Supervisor that an event loop has entered refuses all that waits for children, and names the one that can."""
    async with safespawn.Supervisor(guard="off") as supervisor:
        for refused in (lambda: supervisor.start("x", PLAIN), supervisor.serve, supervisor.events):
            with pytest.raises(errors.BadArgument, match="AsyncSupervisor"):
                refused()


def test_a_callback_that_raises(monkeypatch):
    """What on_event or on_line raises is told as a thread's exception is, and harms nobody."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))

    def fail(_):
        raise ZeroDivisionError

    with safespawn.Supervisor(guard="off", on_event=fail) as inner:
        child = inner.start("x", ["sh", "-c", "echo a; exec sleep 1000"], on_line=fail, ready=re.compile("a"))
        assert child.state == "up"
    assert child.state == "done"
    assert told == [ZeroDivisionError] * 5  # starting, the line, ready, stopping, exited


@pytest.mark.parametrize("wish", [SystemExit, KeyboardInterrupt])
async def test_a_callback_that_wants_to_exit(face, monkeypatch, wish):
    """sys.exit() in on_event, on_line or a function that says ready is told as any error, and the children go on."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))

    def leave(*_):
        raise wish

    async with keeping(face, on_event=leave) as kept:
        command = ["sh", "-c", "echo a; exec sleep 1000"]
        child = await kept.start("x", command, on_line=leave, ready=re.compile("a"), backoff=QUICK)
        os.kill(child.pid, signal.SIGKILL)
        for _ in range(2):
            await kept.until("Ready")
        assert child.state == "up"
        with pytest.raises(ChildFailed) as caught:
            await kept.start("y", PLAIN, ready=leave)
        assert type(caught.value.__cause__) is wish
    assert child.state == "done"
    assert set(told) == {wish}


@pytest.mark.parametrize("how", ["served", "left", "never left"])
def test_closed_by_a_callback(how):
    """close() in on_event returns at once; then threads and children end in order, and all the rest, as ever."""
    order, stop, stopping, closed = [], threading.Event(), threading.Event(), threading.Event()

    def on_event(event):
        kind = type(event).__name__
        if kind in ("Stopping", "Exited"):
            order.append(f"{kind} {event.child}")
        if kind == "Stopping":
            stopping.set()
        if (kind, event.child) == ("Exited", "c") and not closed.is_set():
            supervisor.close()
            supervisor.close()
            order.append("closed")
            closed.set()

    def ask():
        closed.wait(SECONDS)
        stopping.wait(0.3)  # not before the threads have ended, whoever leaves the block meanwhile
        order.append("thread")
        stop.set()

    supervisor = safespawn.Supervisor("app", guard="off", on_event=on_event)
    supervisor.thread(stop.wait, name="t", stop=ask)
    supervisor.__enter__()
    children = [supervisor.start(name, PLAIN) for name in "ab"]
    children.append(supervisor.start("c", ["sh", "-c", "sleep 0.1; exit 3"], restart="never"))
    if how == "left":
        assert closed.wait(SECONDS)
    else:
        assert supervisor.serve(timeout=SECONDS) is None
    if how == "never left":
        supervisor._closer.join(SECONDS)
    else:
        supervisor.__exit__(None, None, None)
    assert [each.state for each in children] == ["done"] * 3
    assert order[0] == "Exited c"
    assert order.index("closed") < order.index("thread") < order.index("Stopping b")
    assert [each for each in order if each[-1] in "ab"] == ["Stopping b", "Exited b", "Stopping a", "Exited a"]
    assert supervisor._engine.closed
    with pytest.raises(errors.ClosedError):
        supervisor.start("d", PLAIN)


async def test_an_event_loop_closed_by_a_callback(async_face):
    """close() in on_event returns at once; the children are stopped in order, serve returns, leaving does the rest."""
    order = []

    def on_event(event):
        order.append(f"{type(event).__name__} {event.child}")
        if order[-1] == "Ready b":
            kept.supervisor.close()
            order.append("closed")

    async with keeping(async_face, on_event=on_event) as kept:
        child = await kept.start("a", PLAIN)
        other = await kept.start("b", PLAIN)
        with anyio.fail_after(SECONDS):
            assert await kept.supervisor.serve() is None
        assert (child.state, other.state) == ("done", "done")
        with pytest.raises(errors.ClosedError):
            await kept.start("c", PLAIN)
        kept.supervisor.close()
    kept.supervisor.close()
    assert order[order.index("Ready b") :] == ["Ready b", "closed", "Stopping b", "Exited b", "Stopping a", "Exited a"]
    never_entered = safespawn.AsyncSupervisor(guard="off")
    never_entered.close()
    with pytest.raises(errors.ClosedError):
        await never_entered.__aenter__()


def test_stopped_by_a_callback():
    """stop() and restart() in on_event ask, and return at once; with a time limit, which is kept."""
    said, children = [], {}

    def on_event(event):
        if (type(event).__name__, event.child) == ("Ready", "trigger"):
            said.append(children["deaf"].stop(0.1))
            said.append(children["other"].restart())
            with pytest.raises(errors.WaitInCallback):
                children["other"].stacks()

    with safespawn.Supervisor(guard="off", on_event=on_event) as inner:
        events = inner.events()
        deaf = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"]
        children["deaf"] = inner.start("deaf", deaf, stop_timeout=LONG, ready=re.compile("up"))
        children["other"] = inner.start("other", PLAIN)
        first = children["other"].pid
        inner.start("trigger", PLAIN)
        exited = {until(events, "Exited").child for _ in range(2)}
        assert exited == {"deaf", "other"}
        becomes(lambda: children["other"].pid not in (None, first))
        assert said == [None, None]
        becomes(lambda: children["deaf"].state == "done")


async def test_asked_to_stop_by_a_callback(face):
    """request_stop() asks, and returns at once, on every face; its time limit is kept."""
    said = []

    def on_event(event):
        if (type(event).__name__, event.child) == ("Ready", "b"):
            said.append(child.request_stop(0.1))

    async with keeping(face, on_event=on_event) as kept:
        deaf = ["sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done"]
        child = await kept.start("a", deaf, stop_timeout=LONG, ready=re.compile("up"))
        other = await kept.start("b", PLAIN)
        assert (await kept.until("Exited")).child == "a"
        assert said == [None]
        await kept.call(child.stop)
        assert (child.state, other.state) == ("done", "up")


# --- what is kept -----------------------------------------------------------------------------------------------------
async def test_children_that_have_ended_are_forgotten(face, monkeypatch):
    """The newest are kept; whoever has one of the others may ask it, and stop it, but not start it again."""
    monkeypatch.setattr(keeper, "KEPT_CHILDREN", 3)
    async with keeping(face, strategy="one_for_all", restarts=LONG) as kept:
        first = await kept.start("first", PLAIN, restart="never")
        goes_on = await kept.start("goes on", PLAIN)
        children = []
        for number in range(5):
            children.append(await kept.start(f"child {number}", ["true"], restart="never"))
            await kept.until("Exited")
        os.kill(first.pid, signal.SIGKILL)
        await kept.until("Exited", "first")
        await kept.call(goes_on.restart)
        figures = await kept.supervisor.astatistics() if face.is_async else kept.supervisor.statistics()
        assert [each["name"] for each in figures["children"]] == ["first", "goes on", "child 3", "child 4"]
        assert (figures["forgotten"], figures["events"]["exited"]) == (3, 7)
        gone = children[0]
        assert (gone.name, gone.state, gone.pid, gone.restarts) == ("child 0", "done", None, 0)
        assert gone.statistics()["last_event"] == "exited"
        await kept.call(gone.stop)
        with pytest.raises(errors.ClosedError, match="child 0"):
            await kept.call(gone.restart)
        again = await kept.start("child 0", PLAIN)
        with pytest.raises(errors.ClosedError):
            await kept.call(gone.restart)
        assert (again.state, gone.state) == ("up", "done")


def test_no_more_than_a_hundred_are_kept(supervisor):
    """However many have ended, the statistics tell of the newest hundred, and how many there were before."""
    events = supervisor.events()
    for number in range(130):
        supervisor.start(str(number), ["true"], restart="never")
    for _ in range(130):
        until(events, "Exited")
    becomes(lambda: supervisor.statistics()["forgotten"] == 30)
    figures = supervisor.statistics()
    assert len(figures["children"]) == keeper.KEPT_CHILDREN == 100
    assert figures["events"]["exited"] == 130


def test_a_timer_of_days_keeps_no_process(supervisor):
    """What is left of a process goes when the next one has come, however long its times are."""
    times = {"ready_timeout": 1e9, "stop_timeout": 1e9, "backoff": safespawn.Backoff(reset_after=1e9)}
    child = supervisor.start("x", PLAIN, **times)
    runs = []
    for _ in range(3):
        runs.append(weakref.ref(child._charge.run))
        child.restart()
    becomes(lambda: gc.collect() is not None and [run() for run in runs[:-1]] == [None, None])


# --- what needs too much ---------------------------------------------------------------------------------------------
async def test_memory_max_below_what_a_child_needs(face):
    """A child that is too large as soon as it is ready is replaced a few times, and then given up, in words."""
    with pytest.raises(ChildrenGaveUp, match="failed more than 2 times") as caught:
        async with keeping(face, restarts=2) as kept:
            child = await kept.start("x", PLAIN, memory_max=4096, hang_after=0.2, backoff=QUICK)
            first = child.pid
            if face.is_async:
                await anyio.sleep(LONG)
            else:
                kept.supervisor.serve()
    assert len(caught.value.exceptions) == 3
    assert child.pid != first
    for error in caught.value.exceptions:
        assert (type(error), error.end) == (ChildFailed, "outgrown")
        assert "child 'x' needs more memory than its memory_max" in str(error)
        assert "after it was ready, and memory_max is 4,096" in str(error)


def test_memory_max_below_what_a_child_needs_degraded(caplog):
    """With give_up="degrade" it is left down, and the log says why."""
    with safespawn.Supervisor(guard="off", restarts=1, give_up="degrade") as inner:
        events = inner.events()
        child = inner.start("x", PLAIN, memory_max=4096, hang_after=0.2, backoff=QUICK)
        assert until(events, "Exited").end == "recycled"
        assert until(events, "Exited").end == "outgrown"
        until(events, "GaveUp")
        assert (child.state, child.pid) == ("given-up", None)
    assert any("needs more memory than its memory_max" in record.getMessage() for record in caplog.records)


# --- levels -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("task", ["asks_and_logs", "beats_and_logs", "only_logs", "logs_beside_a_copy"])
def test_a_running_function_takes_new_levels(supervisor, task):
    """Each change of levels here reaches a function that runs, when it asks, beats or logs; and once."""
    chatty = logging.getLogger("chatty")
    heard, handler = queue.SimpleQueue(), logging.Handler()
    handler.emit = lambda record: heard.put(record.levelname)
    chatty.addHandler(handler)
    before = chatty.level
    try:
        chatty.setLevel(logging.ERROR)
        child = supervisor.start("x", getattr(child_tasks, task), ready="notify")
        for count, level in enumerate(("INFO", "DEBUG"), 1):
            chatty.setLevel(level)
            while heard.get(timeout=SECONDS) != level:
                pass
            assert child._charge.run.worker.journal.cells[journal.LEVELS] == count
    finally:
        chatty.setLevel(before)
        chatty.removeHandler(handler)


def test_levels_that_nobody_reads(supervisor, monkeypatch):
    """A function that takes no levels is told no more when its socket is full, and the word to stop comes past them."""
    events = supervisor.events()
    child = supervisor.start("x", child_tasks.never_reads, ready="notify")
    run = child._charge.run
    done = threading.Event()

    def fill():
        for number in range(10_000):
            before = run.levels
            run.tell_levels((0, {"root": 30, "x" * 1000: number}))
            if run.levels is before:
                break
        done.set()

    supervisor._family.keeper.call(fill)
    assert done.wait(SECONDS)
    assert 0 < run.worker.journal.cells[journal.LEVELS] < 10_000
    child.stop()
    assert until(events, "Exited").returncode == -signal.SIGTERM


def test_children_may_be_declared():
    """A declared child is started when its supervisor is entered, before the declared threads."""
    supervisor = safespawn.Supervisor(guard="off")
    order = []
    supervisor.thread(lambda: order.append("thread"), name="t")
    supervisor.declare(lambda: order.append("child") or supervisor.start("x", PLAIN), name="c")
    with supervisor:
        assert supervisor.declared["c"].state == "up"
        supervisor.declared["t"].join()
    assert order == ["child", "thread"]


def test_waiting_in_a_callback(supervisor):
    """Whoever serves the children cannot wait for them: that is said, and the children go on."""
    found = []

    def on_event(event):
        if type(event).__name__ == "Ready" and not found:
            try:
                inner.start("y", PLAIN)
            except errors.WaitInCallback as error:
                found.append(error)

    with safespawn.Supervisor(guard="off", on_event=on_event) as inner:
        inner.start("x", PLAIN)
    assert len(found) == 1


def test_a_function_of_a_program_that_nobody_can_import(monkeypatch):
    """It is refused before anything runs, as in a pool, where cloudpickle is not there to send it by value."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    monkeypatch.setattr(safespawn.children.main_module, "describe", lambda: None)
    here = types.FunctionType((lambda: None).__code__, {"__name__": "__main__"}, "here")
    here.__module__, here.__qualname__ = "__main__", "here"
    monkeypatch.setattr(sys.modules["__main__"], "here", here, raising=False)
    with safespawn.Supervisor(guard="off") as supervisor, pytest.raises(safespawn.UnpicklableTask):
        supervisor.start("here", here)
