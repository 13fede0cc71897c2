"""
The zygote's epoll set and its timers.

Runs in: zygote.
Never: waits for anything but the set.
"""

import os
import select
import sys
import time

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

WATCHED = select.EPOLLIN | select.EPOLLRDHUP
HUNG_UP = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR
STALE_SECONDS = 0.2  # after which what epoll has said is asked anew; arbitrary, a hundred times what an event takes


class Loop:
    """
    Calls ``method(subject, events)`` for ready descriptors, and ``on_due(subject)`` for subjects whose time has come.

    An event may be stale: an earlier one of the same turn may have closed its descriptor and something else may have
    got the number since. So a method looks before it believes: what is ready may turn out not to be.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.watched: dict[int, tuple[Callable[[Any, int], None], object]] = {}  # fd -> (method, subject)
        self.due: dict[object, float] = {}  # subject -> monotonic time

    def watch(self, fd: int, method: "Callable[[Any, int], None]", subject: object) -> None:
        """
        Call *method* when *fd* is readable or hung up.
        """
        self.epoll.register(fd, WATCHED)
        self.watched[fd] = (method, subject)

    def close(self, fd: int) -> None:
        """
        Close *fd*, watched or not. A duplicate of it may live elsewhere, so closing alone would not end the watch.
        """
        if self.watched.pop(fd, None) is not None:
            self.epoll.unregister(fd)
        os.close(fd)

    def turn(self, longest: float = -1) -> None:
        """
        Wait for an event, a due time, or *longest* seconds (-1: no limit); do what is ready.
        """
        timeout = longest
        if self.due:
            left = max(0.0, min(self.due.values()) - time.monotonic())
            timeout = left if longest < 0 else min(left, longest)
        ready = self.epoll.poll(timeout)
        began = time.monotonic()
        for fd, events in ready:
            if time.monotonic() - began > STALE_SECONDS:
                break  # an exec has taken its time: what the others said then may be out of date, and is told again
            entry = self.watched.get(fd)
            if entry is not None:  # else unwatched by an earlier event of this turn
                try:
                    entry[0](entry[1], events)
                except Exception as error:  # noqa: BLE001 - one session's trouble, even a bug, stays that session's
                    self.on_trouble(entry[1], error)
        if self.due and min(self.due.values()) <= (now := time.monotonic()):
            for subject in [subject for subject, due in self.due.items() if due <= now]:
                self.due.pop(subject, None)
                try:
                    self.on_due(subject)
                except Exception as error:  # noqa: BLE001
                    self.on_trouble(subject, error)

    def on_due(self, subject: object) -> None:
        """
        The time of *subject* has come.
        """
        raise NotImplementedError

    def on_trouble(self, subject: object, error: Exception) -> None:
        """
        A method has failed for *subject*. What is not the system's doing is written where a boot error would be.
        """
        del subject
        if not isinstance(error, (OSError, MemoryError)):
            sys.__excepthook__(type(error), error, error.__traceback__)
