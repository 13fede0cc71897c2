"""
A program with an order guard: `guard_watch.py STORY POLICY`. It prints what its story tells, as JSON.

Every line that starts something ends with a comment `# here: KIND`, by which the test knows its number.
"""

import json
import multiprocessing
import os
import pty
import subprocess
import sys
import threading
import warnings

import safespawn
from safespawn import guard

POLICY = sys.argv[2]
warnings.simplefilter("always")


def leave(pid):
    """The end of a forked child, which does nothing."""
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def fork():
    """Fork."""
    leave(os.fork())  # here: fork


def forkpty():
    """Fork with a terminal."""
    pid, fd = pty.fork()  # here: forkpty
    leave(pid)
    os.close(fd)


def system():
    """A shell command."""
    assert os.system("exit 3") == 3 << 8  # here: system


def popen():
    """Another one, with its output."""
    with os.popen("echo x") as file:  # here: popen
        assert file.read() == "x\n"


def preexec():
    """A function of ours between fork and exec."""
    subprocess.run(["true"], preexec_fn=os.setsid, check=True)  # here: preexec


def start_method():
    """Ask for the start method."""
    multiprocessing.get_context("fork")  # here: start_method


def forked_process():
    """A process of that method."""
    process = multiprocessing.context.ForkProcess(target=print)
    process.start()  # here: forked_process
    process.join()


STARTS = (fork, forkpty, system, popen, preexec, start_method, forked_process)


def kinds():
    """Each kind of start, with a thread alive; what came of it."""
    release = threading.Event()
    safespawn.init(guard=POLICY)
    threading.Thread(target=release.wait, name="poller").start()
    found = {}
    for start in STARTS:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            try:
                start()
                error = None
            except guard.errors.UnsafeStart as caught:
                error = [caught.kind, *caught.place, str(caught)]
        found[start.__name__] = {
            "error": error,
            "warnings": [[type(each.message).__name__, each.filename, each.lineno, str(each.message)] for each in seen],
        }
    release.set()
    return found


def safe():
    """What safespawn starts, and a plain subprocess, are not met."""
    safespawn.init(guard="error")
    subprocess.run(["true"], check=True)
    safespawn.run(["true"], check=True)
    with safespawn.Pool(1) as pool:
        value = pool.apply(abs, (-1,))
    process = multiprocessing.Process(target=abs, args=(1,))
    process.start()
    process.join()
    return [value, process.exitcode, type(process._popen).__module__, multiprocessing.get_start_method()]


def methods():
    """The default start method is ours, and a safe choice of the program's own is respected."""
    safespawn.init(guard="error", start_method=None)
    before = multiprocessing.context._default_context._default_context.get_start_method()
    safespawn.init(guard="error")
    first = multiprocessing.context._default_context._default_context.get_start_method()
    multiprocessing.set_start_method("spawn")
    safespawn.init(guard="error")
    second = multiprocessing.get_start_method()
    try:
        multiprocessing.set_start_method("fork", force=True)
        third = "fork"
    except guard.errors.UnsafeStart as error:
        third = error.kind
    return [before, first, second, third, multiprocessing.get_start_method()]


def chosen_fork():
    """A "fork" that was chosen before the line does not count after it, which is said."""
    multiprocessing.set_start_method("fork", force=True)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        safespawn.init(guard="error")  # here: chosen_fork
    return [multiprocessing.get_start_method(), [[each.filename, each.lineno, str(each.message)] for each in seen]]


def finalizing():
    """A start while the interpreter ends is nobody's business; from 3.12 on Python itself has no fork there."""
    import builtins

    class Late:
        """Starts processes when it goes."""

        def __del__(self, os=os, may_fork=sys.version_info < (3, 12)):
            try:
                if os.system("true") != 0:
                    os.write(1, b"os.system failed")
                if may_fork:
                    pid = os.fork()
                    if pid == 0:
                        os._exit(0)
                    os.waitpid(pid, 0)
            except BaseException as error:  # noqa: BLE001 - told to the test
                os.write(1, repr(error).encode())

    safespawn.init()
    builtins.late = Late()
    return "nothing else"


def methods_of_supervisors():
    """The start method is that of the program again when a Supervisor is left."""
    safespawn.init()
    default = multiprocessing.context._default_context
    found = [default._default_context.get_start_method()]
    with safespawn.Supervisor(start_method="spawn"):
        found.append(default._default_context.get_start_method())
    return [*found, default._default_context.get_start_method()]


def importing():
    """A command, a pool and a process that a module starts when it is imported: they work, or are refused."""
    safespawn.init(guard=POLICY)
    folder = sys.argv[3]
    sys.path.insert(0, folder)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            __import__("outer_module")
            error = None
        except guard.errors.UnsafeStart as caught:
            error = [caught.kind, list(caught.imports), *caught.place]
    module = sys.modules.get("inner_module")
    return {
        "error": error,
        "warnings": [[each.filename, each.lineno, str(each.message)] for each in seen],
        "values": getattr(module, "VALUES", None),
    }


def flight():
    """A forked child knows how it came about."""
    release = threading.Event()
    safespawn.init(guard={"fork": "warn"})
    threading.Thread(target=release.wait, name="poller").start()
    read_fd, write_fd = os.pipe()
    warnings.simplefilter("ignore")
    pid = os.fork()
    if pid == 0:
        record = guard.forks()[-1]
        rows = [[each.name, each.forked, each.started_at, each.frames] for each in record.threads]
        os.write(write_fd, json.dumps([record.pid, rows, str(record)]).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    release.set()
    told = json.loads(os.read(read_fd, 65536))
    return [os.getpid(), *told, len(guard.forks())]


def supervised():
    """Inside of a Supervisor its policy counts, outside that of the program."""
    found = [guard.phase()]
    with safespawn.Supervisor(guard={"fork": "error"}):
        found.append(guard.phase())
        try:
            fork()
        except guard.errors.UnsafeStart as error:
            found.append(error.kind)
    fork()
    found.append(guard.phase())
    return found


def declared():
    """Declared children come up, then the threads; they are stopped before the processes end."""
    log = []
    done = threading.Event()

    def poll():
        log.append(f"thread after {[name for name in log if name.startswith('child')]}")
        done.wait()
        log.append("thread ends")

    supervisor = safespawn.Supervisor()
    supervisor.thread(poll, name="poller", stop=done.set)
    supervisor.start_soon_after_boot(lambda: log.append("listener"), name="listener", after=["poller"])
    supervisor.declare(lambda: log.append("child 1") or supervisor.run(["true"]).returncode, name="one")
    supervisor.declare(lambda: log.append("child 2"), name="two", after=["one"])
    with supervisor:
        values = supervisor.declared
        alive = values["poller"].is_alive()
    return [log, values["one"], alive, values["poller"].is_alive()]


print(json.dumps(globals()[sys.argv[1]]()))
