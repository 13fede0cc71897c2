"""
What a worker becomes before its first task: a process of its own after the fork, then what the application says.

Runs in: worker, process, supervised child; before any code of the user's but the initializer, which is called last.
"""

import fcntl
import io
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

from safespawn._worker import current, elsewhere, journal, main_module, process
from safespawn._worker.messages import INTERRUPT_SIGNAL, OUTPUT, STACKS_SIGNAL
from safespawn._worker.payload import unpack
from safespawn._worker.stdio import StderrTee

if TYPE_CHECKING:
    from safespawn._worker.worker import Worker

PIPE_BYTES = 1024 * 1024  # of output that the application has not read
_F_SETPIPE_SZ = 1031  # fcntl.F_SETPIPE_SZ, linux/fcntl.h
_APPEND = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC


def settle(born: Any) -> None:
    """
    Make a fork of the template a process of its own: environment, name, random numbers, exit functions.
    """
    take_environment(born.env)
    set_name(born.name)
    import atexit

    atexit._clear()  # noqa: SLF001 - those of the template's modules were not asked for by this process
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:  # `random` itself is reseeded by Python, in every fork
        numpy_random.seed()
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - for the life of the process


def take_environment(env: dict[bytes, bytes]) -> None:
    """
    Have *env* as the environment. Only what differs is written: most of it is the template's too, and each variable
    that is written anew is a page that this process has to copy.
    """
    environ = os.environb
    own = dict(os.environ._data)  # type: ignore[attr-defined]  # noqa: SLF001 - the bytes, as they are
    for name in own.keys() - env.keys():
        del environ[name]
    for name, value in env.items():
        if own.get(name) != value:
            environ[name] = value
    if own.get(b"TZ") != env.get(b"TZ"):
        time.tzset()


def set_name(name: bytes) -> None:
    """
    What ps shows.
    """
    try:
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return  # a /proc mounted read-only: it keeps the template's name
    try:
        os.write(fd, name[:15])
    finally:
        os.close(fd)


def set_up(worker: "Worker", body: dict[str, Any], fd: int) -> None:
    """
    Become what the application says.
    """
    sys.path[:] = body["path"]
    elsewhere.install(body["elsewhere"])
    sys.argv[:] = body["argv"]
    current.worker = current.CurrentWorker(body["pool"], body["index"], os.getpid())
    if body["cpus"] is not None:
        os.sched_setaffinity(0, body["cpus"])
    if body["is_spare"]:
        set_name(f"{body['pool']}-{body['index']}".encode(errors="replace"))
    main_module.install(body["main"])
    import faulthandler

    faulthandler.enable(worker.text_fd)
    faulthandler.register(STACKS_SIGNAL, worker.text_fd, all_threads=True, chain=False)
    signal.signal(INTERRUPT_SIGNAL, worker.interrupt)
    if sys.stderr is not None:
        tee: Any = StderrTee(worker.journal.note_stderr)
        sys.stderr = io.TextIOWrapper(
            tee,
            encoding=getattr(sys.stderr, "encoding", "utf-8"), errors="backslashreplace", write_through=True,
        )  # fmt: skip
    if body.get("output") is not None:
        redirect(worker, *body["output"])
    if body.get("levels") is not None:
        set_logging(worker, body["levels"], relayed=body["logging"] == "relay")
    process.pose(body["pool"], body["index"], body["authkey"], body["application"])
    worker.finalizer = None if body["finalizer"] is None else unpack(body["finalizer"])
    if body["initializer"] is not None:
        views = worker.views(fd, body["initializer"]) if fd >= 0 else [body["initializer"]]
        call: Any = worker.unpack(views[0], views[1:])
        function, arguments = call
        function(*arguments)


def redirect(worker: "Worker", mode: str, where: bytes) -> None:
    """
    Have descriptors 1 and 2 go elsewhere: for Python, for C code, and for what is started here.

    Args:
        worker: Whose they are.
        mode: "file", or what the application does with it.
        where: The file; else the token that marks the ends of calls.
    """
    if mode == "file":
        path = where.replace(b"{worker}", str(current.worker.index).encode() if current.worker else b"")
        fd = os.open(path.replace(b"{pid}", str(os.getpid()).encode()), _APPEND, 0o666)
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
    else:
        for stream in (1, 2):
            read_fd, write_fd = os.pipe2(os.O_CLOEXEC)
            try:
                fcntl.fcntl(write_fd, _F_SETPIPE_SZ, PIPE_BYTES)
            except OSError:
                pass  # the user's pipes have no more room: the usual size will do
            os.dup2(write_fd, stream)
            os.close(write_fd)
            worker.send(OUTPUT, stream, read_fd)
            os.close(read_fd)
    if mode == "return":
        from safespawn._worker import carried

        carried.capturing[:] = [carried.Capture(where)]
    stdout: Any = sys.stdout
    if stdout is not None:
        stdout.reconfigure(line_buffering=True)


def set_logging(worker: "Worker", levels: Any, *, relayed: bool) -> None:
    """
    Log at the application's levels; *relayed*: to its handlers.
    """
    from safespawn._worker import logs

    if relayed and worker.wake_fd >= 0:
        cells = worker.cells
        relay = logs.Relay(
            worker.journal.ring, worker.wake_fd, lambda: cells[journal.RUNNING], worker.send_log,
            worker.journal.note_stderr,
        )  # fmt: skip
        relay.install()
    logs.set_levels(levels)
