"""
What an `AsyncPool` gives its reader bit by bit: the results of an imap, the items of a stream.

Each is two objects. One the reader holds; behind it stands what the tasks of the pool hold, which goes on when
the reader waits, and is told when he has gone.

Runs in: application, tasks of the event loop of the pool.
"""

# pyright: reportPrivateUsage=false

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any, Self

from safespawn._core.dispatch import EACH, Task
from safespawn._drive.async_driver import Home, Latch, shielded
from safespawn._drive.crew import Crew
from safespawn._tasks import pace_key
from safespawn._worker.payload import Repeated
from safespawn.pool_errors import UnpicklableTask

CANCEL_SECONDS = 1.0  # for a cancelled task to be over; three times what the ladder takes that ends it
_AT_ONCE = 32  # items taken from an input, or read, before other tasks of the loop get their turn; arbitrary


async def pause() -> None:
    """
    Let the loop's other tasks go on.
    """
    from anyio.lowlevel import checkpoint

    await checkpoint()


class Results:
    """
    What is under way of an imap. It is apart from what the reader holds, so that a reader who forgets that ends this.
    """

    def __init__(
        self, crew: Crew, home: Home, function: Callable[..., Any], *, ordered: bool, chunksize: int, window: int,
        by_value: bool, options: dict[str, Any],
    ) -> None:  # fmt: skip
        self.crew = crew
        self.home = home
        self.calls: Repeated = Repeated(function, by_value=by_value)
        self.pace_key: Any = pace_key(function)
        self.ordered = ordered
        self.chunksize = chunksize
        self.window = window
        self.options = options
        self.items: Iterator[Any] | None = None  # the input, when it is a synchronous one
        self.feeder: Any = None  # the scope of the task that reads it, when it is an asynchronous one
        self.exhausted: bool = False
        self.input_error: BaseException | None = None
        self.numbers: int = 0  # chunks given out
        self.next: int = 0  # the chunk that is read next, when ordered
        self.outside: int = 0  # items given out and not read
        self.tasks: dict[int, Task] = {}
        self.arrived: deque[tuple[bool, Any]] = deque()  # whole chunks, in reading order
        self.early: dict[int, tuple[bool, Any]] = {}  # those that came before their turn
        self.current: deque[Any] = deque()
        self.news: Latch | None = None  # the reader waits
        self.room: Latch | None = None  # the feeder waits

    # --- in
    def fill(self) -> None:
        """
        Give out items of a synchronous input, as many as there is room for, but not so many that it takes long.
        """
        items, most = self.items, max(_AT_ONCE, self.chunksize)
        while items is not None and not self.exhausted and self.outside < self.window and most > 0:
            chunk: list[Any] = []
            ended = False
            try:
                while len(chunk) < self.chunksize:
                    chunk.append(next(items))
            except StopIteration:
                ended = True
            except BaseException as error:  # noqa: BLE001 - the input's own; raised when all before it has been read
                ended, self.input_error = True, error
            if chunk:
                self.give(chunk)
            if ended:
                self.end_of_input(None)
            most -= self.chunksize

    async def feed(self, iterable: AsyncIterable[Any]) -> None:
        """
        Give out items of an asynchronous input as there is room.
        """
        chunk: list[Any] = []
        source = aiter(iterable)
        try:
            async for item in source:
                chunk.append(item)
                if len(chunk) >= self.chunksize:
                    self.give(chunk)
                    chunk = []
                while self.outside + len(chunk) >= self.window and not self.exhausted:
                    if chunk:
                        self.give(chunk)
                        chunk = []
                    self.room = self.home.latch()
                    await self.room.wait()
                if self.exhausted:
                    return
            if chunk:
                self.give(chunk)
        except Exception as error:  # noqa: BLE001 - the input's own; raised when all before it has been read
            if chunk:
                self.give(chunk)
            self.input_error = error
        finally:
            if isinstance(source, AsyncGenerator):  # nobody else can end it: it was read ahead of the reader
                try:
                    with shielded(CANCEL_SECONDS):
                        await source.aclose()
                except Exception as error:  # noqa: BLE001 - its own as well
                    self.input_error = self.input_error or error

    def give(self, chunk: list[Any]) -> None:
        """
        Submit some items.
        """
        number, self.numbers = self.numbers, self.numbers + 1
        self.outside += len(chunk)
        sink = _Chunk(self, number, len(chunk))
        try:
            payload, parts, head = self.calls.pack(chunk)
            task = Task(EACH, payload, parts, self.pace_key, sink, items=len(chunk), head=head, **self.options)
            self.tasks[number] = task
            self.crew.submit(task)
        except UnpicklableTask as error:  # one item that cannot be sent is that item's result
            self.arrive(number, ok=False, value=(len(chunk), error))
        except Exception as error:  # noqa: BLE001 - the pool is closed or broken, the options are wrong: that is the end
            self.tasks.pop(number, None)
            self.outside -= len(chunk)
            self.end_of_input(error)

    def end_of_input(self, error: BaseException | None) -> None:
        """
        Nothing more comes.
        """
        if not self.exhausted:
            self.exhausted = True
            self.items = None
            self.input_error = self.input_error or error
            self.wake()

    # --- out
    def arrive(self, number: int, *, ok: bool, value: Any) -> None:
        """
        A chunk is done.
        """
        self.tasks.pop(number, None)
        if not self.ordered:
            self.arrived.append((ok, value))
        elif number == self.next:
            self.arrived.append((ok, value))
            self.next += 1
            while self.next in self.early:
                self.arrived.append(self.early.pop(self.next))
                self.next += 1
        else:
            self.early[number] = (ok, value)
            return
        self.wake()

    def wake(self) -> None:
        """
        Have the reader look again.
        """
        if self.news is not None:
            news, self.news = self.news, None
            news.set()

    def was_read(self, count: int) -> None:
        """
        There is room for *count* items more.
        """
        self.outside -= count
        if self.items is not None:
            self.fill()
        elif self.room is not None and self.outside < self.window:
            room, self.room = self.room, None
            room.set()

    async def read(self) -> Any:
        """
        The next result.
        """
        while True:
            if self.current:
                value = self.current.popleft()
                self.was_read(1)
                return value
            if self.arrived:
                ok, value = self.arrived.popleft()
                if ok:
                    self.current.extend(value)
                    continue
                size, error = value
                self.was_read(size)
                raise error
            if self.exhausted and not self.outside:
                if self.input_error is not None:
                    error, self.input_error = self.input_error, None
                    raise error
                raise StopAsyncIteration
            if self.items is not None and self.outside < self.window and not self.exhausted:
                self.fill()
                await pause()
                continue
            self.news = self.home.latch()
            await self.news.wait()

    def abandon(self) -> None:
        """
        Nobody wants the rest: what no worker has is taken back. What runs goes on to its end.
        """
        self.input_error = None
        self.exhausted = True
        self.items = None
        if self.feeder is not None:
            self.feeder.cancel()
        for task in list(self.tasks.values()):
            self.crew.cancel(task, running=False)
        self.outside = 0
        self.arrived.clear()
        self.current.clear()
        self.early.clear()
        self.wake()


class _Chunk:
    __slots__ = ("number", "results", "size")

    def __init__(self, results: Results, number: int, size: int) -> None:
        self.results, self.number, self.size = results, number, size

    def deliver(self, task: Task, value: Any) -> None:
        del task
        self.results.arrive(self.number, ok=True, value=value)

    def fail(self, task: Task, error: BaseException) -> None:
        del task
        self.results.arrive(self.number, ok=False, value=(self.size, error))


class AsyncResults(AsyncIterator[Any]):
    """
    The results of an `imap`. As they are read, further items are taken from the input, so memory stays level.

    Closing it, by `aclose`, by ``async with`` or by forgetting it, takes back what no worker has.
    """

    def __init__(self, results: Results) -> None:
        self._results = results
        self._since = 0
        self._closed = False

    async def __anext__(self) -> Any:
        if self._closed:
            raise StopAsyncIteration
        self._since += 1
        if self._since >= _AT_ONCE:
            self._since = 0
            await pause()  # with a result always at hand the loop's other tasks would not get their turn
        return await self._results.read()

    async def aclose(self) -> None:
        """
        Nobody wants the rest.
        """
        if not self._closed:
            self._closed = True
            self._results.abandon()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        results: Results | None = getattr(self, "_results", None)
        if results is not None and not self._closed and (results.tasks or not results.exhausted):
            results.crew.pump.call_soon(results.abandon)  # any thread may collect garbage


# --- items of a stream -----------------------------------------------------------------------------------------------
class Items:
    """
    What has come of a stream; apart from what the reader holds, as `Results`.
    """

    def __init__(self, crew: Crew, latch: Callable[[], Latch], buffersize: int) -> None:
        self.crew = crew
        self.make_latch = latch
        self.half: int = max(1, buffersize // 2)
        self.items: deque[Any] = deque()
        self.read: int = 0
        self.over: bool = False
        self.error: BaseException | None = None
        self.news: Latch | None = None
        self.task: Task | None = None

    def item(self, task: Task, value: Any) -> None:
        """
        One more item.
        """
        del task
        self.items.append(value)
        self.wake()

    def deliver(self, task: Task, value: Any) -> None:
        """
        The generator has ended.
        """
        del task, value
        self.over = True
        self.wake()

    def fail(self, task: Task, error: BaseException) -> None:
        """
        No more items come, because of *error*.
        """
        del task
        self.error = error
        self.over = True
        self.wake()

    def wake(self) -> None:
        """
        Wake the reader, if it waits.
        """
        if self.news is not None:
            news, self.news = self.news, None
            news.set()

    async def wait(self) -> None:
        """
        Wait until there is news.
        """
        self.news = self.make_latch()
        await self.news.wait()

    def cancel(self) -> None:
        """
        End the generator, if it still runs.
        """
        if self.task is not None and not self.over:
            self.crew.cancel(self.task, running=True)


class AsyncStream(AsyncIterator[Any]):
    """
    The items of a generator that runs in a worker. Closing it, by `aclose`, by ``async with`` or by forgetting it, ends
    the generator.
    """

    def __init__(self, items: Items) -> None:
        self._items = items
        self._since = 0

    async def __anext__(self) -> Any:
        state = self._items
        self._since += 1
        if self._since >= _AT_ONCE:
            self._since = 0
            await pause()
        while not state.items:
            if state.over:
                if state.error is not None:
                    error, state.error = state.error, None
                    raise error
                raise StopAsyncIteration
            await state.wait()
        value = state.items.popleft()
        state.read += 1
        if state.read >= state.half and state.task is not None and not state.over:
            state.crew.credit(state.task, state.read)
            state.read = 0
        return value

    async def aclose(self) -> None:
        """
        Nobody wants the rest: the generator is ended, and that is waited for, a second at most.
        """
        state = self._items
        state.cancel()
        with shielded(CANCEL_SECONDS):
            while not state.over:
                await state.wait()
        state.items.clear()
        state.error = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        state: Items | None = getattr(self, "_items", None)
        if state is not None and not state.over:
            state.crew.pump.call_soon(state.cancel)  # any thread may collect garbage
