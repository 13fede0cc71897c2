"""
The async driver: runs a flow to its end in a task of asyncio, uvloop or trio, without a thread.

What the flow waits for goes into an epoll set of its own, and the task waits for that one descriptor. So any number
of tasks may wait for the same descriptor, and one kind of waiting serves every event loop. A single descriptor that
nobody else waits for needs no set.

Runs in: application, a task.
Source: epoll(7), "an epoll file descriptor is itself readable when events are waiting".
"""

import errno
import math
import select
import sys
import time
from typing import Any, Protocol, TypeVar

import anyio

from safespawn._core.explain import spawn_error
from safespawn._core.flow import READ, Flow, Ready, Want
from safespawn._drive.blocking import is_readable
from safespawn.errors import ClosedError

T = TypeVar("T")


async def adrive(flow: Flow[T]) -> T:
    """
    Run *flow* to its end.

    A cancellation is thrown into the flow, which then ends what it started in a shielded scope and raises again.

    Returns:
        What the flow returns.
    """
    waiter = _Waiter()
    shield = anyio.CancelScope()
    try:
        with shield:
            want = next(flow)
            while True:
                try:
                    ready = await waiter.wait(want)
                except BaseException as error:  # noqa: BLE001 - the flow decides, and raises it again
                    shield.shield = True
                    want = flow.throw(error)
                else:
                    want = flow.send(ready)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        flow.close()
        waiter.close()
    raise AssertionError("nobody cancels the shield")


async def adrive_stream(flow: Flow[T]) -> T:
    """
    `adrive` for a stream, which another task may close meanwhile.

    Raises:
        ClosedError: It was closed.
    """
    try:
        return await adrive(flow)
    except anyio.ClosedResourceError:
        raise ClosedError("this stream") from None


def wake_waiter(fd: int) -> None:
    """
    *fd* is about to be closed: wake the task that waits for it, and have the event loop forget the number.
    """
    anyio.notify_closing(fd)


def shielded(seconds: float = math.inf) -> anyio.CancelScope:
    """
    A scope whose contents run to their end, or for *seconds*, whatever is cancelled around them.
    """
    return anyio.CancelScope(shield=True, deadline=anyio.current_time() + seconds)


# --- an event loop as the home of a pump -----------------------------------------------------------------------------
# The pump is not waited for as a flow is: a task that costs fifty microseconds in all would feel each wake-up. So each
# loop is used in its own terms here, found by anyio, and the modules are those that run already.


class Latch(Protocol):
    """
    Something that is set once, by the loop's own thread, and waited for by one task at a time.
    """

    is_set: bool

    def set(self) -> None:
        """
        Wake who waits.
        """
        ...

    async def wait(self) -> None:
        """
        Wait until it is set.
        """
        ...


class Home(Protocol):
    """
    The event loop in which a pump is served.
    """

    def is_here(self) -> bool:
        """
        Whether it is the one that runs this code.
        """
        ...

    def latch(self) -> Latch:
        """
        A new latch.
        """
        ...

    async def serve(self, pump: Any) -> None:
        """
        Serve *pump*, in this task, until it is stopped.
        """
        ...


def find_home() -> Home:
    """
    The event loop of this task.

    Raises:
        RuntimeError: There is none.
    """
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and anyio.get_cancelled_exc_class() is asyncio.CancelledError:
        return _AsyncioHome(asyncio)
    return _TrioHome(sys.modules["trio"].lowlevel)


class _AsyncioLatch:
    __slots__ = ("_future", "_loop", "is_set")

    def __init__(self, loop: Any) -> None:
        self.is_set = False
        self._loop = loop
        self._future: Any = None

    def set(self) -> None:
        self.is_set = True
        if self._future is not None and not self._future.done():
            self._future.set_result(None)

    async def wait(self) -> None:
        if not self.is_set:
            self._future = self._loop.create_future()
            await self._future


class _AsyncioHome:
    """
    asyncio and uvloop: the set stays registered with the loop, which calls the pump's turns itself.
    """

    def __init__(self, asyncio: Any) -> None:
        self._running = asyncio._get_running_loop  # noqa: SLF001 - get_running_loop, but None where there is none
        self._loop: Any = asyncio.get_running_loop()

    def is_here(self) -> bool:
        return self._running() is self._loop

    def latch(self) -> Latch:
        return _AsyncioLatch(self._loop)

    async def serve(self, pump: Any) -> None:
        loop, epoll = self._loop, pump.epoll
        over = loop.create_future()
        timer: Any = None
        due: float | None = None

        def turn() -> None:
            nonlocal timer, due
            pump.turn(epoll.poll(0))
            if pump.stopped:
                if not over.done():
                    over.set_result(None)
                return
            when = pump.next_time()
            if when != due:
                if timer is not None:
                    timer.cancel()
                due = when
                timer = None if when is None else loop.call_later(max(0.0, when - time.monotonic()), at_time)

        def at_time() -> None:
            nonlocal due
            due = None
            turn()

        fd = epoll.fileno()
        loop.add_reader(fd, turn)
        try:
            turn()
            await over
        finally:
            loop.remove_reader(fd)
            if timer is not None:
                timer.cancel()


class _TrioLatch:
    __slots__ = ("_low", "_task", "is_set")

    def __init__(self, low: Any) -> None:
        self.is_set = False
        self._low = low
        self._task: Any = None

    def set(self) -> None:
        self.is_set = True
        if self._task is not None:
            task, self._task = self._task, None
            self._low.reschedule(task)

    async def wait(self) -> None:
        if not self.is_set:
            self._task = self._low.current_task()
            await self._low.wait_task_rescheduled(self._abort)

    def _abort(self, _raise: Any) -> Any:
        self._task = None
        return self._low.Abort.SUCCEEDED


class _TrioHome:
    """
    trio: a task waits for the set.
    """

    def __init__(self, low: Any) -> None:
        self._low = low
        self._token = low.current_trio_token()

    def is_here(self) -> bool:
        try:
            return self._low.current_trio_token() is self._token
        except RuntimeError:
            return False

    def latch(self) -> Latch:
        return _TrioLatch(self._low)

    async def serve(self, pump: Any) -> None:
        epoll, wait = pump.epoll, self._low.wait_readable
        fd = epoll.fileno()

        async def turns() -> None:
            while not pump.stopped:
                seconds = pump.timeout()
                if seconds < 0:
                    await wait(fd)
                elif seconds > 0:
                    with anyio.move_on_after(seconds):
                        await wait(fd)
                pump.turn(epoll.poll(0))

        # A Ctrl-C is not raised in the midst of a turn: trio gives it to its main task then.
        await self._low.enable_ki_protection(turns)()


class _Waiter:
    """
    An epoll set kept equal to what the flow wants; made when more than one descriptor is wanted for the first time.
    """

    __slots__ = ("_epoll", "_registered")

    def __init__(self) -> None:
        self._epoll: select.epoll | None = None
        self._registered: dict[int, int] = {}

    def close(self) -> None:
        if self._epoll is not None:
            self._epoll.close()

    def _equal(self, interest: dict[int, int]) -> select.epoll:
        if self._epoll is None:
            try:
                self._epoll = select.epoll()
            except OSError as error:
                raise spawn_error(error.errno or errno.EIO, None, stage="fds") from None
        epoll, registered = self._epoll, self._registered
        for fd in registered.keys() - interest.keys():
            try:
                epoll.unregister(fd)
            except OSError:
                continue  # closed by the flow: the kernel has taken it out
        for fd, events in interest.items():  # known ones too: the number may stand for another file than before
            try:
                epoll.modify(fd, events) if fd in registered else epoll.register(fd, events)
            except FileNotFoundError:
                epoll.register(fd, events)
        self._registered = dict(interest)
        return epoll

    async def _wait_for_one(self, fd: int, events: int, deadline: float | None) -> Ready:
        """
        The usual wait, for one descriptor to be readable or writable: no set is needed.
        """
        while True:
            left = math.inf if deadline is None else deadline - time.monotonic()
            with anyio.move_on_after(max(0.0, left)) as scope:
                await (anyio.wait_readable(fd) if events == READ else anyio.wait_writable(fd))
            if not scope.cancelled_caught or (events == READ and is_readable(fd)):
                return {fd: events}
            if deadline is not None and time.monotonic() >= deadline:
                return {}

    async def wait(self, want: Want) -> Ready:
        interest, deadline = want
        if self._epoll is None and len(interest) == 1:
            ((fd, events),) = interest.items()
            try:
                return await self._wait_for_one(fd, events, deadline)
            except anyio.BusyResourceError:
                pass  # another task of this loop waits for it: only an epoll set can be waited for twice
        epoll = self._equal(interest)
        while True:
            left = math.inf if deadline is None else deadline - time.monotonic()
            with anyio.move_on_after(max(0.0, left)):
                await anyio.wait_readable(epoll)
            ready = epoll.poll(0)
            if ready or (deadline is not None and time.monotonic() >= deadline):
                return dict(ready)
