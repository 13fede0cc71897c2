"""
`AsyncPool`: a pool of workers for an event loop, asyncio, uvloop or trio.

A task of the pool's own serves it. All that is done, sending a call as well as delivering its result, is done by the
loop's thread. So there is no lock to wait for, and a call costs no hop between threads.

Runs in: application, tasks of the event loop in which the pool was entered. Starts no thread; never blocks the loop.
"""

# pyright: reportPrivateUsage=false

import functools
import os
import time
from collections.abc import AsyncIterable, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from safespawn._aresults import CANCEL_SECONDS, AsyncResults, AsyncStream, Items, Results, pause
from safespawn._core import dispatch
from safespawn._core.dispatch import Task
from safespawn._drive import ending, muster
from safespawn._drive.async_driver import Home, Latch, find_home, shielded
from safespawn._drive.tempo import BRISK_SECONDS
from safespawn._imap import BUFFER
from safespawn._maps import MapJob
from safespawn._pool_base import PoolBase, positive
from safespawn._tasks import call_task, stream_task
from safespawn._worker import journal as cells
from safespawn.pool_errors import PoolClosed, TaskCancelled, WrongLoop

if TYPE_CHECKING:
    from safespawn._drive.crew import Crew

END_SECONDS = 10.0  # beyond the grace, for the workers to be gone; they are killed long before
_LOOK_SECONDS = 0.005  # between looks at tasks that are being ended
_NO_OPTIONS: dict[str, Any] = {}


class _Call:
    """
    The sink of what one task of the loop waits for.
    """

    __slots__ = ("error", "latch", "value")

    def __init__(self, latch: Latch) -> None:
        self.latch = latch
        self.value: Any = None
        self.error: BaseException | None = None

    def deliver(self, task: Task | None, value: Any) -> None:
        del task
        self.value = value
        self.latch.set()

    def fail(self, task: Task | None, error: BaseException) -> None:
        del task
        self.error = error
        self.latch.set()

    def get(self) -> Any:
        if self.error is not None:
            try:
                raise self.error
            finally:
                self.error = None  # a cycle through the traceback
        return self.value


class AsyncPool(PoolBase):
    """
    Workers for the functions of a program that runs in an event loop; see `PoolBase` for the parameters.

        async with AsyncPool(4) as pool:
            print(await pool.run(function, argument))

    Leaving the block in order waits for the work; leaving it by an exception or a cancellation ends it. It may be used
    in that block only, by tasks of the event loop that entered it.
    """

    _group: Any = None  # of the task that serves the pool, while it is open
    _home: Home | None = None
    _last = 0.0  # when the last call ended
    _told: tuple[bool, int] = (False, 0)  # the tempo that the workers know, and how many had been started then

    # --- the block ---------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Self:
        import anyio

        if self._group is not None or self._crew.closing:
            raise PoolClosed(f"pool {self.name!r}", message=f"pool {self.name!r} was entered before")
        self._crew.check()
        self._home = find_home()
        self._ended = anyio.Event()
        self._feeders: set[anyio.CancelScope] = set()
        self._group = anyio.create_task_group()
        self._crew.on_ended.append(self._ended.set)
        await self._group.__aenter__()
        # Not `start`: cancelled in there it would wait for the end of that task, which is shielded. What is started
        # here is in its shield before it waits for the first time.
        self._group.start_soon(self._serve)
        try:
            self._crew.warm()
            if self._eager is not None:
                self._crew.start(main=muster.is_main(self._eager))
        except BaseException:
            self._crew.terminate()
            self._stop_pump()
            self._group.cancel_scope.shield = True
            await self._group.__aexit__(None, None, None)  # with the error it would raise a group around it
            raise
        return self

    async def _serve(self) -> None:
        """
        The task that serves the pool. It ends when the workers have gone.
        """
        crew = self._crew
        try:
            with shielded():
                await crew.pump.arun()
        finally:
            ending.release(crew)
            crew.ended.set()
            self._ended.set()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        group, crew = self._group, self._crew
        try:
            if error is None:
                await self.aclose()
        finally:
            crew.terminate()
            self._stop_feeders()
            group.cancel_scope.shield = True
            try:
                await self._wait_ended()
            finally:
                self._stop_pump()
                await group.__aexit__(None, None, None)

    def _stop_pump(self) -> None:
        """
        Have the task that serves the pool come to its end.
        """
        self._crew.pump.stopped = True
        self._crew.pump.call_soon(_nothing)

    async def _wait_ended(self) -> None:
        with shielded(self._crew.config.grace + END_SECONDS):
            await self._ended.wait()

    def _stop_feeders(self) -> None:
        for scope in list(self._feeders):
            scope.cancel()

    async def aclose(self) -> None:
        """
        No more tasks: wait until all is done and the workers are gone. A cancellation ends what is not done.
        """
        self._check()
        self._stop_feeders()
        self._crew.close()
        try:
            await self._ended.wait()
        except BaseException:
            self._crew.terminate()
            await self._wait_ended()
            raise

    def terminate(self) -> None:
        """
        End everything now: whoever waits for a result gets `PoolClosed`. Leaving the block waits for the end.
        """
        self._check()
        self._stop_feeders()
        self._crew.terminate()

    def _check(self) -> None:
        """
        Whether it may be used here.

        Raises:
            PoolClosed: It was not entered.
            WrongLoop: It was entered elsewhere.
        """
        home = self._home
        if home is None:
            raise PoolClosed(
                f"pool {self.name!r}",
                message=f"pool {self.name!r} is not open yet",
                help=f"use it in a block: async with {type(self).__name__}(...) as pool",
            )
        if not home.is_here():
            if self._crew.pid != os.getpid():
                self._crew.check()
            raise WrongLoop(f"pool {self.name!r}")

    def __del__(self) -> None:
        crew: Crew | None = getattr(self, "_crew", None)
        if crew is not None and self._group is None:
            crew.closing = True
            crew.pump.close()

    # --- one call ----------------------------------------------------------------------------------------------------
    async def run(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """
        Call ``func(*args, **kwargs)`` in a worker.

        A cancellation takes the call back; one that runs is ended by an exception in it, and when that does not end it
        within 0.2 s with its worker. The cancellation waits for that, a second at most.

        Raises:
            Exception: What the call raised; `WorkerDied` and the others when there was no result.
            UnpicklableTask: It cannot be sent.
        """
        return await self._call(func, args, kwargs, _NO_OPTIONS)

    async def apply(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = _NO_OPTIONS,
        **options: Any,
    ) -> Any:
        """
        `run`, with options.

        Args:
            func: What to call.
            args: With what.
            kwds: And with what by name.
            **options: ``timeout``: seconds the call may run, then it ends with `TaskTimeout`. ``retries``: how often it
                is run again when its worker dies. ``priority``: the larger, the sooner. ``key``: calls with equal keys
                go to the same worker.
        """
        return await self._call(func, tuple(args), dict(kwds), options)

    async def _call(self, func: Any, args: Any, kwds: Any, options: dict[str, Any]) -> Any:
        home = self._home
        if home is None or not home.is_here():
            self._check()
        assert home is not None  # noqa: S101 - it was checked
        sink = _Call(home.latch())
        if self._carrier is not None:
            func = self._carrier(func)
        task = call_task(func, args, kwds, sink, by_value=self._by_value, options=options)
        self._crew.submit(task)
        try:
            await sink.latch.wait()
        except BaseException:
            if not sink.latch.is_set:
                await self._end_task(task, sink.latch)
            raise
        self._note_tempo(task)
        return sink.get()

    def _note_tempo(self, task: Task) -> None:
        """
        Have the workers wait awake for the next call, or asleep, whichever is quicker, where one short call follows the
        other (`_drive.tempo`). The loop itself always sleeps.
        """
        now, crew = time.monotonic(), self._crew
        if task.sent - self._last < BRISK_SECONDS and not crew.dispatcher.unfinished:
            pace = crew.dispatcher.paces.get(task.function)
            if pace is not None and pace.average < BRISK_SECONDS:
                crew.tempo.note(now - task.sent)
                if self._told != (crew.tempo.awake, crew.counts["started"]):
                    self._tell_tempo(awake=crew.tempo.awake)
        self._last = now

    def _tell_tempo(self, *, awake: bool) -> None:
        workers = [post.worker for post in self._crew.posts]
        for worker in workers:
            if worker.journal is not None and worker.awake is not awake:
                worker.journal.cells[cells.AWAKE] = worker.awake = awake
        if all(worker.awake is awake for worker in workers):
            self._told = (awake, self._crew.counts["started"])

    async def _end_task(self, task: Task, latch: Latch) -> None:
        self._crew.cancel(task, running=True)
        if not latch.is_set:
            with shielded(CANCEL_SECONDS):
                await latch.wait()

    # --- many calls --------------------------------------------------------------------------------------------------
    async def map(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        chunksize: int | None = None,
        **options: Any,
    ) -> list[Any]:
        """
        ``[func(item) for item in iterable]``, in the workers. The first exception is the map's.

        Args:
            func: What to call.
            iterable: With what.
            chunksize: Items that a worker gets at a time; default: as many as take four milliseconds.
            **options: As `apply`; and ``progress``: called with how many are done, and of how many.
        """
        return await self._map(func, iterable, chunksize, options, star=False)

    async def starmap(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]] | AsyncIterable[Iterable[Any]],
        chunksize: int | None = None,
        **options: Any,
    ) -> list[Any]:
        """
        ``[func(*items) for items in iterable]``, in the workers.
        """
        return await self._map(func, iterable, chunksize, options, star=True)

    async def _map(
        self, func: Any, iterable: Any, chunksize: int | None, options: dict[str, Any], *, star: bool
    ) -> list[Any]:
        self._check()
        self._crew.check()
        if chunksize is not None:
            positive("chunksize", chunksize)
        items: Any = iterable
        if isinstance(iterable, AsyncIterable):
            items = [item async for item in iterable]  # pyright: ignore[reportUnknownVariableType]
        elif not isinstance(iterable, (list, tuple, range)):
            items = list(iterable)
        progress = options.pop("progress", None)
        assert self._home is not None  # noqa: S101 - it was checked
        sink = _Call(self._home.latch())
        if not items:
            await pause()
            return []
        if self._carrier is not None:
            func = self._carrier(func)
        job = MapJob(
            sink, func, items, star=star, chunksize=chunksize, by_value=self._by_value, options=options,
            progress=progress,
        )  # fmt: skip
        self._crew.add_source(job)
        try:
            await sink.latch.wait()
        except BaseException:
            if not sink.latch.is_set:
                job.fail(TaskCancelled(task=dispatch.describe(func)))
                await self._end_job(job)
            raise
        found: list[Any] = sink.get()
        return found

    async def _end_job(self, job: MapJob) -> None:
        """
        Nobody wants the rest of a map: end the chunks that run, and wait until they are over.
        """
        import anyio

        crew = self._crew
        with crew.lock:
            tasks = [
                (task, task.sink)
                for seat in crew.dispatcher.seats
                for task in seat.tasks.values()
                if getattr(task.sink, "job", None) is job
            ]
        for task, _ in tasks:
            crew.cancel(task, running=True)
        with shielded(CANCEL_SECONDS):
            while any(task.state is dispatch.SENT and task.sink is sink for task, sink in tasks):  # noqa: ASYNC110 - no event
                await anyio.sleep(_LOOK_SECONDS)

    def imap(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        **options: Any,
    ) -> AsyncResults:
        """
        The results of *func* over *iterable*, in order, as they come: ``async for result in pool.imap(...)``.

        From *iterable*, which may be asynchronous, it takes what may be under way or unread at once: *buffersize*
        items, 1,000 by default. So an endless input is fine, and memory stays level. An exception is one item's; the
        iterator goes on after it.
        """
        return self._imap(func, iterable, chunksize, buffersize, options, ordered=True)

    def imap_unordered(
        self,
        func: Callable[[Any], Any],
        iterable: Iterable[Any] | AsyncIterable[Any],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        **options: Any,
    ) -> AsyncResults:
        """
        As `imap`, each result as soon as it is there.
        """
        return self._imap(func, iterable, chunksize, buffersize, options, ordered=False)

    def _imap(
        self, func: Any, iterable: Any, chunksize: int, buffersize: int | None, options: dict[str, Any], *,
        ordered: bool,
    ) -> AsyncResults:  # fmt: skip
        self._check()
        self._crew.check()
        positive("chunksize", chunksize)
        window = BUFFER if buffersize is None else positive("buffersize", buffersize)
        assert self._home is not None  # noqa: S101 - it was checked
        if self._carrier is not None:
            func = self._carrier(func)
        results = Results(
            self._crew, self._home, func, ordered=ordered, chunksize=chunksize, window=window,
            by_value=self._by_value, options=options,
        )  # fmt: skip
        if isinstance(iterable, AsyncIterable):
            self._group.start_soon(self._feed, results, iterable)
        else:
            results.items = iter(iterable)
            results.fill()
        return AsyncResults(results)

    async def _feed(self, results: Results, iterable: AsyncIterable[Any]) -> None:
        """
        The task that reads an asynchronous input, as long as the window has room.
        """
        import anyio

        with anyio.CancelScope() as scope:
            self._feeders.add(scope)
            results.feeder = scope
            try:
                await results.feed(iterable)
            finally:
                self._feeders.discard(scope)
                results.end_of_input(PoolClosed(f"pool {self.name!r}") if scope.cancel_called else None)

    def stream(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = _NO_OPTIONS,
        *,
        buffersize: int = 16,
        **options: Any,
    ) -> AsyncStream:
        """
        The items of a generator (also an asynchronous one) that runs in a worker, which is never more than *buffersize*
        items ahead of the reader: ``async for item in pool.stream(...)``. Closing the iterator ends it.
        """
        self._check()
        positive("buffersize", buffersize)
        assert self._home is not None  # noqa: S101 - it was checked
        if self._carrier is not None:
            func = self._carrier(func)
        items = Items(self._crew, self._home.latch, buffersize)
        items.task = task = stream_task(
            func, tuple(args), dict(kwds), items, credit=buffersize, by_value=self._by_value, options=options
        )
        self._crew.submit(task)
        return AsyncStream(items)

    # --- the pool ----------------------------------------------------------------------------------------------------
    def start(self) -> None:
        """
        Have the workers started now, and not with the first task.
        """
        self._check()
        self._crew.check()
        self._crew.start(main=False)

    def resize(self, processes: int) -> None:
        """
        Another number of workers. Those too many leave when they have done what they have.
        """
        positive("processes", processes)
        self._check()
        self._crew.check()
        self._size = processes
        self._crew.pump.call_soon(functools.partial(self._crew.resize, processes))

    async def stacks(self) -> dict[int, str]:
        """
        What each worker runs now, as text, by its index; empty for one that does not answer.
        """
        self._check()
        self._crew.check()
        assert self._home is not None  # noqa: S101 - it was checked
        pump, sink = self._crew.pump, _Call(self._home.latch())

        def done(value: Any, error: BaseException | None) -> None:
            sink.deliver(None, {} if error is not None else value)

        pump.call_soon(lambda: pump.spawn(self._crew.stacks_flow(), done))
        await sink.latch.wait()
        return dict(sink.value)


def _nothing() -> None:
    return


__all__ = ["AsyncPool", "AsyncResults", "AsyncStream"]
