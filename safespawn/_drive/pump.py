"""
Many descriptors, timers and flows, served by one thread or by one task.

A pump is an epoll set with a method for each descriptor. What is in the set may be changed from any thread, also while
somebody waits for it: the kernel allows that. All methods run where the pump runs.

    run     in a thread of its own, until it is told to stop
    arun    in a task of an event loop, which waits for the set's own descriptor

Runs in: application.
"""

import functools
import heapq
import itertools
import os
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from safespawn._core.flow import Flow, Want

Handler = Callable[[int], object]
WAIT_SECONDS = 86_400.0  # in one call: epoll_wait(2) takes no more than 24 days, and what is due may be due never
CALLED_OFF = 100  # timers that stay for the time at which they would have been due; arbitrary


class Timer:
    """
    Something to be done at a time; nothing any more once it is done, or called off.
    """

    __slots__ = ("action",)

    def __init__(self, action: Callable[[], object]) -> None:
        self.action: Callable[[], object] | None = action


class Pump:
    """
    The set.

    Args:
        on_trouble: Called with an exception that a method let through.
    """

    def __init__(self, on_trouble: Callable[[BaseException], object]) -> None:
        self.on_trouble = on_trouble
        self.epoll: select.epoll = select.epoll()
        try:
            self.wake_fd: int = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self.epoll.close()
            raise
        self.handlers: dict[int, Handler] = {self.wake_fd: self._woken}
        self.epoll.register(self.wake_fd, select.EPOLLIN)
        self.stopped: bool = False
        self._soon: deque[Callable[[], object]] = deque()
        self._timers: list[tuple[float, int, Timer]] = []
        self._called_off = 0  # of them
        self._numbers = itertools.count()
        self._flows: dict[Running, None] = {}
        self._waits: dict[int, list[Running]] = {}  # by descriptor: the flows that wait for it

    # --- descriptors -------------------------------------------------------------------------------------------------
    def watch(self, fd: int, handler: Handler, events: int = select.EPOLLIN) -> None:
        """
        Call *handler* with the events of *fd*.
        """
        self.handlers[fd] = handler
        self.epoll.register(fd, events)

    def unwatch(self, fd: int) -> None:
        """
        *fd* is of no interest any more; before it is closed.
        """
        if self.handlers.pop(fd, None) is not None:
            try:
                self.epoll.unregister(fd)
            except OSError:
                return  # closed already

    # --- time and other threads --------------------------------------------------------------------------------------
    def call_at(self, when: float, action: Callable[[], object]) -> "Timer":
        """
        Do *action* at the monotonic time *when*. Only where the pump runs.

        Returns:
            What `call_off` takes.
        """
        timer = Timer(action)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_off(self, timer: "Timer") -> None:
        """
        Do not do it, if that was still to come. Only where the pump runs.
        """
        if timer.action is None:
            return
        timer.action = None
        self._called_off += 1
        if self._called_off > CALLED_OFF and 2 * self._called_off > len(self._timers):
            self._timers = [each for each in self._timers if each[2].action is not None]
            heapq.heapify(self._timers)
            self._called_off = 0

    def call_soon(self, action: Callable[[], object]) -> None:
        """
        Do *action* in the next turn; from any thread.
        """
        self._soon.append(action)
        try:
            os.eventfd_write(self.wake_fd, 1)
        except (OSError, ValueError):
            return  # it has ended

    def _woken(self, _events: int) -> None:
        try:
            os.eventfd_read(self.wake_fd)
        except BlockingIOError:
            return

    # --- flows -------------------------------------------------------------------------------------------------------
    def spawn(self, flow: Flow[Any], done: Callable[[Any, BaseException | None], object]) -> "Running":
        """
        Run *flow* beside the rest; *done* gets what it returns, or its exception. Only where the pump runs.

        Returns:
            What `cancel` takes.
        """
        running = Running(flow, done)
        self._flows[running] = None
        self._step(running, None)
        return running

    def cancel(self, running: "Running") -> None:
        """
        Close a flow where it waits, if it still does; nobody is told. Only where the pump runs, and not in that flow.
        """
        if running in self._flows:
            del self._flows[running]
            self._forget_wants(running)
            running.flow.close()

    def _step(self, running: "Running", ready: dict[int, int] | None) -> None:
        self._forget_wants(running)
        try:
            want = next(running.flow) if ready is None else running.flow.send(ready)
        except StopIteration as end:
            self._flows.pop(running, None)
            running.done(end.value, None)
        except BaseException as error:  # noqa: BLE001 - it is the owner's
            self._flows.pop(running, None)
            running.done(None, error)
        else:
            running.want = want
            for fd, events in want[0].items():
                waiting = self._waits.setdefault(fd, [])
                waiting.append(running)
                if len(waiting) == 1:
                    self.epoll.register(fd, events)
                    self.handlers[fd] = functools.partial(self._ready, fd)

    def _forget_wants(self, running: "Running") -> None:
        for fd in running.want[0]:
            waiting = self._waits.get(fd)
            if waiting is not None and running in waiting:
                waiting.remove(running)
                if not waiting:
                    del self._waits[fd]
                    self.unwatch(fd)
        running.want = ({}, None)

    def _ready(self, fd: int, events: int) -> None:
        for running in list(self._waits.get(fd, ())):
            self._step(running, {fd: events})

    # --- turns -------------------------------------------------------------------------------------------------------
    def next_time(self) -> float | None:
        """
        When something is due next, in monotonic seconds.
        """
        if self._soon:
            return 0.0
        times = [running.want[1] for running in self._flows if running.want[1] is not None]
        if self._timers:
            times.append(self._timers[0][0])
        return min(times) if times else None

    def timeout(self) -> float:
        """
        How long to wait for events, in seconds; -1: for ever.
        """
        when = self.next_time() if self._flows or self._timers or self._soon else None
        return -1 if when is None else min(max(0.0, when - time.monotonic()), WAIT_SECONDS)

    def turn(self, events: list[tuple[int, int]]) -> None:
        """
        Do what is ready and due.
        """
        handlers = self.handlers
        for fd, event in events:
            handler = handlers.get(fd)
            if handler is not None:
                try:
                    handler(event)
                except BaseException as error:  # noqa: BLE001 - a bug, or MemoryError: the owner decides
                    self.on_trouble(error)
        while self._soon:
            self._call(self._soon.popleft())
        if not self._timers and not self._flows:
            return
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            timer = heapq.heappop(self._timers)[2]
            action, timer.action = timer.action, None
            if action is None:
                self._called_off -= 1
            else:
                self._call(action)
        for running in [each for each in self._flows if each.want[1] is not None and each.want[1] <= now]:
            if running in self._flows:
                try:
                    self._step(running, {})
                except BaseException as error:  # noqa: BLE001 - as above
                    self.on_trouble(error)

    def _call(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - as above
            self.on_trouble(error)

    def run(self) -> None:
        """
        Serve, in this thread, until `stopped`.
        """
        poll = self.epoll.poll
        while not self.stopped:
            self.turn(poll(self.timeout()))

    async def arun(self) -> None:
        """
        Serve, in this task, until `stopped`.
        """
        from safespawn._drive.async_driver import find_home

        await find_home().serve(self)

    def forget_in_copy(self) -> None:
        """
        In a forked copy: let go of the descriptors, and leave the flows as they stand. What they would clean up, a
        starting zygote above all, is the original's; one of them may be in the middle of a step for ever.
        """
        self.stopped = True
        _originals.append(self._flows)
        self._flows = {}
        self._waits = {}
        self._let_go()

    def close(self) -> None:
        """
        Let go of the descriptors; flows that are not over are closed.
        """
        self.stopped = True
        for running in list(self._flows):
            running.flow.close()
        self._flows.clear()
        self._let_go()

    def _let_go(self) -> None:
        if self.wake_fd >= 0:
            fd, self.wake_fd = self.wake_fd, -1
            self.epoll.close()
            os.close(fd)


_originals: list[Any] = []  # flows of the process that this one was forked from: kept, so that they are never closed


class Running:
    """
    A flow on its way.
    """

    __slots__ = ("done", "flow", "want")

    def __init__(self, flow: Flow[Any], done: Callable[[Any, BaseException | None], object]) -> None:
        self.flow: Flow[Any] = flow
        self.done: Callable[[Any, BaseException | None], object] = done
        self.want: Want = ({}, None)
