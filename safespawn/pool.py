"""
`Pool`: multiprocessing.Pool's methods over workers that are forked from a clean, preloaded template.

Runs in: application, any thread. One thread of ours serves the pool; it is started with it.
"""

# pyright: reportPrivateUsage=false

import atexit
import functools
import importlib
import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from safespawn._drive import ending, loan, muster
from safespawn._drive.blocking import drive
from safespawn._drive.crew import Crew
from safespawn._drive.engine import Engine
from safespawn._drive.interrupts import hold
from safespawn._drive.post import PoolEvent
from safespawn._drive.template import TemplateKey
from safespawn._imap import ResultIterator
from safespawn._maps import MapJob
from safespawn._pool_base import GRACE_SECONDS, PoolBase, checked_preload, positive
from safespawn._results import AsyncResult, Direct
from safespawn._stream import Stream, WeakSink
from safespawn._tasks import call_task, stream_task
from safespawn._worker import main_module

_EMPTY: dict[str, Any] = {}


def warm_template(engine: Engine, preload: Sequence[str]) -> None:
    """
    Start the template for pools with this *preload*, and import what they need here.
    """
    key = TemplateKey(preload=checked_preload(preload), main=main_module.describe())
    drive(engine.template_flow(key))
    importlib.import_module("safespawn.pool_errors")


class ThreadedPool(PoolBase):
    """
    What `Pool` and `Executor` have in common: a thread that serves them.
    """

    def _open(self) -> None:
        crew = self._crew
        self._thread = threading.Thread(target=_serve, args=(crew,), name=f"safespawn {self.name}", daemon=True)
        self._finalizer = weakref.finalize(self, type(self)._forgotten, crew)  # noqa: SLF001
        with hold():  # a thread that nobody knows of would never end
            try:
                self._thread.start()
            except BaseException:  # no further thread is allowed
                crew.pump.close()
                raise
            crew.warm()

    @staticmethod
    def _forgotten(crew: Crew) -> None:
        """
        The pool was forgotten: its workers end. It may be the garbage collector who says so, in any line of any thread,
        so no lock is taken here.
        """
        if crew.pid == os.getpid() and not crew.ended.is_set():
            crew.pump.call_soon(crew.terminate)

    def stacks(self, timeout: float = 2.0) -> dict[int, str]:
        """
        What each worker runs now, as text, by its index; empty for one that does not answer.
        """
        self._crew.check()
        sink = Direct()

        def done(value: Any, error: BaseException | None) -> None:
            sink.value = {} if error is not None else value
            sink.finish()

        self._crew.pump.call_soon(lambda: self._crew.pump.spawn(self._crew.stacks_flow(), done))
        sink.wait(timeout)
        return dict(sink.value or {})


class Pool(ThreadedPool):
    """
    Workers for the functions of a program, as multiprocessing.Pool; see `PoolBase` for the parameters.

    It may be made at any time, by any thread. Leaving its ``with`` block in order waits for the work; leaving it by an
    exception ends it. Without a ``with`` block call `close` or `terminate`, then `join`; at the end of the program it
    is terminated.
    """

    def _open(self) -> None:
        super()._open()
        _open_pools.add(self)
        if self._eager is not None:
            self._crew.start(main=muster.is_main(self._eager))
        standard: Any = importlib.import_module(
            "multiprocessing.pool"
        )  # while the template boots; the errors need it too
        self._crew.config.remote_traceback = standard.RemoteTraceback
        importlib.import_module("safespawn.pool_errors")

    def __del__(self) -> None:
        crew = getattr(self, "_crew", None)
        if crew is not None and crew.started and not crew.closing and crew.pid == os.getpid():
            warnings.warn(f"unclosed running multiprocessing pool {self!r}", ResourceWarning, source=self, stacklevel=2)

    # --- one call ----------------------------------------------------------------------------------------------------
    def apply(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = _EMPTY, **options: Any
    ) -> Any:
        """
        Call ``func(*args, **kwds)`` in a worker and wait for what it returns. Options as `apply_async`.

        Raises:
            Exception: What the call raised; `WorkerDied`, `TaskTimeout` and the others when there was no result.
        """
        crew = self._crew
        if crew.thread == threading.get_ident():
            crew.check_wait()
        if self._carrier is not None:
            func = self._carrier(func)
        sink = Direct()
        task = call_task(func, tuple(args), dict(kwds), sink, by_value=self._by_value, options=options)
        try:
            with hold() as held:
                post = loan.lend(crew, task) if task.timeout is None else None
                if post is None:
                    crew.submit(task)
                else:
                    loan.exchange(crew, post, task, held)
            sink.wait()
        except BaseException:
            loan.reclaim(crew, task)
            crew.cancel(task, running=True)
            raise
        return sink.get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = _EMPTY,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """
        Call ``func(*args, **kwds)`` in a worker.

        Args:
            func: What to call.
            args: With what.
            kwds: With what, by name.
            callback: Called with the result, by the pool's thread.
            error_callback: Called with the exception.
            **options: ``timeout``: seconds the call may run, then it ends with `TaskTimeout`. ``retries``: how often it
                is run again when its worker dies. ``priority``: the larger, the sooner. ``key``: calls with equal keys
                go to the same worker.

        Raises:
            UnpicklableTask: It cannot be sent.
            PoolClosed: The pool was closed.
        """
        if self._carrier is not None:
            func = self._carrier(func)
        result = AsyncResult(self._crew, callback, error_callback)
        task = call_task(func, tuple(args), dict(kwds), result, by_value=self._by_value, options=options)
        result._task = task  # noqa: SLF001 - a result that is over needs none
        self._crew.submit(task)
        return result

    def submit(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """
        Call ``func(*args, **kwargs)`` in a worker; returns a `concurrent.futures.Future` whose ``cancel(running=True)``
        also ends a call that runs.
        """
        from safespawn.executor import TaskFuture

        if self._carrier is not None:
            func = self._carrier(func)
        future = TaskFuture(self._crew)
        future.task = task = call_task(func, args, kwargs, future, by_value=self._by_value, options=_EMPTY)
        self._crew.submit(task)
        return future

    # --- many calls --------------------------------------------------------------------------------------------------
    def map(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int | None = None, **options: Any
    ) -> list[Any]:
        """
        ``[func(item) for item in iterable]``, in the workers.

        Args:
            func: What to call.
            iterable: With what.
            chunksize: Items that a worker gets at a time; default: as many as take four milliseconds.
            **options: As `apply_async`; and ``progress``: called with how many are done, and of how many.
        """
        return self._wait_map(self.map_async(func, iterable, chunksize, **options))

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None, **options: Any
    ) -> list[Any]:
        """
        ``[func(*items) for items in iterable]``, in the workers.
        """
        return self._wait_map(self.starmap_async(func, iterable, chunksize, **options))

    def _wait_map(self, result: AsyncResult) -> list[Any]:
        try:
            result.wait()
        except BaseException as error:
            job: Any = None if result.over else result._value  # noqa: SLF001 - the job, until there is a value
            if job is not None:
                job.fail(error)
                self._crew.drop_source(job)
            raise
        found: list[Any] = result.get()
        return found

    def map_async(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """
        `map`, without waiting. The first exception is the result's.
        """
        return self._map(func, iterable, chunksize, callback, error_callback, options, star=False)

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        **options: Any,
    ) -> AsyncResult:
        """
        `starmap`, without waiting.
        """
        return self._map(func, iterable, chunksize, callback, error_callback, options, star=True)

    def _map(
        self, func: Any, iterable: Any, chunksize: int | None, callback: Any, error_callback: Any,
        options: dict[str, Any], *, star: bool,
    ) -> AsyncResult:  # fmt: skip
        self._crew.check()
        result = AsyncResult(self._crew, callback, error_callback)
        items: Any = iterable
        if not isinstance(iterable, (list, tuple, range)):
            items = list(iterable)
        if chunksize is not None:
            positive("chunksize", chunksize)
        progress = options.pop("progress", None)
        if not items:
            result.deliver(None, [])  # type: ignore[arg-type]
            return result
        if self._carrier is not None:
            func = self._carrier(func)
        job = MapJob(
            result, func, items, star=star, chunksize=chunksize, by_value=self._by_value, options=options,
            progress=progress,
        )  # fmt: skip
        result._value = job  # noqa: SLF001 - for whoever waits, and is interrupted
        if _is_importing():
            self._submit_chunks(job)
        else:
            self._crew.add_source(job)
        return result

    def _submit_chunks(self, job: MapJob) -> None:
        """
        Make all chunks here and now: this thread imports a module. To pickle what is of that module, the pool's thread
        would wait for the end of the import, which may wait for the map.
        """
        if job.chunksize is None:
            job.chunksize = -(-job.total // (4 * self._size))
        job.counted_out = True  # it stands in no queue
        tasks: list[Any] = []
        try:
            while (task := job.draw(None, 1)) is not None:
                tasks.append(task)
        except Exception as error:  # noqa: BLE001 - an item that cannot be pickled
            job.fail(error)
        else:
            self._crew.submit_many(tasks)

    def imap(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1, *, buffersize: int | None = None,
        **options: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """
        The results of `func` over *iterable*, in order, as they come.

        It takes from *iterable*, in the thread that reads the results, what may be under way at once: *buffersize*
        items, 1,000 by default. So an endless input is fine, and memory stays level.
        """
        return self._imap(func, iterable, chunksize, buffersize, options, ordered=True)

    def imap_unordered(
        self, func: Callable[[Any], Any], iterable: Iterable[Any], chunksize: int = 1, *, buffersize: int | None = None,
        **options: Any,
    ) -> Iterator[Any]:  # fmt: skip
        """
        As `imap`, each result as soon as it is there.
        """
        return self._imap(func, iterable, chunksize, buffersize, options, ordered=False)

    def _imap(
        self,
        func: Any,
        iterable: Any,
        chunksize: int,
        buffersize: int | None,
        options: dict[str, Any],
        *,
        ordered: bool,
    ) -> Iterator[Any]:
        self._crew.check()
        positive("chunksize", chunksize)
        if self._carrier is not None:
            func = self._carrier(func)
        return ResultIterator(
            self._crew, func, iterable, ordered=ordered, chunksize=chunksize, buffersize=buffersize,
            by_value=self._by_value, options=options,
        )  # fmt: skip

    def stream(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] = _EMPTY, *,
        buffersize: int = 16, **options: Any,
    ) -> Stream:  # fmt: skip
        """
        The items of a generator (also an asynchronous one) that runs in a worker, which is never more than *buffersize*
        items ahead of the reader. Closing the iterator ends it.
        """
        positive("buffersize", buffersize)
        if self._carrier is not None:
            func = self._carrier(func)
        stream = Stream(self._crew, buffersize)
        stream.task = task = stream_task(
            func, tuple(args), dict(kwds), WeakSink(stream), credit=buffersize, by_value=self._by_value, options=options
        )
        self._crew.submit(task)
        return stream

    # --- the pool ----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """
        Have the workers started now, and not with the first task.
        """
        self._crew.check()
        self._crew.start(main=False)

    def resize(self, processes: int) -> None:
        """
        Another number of workers. Those too many leave when they have done what they have.
        """
        positive("processes", processes)
        self._crew.check()
        self._size = processes
        self._crew.pump.call_soon(functools.partial(self._crew.resize, processes))

    def close(self) -> None:
        """
        No more tasks. The workers leave when all is done.
        """
        self._crew.close()

    def terminate(self) -> None:
        """
        End everything now: whoever waits for a result gets `PoolClosed`. Returns when the workers are gone.
        """
        if self._crew.pid != os.getpid():
            return
        self._crew.terminate()
        if threading.current_thread() is not self._thread and loan.can_wait_for_end(self._crew):
            self._crew.ended.wait(self._crew.config.grace + 10.0)

    def join(self, timeout: float | None = None) -> None:
        """
        Wait until the workers are gone.

        Raises:
            ValueError: Neither `close` nor `terminate` was called.
            TimeoutError: *timeout* seconds have passed.
        """
        if not self._crew.closing:
            raise ValueError("Pool is still running")
        if threading.current_thread() is self._thread or self._crew.pid != os.getpid():
            return  # a callback cannot wait for its own thread; in a forked copy there is nothing to wait for
        for reader in list(self._crew.inputs.values()):
            iterator = reader()
            if iterator is not None:
                iterator.drain_input()
        if not self._crew.ended.wait(timeout):
            raise TimeoutError(f"pool {self.name!r} has not ended within {timeout} s")
        self._thread.join(timeout)

    def __enter__(self) -> Self:
        self._crew.check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self._crew.closing:
            self.close()
        if error is None:
            try:
                self._crew.end_streams()
                self.join()
            except BaseException:
                self.terminate()
                raise
        else:
            self.terminate()


_open_pools: "weakref.WeakSet[Any]" = weakref.WeakSet()


def _serve(crew: Crew) -> None:
    """
    The pool's thread.
    """
    crew.thread = threading.get_ident()
    try:
        crew.pump.run()
    except BaseException as error:  # noqa: BLE001 - somebody has closed its descriptors, say
        ending.lose_pump(crew, error)
    finally:
        ending.release(crew)
        crew.ended.set()
        crew.gone = True


def _is_importing() -> bool:
    """
    Whether this thread is in the midst of an import.
    """
    frame: Any = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and getattr(frame.f_globals.get("__spec__"), "_initializing", False):
            return True
        frame = frame.f_back
    return False


def _at_exit() -> None:
    """
    At the end of the program: what is still open is terminated, all at once.
    """
    pools = [pool for pool in list(_open_pools) if pool._crew.pid == os.getpid() and not pool._crew.ended.is_set()]  # noqa: SLF001
    for pool in pools:
        pool._crew.terminate()  # noqa: SLF001
    deadline = time.monotonic() + GRACE_SECONDS
    for pool in pools:
        pool._crew.ended.wait(max(0.0, deadline - time.monotonic()))  # noqa: SLF001


atexit.register(_at_exit)
__all__ = ["AsyncResult", "Pool", "PoolBase", "PoolEvent", "ThreadedPool"]
