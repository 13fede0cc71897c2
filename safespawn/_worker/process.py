"""
A `multiprocessing` process in a fork of the template: what it is sent, and its life until its exit code.

The application sends one header on the task socket, and with it and the messages behind it all descriptors: a pidfd of
its own, its resource tracker's pipe if it has one, the pickle if that is large, and those that the pickle refers to.

From there on it is multiprocessing's own business: `spawn.prepare`, the unpickling, `BaseProcess._bootstrap`. Two
things differ. The program's own file is loaded when something of it is needed, not first thing; and a module that the
pickle does not mention is not imported.

Runs in: template, where it is preloaded, and the process; the forms in the application too.
"""

# ruff: noqa: SLF001 - what multiprocessing keeps private is what each of its own start methods uses

import _socket
import array
import atexit
import io
import marshal
import multiprocessing.util
import os
from multiprocessing import process, reduction, spawn
from typing import Any

from safespawn._worker import elsewhere, main_module
from safespawn._worker.messages import INLINE_BYTES, RECEIVE_BYTES, write_long

util: Any = multiprocessing.util  # for the type checkers, who do not know all that is in there
FDS_PER_MESSAGE = 250  # the kernel takes 253
RECEIVED = b"R"  # the process's only message: it has all
_FDS_BYTES = _socket.CMSG_SPACE(4 * FDS_PER_MESSAGE)
_inherited: list[int] = []


class InheritedFd:
    """
    A descriptor on its way to the process: in the pickle, its place in the row of those that are sent.
    """

    def __init__(self, index: int) -> None:
        self.index = index

    def detach(self) -> int:
        """
        Its number here.
        """
        return _inherited[self.index]


def messages(
    pickled: bytes, fds: list[int], parent_fd: int, tracker_fd: int | None
) -> "tuple[list[tuple[bytes, list[int]]], int]":
    """
    What to send: the header, then as many bytes as further messages are needed for the descriptors.

    Returns:
        The messages, each with its descriptors, which are borrowed; and a new one among them, which is the caller's to
        close, or -1.
    """
    rows = [parent_fd, *([] if tracker_fd is None else [tracker_fd]), *fds]
    own_fd = -1
    if len(pickled) > INLINE_BYTES:
        own_fd = write_long(pickled)
        rows.append(own_fd)
    header = (None if own_fd >= 0 else pickled, len(rows), tracker_fd is not None, main_module.describe())
    chunks = [rows[at : at + FDS_PER_MESSAGE] for at in range(0, len(rows), FDS_PER_MESSAGE)]
    return [(b"+" if number else marshal.dumps(header), chunk) for number, chunk in enumerate(chunks)], own_fd


def main(task_fd: int) -> int:
    """
    Be the process that the application sends; returns its exit code.
    """
    connection = _socket.socket(fileno=task_fd)
    connection.setblocking(True)
    data, fds = _receive(connection)
    if not data:
        return 1  # the application has gone
    pickled, count, has_tracker, how = marshal.loads(data)  # noqa: S302 - the application's own words
    while len(fds) < count:
        data, more = _receive(connection)
        if not data:
            return 1
        fds += more
    try:
        connection.send(RECEIVED, _socket.MSG_NOSIGNAL)
    except OSError:
        pass  # nobody waits for it any more
    connection.close()
    file: Any = io.BytesIO(pickled) if pickled is not None else open(fds.pop(), "rb")  # noqa: SIM115 - closed below
    parent_fd = fds.pop(0)
    if has_tracker:
        _use_tracker(fds.pop(0))
    _inherited[:] = fds
    main_module.install(how)
    current: Any = process.current_process()
    current._inheriting = True
    try:
        with file:
            data = reduction.pickle.load(file)  # type: ignore[attr-defined]
            elsewhere.install(data.pop("elsewhere"))
            spawn.prepare(data)
            subject = reduction.pickle.load(file)  # type: ignore[attr-defined]
    finally:
        del current._inheriting
    atexit.register(util._exit_function)
    try:
        code: int = subject._bootstrap(parent_sentinel=parent_fd)
    finally:
        atexit._run_exitfuncs()
    return code & 0xFF


def inherit(connection: _socket.socket) -> bool:
    """
    In a worker: take what a pool's initializer refers to. Says whether the application is there.
    """
    data, fds = _receive(connection)
    if data == b"T":
        _use_tracker(fds.pop(0))
    _inherited[:] = fds
    return bool(data)


def pose(pool: str, index: int, authkey: bytes | None, application_pid: int) -> None:
    """
    In a worker: be to multiprocessing what one of its own would be: a name, the key, a parent, an end at which its
    queues are written to the last message.
    """
    atexit.register(util._exit_function)
    current: Any = process.current_process()
    current._name = f"{pool}-{index}"
    if authkey is not None:
        current.authkey = authkey
    try:
        fd = os.pidfd_open(application_pid)
    except OSError:
        return  # it has just ended
    modules: Any = process
    modules._parent_process = modules._ParentProcess("MainProcess", application_pid, fd)


def _receive(connection: _socket.socket) -> tuple[bytes, list[int]]:
    """
    One message and its descriptors.
    """
    data, ancillary, flags, _ = connection.recvmsg(RECEIVE_BYTES, _FDS_BYTES, _socket.MSG_CMSG_CLOEXEC)
    if flags & _socket.MSG_CTRUNC:
        raise OSError(24, os.strerror(24))
    return data, [fd for _, _, row in ancillary for fd in array.array("i", row)]


def _use_tracker(fd: int) -> None:
    """
    Share the application's resource tracker.
    """
    from multiprocessing import resource_tracker

    tracker: Any = resource_tracker._resource_tracker
    tracker._fd, tracker._pid = fd, None
