"""
Errors of pools; apart from errors.py because their standard bases cost 20 ms to import.

They keep to what errors.py says of every error, and are reached through it: `safespawn.errors.WorkerDied`.

Runs in: application and workers, any thread; imported when the first one is needed.
Never: starts anything, or waits.
"""

# SafespawnError
# ├── PoolError                      your task, in a worker
# │   ├── UnpicklableTask            (pickle.PicklingError, AttributeError, TypeError)
# │   ├── UnpicklableResult          (multiprocessing.pool.MaybeEncodingError, pickle.PicklingError)
# │   ├── PayloadLost                                      no shared memory to bring it over
# │   ├── RemoteError                                      it raised, and its exception does not travel
# │   ├── TaskTimeout                (TimeoutError, multiprocessing.TimeoutError)
# │   ├── TaskCancelled              (concurrent.futures.CancelledError)
# │   └── WorkerDied                 (concurrent.futures.process.BrokenProcessPool)
# │       └── WorkerMemoryExceeded   (MemoryError)
# ├── ClosedError
# │   └── PoolClosed                 (ValueError)
# ├── WrongLoop                      (RuntimeError)        an AsyncPool away from its event loop
# ├── OrderError
# │   ├── MainReentered                                    a pool at the top level of a script
# │   └── WaitInCallback                                   a callback that waits for its own pool
# └── BrokenError
#     ├── PreloadError               (ImportError)
#     ├── InitializerFailed          (concurrent.futures.process.BrokenProcessPool)
#     └── CrashLoop                  (concurrent.futures.process.BrokenProcessPool)
#
# Exception
# └── RemoteTraceback                                      the __cause__ of what a task raised

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from concurrent.futures import CancelledError

from safespawn.errors import BrokenError, ClosedError, OrderError, SafespawnError

TYPE_CHECKING = False  # as in typing, which would take time to import
if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures.process import BrokenProcessPool
    from typing import Any, ClassVar

    class MaybeEncodingError(Exception):
        """As in multiprocessing.pool, of which the type checkers do not know it."""

else:
    from multiprocessing.pool import MaybeEncodingError

    try:
        from concurrent.futures.process import BrokenProcessPool
    except RuntimeError:  # the main thread has ended, and another one goes on: it cannot be imported any more
        from concurrent.futures import BrokenExecutor as BrokenProcessPool

_STDERR_LINES = 5  # arbitrary: enough for the last complaint of most programs
_STACK_LINES = 12  # arbitrary: the innermost frames; `stack` has them all
_LINE_CHARS = 200  # arbitrary: keeps a log readable that has an error in it
_INSTALL = 'pip install "safespawn[cloudpickle]"'

_CRASHES = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT))


class PoolError(SafespawnError):
    """The root of what may happen to one task in a worker. Never raised itself."""

    slug = "pool-error"


class RemoteTraceback(Exception):
    """
    The traceback of an exception that was raised in a worker, as text; its `__cause__` in the application.

    Args:
        tb: The text.
    """

    def __init__(self, tb: str) -> None:
        super().__init__(tb)
        self.tb = tb

    def __str__(self) -> str:
        return f'\n"""\n{self.tb}"""'


# --- what travels -----------------------------------------------------------------------------------------


class UnpicklableTask(PoolError, pickle.PicklingError, AttributeError, TypeError):
    """
    A task cannot be brought to a worker; nothing was run. It is of all three classes that pickle raises for that.

    Args:
        what: What was to be pickled: "task", "initializer", "process".
        path: Where in it the trouble lies: `args[1].config.lock`; "" if it was not found.
        type_name: The type there; "" if it is not known.
        reason: What pickle said.
    """

    slug = "unpicklable-task"
    _facts = ("what", "path", "type_name", "reason")
    path: str

    def __init__(
        self, *, what: str = "task", path: str = "", type_name: str = "", reason: str = "",
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        place = f": {path}: {type_name}" if path else ""
        facts = [reason] if reason else []
        help = help or _travel_advice(type_name, reason)
        super().__init__(f"the {what} cannot be pickled{place}", known=(*facts, *known), help=help)
        self.what = what
        self.path = path
        self.type_name = type_name
        self.reason = reason


class UnpicklableResult(PoolError, MaybeEncodingError, pickle.PicklingError):
    """
    A task ended well, and what it returned cannot be brought to the application.

    Args:
        exc: What pickle raised, or its repr.
        value: A shortened repr of the result.
        task: The task: "tasks.resize"; "" if it is not known.
        what: What was to be pickled.
        path: Where in it the trouble lies: `result[1].lock`; "" if it was not found.
        type_name: The type there; "" if it is not known.
    """

    slug = "unpicklable-result"
    _facts = ("what", "path", "type_name", "task", "exc", "value")
    exc: str
    value: str

    def __init__(
        self, exc: object, value: str, *, task: str = "", what: str = "result", path: str = "", type_name: str = "",
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts = [f"{path}: {type_name}"] if path else []
        facts += [f"task {task}"] if task else []
        help = help or "return plain data: what a lock, a file or a connection stands for, not the thing itself"
        super().__init__(exc, value, known=(*facts, *known), help=help)
        self.exc = exc if isinstance(exc, str) else repr(exc)  # the base class has taken the repr of a repr
        self.value = value
        self.args: tuple[Any, ...] = (self.exc, value)
        self.task = task
        self.what = what
        self.path = path
        self.type_name = type_name

    def __repr__(self) -> str:
        return SafespawnError.__repr__(self)  # the base class's has the whole text in it


class PayloadLost(PoolError):
    """
    An argument or a result could not be brought over, for want of memory or descriptors.

    Args:
        what: "the arguments of tasks.resize", "the result of task 7".
        errno: As the kernel gave it; None if it is not known.
    """

    slug = "payload-lost"
    _facts = ("what", "errno")

    def __init__(self, what: str, *, errno: int | None = None, known: Sequence[str] = (), help: str = "") -> None:
        facts = [] if errno is None else [f"errno {errno}, {os.strerror(errno)}"]
        help = help or "large payloads travel in shared memory: send less at a time, or let the worker open a file"
        super().__init__(f"{what} could not be brought over", known=(*facts, *known), help=help)
        self.what = what
        self.errno = errno


class RemoteError(PoolError):
    """
    A task raised an exception that could not be made here again; this tells what it was.

    Args:
        type_name: Its class, with the module.
        message: Its `str()`.
        traceback_text: Its traceback, with those of its causes.
        reason: Why it could not be made here; "" if it is not known.
    """

    slug = "remote-error"
    _facts = ("type_name", "message", "traceback_text", "reason")
    _advice = "let it take and keep plain values, in a class at the top level of a module that imports here too"

    def __init__(
        self, *, type_name: str, message: str = "", traceback_text: str = "", reason: str = "",
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts = ["the exception itself could not be brought over" + (f": {reason}" if reason else "")]
        super().__init__(f"{type_name}: {message}" if message else type_name, known=(*facts, *known), help=help)
        self.type_name = type_name
        self.message = message
        self.traceback_text = traceback_text
        self.reason = reason


# --- the task did not end -----------------------------------------------------------------------------------


class WorkerDied(PoolError, BrokenProcessPool):
    """
    A worker ended while it ran this task. The others, and the pool, go on.

    Args:
        task: The task: "tasks.resize"; "" if it had none.
        task_id: Its number.
        pool: The name of the pool.
        worker: Which of its workers, from 0 up.
        pid: The worker's process id.
        returncode: Its exit status, or minus the number of the signal that ended it; None if nobody knows.
        seconds: How long the task had run.
        peak_rss_bytes: The most memory that the worker ever had.
        oom: Whether the kernel killed it for want of memory; None if that is not known.
        stderr: The last lines that it wrote to stderr.
        stack: What faulthandler wrote when it crashed.
    """

    slug = "worker-died"
    _facts: ClassVar[tuple[str, ...]] = (
        "task", "task_id", "pool", "worker", "pid", "returncode", "seconds", "peak_rss_bytes", "oom", "stderr",
        "stack",
    )  # fmt: skip

    def __init__(
        self, *, task: str = "", task_id: int | None = None, pool: str = "", worker: int | None = None,
        pid: int | None = None, returncode: int | None = None, seconds: float | None = None,
        peak_rss_bytes: int | None = None, oom: bool | None = None, stderr: str = "", stack: str = "",
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        self.task = task
        self.task_id = task_id
        self.pool = pool
        self.worker = worker
        self.pid = pid
        self.returncode = returncode
        self.seconds = seconds
        self.peak_rss_bytes = peak_rss_bytes
        self.oom = oom
        self.stderr = stderr
        self.stack = stack
        facts = [*_task_facts(task_id, pool, worker, seconds), *self._cause_facts()]
        if peak_rss_bytes is not None:
            facts.append(f"the worker's memory peaked at {_size(peak_rss_bytes)}")
        facts += [_tail("stderr", stderr)] if stderr.strip() else []
        facts += [_head("stack", stack)] if stack.strip() else []
        doing = f" while running {task}" if task else " while it had no task"
        message = f"{_worker(pid, worker)} {self._end()}{doing}"
        super().__init__(message, known=(*facts, *known), help=help or self._action())

    def _end(self) -> str:
        return "was lost" if self.returncode is None else _ended(self.returncode)

    def _cause_facts(self) -> list[str]:
        if self.returncode is None:
            return ["how it ended is not known"]
        if self.oom:
            return ["the kernel killed it for want of memory"]
        if self.returncode == -signal.SIGKILL:
            return [
                "whether the kernel killed it for want of memory is not known"
                if self.oom is None
                else "the kernel counted no process killed for want of memory"
            ]
        return []

    def _action(self) -> str:
        number = self.returncode
        if self.oom:
            return "the memory was used up: use fewer workers, or bound each one with Pool(max_rss_bytes=...)"
        if number is None:
            return "nothing was retried: run it again if the task is safe to run twice"
        if number >= 0:
            return "the task called os._exit, or something in it did: raise an exception instead"
        if number == -signal.SIGKILL:
            if self.oom is False:
                return "somebody sent SIGKILL: see who manages the processes of this machine or container"
            return "if nobody sent it, the kernel ran out of memory: see `dmesg`, and use fewer workers"
        if -number in _CRASHES:
            if self.stack.strip():
                return "a C extension crashed: the stack ends in the call that did it"
            return "a C extension crashed: run the task alone with `python -X faulthandler` to see where"
        return "somebody sent the signal to it: see who manages the processes of this machine or container"


class WorkerMemoryExceeded(WorkerDied, MemoryError):
    """
    A worker had more memory than `max_rss_bytes`, and was ended for it before the kernel had to choose.

    Args:
        limit_bytes: The limit.
        rss_bytes: What it had when it was ended.
        **facts: As WorkerDied.
    """

    slug = "worker-memory-exceeded"
    _facts: ClassVar[tuple[str, ...]] = ("limit_bytes", "rss_bytes", *WorkerDied._facts)  # noqa: SLF001 - its base class

    def __init__(self, *, limit_bytes: int, rss_bytes: int, help: str = "", **facts: Any) -> None:
        self.limit_bytes = limit_bytes
        self.rss_bytes = rss_bytes
        super().__init__(help=help or "give it less work at a time, or raise max_rss_bytes", **facts)

    def _end(self) -> str:
        return f"was ended at {_size(self.rss_bytes)} of memory, over its limit of {_size(self.limit_bytes)},"

    def _cause_facts(self) -> list[str]:
        return []  # the limit is the cause; SIGKILL was the pool's own


class TaskTimeout(PoolError, TimeoutError, multiprocessing.TimeoutError):
    """
    A task ran longer than it was given, and was ended.

    Args:
        task: The task: "tasks.resize".
        seconds: The limit.
        ran: How long it really ran.
        task_id: Its number.
        pool: The name of the pool.
        worker: Which of its workers, from 0 up.
        pid: The worker's process id.
        stack: Where it was when the time was up.
        ended_by: What ended it: "exception" (raised in it; the worker lives), "SIGTERM", "SIGKILL", or "exit" (it
            ended on its own meanwhile); "" if it was not ended.
    """

    slug = "task-timeout"
    _facts = ("task", "task_id", "pool", "worker", "pid", "seconds", "ran", "stack", "ended_by")
    _by_end: ClassVar[dict[str, str]] = {
        "exception": "it was ended by an exception raised in it; the worker lives",
        "SIGTERM": "it was ended by SIGTERM, with its worker",
        "SIGKILL": "it was ended by SIGKILL, with its worker, after it had not obeyed anything else",
        "exit": "its worker ended meanwhile",
    }

    def __init__(
        self, *, task: str = "", seconds: float, ran: float | None = None, task_id: int | None = None,
        pool: str = "", worker: int | None = None, pid: int | None = None, stack: str = "", ended_by: str = "",
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts = _task_facts(task_id, pool, worker, ran, pid=pid)
        facts += [self._by_end.get(ended_by, f"it was ended by {ended_by}")] if ended_by else []
        facts += [_head("stack when the time was up", stack)] if stack.strip() else []
        if not help:
            help = (
                "see from the stack what it waits for, or raise the timeout" if stack.strip() else "raise the timeout"
            )
        super().__init__(f"{task or 'the task'} did not end within {seconds:.3g} s", known=(*facts, *known), help=help)
        self.task = task
        self.task_id = task_id
        self.pool = pool
        self.worker = worker
        self.pid = pid
        self.seconds = seconds
        self.ran = ran
        self.stack = stack
        self.ended_by = ended_by


class TaskCancelled(PoolError, CancelledError):
    """
    A task was cancelled by its owner, before or while it ran.

    Args:
        task: The task: "tasks.resize".
        task_id: Its number.
        seconds: How long it had run; None if it had not started.
    """

    slug = "task-cancelled"
    _facts = ("task", "task_id", "seconds")
    _advice = "somebody called cancel(), left the block that it belonged to, or closed the pool"

    def __init__(
        self, *, task: str = "", task_id: int | None = None, seconds: float | None = None,
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts = [f"task {task_id}"] if task_id is not None else []
        facts.append("it had not started" if seconds is None else f"it had run {seconds:.3g} s")
        super().__init__(f"{task or 'the task'} was cancelled", known=(", ".join(facts), *known), help=help)
        self.task = task
        self.task_id = task_id
        self.seconds = seconds


# --- the pool ---------------------------------------------------------------------------------------------


class PoolClosed(ClosedError, ValueError):
    """
    A pool was used after it had been closed. The words are those of multiprocessing, which raises ValueError.

    Args:
        what: The pool: "pool 'images'".
        message: The first line, where multiprocessing's words do not fit.
    """

    slug = "pool-closed"

    def __init__(
        self, what: str = "this pool", *, message: str = "", known: Sequence[str] = (), help: str = ""
    ) -> None:
        message = message or f"Pool not running: {what} is closed"
        SafespawnError.__init__(self, message, known=known, help=help)
        self.what = what


class WrongLoop(SafespawnError, RuntimeError):
    """
    An AsyncPool was used where it is not at home: in another thread, or in no event loop or another one.

    Args:
        what: The pool: "pool 'images'".
    """

    slug = "wrong-loop"
    _facts = ("what",)
    _advice = "a pool belongs to the event loop in which it was entered; use a Pool or an Executor from threads"

    def __init__(self, what: str = "this pool", *, known: Sequence[str] = (), help: str = "") -> None:
        super().__init__(f"{what} belongs to another event loop or thread", known=known, help=help)
        self.what = what


class MainReentered(OrderError):
    """
    A pool was used while a worker was importing a module for what it was sent, the main module above all, which would
    make pools without end.

    Args:
        what: What was called: "Pool.map".
        filename: The file of the call.
        lineno: Its line.
        module: The module that was being imported; empty for the main module.
    """

    slug = "main-reentered"
    _facts = ("what", "filename", "lineno", "module")

    def __init__(
        self, what: str, *, filename: str = "", lineno: int | None = None, module: str = "",
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts: list[str] = []
        if filename:
            facts.append(f"the call is at {filename}" + ("" if lineno is None else f":{lineno}"))
        if module:
            help = help or "put the call into a function: what a module does when it is imported, every worker does"
        help = help or 'put what starts the program, this call with it, below the line\nif __name__ == "__main__":'
        where = f"module {module!r}" if module else "the main module"
        message = f"{what} was called while a worker was importing {where}"
        SafespawnError.__init__(self, message, known=(*facts, *known), help=help)
        self.what = what
        self.threads: tuple[str, ...] = ()
        self.filename = filename
        self.lineno = lineno
        self.module = module


class WaitInCallback(OrderError):
    """
    A callback waits for a result of its own pool: the thread that it runs in is the one that would bring it.

    Args:
        what: The pool: "pool 'images'".
    """

    slug = "wait-in-callback"
    _facts = ("what", "threads")
    _advice = "give what is to happen next as the callback of apply_async, or wait in another thread"

    def __init__(self, what: str = "this pool", *, known: Sequence[str] = (), help: str = "") -> None:
        message = f"a callback of {what} waits for a result of {what}, which would come never"
        SafespawnError.__init__(self, message, known=known, help=help)
        self.what = what
        self.threads: tuple[str, ...] = ()


class PreloadError(BrokenError, ImportError):
    """
    A module of `preload=` cannot be loaded before the workers are forked.

    Args:
        module: Its name.
        reason: "raised" (its import failed) or "threads" (it started threads, which a fork would cut off).
        place: File and line that started the first thread: "x.py:12"; "" if it is not known.
        threads: The names of the threads.
        traceback_text: What the import raised.
    """

    slug = "preload-error"
    _facts = ("module", "reason", "place", "threads", "traceback_text")

    def __init__(
        self, *, module: str, reason: str = "raised", place: str = "", threads: Sequence[str] = (),
        traceback_text: str = "", known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts: list[str] = []
        if reason == "threads":
            message = f"preloading {module!r} started {len(threads) or 'some'} thread(s)"
            facts += [f"thread {name!r}" for name in threads]
            facts += [f"started at {place}"] if place else []
            help = help or "a fork would cut them off: import it in the tasks or by initializer=... instead"
        else:
            lines = traceback_text.rstrip().splitlines()
            message = f"preloading {module!r} failed" + (f": {lines[-1].strip()}" if lines else "")
            help = help or f"see that this runs: python -c 'import {module}'"
        super().__init__(message, known=(*facts, *known), help=help)
        self.name: str | None = module  # what every ImportError has
        self.module: str = module
        self.reason = reason
        self.place = place
        self.threads: tuple[str, ...] = tuple(threads)
        self.traceback_text = traceback_text

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, args, state = super().__reduce__()
        return rebuild, args, {**state, "name": self.name, "path": self.path}  # no entries of __dict__


class InitializerFailed(BrokenError, BrokenProcessPool):
    """
    The initializer of a pool failed in a worker, so no task can be run. What it raised is the `__cause__`.

    Args:
        pool: The name of the pool.
        pid: The worker's process id.
    """

    slug = "initializer-failed"
    _facts = ("pool", "pid")
    _advice = "correct the initializer: the exception above is its own"

    def __init__(self, *, pool: str = "", pid: int | None = None, known: Sequence[str] = (), help: str = "") -> None:
        whose = f" of pool {pool!r}" if pool else ""
        super().__init__(f"the initializer{whose} failed in {_worker(pid, None)}", known=known, help=help)
        self.pool = pool
        self.pid = pid


class CrashLoop(BrokenError, BrokenProcessPool):
    """
    Workers of a pool die faster than it is worth starting new ones; the pool has stopped.

    Args:
        pool: The name of the pool.
        deaths: How many died.
        seconds: Within what time.
        last: How the last one died.
    """

    slug = "crash-loop"
    _facts = ("pool", "deaths", "seconds", "last")
    _advice = "find out why they die: run one task alone, in this process, to see it"

    def __init__(
        self, *, deaths: int, seconds: float, pool: str = "", last: str = "",
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        whose = f" of pool {pool!r}" if pool else ""
        facts = [f"the last one: {last}"] if last else []
        message = f"{deaths} workers{whose} died within {seconds:.3g} s: no more are started"
        super().__init__(message, known=(*facts, *known), help=help)
        self.pool = pool
        self.deaths = deaths
        self.seconds = seconds
        self.last = last


# --- words ------------------------------------------------------------------------------------------------


def _travel_advice(type_name: str, reason: str) -> str:
    """Say what to do about something that cannot be pickled."""
    if "recursion" in reason.lower():
        return "it is nested too deeply for pickle: send a flat form of it, or a list"
    if type_name in {"function", "type"} or "local object" in reason or "<lambda>" in reason:
        return f"define it at the top level of a module; or {_INSTALL}, which sends it by value"
    if "__main__" in reason:
        return f"put it into a module that the worker can import; or {_INSTALL}, which sends it by value"
    return "open it in the worker by initializer=..., and send what it is opened from"


def _worker(pid: int | None, worker: int | None) -> str:
    """Name a worker by what is known of it."""
    if pid is not None:
        return f"worker {pid}"
    return "a worker" if worker is None else f"worker number {worker}"


def _task_facts(
    task_id: int | None, pool: str, worker: int | None, seconds: float | None, *, pid: int | None = None
) -> list[str]:
    """Say in one line which task of which pool it was, on which worker, for how long."""
    parts: list[str] = []
    if task_id is not None or pool:
        name = "a task" if task_id is None else f"task {task_id}"
        parts.append(name + (f" of pool {pool!r}" if pool else ""))
    if worker is not None:
        parts.append(f"worker number {worker}")
    if pid is not None:
        parts.append(f"pid {pid}")
    if seconds is not None:
        parts.append(f"running {seconds:.3g} s")
    return [", ".join(parts)] if parts else []


def _ended(status: int) -> str:
    """Say how a worker ended, from its exit status or minus the number of its signal."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _size(size: int) -> str:
    """Return a number of bytes in words: "812 MiB"."""
    if size < 1024:
        return f"{size} bytes"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 1000:
            return f"{value:.3g} {unit}"
    return f"{value / 1024:.3g} TiB"


def _printable(lines: Sequence[str]) -> str:
    """Make *lines* safe to print on any terminal, and none of them too long."""
    cut = [line if len(line) <= _LINE_CHARS else line[:_LINE_CHARS] + "..." for line in lines]
    return "\n".join("".join(c if c.isprintable() or c == "\t" else ascii(c)[1:-1] for c in line) for line in cut)


def _tail(name: str, text: str) -> str:
    """Say how *text* ends."""
    return f"{name} ends with\n" + _printable(text.rstrip().splitlines()[-_STDERR_LINES:])


def _head(name: str, text: str) -> str:
    """Say how *text* begins: faulthandler has the most recent call first."""
    lines = text.strip().splitlines()
    more = [f"... and {len(lines) - _STACK_LINES} more lines"] if len(lines) > _STACK_LINES else []
    return f"{name}\n" + _printable([*lines[:_STACK_LINES], *more])
