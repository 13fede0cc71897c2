"""multiprocessing's interface over processes of ours: each thing that a program may use, in a real child."""

import contextlib
import logging
import multiprocessing
import os
import pickle
import resource
import selectors
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import context as contexts
from multiprocessing import process as processes
from multiprocessing import resource_tracker, shared_memory, util
from multiprocessing.connection import wait

import pytest

import safespawn
from safespawn import context
from safespawn._core import child
from safespawn._drive import engine
from safespawn.errors import ClosedError, SpawnError, SpawnLost
from support import mp_targets as targets
from support.children import reap_orphans, survivors

SECONDS = 20  # for what takes milliseconds


@pytest.fixture(scope="module", autouse=True)
def _tracker():
    """The tracker of named semaphores lives as long as the program, and so do the first pages of its shared heap."""
    resource_tracker.ensure_running()
    util.get_logger()
    multiprocessing.RawValue("i")


@pytest.fixture(autouse=True)
def supervisor():
    """One for each test: what a test leaves behind shows."""
    with safespawn.Supervisor("test", guard="off") as supervisor:
        yield supervisor
        for process in multiprocessing.active_children():
            process.kill()
            process.join(SECONDS)


@pytest.fixture
def mp():
    """The context."""
    return safespawn.get_context()


@pytest.fixture
def queue():
    """A queue that leaves nothing."""
    queue = targets.Mailbox()
    yield queue
    queue.close()


@contextlib.contextmanager
def running(mp, target=targets.sleep):
    """A process that runs, and is ended."""
    event = mp.Event()
    process = mp.Process(target=target, args=(event,))
    process.start()
    assert event.wait(SECONDS)
    yield process
    process.kill()
    process.join()
    process.close()


def run(mp, target, *args, **options):
    """A process from start to end."""
    process = mp.Process(target=target, args=args, **options)
    process.start()
    process.join(SECONDS)
    assert process.exitcode is not None
    return process


# --- what it is -------------------------------------------------------------------------------------------------------
def test_it_is_a_context(mp):
    """It is a BaseContext, and multiprocessing knows it by name."""
    assert isinstance(mp, contexts.BaseContext)
    assert multiprocessing.get_context("safespawn") is mp
    assert mp.get_start_method() == "safespawn"
    assert mp.get_context() is mp
    assert mp.get_context("spawn") is multiprocessing.get_context("spawn")
    assert mp.Process is safespawn.Process
    assert pickle.loads(pickle.dumps(mp.get_start_method())) == "safespawn"


@pytest.mark.parametrize(
    ("target", "args", "code"),
    [
        (targets.nothing, (), 0),
        (targets.leave, (None,), 0),
        (targets.leave, (3,), 3),
        (targets.leave, (-1,), 255),
        (targets.leave, ("words",), 1),
        (targets.fail, (), 1),
        (targets.leave_at_once, (9,), 9),
        (targets.die, (signal.SIGKILL,), -signal.SIGKILL),
        (targets.die, (signal.SIGTERM,), -signal.SIGTERM),
        (targets.die, (signal.SIGABRT,), -signal.SIGABRT),
    ],
)
def test_exit_codes(mp, capfd, target, args, code):
    """The exit code is the process's own, and a signal's end is negative; what it says goes to stderr."""
    process = run(mp, target, *args, name="P")
    assert process.exitcode == code
    assert not process.is_alive()
    err = capfd.readouterr().err
    if target is targets.fail:
        assert err.startswith("Process P:\nTraceback")
        assert err.endswith("ValueError: it was meant to\n")
        assert "During handling" not in err
    else:
        assert err == ("words\n" if args == ("words",) else "")


def test_a_process_sees_the_present_state(mp, queue, monkeypatch, tmp_path):
    """Directory, environment, path, arguments, umask, key, name: as they are when it starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MP_TEST", "now")
    monkeypatch.setattr(sys, "argv", ["some", "words"])
    monkeypatch.setattr(sys, "path", [*sys.path, "/somewhere"])
    old = os.umask(0o027)
    try:
        process = mp.Process(target=targets.facts, args=(queue,), name="its name", daemon=True)
        process.start()
    finally:
        os.umask(old)
    found = queue.get()
    process.join()
    this = multiprocessing.current_process()
    assert found.pop("descriptors")[:3] == [0, 1, 2]
    assert found == {
        "name": "its name", "daemon": True, "authkey": bytes(this.authkey), "argv": ["some", "words"],
        "path": sys.path, "cwd": str(tmp_path), "env": "now", "umask": 0o027,
        "parent": (os.getpid(), this.name, True), "stdin": ("", "/dev/null"),
        "method": "safespawn", "level": util.get_logger().getEffectiveLevel(), "sigint": True,
        "group": found["pid"] if _no_terminal() else os.getpgrp(), "pid": process.pid, "threads": 1,
        "comm": "its name", "worker": None, "blocked": set(),
    }  # fmt: skip


def _no_terminal():
    with open("/proc/self/stat") as file:
        return file.read().rpartition(")")[2].split()[4] == "0"


def test_a_process_holds_no_strangers_descriptor(mp, queue):
    """It has its standard streams, those of multiprocessing, and what its arguments hold."""
    files = [open(os.devnull) for _ in range(20)]  # noqa: SIM115 - closed below
    run(mp, targets.facts, queue)
    for file in files:
        file.close()
    assert len(queue.get()["descriptors"]) <= 3 + 2 + 2 + 1 + 1 + 1


def test_sigint_ignored_here_is_ignored_there(mp, queue):
    """A program that ignores SIGINT has processes that do."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run(mp, targets.facts, queue)
    finally:
        signal.signal(signal.SIGINT, before)
    assert queue.get()["sigint"] is False


def test_sigint_is_a_keyboard_interrupt(mp, capfd):
    """SIGINT raises KeyboardInterrupt in a process, as in any Python."""
    with running(mp) as process:
        os.kill(process.pid, signal.SIGINT)
        process.join(SECONDS)
        assert process.exitcode == 1
    assert "KeyboardInterrupt" in capfd.readouterr().err


def test_subclass(mp, queue):
    """A subclass with a `run` of its own."""
    process = targets.Subclass(queue, [1, 2, 3])
    assert process.daemon
    process.start()
    assert queue.get() == ("sub", 6)
    process.join()
    assert process.exitcode == 0
    assert mp.active_children() == []


def test_threads_and_exit_functions(mp, queue):
    """A process ends when its threads have, and its exit functions and finalizers run."""
    run(mp, targets.leave_a_thread, queue)
    assert queue.get() == "the thread's"
    reader, writer = mp.Pipe(duplex=False)
    run(mp, targets.register_exit, writer)
    writer.close()
    assert {reader.recv(), reader.recv()} == {"finalizer", "atexit"}
    reader.close()


def test_log_settings(mp, capfd):
    """The level of multiprocessing's logger, and its handler on stderr, are those of the parent."""
    logger = util.get_logger()
    level, handlers, flag = logger.level, logger.handlers[:], util._log_to_stderr
    try:
        mp.log_to_stderr(logging.ERROR)
        run(mp, targets.log_something, logging.ERROR)
        run(mp, targets.log_something, logging.INFO)
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers
        util._log_to_stderr = flag
    assert capfd.readouterr().err == "[ERROR/Process-%s] from the process\n" % ":".join(  # noqa: UP031 - a count
        str(each) for each in (next(processes._process_counter) - 2,)
    )


# --- the object -------------------------------------------------------------------------------------------------------
def test_life_of_a_process_object(mp):
    """pid, is_alive, exitcode, sentinel, join with a timeout, terminate, close: as multiprocessing's."""
    process = mp.Process(target=targets.sleep)
    assert (process.pid, process.exitcode, process.is_alive()) == (None, None, False)
    with pytest.raises(ValueError, match="not started"):
        _ = process.sentinel
    process.start()
    assert process.is_alive()
    assert process.exitcode is None
    assert mp.active_children() == [process]
    assert wait([process.sentinel], 0) == []
    began = time.monotonic()
    process.join(0.05)
    assert 0.04 < time.monotonic() - began < 1
    assert process.exitcode is None
    with pytest.raises(ValueError, match="still running"):
        process.close()
    process.terminate()
    assert wait([process.sentinel], SECONDS) == [process.sentinel]
    assert process.exitcode == -signal.SIGTERM
    process.join()
    assert "exitcode=-SIGTERM" in repr(process)
    process.terminate()  # too late: nothing happens
    process.kill()
    process.close()
    with pytest.raises(ValueError, match="closed"):
        process.join()
    assert mp.active_children() == []


def test_kill_and_signals(mp):
    """SIGKILL ends what ignores SIGTERM; the signal is the exit code."""
    with running(mp, targets.ignore_sigterm) as process:
        process.terminate()
        process.join(0.1)
        assert process.is_alive()
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL


def test_sentinels_in_a_selector(mp):
    """The sentinel can be watched with anything else, before and after the end."""
    short, long = mp.Process(target=targets.nothing), mp.Process(target=targets.sleep)
    with selectors.DefaultSelector() as selector:
        for process in (short, long):
            process.start()
            selector.register(process.sentinel, selectors.EVENT_READ, process)
        for _ in range(2):
            assert [key.data for key, _ in selector.select(SECONDS)] == [short]
            short.join()
    long.kill()
    long.join()


def test_several_threads_wait(mp):
    """Any number of threads may wait for one process; all are told."""
    process = mp.Process(target=targets.leave, args=(4,))
    found = []
    process.start()
    threads = [threading.Thread(target=lambda: (process.join(), found.append(process.exitcode))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert found == [4] * 8


def test_what_cannot_be_pickled_is_told_at_the_start(mp):
    """A target that no other process could find: `start` raises, and nothing runs."""
    process = mp.Process(target=lambda: None)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        process.start()
    assert process.pid is None


def test_what_cannot_be_unpickled_is_told_by_the_process(mp, capfd):
    """The traceback goes to the process's stderr, and its exit code is 1."""
    assert run(mp, targets.put, targets.Grumpy(), 1).exitcode == 1
    assert "ValueError: invalid literal" in capfd.readouterr().err


def test_a_process_that_cannot_be_set_up(mp, tmp_path, monkeypatch):
    """Its directory is not there: `start` raises the error of the operating system."""
    monkeypatch.chdir(tmp_path)
    tmp_path.rmdir()
    with pytest.raises(FileNotFoundError):
        mp.Process(target=targets.nothing).start()
    monkeypatch.undo()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    with pytest.raises(SpawnError) as caught:
        _start_with_broken_group(mp, monkeypatch)
    assert caught.value.stage == "process_group"
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == limits


def _start_with_broken_group(mp, monkeypatch):
    from safespawn._zygote import wire

    monkeypatch.setattr(wire, "GROUP_AUTO", 2**22 - 1)  # no such group
    mp.Process(target=targets.nothing).start()


def test_large_arguments_and_many_descriptors(mp, queue):
    """A pickle of megabytes, and more descriptors than one message takes."""
    run(mp, targets.size, queue, b"x" * 3_000_000)
    assert queue.get() == 3_000_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    pairs = [mp.Pipe(duplex=False) for _ in range(600)]
    try:
        process = mp.Process(target=targets.send_numbers, args=([writer for _, writer in pairs],))
        process.start()
        assert [reader.recv() for reader, _ in pairs] == list(range(600))
        process.join()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for pair in pairs:
            for connection in pair:
                connection.close()


# --- what is shared ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["Lock", "RLock", "Semaphore", "BoundedSemaphore"])
def test_locks(mp, name):
    """Two processes count under a lock, and lose nothing; another one cannot take what is taken."""
    lock, value = getattr(mp, name)(), mp.Value("i", 0, lock=False)
    running = [mp.Process(target=targets.count_up, args=(lock, value, 200)) for _ in range(2)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    assert value.value == 400
    with lock:
        assert run(mp, targets.take_all, lock).exitcode == 0


def test_a_lock_that_only_its_process_has(mp):
    """One that is made in the call, and held by nobody here, lives until the process has ended, and no longer."""
    value = mp.Value("i", 0)
    process = mp.Process(target=targets.count_up, args=(mp.RLock(), value, 3))
    process.start()
    process.join(SECONDS)
    assert (process.exitcode, value.value) == (0, 3)
    assert process._popen._kept is None


def test_semaphore_counts(mp):
    """A semaphore of three can be taken three times."""
    assert run(mp, targets.take_all, mp.Semaphore(3)).exitcode == 3


def test_condition_event_barrier(mp, queue):
    """What one process waits for, another one says."""
    condition, value = mp.Condition(), mp.Value("i", 0)
    with condition:
        process = mp.Process(target=targets.notify, args=(condition, value))
        process.start()
        assert condition.wait(SECONDS)
    process.join()
    assert value.value == 7
    first, second = mp.Event(), mp.Event()
    process = mp.Process(target=targets.set_when_set, args=(first, second))
    process.start()
    first.set()
    assert second.wait(SECONDS)
    process.join()
    barrier = mp.Barrier(3)
    running = [mp.Process(target=targets.meet, args=(barrier, queue)) for _ in range(2)]
    for process in running:
        process.start()
    barrier.wait(SECONDS)
    assert {queue.get(), queue.get()} == {process.pid for process in running}
    for process in running:
        process.join()


def test_pipes(mp):
    """A connection goes along, and works both ways."""
    here, there = mp.Pipe()
    process = mp.Process(target=targets.answer, args=(there,))
    process.start()
    there.close()
    here.send([1, 2])
    assert here.recv() == [1, 2, 1, 2]
    process.join()
    with pytest.raises(EOFError):
        here.recv()
    here.close()


def test_queues(mp):
    """Queue, JoinableQueue: both ways, to the last item."""
    queue = mp.Queue()
    process = mp.Process(target=targets.put, args=(queue, {"a": b"x" * 100_000}))
    process.start()
    assert queue.get(timeout=SECONDS) == {"a": b"x" * 100_000}
    process.join()
    queue.close()
    queue.join_thread()
    work = mp.JoinableQueue()
    process = mp.Process(target=targets.work_off, args=(work,))
    process.start()
    for item in (1, 2, None):
        work.put(item)
    work.join()
    process.join()
    assert process.exitcode == 0
    work.close()
    work.join_thread()


def test_shared_values(mp):
    """Array, RawValue: what the process writes is there."""
    values, raw = mp.Array("i", 5), mp.RawValue("d")
    assert run(mp, targets.fill, values, raw).exitcode == 0
    assert values[:] == [0, 1, 4, 9, 16]
    assert raw.value == 2.5


def test_shared_memory(mp, queue):
    """Shared memory by name: made here, or made in a process that has ended since."""
    memory = shared_memory.SharedMemory(create=True, size=4)
    assert run(mp, targets.write_shared_memory, memory.name).exitcode == 0
    assert bytes(memory.buf[:4]) == b"seen"
    memory.close()
    memory.unlink()
    run(mp, targets.make_shared_memory, queue)
    memory = shared_memory.SharedMemory(queue.get())
    assert bytes(memory.buf[:4]) == b"kept"
    memory.close()
    memory.unlink()


def test_the_resource_tracker_is_shared(mp, queue):
    """A process uses this program's tracker, and starts none."""
    run(mp, targets.tracker, queue)
    assert queue.get() == (True, None)


def test_manager(mp):
    """A manager is a process of ours; what others write into it is there."""
    with mp.Manager() as manager:
        mapping = manager.dict()
        process = run(mp, targets.update, mapping)
        assert mapping["from"] == process.pid
        assert type(manager._process) is safespawn.Process


# --- pools ------------------------------------------------------------------------------------------------------------
def test_multiprocessings_own_pool(mp):
    """A multiprocessing.Pool on processes of ours."""
    with mp.Pool(2) as pool:
        assert pool.map(targets.square, range(20)) == [number * number for number in range(20)]
        assert all(type(process) is safespawn.Process for process in pool._pool)
        pool.close()
        pool.join()


def test_process_pool_executor(mp):
    """ProcessPoolExecutor takes the context; its workers are replaced after their tasks; one that dies is told."""
    with ProcessPoolExecutor(2, mp_context=mp) as executor:
        assert list(executor.map(targets.square, range(20), chunksize=3)) == [n * n for n in range(20)]
    with ProcessPoolExecutor(1, mp_context=mp, max_tasks_per_child=2) as executor:
        pids = [executor.submit(targets.where, None).result(SECONDS) for _ in range(6)]
    assert len(set(pids)) == 3
    with ProcessPoolExecutor(1, mp_context=mp) as executor, pytest.raises(BrokenProcessPool):
        executor.submit(targets.leave_at_once, 3).result(SECONDS)


def test_processes_in_processes(mp, queue):
    """A process starts one, uses a pool of either kind; a pool's worker starts one."""
    process = mp.Process(target=targets.start_another, args=(queue,))
    process.start()
    assert {queue.get(), queue.get()} == {"grandchild", 0}
    process.join()
    process = mp.Process(target=targets.use_pools, args=(queue,))
    process.start()
    assert [queue.get(), queue.get()] == [[0, 1, 4, 9]] * 2
    process.join()
    with safespawn.Pool(1) as pool:
        assert pool.map(targets.start_in_worker, [5, 6]) == [(5, 0), (6, 0)]


def test_a_daemon_has_no_children(mp, queue, capfd):
    """The rule of multiprocessing holds."""
    assert run(mp, targets.start_another, queue, daemon=True).exitcode == 1
    assert "daemonic processes are not allowed to have children" in capfd.readouterr().err


# --- templates and their end ------------------------------------------------------------------------------------------
def test_preload(mp, queue):
    """`set_forkserver_preload` names modules that every process finds imported."""
    run(mp, targets.was_preloaded, queue, "this")
    try:
        mp.set_forkserver_preload(["calendar", "this"])
        run(mp, targets.was_preloaded, queue, "this")
    finally:
        mp.set_forkserver_preload([])
    assert [queue.get(), queue.get()] == [False, True]
    with pytest.raises(TypeError):
        mp.set_forkserver_preload("calendar")


def templates(supervisor):
    """The pids of the templates."""
    return [template.pid for template in supervisor._engine.templates if not template.closed]


def test_threads_share_one_template(mp, supervisor):
    """Eight threads that start the first processes at once have one template made."""
    running = [mp.Process(target=targets.nothing) for _ in range(8)]
    threads = [threading.Thread(target=process.start) for process in running]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for process in running:
        process.join()
    assert [process.exitcode for process in running] == [0] * 8
    assert len(templates(supervisor)) == 1


@pytest.mark.parametrize("end", [lambda process: process.kill(), lambda process: os.kill(process.pid, signal.SIGUSR1)])
def test_a_killed_template(mp, supervisor, end):
    """Its processes live on, and how they end is still known; the next process has another template."""
    with running(mp) as process:
        (template,) = templates(supervisor)
        os.kill(template, signal.SIGKILL)
        assert run(mp, targets.leave, 5).exitcode == 5
        assert templates(supervisor) != [template]
        assert process.is_alive()
        end(process)
        process.join()
        assert process.exitcode in (-signal.SIGKILL, -signal.SIGUSR1)


def test_an_exit_that_nobody_can_tell(mp, supervisor, monkeypatch):
    """Then the exit code says that it is unknown, and is equal to no number."""
    monkeypatch.setattr(child, "kernels_word", lambda *_: None)
    monkeypatch.setattr("safespawn._core.child.kept_status", lambda _: None)
    with running(mp) as process:
        os.kill(templates(supervisor)[0], signal.SIGKILL)
        process.kill()
        process.join()
        code = process.exitcode
        assert isinstance(code, context.UnknownExit)
        assert isinstance(code.reason, SpawnLost)
        assert code
        assert code not in range(-64, 256)
        assert f"{code}" == "unknown"
        assert "exitcode=unknown" in repr(process)
        assert isinstance(pickle.loads(pickle.dumps(code)), context.UnknownExit)


def test_leaving_the_supervisor_ends_the_processes(mp):
    """Whether daemons or not; they ended by SIGTERM, and that is known."""
    with safespawn.Supervisor("inner", guard="off") as inner:
        processes = [mp.Process(target=targets.sleep, daemon=daemon) for daemon in (True, False)]
        for process in processes:
            process.start()
        assert len(templates(inner)) == 1
    assert [process.exitcode for process in processes] == [-signal.SIGTERM] * 2
    assert not survivors([process.pid for process in processes])
    with pytest.raises(ClosedError):
        inner.run(["true"])


def test_a_forked_copy(mp):
    """A copy of this program starts processes of its own, and leaves the original's alone."""
    with running(mp) as process:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with pytest.raises(AssertionError, match="can only join a child process"):
                    process.join()
                assert mp.active_children() == []
                assert process._popen.poll() is None
                process._popen.terminate()
                own = mp.Process(target=targets.leave, args=(6,))
                own.start()
                own.join()
                code = own.exitcode
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6
        assert process.is_alive()
    reap_orphans()


def test_a_forgotten_process_runs_nothing_of_ours(mp):
    """Forgetting a process calls no function of the library, in which a Ctrl-C would be lost; the next start closes."""
    process = mp.Process(target=targets.nothing)
    process.start()
    process.join()
    sentinel = os.readlink(f"/proc/self/fd/{process.sentinel}"), process.sentinel
    assert sentinel[0] == "anon_inode:[pidfd]"
    called = []
    sys.setprofile(lambda frame, event, _: called.append(frame.f_code.co_filename) if event == "call" else None)
    try:
        del process
    finally:
        sys.setprofile(None)
    assert not [file for file in called if "safespawn" in file and "tests" not in file], called
    with running(mp):
        pass
    assert sentinel[1] not in [held.child.pidfd for held in engine._held.values()]


def test_a_process_chooses_no_start_method():
    """What a process is told of multiprocessing's default is no use of it: a later Supervisor warns of none."""
    program = """
import multiprocessing.context as contexts
import safespawn

if __name__ == "__main__":
    process = safespawn.Process(target=int)
    process.start()
    process.join()
    print(process.exitcode, contexts._default_context._actual_context)
"""
    done = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "0 None\n", done.stderr
