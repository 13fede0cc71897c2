"""
The blocking driver: runs a flow to its end in the calling thread, waiting in poll(2).

Runs in: application, any thread. Not in a coroutine: it blocks the loop.
"""

import math
import select
import time
from typing import TypeVar

from safespawn._core.flow import Flow, Ready, Want
from safespawn._drive.interrupts import Held, hold

T = TypeVar("T")
_LONGEST_MS = 2**31 - 1  # of one poll(2): twenty-four days; then it is called again


def drive(flow: Flow[T]) -> T:
    """
    Run *flow* to its end.

    An exception that comes while it waits, a KeyboardInterrupt above all, is thrown into the flow, which goes on until
    it has ended what it started. A second one is thrown in as well; flows answer it by ending at once. Ctrl-C comes
    only while it waits.

    Returns:
        What the flow returns.
    """
    with hold() as held:
        return _drive(flow, held)


def _drive(flow: Flow[T], held: Held | None) -> T:
    send = flow.send
    try:
        want = next(flow)
        wait = _Waiter().wait
        while True:
            try:
                ready = wait(want) if held is None else held.wait(wait, want)
            except BaseException as error:  # noqa: BLE001 - the flow decides, and raises it again
                want = flow.throw(error)
            else:
                want = send(ready)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    finally:
        flow.close()


def is_readable(fd: int, seconds: float = 0.0) -> bool:
    """
    Whether *fd* is readable, or hung up, now or within *seconds*.
    """
    look = select.poll()
    look.register(fd, select.POLLIN)
    return bool(look.poll(math.ceil(seconds * 1000)))


class _Waiter:
    """
    A poll object kept equal to what the flow wants.
    """

    __slots__ = ("_poll", "_registered")

    def __init__(self) -> None:
        self._poll = select.poll()
        self._registered: dict[int, int] = {}

    def wait(self, want: Want) -> Ready:
        interest, deadline = want
        registered = self._registered
        if interest != registered:
            if registered:
                for fd in registered.keys() - interest.keys():
                    self._poll.unregister(fd)
            for fd, events in interest.items():
                if registered.get(fd) != events:
                    self._poll.register(fd, events)
            self._registered = interest.copy()
        if deadline is None:
            return dict(self._poll.poll())
        while True:
            left = deadline - time.monotonic()
            ready = self._poll.poll(min(math.ceil(left * 1000), _LONGEST_MS) if left > 0 else 0)
            if ready or left <= 0:
                return dict(ready)
