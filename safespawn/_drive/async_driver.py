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
import time
from typing import TypeVar

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


def shielded() -> anyio.CancelScope:
    """
    A scope whose contents run to their end, whatever is cancelled around them.
    """
    return anyio.CancelScope(shield=True)


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
