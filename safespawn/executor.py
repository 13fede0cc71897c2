"""
`Executor`: concurrent.futures.ProcessPoolExecutor's methods over workers that are forked from a clean template.

What differs from the standard one: a dead worker fails its own future and no other; a call that runs can be cancelled;
what cannot be pickled names the path to it.

Runs in: application, any thread. One thread of ours serves an executor; it is started with it.
"""

# pyright: reportPrivateUsage=false

import concurrent.futures
import concurrent.futures.process
import functools
import itertools
import os
import signal
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import InvalidStateError
from types import TracebackType
from typing import Any

from safespawn._core import dispatch
from safespawn._core.dispatch import EACH_STAR, Task
from safespawn._drive.crew import Crew
from safespawn._tasks import call_task, pace_key
from safespawn._worker import journal as cells
from safespawn._worker.payload import pack
from safespawn.errors import BadArgument, BadArgumentType
from safespawn.pool import ThreadedPool
from safespawn.pool_errors import PoolClosed, TaskCancelled

_NO_OPTIONS: dict[str, Any] = {}


class TaskFuture(concurrent.futures.Future[Any]):
    """
    The future of one task.

    Attributes:
        task: The task; None once it is over.
    """

    def __init__(self, crew: Crew) -> None:
        super().__init__()
        self._crew = crew
        self.task: Task | None = None

    def cancel(self, *, running: bool = False) -> bool:
        """
        Take the task back, if no worker has it yet.

        Args:
            running: Also when it runs: an exception is raised in it, and when that does not end it within 0.2 s its
                worker is ended and replaced. `result` then raises `TaskCancelled`, a CancelledError.

        Returns:
            Whether it was still to be had; as the standard method.
        """
        task = self.task
        if task is None:
            return self.cancelled()
        return self._crew.cancel(task, running=running) or self.cancelled()

    def running(self) -> bool:
        """
        Whether a worker has it.
        """
        task = self.task
        return task is not None and task.state is dispatch.SENT and not self.done()

    def deliver(self, task: Task, value: Any) -> None:
        """
        It returned *value*. The pump's.
        """
        del task
        self.task = None
        try:
            self.set_result(value)
        except InvalidStateError:
            return  # the user has set it himself

    def fail(self, task: Task, error: BaseException) -> None:
        """
        It has no value. The pump's; also of a thread that cancels.
        """
        del task
        self.task = None
        try:
            if isinstance(error, TaskCancelled) and error.seconds is None:  # it never ran: the standard's `cancelled`
                super().cancel()
                self.set_running_or_notify_cancel()  # tells `wait` and `as_completed`
            else:
                self.set_exception(error)
        except (InvalidStateError, RuntimeError):
            return  # the user has set it himself


class Executor(ThreadedPool, concurrent.futures.Executor):
    """
    Workers for the functions of a program, as concurrent.futures.ProcessPoolExecutor.

    At the end of the program, and when it is forgotten, what was submitted is still done, as by the standard one.

    Args:
        max_workers: Workers; default: the CPUs that this process may use, by affinity and control group.
        mp_context: As the standard's; not needed, not used.
        initializer: Called in each worker before its first task, with *initargs*. When it raises, the executor is
            broken.
        initargs: Its arguments.
        max_tasks_per_child: Tasks after which a worker is replaced.
        **options: As `Pool`: preload, env, cwd, name and the others.

    Raises:
        BadArgument, BadArgumentType: What cannot be; ValueError and TypeError, in the standard's words.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: Any = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        *,
        max_tasks_per_child: int | None = None,
        **options: Any,
    ) -> None:
        _check_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise BadArgumentType("initializer must be a callable", parameter="initializer", value=initializer)
        _check_tasks(max_tasks_per_child)
        _register()
        super().__init__(max_workers, initializer, initargs, max_tasks_per_child, mp_context, **options)
        self._crew.config.remote_traceback = concurrent.futures.process._RemoteTraceback  # noqa: SLF001 - the cause of the standard's errors
        _open[self._thread] = self._crew
        self._crew.on_ended.append(functools.partial(_open.pop, self._thread, None))

    @staticmethod
    def _forgotten(crew: Crew) -> None:
        """
        The executor was forgotten: what it has is done, then its workers leave. No lock, as in `ThreadedPool`.
        """
        if crew.pid == os.getpid() and not crew.ended.is_set():
            crew.pump.call_soon(crew.close)

    @property
    def _max_workers(self) -> int:
        """
        The standard's name, which a few libraries read.
        """
        return self._size

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> TaskFuture:
        """
        Call ``fn(*args, **kwargs)`` in a worker.

        A call that cannot be sent is told by the future, as by the standard's: `UnpicklableTask`.

        Raises:
            PoolClosed: After `shutdown`; it is a RuntimeError.
            BrokenProcessPool: The initializer has failed.
        """
        crew = self._crew
        if crew.closing:
            self._refuse()
        future = TaskFuture(crew)
        if self._carrier is not None:
            fn = self._carrier(fn)
        try:
            future.task = task = call_task(fn, args, kwargs, future, by_value=self._by_value, options=_NO_OPTIONS)
        except Exception as error:  # noqa: BLE001 - whatever its pickling raises is the future's, as in the standard's
            future.set_exception(error)
            return future
        self._send(task)
        return future

    def _send(self, task: Task) -> None:
        try:
            self._crew.submit(task)
        except PoolClosed:
            self._refuse()

    def _refuse(self) -> None:
        crew = self._crew
        if crew.broken is not None or crew.pid != os.getpid():
            crew.check()
        when = "interpreter shutdown" if _exiting else "shutdown"
        raise PoolClosed(f"pool {self.name!r}", message=f"cannot schedule new futures after {when}")

    def _submit_chunk(self, fn: Callable[..., Any], chunk: tuple[Any, ...]) -> TaskFuture:
        """
        Several calls that travel together; the result is the list of theirs.
        """
        crew = self._crew
        if crew.closing:
            self._refuse()
        payload, parts = pack((fn, chunk), what="task", by_value=self._by_value)
        future = TaskFuture(crew)
        future.task = task = Task(EACH_STAR, payload, parts, pace_key(fn), future, items=len(chunk))
        self._send(task)
        return future

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """
        The results of ``map(fn, *iterables)``, in order, as they come.

        Args:
            fn: What to call.
            *iterables: With what, one argument of each.
            timeout: Seconds for all of it, from now.
            chunksize: Calls that travel together.
            buffersize: Chunks that may be under way or unread; further ones are taken from *iterables* as results are
                read. Default: all are taken at once.

        Raises:
            TimeoutError: *timeout* seconds have passed; from the iterator.
            BadArgument, BadArgumentType: ValueError and TypeError, in the standard's words.
        """
        _check_buffer(buffersize)
        if chunksize < 1:
            raise BadArgument("chunksize must be >= 1.", parameter="chunksize", value=chunksize)
        deadline = None if timeout is None else time.monotonic() + timeout
        if self._carrier is not None:
            fn = self._carrier(fn)
        calls = zip(*iterables, strict=False)
        chunks = iter(lambda: tuple(itertools.islice(calls, chunksize)), ())
        given = chunks if buffersize is None else itertools.islice(chunks, buffersize)
        futures = deque(self._submit_chunk(fn, chunk) for chunk in given)
        more = None if buffersize is None else functools.partial(_next_chunk, weakref.ref(self), fn, chunks)
        return _results(futures, deadline, more)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard's signature
        """
        No more calls; the workers leave when all is done.

        Args:
            wait: Until they have left.
            cancel_futures: Cancel what no worker has yet.
        """
        crew = self._crew
        if crew.pid != os.getpid():
            return  # a forked copy: they are not its own
        crew.close()
        if cancel_futures:
            crew.cancel_queued()
        if wait and threading.current_thread() is not self._thread:
            self._thread.join()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """
        Wait for the work, as the standard's, which does so for an exception too; but not for Ctrl-C. The standard's
        workers have had that as well, and ours have not: they are ended.
        """
        if kind is not None and issubclass(kind, KeyboardInterrupt) and self._crew.pid == os.getpid():
            self._crew.terminate()
        self.shutdown(wait=True)

    def terminate_workers(self) -> None:
        """
        `shutdown` at once: what waits is cancelled, the workers get SIGTERM, what they ran fails with `WorkerDied`.
        """
        self._force(signal.SIGTERM)

    def kill_workers(self) -> None:
        """
        As `terminate_workers`, with SIGKILL.
        """
        self._force(signal.SIGKILL)

    def _force(self, number: int) -> None:
        self.shutdown(wait=False, cancel_futures=True)
        self._crew.pump.call_soon(functools.partial(_force, self._crew, number))


def _check_workers(count: Any) -> None:
    if count is None:
        return
    if not isinstance(count, int) or isinstance(count, bool):
        raise BadArgumentType("max_workers must be an integer", parameter="max_workers", value=count)
    if count <= 0:
        raise BadArgument("max_workers must be greater than 0", parameter="max_workers", value=count)


def _check_tasks(count: Any) -> None:
    if count is None:
        return
    if not isinstance(count, int):
        raise BadArgumentType("max_tasks_per_child must be an integer", parameter="max_tasks_per_child", value=count)
    if count <= 0:
        raise BadArgument("max_tasks_per_child must be >= 1", parameter="max_tasks_per_child", value=count)


def _check_buffer(count: Any) -> None:
    if count is not None and not isinstance(count, int):
        raise BadArgumentType("buffersize must be an integer or None", parameter="buffersize", value=count)
    if count is not None and count < 1:
        raise BadArgument("buffersize must be None or > 0", parameter="buffersize", value=count)


def _next_chunk(
    owner: "weakref.ref[Executor]", fn: Callable[..., Any], chunks: Iterator[tuple[Any, ...]]
) -> TaskFuture | None:
    """
    One more of a lazy map; None at the end, or when the executor was forgotten.
    """
    executor = owner()
    chunk = None if executor is None else next(chunks, None)
    return None if executor is None or chunk is None else executor._submit_chunk(fn, chunk)  # noqa: SLF001


def _results(
    futures: "deque[TaskFuture]", deadline: float | None, more: Callable[[], TaskFuture | None] | None
) -> Iterator[Any]:
    try:
        while futures:
            if more is not None:
                another = more()
                if another is not None:
                    futures.append(another)
            future = futures.popleft()
            try:
                values = future.result(None if deadline is None else deadline - time.monotonic())
            finally:
                future.cancel()
                del future  # a map of large results keeps none of those that were read
            values.reverse()
            while values:
                yield values.pop()
    finally:
        while futures:
            futures.pop().cancel()


def _force(crew: Crew, number: int) -> None:
    """
    Signal all workers, of whose tasks only those that run shall fail by that. Where the pump runs.
    """
    for post in list(crew.posts):
        journal, seat = post.worker.journal, post.seat
        running = 0 if journal is None else journal.cells[cells.RUNNING]
        for task in [] if seat is None else list(seat.tasks.values()):
            if task.id != running:
                crew.cancel(task, running=True)
        if not post.ended:
            post.worker.signal(number)


# --- the end of the program ------------------------------------------------------------------------------------------
_open: dict[threading.Thread, Crew] = {}  # of every executor whose workers may still have something to do
_exiting = False
_registered = False


def _register() -> None:
    """
    Have `_finish_all` called when the program ends, before Python ends its threads.
    """
    global _registered  # noqa: PLW0603 - once in a program
    if not _registered:
        threading._register_atexit(_finish_all)  # type: ignore[attr-defined]  # noqa: SLF001 - as concurrent.futures does
        _registered = True


def _finish_all() -> None:
    """
    At the end of the program: what was submitted is done first, as by the standard executors; not if it dies of Ctrl-C,
    which the workers of those have had as well.
    """
    global _exiting  # noqa: PLW0603 - once in a program
    _exiting = True
    interrupted = issubclass(getattr(sys, "last_type", None) or Exception, KeyboardInterrupt)
    left = [(thread, crew) for thread, crew in list(_open.items()) if crew.pid == os.getpid()]
    for _, crew in left:
        if interrupted and not hasattr(sys, "ps1"):  # at a prompt Ctrl-C ends a line, not the program
            crew.terminate()
        crew.close()
    for thread, _ in left:
        thread.join()


__all__ = ["Executor", "TaskFuture"]
