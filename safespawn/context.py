"""
`get_context`: a multiprocessing context whose processes are forked from a clean, preloaded template.

It is a real `multiprocessing.context.BaseContext`, so that whatever takes one takes this: `ProcessPoolExecutor`,
joblib, a DataLoader. Importing this module makes it known to multiprocessing by name as well: "safespawn".

A process is a child of the template with a lifeline, as a pool's worker. Its exit is awaited at its pidfd, which is
the sentinel that multiprocessing knows; its status comes by the lifeline.

Runs in: application, any thread; processes, which may start processes of their own.
"""

# What multiprocessing keeps private is what each of its own start methods uses.
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false

import _socket
import array
import atexit
import errno
import io
import multiprocessing.context as contexts
import multiprocessing.process as processes
import multiprocessing.util
import os
import signal
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Iterable
from multiprocessing import reduction, spawn
from typing import TYPE_CHECKING, Any, Self

from safespawn._worker import current, elsewhere, main_module
from safespawn._worker.messages import START_FAILED
from safespawn._worker.process import InheritedFd, messages

if TYPE_CHECKING:  # a process that starts none of its own needs nothing of this
    from safespawn._core.flow import Flow
    from safespawn._core.process import Process as Held
    from safespawn._core.spec import SpawnSpec
    from safespawn._drive.engine import Engine
    from safespawn._drive.template import Template, TemplateKey
    from safespawn._drive.worker import Worker

util: Any = multiprocessing.util  # for the type checkers, who do not know all that is in these three
_contexts: Any = contexts
_processes: Any = processes
_reduction: Any = reduction

START_METHOD = "safespawn"
_SEMAPHORES = b"multiprocessing.synchronize"  # locks and the like: found by a name that goes with the last object
START_ATTEMPTS = 3  # with a new template each
ANSWER_SECONDS = 10.0  # for a process to say that it has all; one that is stopped counts as started then
COLLECT_SECONDS = 5.5  # from the kernel's word that it has ended to the zygote's on how; a little over that one's limit
preloaded: list[str] = [  # what every process needs, and what most are handed: a queue, a lock, the end of a pipe
    "safespawn._worker.process", "safespawn.context", "multiprocessing.queues", "multiprocessing.synchronize",
]  # fmt: skip


class MethodName(str):
    """
    The name of the start method: whoever unpickles it knows the method. So does a child of multiprocessing's own
    spawn method, which is told what its parent's start method is.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[[], str], tuple[()]]:
        return _method_name, ()


def _method_name() -> str:
    return START_METHOD


class UnknownExit(int):
    """
    The `exitcode` of a process that has ended, and nobody can say how. Like NaN it is equal to no number.

    As an int it is 255, so that whoever passes it on reports a failure.

    Attributes:
        reason: What is known (`SpawnLost`).
    """

    reason: BaseException

    def __new__(cls, reason: BaseException) -> Self:  # noqa: D102 - as the class says
        self = super().__new__(cls, 255)
        self.reason = reason
        return self

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return "unknown"

    __str__ = __repr__

    def __reduce__(self) -> tuple[type["UnknownExit"], tuple[BaseException]]:
        return UnknownExit, (self.reason,)


class Popen:
    """
    A started process, as `multiprocessing.process.BaseProcess` wants it.

    Attributes:
        pid: Its process id, reserved for it until its end has been seen.
        sentinel: Its pidfd.
        returncode: Its exit code, -N for signal N; None while it runs.

    Raises:
        MainReentered: The program's own file starts it when it is imported.
        SpawnError, BootError, PreloadError: It cannot be started.
    """

    method = START_METHOD
    DupFd = InheritedFd

    def __init__(self, process: processes.BaseProcess) -> None:
        current.refuse_reentry(f"{type(process).__name__}.start")
        sys.audit("safespawn.Process", process.name)
        self.returncode: int | None = None
        self._owner_pid = os.getpid()
        self._fds: list[int] = []
        util._flush_std_streams()
        pickled = self._pickle(process)
        named: Any = process  # what holds what it was given until it has started, and then gives it up
        self._kept = (named._target, named._args, named._kwargs) if _SEMAPHORES in pickled else None
        from safespawn._drive.interrupts import hold

        with hold():
            self._held, self._born = _start(self, process.name, pickled, self._fds)
            child = self._held.child
            assert child is not None  # noqa: S101 - it has started
            self.pid: int = child.pid
            self.sentinel: int = child.pidfd
            self._held._waiters.add(object())  # the sentinel stays open until this object is closed or forgotten
            _popens.add(self)

    def _pickle(self, process: processes.BaseProcess) -> bytes:
        is_chosen = _contexts._default_context._actual_context is not None
        data: dict[str, Any] = spawn.get_preparation_data(process.name)
        if not is_chosen:  # it asks for multiprocessing's default, which nobody has used by that
            _contexts._default_context._actual_context = None
        for name in ("dir", "init_main_from_name", "init_main_from_path"):
            data.pop(name, None)  # it starts in our directory; the file is loaded when it is needed
        data["elsewhere"] = elsewhere.places()
        file = io.BytesIO()
        _contexts.set_spawning_popen(self)
        try:
            reduction.dump(data, file)
            begin = file.tell()
            reduction.dump(process, file)
            if main_module.describe() is None and b"__main__" in file.getbuffer()[begin:].tobytes():
                self._dump_by_value(process, file, begin)
        finally:
            _contexts.set_spawning_popen(None)
        return file.getvalue()

    def _dump_by_value(self, process: processes.BaseProcess, file: io.BytesIO, begin: int) -> None:
        """
        Pickle *process* once more, with what was typed into an interactive session: no process could import that.
        """
        from safespawn._worker.payload import dump_main

        file.seek(begin)
        file.truncate()
        self._fds.clear()
        dump_main(process, file, _reduction.ForkingPickler(io.BytesIO()).dispatch_table)

    def duplicate_for_child(self, fd: int) -> int:
        """
        While it is being pickled: *fd* is to go with it. Returns its place.
        """
        self._fds.append(fd)
        return len(self._fds) - 1

    def poll(self, flag: int = os.WNOHANG) -> int | None:
        """
        The exit code, or None while it runs; also None in a forked copy of whoever started it.
        """
        if self.returncode is None and self._owner_pid == os.getpid():
            if flag == os.WNOHANG and not self._held.looks_ended():
                return None
            self._collect(None if flag == 0 else 0.0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        """
        Wait for its end; returns the exit code, or None after *timeout* seconds.
        """
        if self.returncode is None and self._owner_pid == os.getpid():
            self._collect(timeout)
        return self.returncode

    def _collect(self, timeout: float | None) -> None:
        """
        Wait for its end, and take down how it ended.
        """
        from safespawn._drive.blocking import drive
        from safespawn.errors import SafespawnError, TimeoutExpired

        held = self._held
        try:
            if timeout is not None and not held.looks_ended():
                from multiprocessing.connection import wait

                if not wait([self.sentinel], timeout):
                    return
            limit = None if timeout is None else time.monotonic() + COLLECT_SECONDS
            self.returncode = drive(held.wait_flow(timeout, limit))
        except TimeoutExpired:
            return  # another thread, or what a signal handler has interrupted, is just at it
        except SafespawnError as error:
            error.__traceback__ = error.__context__ = None  # it is kept, and would keep this object
            from safespawn._core.child import kernels_word

            status = kernels_word(self.pid, self.sentinel, self._born)
            if self.returncode is None:  # else another thread has asked before
                self.returncode = UnknownExit(error) if status is None else os.waitstatus_to_exitcode(status)
        self._kept = None

    def _send_signal(self, sig: int) -> None:
        if self.returncode is None and self._owner_pid == os.getpid():
            try:
                self._held.send_signal(sig)
            except PermissionError:
                if self.wait(0.1) is None:
                    raise

    def interrupt(self) -> None:
        """
        Send SIGINT.
        """
        self._send_signal(signal.SIGINT)

    def terminate(self) -> None:
        """
        Send SIGTERM.
        """
        self._send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """
        Send SIGKILL.
        """
        self._send_signal(signal.SIGKILL)

    def close(self) -> None:
        """
        Let go of the descriptors.
        """
        if self._owner_pid == os.getpid():
            self._held.be_forgotten()

    def forget_in_copy(self) -> None:
        """
        In a forked copy: close the copy of its lifeline. The sentinel stays, for whoever looks at it there.
        """
        child = self._held.child
        if child is not None and self._owner_pid != os.getpid():
            child.connection.socket.close()


_popens: "weakref.WeakSet[Popen]" = weakref.WeakSet()


class Process(processes.BaseProcess):
    """
    `multiprocessing.Process`, forked from a clean template.
    """

    _start_method = START_METHOD

    @staticmethod
    def _Popen(process_obj: processes.BaseProcess) -> Popen:  # noqa: N802 - multiprocessing's name
        return Popen(process_obj)


class SafespawnContext(contexts.BaseContext):
    """
    What `multiprocessing.get_context("safespawn")` gives.
    """

    _name = MethodName(START_METHOD)
    Process = Process

    def __init__(self) -> None:
        self._preload: tuple[str, ...] = ()

    def set_forkserver_preload(self, module_names: Iterable[str]) -> None:
        """
        Import these modules once, in the template that the processes are forked from, instead of in each of them.
        """
        names = tuple(module_names)
        if isinstance(module_names, str) or not all(type(name) is str for name in names):
            raise TypeError("module_names must be a list of strings")
        self._preload = names


_context = SafespawnContext()
_contexts._concrete_contexts[START_METHOD] = _context


def get_context() -> SafespawnContext:
    """
    The context, for whatever takes one: `ProcessPoolExecutor(mp_context=safespawn.get_context())`.
    """
    return _context


# --- starting ---------------------------------------------------------------------------------------------------------
def _start(owner: Popen, name: str, pickled: bytes, fds: list[int]) -> "tuple[Held, int]":
    """
    Start *owner*'s process and send it what it is; returns it with its time of birth.
    """
    from safespawn._core.process import Process as Held
    from safespawn._core.spec import SpawnSpec
    from safespawn._drive.blocking import drive
    from safespawn._zygote import wire
    from safespawn.supervisor import current_engine

    engine = current_engine()
    _join_before_its_end(engine)
    spec = SpawnSpec(
        (name.encode(errors="replace"), b"process"),
        streams=(wire.NULL, 1, 2),
        flags=wire.HOLD | wire.TREE,
        group=wire.GROUP_AUTO,
    )
    held = Held(engine, spec, (name,))
    held.runs_on = False
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    own_fd = -1
    parent_fd = os.pidfd_open(os.getpid())
    try:
        words, own_fd = messages(pickled, fds, parent_fd, None if tracker is None else tracker._resource_tracker._fd)
        worker = drive(_start_flow(engine, spec, words, main=b"__main__" in pickled))
        held.child = worker.child
        engine.track(held, owner)
    finally:
        os.close(parent_fd)
        if own_fd >= 0:
            os.close(own_fd)
    return held, worker.born


def _start_flow(
    engine: "Engine", spec: "SpawnSpec", words: list[tuple[bytes, list[int]]], *, main: bool
) -> "Flow[Worker]":
    """
    Fork a process from a template, and send it *words*.
    """
    from safespawn._drive.worker import start_worker_flow
    from safespawn.errors import BootError, SpawnError, SpawnLost

    attempt = 0
    worker: Worker | None = None
    while worker is None:
        attempt += 1
        key, template = yield from _template_flow(engine, main=main)
        try:
            worker = yield from start_worker_flow(engine, template, spec, None, keep_pidfd=True)
        except (BootError, SpawnError, SpawnLost) as error:
            if attempt == START_ATTEMPTS or (isinstance(error, SpawnError) and error.stage != "threads"):
                raise
            # It has gone, or has a second thread by now: the next one may do. What was perhaps started has not been
            # told anything, and will not be.
            engine.retire(key, template)
    try:
        yield from _send_flow(worker, words)
    except BaseException:
        engine.discard(worker.child.connection)
        worker.child.close()
        raise
    finally:
        worker.close()
    return worker


def _template_flow(engine: "Engine", *, main: bool) -> "Flow[tuple[TemplateKey, Template]]":
    """
    A template; with the program's own file loaded if something of that is needed and it can be loaded there.
    """
    from safespawn._drive.template import TemplateKey
    from safespawn.pool_errors import PreloadError

    how = main_module.describe()
    preload = (*preloaded, *_context._preload)
    main = main or "__main__" in preload or engine in _with_main
    preload = tuple([name for name in preload if name != "__main__"])
    if main and how is not None and how not in _refused:
        key = TemplateKey((*preload, "__main__"), how)
        try:
            template, _ = yield from engine.template_flow(key, connections=2)
        except PreloadError as error:
            if error.module != "__main__":
                raise
            _refused.add(how)  # each process that needs it will load it for itself, or say why it cannot
            if error.reason == "threads":
                warnings.warn(
                    "the program's own file starts a thread when it is imported, so each process loads it for itself. "
                    f"{error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
        else:
            _with_main.add(engine)
            return key, template
    key = TemplateKey(preload, how)
    template, _ = yield from engine.template_flow(key, connections=2)
    return key, template


_with_main: "weakref.WeakSet[Any]" = weakref.WeakSet()  # engines that have a template with the program's own file
_refused: set[tuple[str, str]] = set()  # programs that cannot be loaded in a template


def _send_flow(worker: "Worker", words: list[tuple[bytes, list[int]]]) -> "Flow[None]":
    """
    Send *words*, and wait until they have arrived. A process that dies meanwhile has been started all the same.

    Raises:
        SpawnError: It could not be set up as asked: its directory has gone, say.
    """
    from safespawn._core.explain import spawn_error
    from safespawn._core.flow import READ, WRITE
    from safespawn._drive.worker import start_error

    socket = worker.socket
    assert socket is not None  # noqa: S101 - it has just been started
    limit = time.monotonic() + ANSWER_SECONDS
    for data, fds in words:
        rights = array.array("i", fds)
        while True:
            try:
                socket.sendmsg(
                    (data,), ((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights),),
                    _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT,
                )  # fmt: skip
                break
            except BlockingIOError:
                ready = yield {socket.fileno(): WRITE}, limit
                if not ready:
                    raise spawn_error(errno.ETIMEDOUT, None, stage="fds", argv=worker.child.spec.argv) from None
            except (BrokenPipeError, ConnectionResetError):
                break  # what it says of that, or its end, is to be seen below
            except OSError as error:
                raise spawn_error(error.errno or errno.EIO, None, stage="fds", argv=worker.child.spec.argv) from None
    yield {socket.fileno(): READ}, limit
    try:
        said, _ = worker.receive()
    except BlockingIOError:
        return  # it is stopped: it will go on, or not
    if said[:1] == bytes((START_FAILED,)):
        raise start_error(said, worker.child.spec.argv)


# --- ending -----------------------------------------------------------------------------------------------------------
_seen: list[Any] = [None]


def _join_before_its_end(engine: "Engine") -> None:
    """
    At the exit of this program its processes that are no daemons are joined, by multiprocessing. Have that done before
    *engine* is closed, which ends all that it started: what is registered last comes first.
    """
    if _seen[0] is None or _seen[0]() is not engine:
        _seen[0] = weakref.ref(engine)
        atexit.unregister(_join_all)
        atexit.register(_join_all)


def _join_all() -> None:
    util._exit_function()


def _forget_in_copy() -> None:
    """
    In a forked copy of the program: the processes are the original's children.
    """
    for popen in list(_popens):
        popen.forget_in_copy()
    for process in list(_processes._children):
        if isinstance(process._popen, Popen):
            _processes._children.discard(process)


os.register_at_fork(after_in_child=_forget_in_copy)
