"""
Applications that change what they are, one story each: `fault_worlds.py STORY`.

A story asserts as it goes and prints "fine" at its end; what it started must not outlive it.
"""

import asyncio
import ctypes
import gc
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import warnings

import fault_user

import safespawn
from safespawn import errors, supervisor

CLONE_NEWUTS = 0x04000000
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)  # which is the point


def engine():
    """The default supervisor's engine."""
    return supervisor.default_supervisor()._engine


def zygote_pid():
    """The present zygote."""
    return engine()._current[False].pid


def statuses(count, first=0):
    """Run *count* commands with exit codes of their own; all must be right."""
    for number in range(first, first + count):
        code = number % 250
        done = safespawn.run(["sh", "-c", f"echo {number}; exit {code}"], capture_output=True)
        assert (done.returncode, done.stdout) == (code, b"%d\n" % number), (number, done)


def in_threads(count, work):
    """Run *work(number)* in so many threads; the first failure is raised here."""
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001 - told to the test
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


# --- who waits for whom -----------------------------------------------------------------------------------------------
def sigchld_ignored():
    """The application ignores SIGCHLD, so the kernel reaps its children before anybody can."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    in_threads(4, lambda number: statuses(60, number * 60))
    process = safespawn.Popen(["sh", "-c", "exit 9"])
    assert process.wait() == 9


def waitpid_thief():
    """A thread of the application waits for any child, all the time."""
    stop = threading.Event()

    def steal():
        while not stop.is_set():
            try:
                os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                continue

    thief = threading.Thread(target=steal)
    thief.start()
    try:
        in_threads(4, lambda number: statuses(30, number * 30))
        os.kill(zygote_pid(), signal.SIGKILL)
        for _ in range(3):
            try:
                safespawn.run(["true"])
            except errors.SpawnLost:
                continue
        statuses(20)
    finally:
        stop.set()
        thief.join()


def first_use():
    """Many threads' first commands at once start one zygote."""
    barrier = threading.Barrier(64)

    def work(number):
        barrier.wait()
        statuses(3, number)

    in_threads(64, work)
    assert engine().boots == 1, engine().boots


def first_use_async():
    """Many tasks' first commands at once start one zygote, beside threads."""

    async def task(number):
        done = await safespawn.arun(["sh", "-c", f"exit {number}"])
        assert done.returncode == number

    async def main():
        await asyncio.gather(*[task(number) for number in range(40)])

    in_threads(3, lambda _: asyncio.run(main()))
    assert engine().boots == 1, engine().boots


# --- copies -----------------------------------------------------------------------------------------------------------
def copied():
    """Both sides of os.fork() run commands at once; what belongs to the original is refused in the copy."""
    safespawn.run(["true"])
    ours = zygote_pid()
    reader = safespawn.Popen(["cat"], stdin=-1, stdout=-1)
    sleeper = safespawn.Popen(["sleep", "100"])
    stay_read, stay_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(stay_write)
            for use in (reader.wait, reader.poll, reader.communicate, sleeper.terminate, sleeper.stop):
                try:
                    use()
                except errors.ForeignCopy:
                    continue
                raise AssertionError(use)
            in_threads(4, lambda number: statuses(50, number * 50))
            assert zygote_pid() != ours
            supervisor.default_supervisor().close()
            os.read(stay_read, 1)  # lives on, with its copies of every descriptor
            status = 0
        finally:
            os._exit(status)
    os.close(stay_read)
    in_threads(4, lambda number: statuses(50, number * 50))
    assert zygote_pid() == ours
    reader.stdin.write(b"said")
    began = time.monotonic()
    reader.stdin.close()
    assert reader.stdout.read() == b"said"
    assert reader.wait(5) == 0
    assert time.monotonic() - began < 2.0, "the copy held the write end"
    assert sleeper.poll() is None, "the copy ended the original's child"
    sleeper.kill()
    assert sleeper.wait() == -signal.SIGKILL
    reader.stdout.close()
    os.close(stay_write)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def copied_storm():
    """Copies are made all the time, by a thread, and each runs commands while the original does."""
    safespawn.run(["true"])
    codes = []

    def fork():
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    statuses(3)
                    supervisor.default_supervisor().close()
                    status = 0
                finally:
                    os._exit(status)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    forker = threading.Thread(target=fork)
    forker.start()
    in_threads(2, lambda number: statuses(60, number * 60))
    forker.join()
    assert codes == [0] * 10, codes
    assert engine().boots == 1


def daemonised():
    """The original exits, its copy of a copy lives: it runs commands, and tells by the pipe that it was given."""
    safespawn.run(["true"])
    pid = os.fork()
    if pid:
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    statuses(20)
    assert engine().boots == 1
    supervisor.default_supervisor().close()


def refused():
    """The interpreter lies where this user may not go: that is an error of ours, and nothing runs as root instead."""
    try:
        done = safespawn.run(["id", "-u"])
    except errors.SafespawnError:
        return
    raise AssertionError(done)


# --- another world ----------------------------------------------------------------------------------------------------
def dropped():
    """Root becomes nobody after the zygote was started: no child is root's any more."""
    assert safespawn.check_output(["id", "-u"]) == b"0\n"
    before = zygote_pid()
    fault_user.become_nobody()
    ids = safespawn.check_output(["sh", "-c", "id -u; id -g; id -G"])
    assert ids == b"65534\n65534\n65534\n", ids
    assert zygote_pid() != before


def dropped_for_a_moment():
    """Another effective user for a while: the command runs as that user, and afterwards as the old one."""
    safespawn.run(["true"])
    os.seteuid(65534)
    if os.access(sys.executable, os.X_OK, effective_ids=True):
        assert safespawn.check_output(["id", "-u"]) == b"65534\n"
    else:
        refused()
    os.seteuid(0)
    assert safespawn.check_output(["id", "-u"]) == b"0\n"


def another_root():
    """After chroot() into an empty directory nothing runs in the old root: the start fails, and says so."""
    safespawn.run(["true"])
    root, here = os.open("/", os.O_PATH), os.open(".", os.O_PATH)
    empty = tempfile.mkdtemp()
    os.chroot(empty)
    refused()
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(here)
    os.close(root)
    os.close(here)
    os.rmdir(empty)
    assert safespawn.run(["true"]).returncode == 0


def another_namespace():
    """After unshare() of the host name a command sees the new name, not the zygote's."""
    name = safespawn.check_output(["hostname"])
    before = zygote_pid()
    if ctypes.CDLL(None).unshare(CLONE_NEWUTS) != 0:
        print("not permitted")
        return
    socket.sethostname("elsewhere")
    assert safespawn.check_output(["hostname"]) == b"elsewhere\n" != name
    assert zygote_pid() != before
    statuses(10)
    assert engine().boots == 2


# --- threads, trees ---------------------------------------------------------------------------------------------------
def limited():
    """An application without the right to change namespaces, as nearly all are, starts one zygote and keeps it."""
    if os.environ.pop("LIMITED", None) is None:
        for capability in (18, 21):  # CAP_SYS_CHROOT, CAP_SYS_ADMIN
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP, in effect from the next exec
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LIMITED": "1"})
    statuses(5)
    assert engine().boots == 1, engine().boots


def short_thread():
    """The thread that started a child has ended; the child lives, with a death signal too."""
    started = []
    for options in ({}, {"pdeathsig": signal.SIGKILL}):
        thread = threading.Thread(
            target=lambda given=options: started.append(safespawn.Popen(["sleep", "100"], **given))
        )
        thread.start()
        thread.join()
    statuses(10)
    for process in started:
        assert process.poll() is None
        process.kill()
        assert process.wait() == -signal.SIGKILL


def bomb():
    """A chain of thirty generations, each of which goes on forking and ignores SIGTERM, is gone after a timeout."""
    program = os.path.join(os.path.dirname(os.path.abspath(__file__)), "fault_bomb.py")
    read_fd, write_fd = os.pipe()
    try:
        safespawn.run([sys.executable, "-I", "-S", program, "30", str(write_fd)], pass_fds=[write_fd], timeout=3)
    except errors.TimeoutExpired:
        pass
    else:
        raise AssertionError("it ended by itself")
    os.close(write_fd)
    said = b""
    while chunk := os.read(read_fd, 65536):  # the end comes when the last of them is gone
        said += chunk
    assert b"deepest" in said, said[-100:]
    os.close(read_fd)


# --- re-entry ---------------------------------------------------------------------------------------------------------
def alarms():
    """A signal handler runs a command, two hundred times a second, whatever the main thread is just doing."""
    inside = []
    handled = []

    def handler(_number, _frame):
        if len(inside) < 3:  # three deep
            inside.append(1)
            try:
                handled.append(safespawn.run(["sh", "-c", "exit 6"]).returncode)
            finally:
                inside.pop()

    statuses(1)  # an import, even a lazy one, cannot be entered again by its own thread
    signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.005)
    try:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            with safespawn.Supervisor("again", guard="off"):
                statuses(5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(handled) > 20, len(handled)
    assert set(handled) == {6}


def finalisers():
    """A finaliser that runs a command comes at any allocation: during a boot, a start, a wait."""
    ran = []

    class Garbage:
        def __init__(self):
            self.me = self

        def __del__(self):
            if not ran or ran[-1] is not None:
                ran.append(None)
                ran[-1] = safespawn.run(["sh", "-c", "exit 5"]).returncode

    statuses(1)  # an import, even a lazy one, cannot be entered again by its own thread
    gc.set_threshold(20)
    until = time.monotonic() + 2
    while time.monotonic() < until:
        with safespawn.Supervisor("again", guard="off"):
            for number in range(5):
                Garbage()
                statuses(1, number)
    gc.set_threshold(700)
    gc.collect()
    assert len(ran) > 5
    assert set(ran) == {5}, ran


def descriptors():
    """What the descriptors of this process point at."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[name] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the others
    return found


def main():
    """Play the story; nothing may be left of it in this process."""
    before = descriptors()
    globals()[sys.argv[1]]()
    supervisor.default_supervisor().close()
    gc.collect()
    assert len(descriptors()) <= len(before), descriptors()
    assert threading.active_count() == 1
    print("fine", flush=True)


main()
