"""
What multiprocessing shares "by inheritance" only (locks, queues, pipes, shared memory), in the arguments of a pool's
initializer.

Such objects refuse to be pickled, unless a process is being started. For the pool's workers one is: the pickle goes
along with each worker's start, and with it the descriptors that it refers to.

Runs in: application.
"""

import io
import os
from typing import Any, cast

import attrs

from safespawn._drive.worker import Inheritance
from safespawn._worker.process import FDS_PER_MESSAGE, InheritedFd
from safespawn.errors import BadArgument

_CURE = "make it by safespawn.get_context(), for example safespawn.get_context().Lock()"


@attrs.define
class _Start:
    """
    What multiprocessing's reducers see of the process that is being started.
    """

    fds: list[int] = attrs.Factory(list[int])
    method: str = "safespawn"
    DupFd: Any = InheritedFd

    def duplicate_for_child(self, fd: int) -> int:
        """
        *fd* is to go along; returns its place.
        """
        self.fds.append(os.dup(fd))
        return len(self.fds) - 1


def pack_inheriting(call: object) -> "tuple[bytes, Inheritance]":
    """
    Pickle *call*, an initializer with its arguments, as a process's arguments are.

    Returns:
        The pickle, and what each worker inherits for it, whose descriptors are the caller's.

    Raises:
        RuntimeError: Something in it belongs to another start method; multiprocessing's words.
        BadArgument: It refers to more descriptors than one message takes.
    """
    from multiprocessing import reduction, resource_tracker
    from multiprocessing.context import set_spawning_popen

    start = _Start()
    file = io.BytesIO()
    set_spawning_popen(cast("Any", start))  # it is asked for no more than `_Start` has
    try:
        reduction.ForkingPickler(file, 5).dump(call)
        tracker: Any = resource_tracker
        tracker_fd = tracker._resource_tracker._fd  # noqa: SLF001 - as multiprocessing's own start methods
        has_tracker = tracker_fd is not None
        if has_tracker:
            start.fds.insert(0, os.dup(tracker_fd))
        if len(start.fds) > FDS_PER_MESSAGE:
            raise BadArgument(
                f"initargs refer to more than {FDS_PER_MESSAGE} descriptors", parameter="initargs", value=len(start.fds)
            )
    except BaseException as error:
        for fd in start.fds:
            os.close(fd)
        if isinstance(error, RuntimeError):
            error.add_note(f"help: {_CURE}")
        raise
    finally:
        set_spawning_popen(None)
    return file.getvalue(), Inheritance(tuple(start.fds), has_tracker=has_tracker)
