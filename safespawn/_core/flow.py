"""
The vocabulary of waiting.

A flow is a plain generator. It yields what it waits for, a `Want`: descriptors with the events of poll(2), and a
deadline in monotonic seconds or None. It is resumed with what is ready, a dict of descriptor to events; an empty one
means only that the deadline has truly passed. A driver that is interrupted (KeyboardInterrupt, cancellation) throws
that into the flow and goes on driving it: the flow ends its child, which may take a few more waits, and raises again.

Rules for a flow:
    it owns its descriptors and closes them in `finally`; it never yields in `finally`, nor on GeneratorExit;
    a descriptor that is ready may turn out not to be: then it waits again;
    deadlines are absolute; nothing is called back, no lock is held across a `yield`.

Runs in: application, any thread.
Source: poll(2); PEP 342.
"""

import select
from collections.abc import Generator
from typing import TypeAlias, TypeVar

T = TypeVar("T")
Want: TypeAlias = tuple[dict[int, int], float | None]
Ready: TypeAlias = dict[int, int]
Flow: TypeAlias = Generator[Want, Ready, T]

READ = select.POLLIN
WRITE = select.POLLOUT


class DeadlinePassed(Exception):  # a signal, not an error: the face makes it one
    """
    The caller's deadline has passed before anything could be said of the child.
    """


def earliest(*deadlines: float | None) -> float | None:
    """
    The first of several deadlines, of which None is never.
    """
    times = [each for each in deadlines if each is not None]
    return min(times) if times else None
