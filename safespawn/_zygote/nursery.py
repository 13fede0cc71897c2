"""
The template's server: the zygote's own, but what it starts is a Python worker, forked from this very process.

A template is a process that has imported what the workers need. It speaks the zygote's protocol, with the zygote's
table of sessions: a worker is a child like any other, with a connection for a lifeline. Two things differ. Nothing is
exec'ed; and the application gets one descriptor more, its end of the worker's task socket.

The forked child leaves the server by an exception, `Became`, so that it runs on with an empty stack.

Runs in: template, and its forked child until it is a worker.
Never: forks while a second thread runs here: whatever lock that one holds would be held for ever in the child.
"""

import _socket
import errno
import os
import signal
import sys
import time

import channel
import launch
import server
import session as session_table
import system
import wire
from become import report, settle
from house import name_this, raise_descriptor_limit, take_no_signals
from program import LaunchError

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

START_FAILED = 71  # the first byte of a worker's only message, as in `_worker.messages`
NOTICE_SECONDS = 0.1  # for a process to see that its parent has died, and to do something about it; arbitrary
TASK_SOCKET = 3  # its bit in STARTED's mask of descriptors


class Became(BaseException):
    """
    This process is a worker now.

    Attributes:
        name: What the application calls it.
        kind: What it shall run.
        env: Its environment.
        task_fd: Its end of the task socket.
    """

    def __init__(self, name: bytes, kind: bytes, env: dict[bytes, bytes], task_fd: int) -> None:
        super().__init__()
        self.name, self.kind, self.env, self.task_fd = name, kind, env, task_fd


class WorkerLauncher(launch.Launcher):
    """
    Starts workers for the server.
    """

    def __init__(self) -> None:
        super().__init__()
        self.task_fd = -1  # the end of the worker that is being started

    def needs_fork(self, request: "tuple[Any, ...]", ambient: "tuple[Any, ...]") -> bool:
        """
        Always.
        """
        del request, ambient
        return True

    def fork(
        self,
        request: "tuple[Any, ...]",
        ambient: "tuple[Any, ...]",
        fds: list[int],
        ends: launch.Ends,
        group: int | None,
    ) -> tuple[int, int]:
        """
        Fork a worker; returns its pid, and -1: it counts as started at once, so that the application's first words
        cross its setting up. If that fails it says so on the task socket.
        """
        if len(os.listdir("/proc/self/task")) != 1:
            raise LaunchError("threads", errno.EBUSY)
        try:
            near, far = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        except OSError as error:
            raise LaunchError("pipe", error.errno or errno.EIO) from None
        self.task_fd = near.detach()
        try:
            ends.given.append(far.detach())
            ends.mask |= 1 << TASK_SOCKET
            pid, report_fd = super().fork(request, ambient, fds, ends, group)
            os.close(report_fd)
            return pid, -1
        except Became:
            ends.close_given()
            raise
        finally:
            if os.getpid() == self.own_pid:
                os.close(self.task_fd)

    def in_child(  # noqa: PLR0917 - as in the class above
        self,
        report_w: int,
        request: "tuple[Any, ...]",
        ambient: "tuple[Any, ...]",
        fds: list[int],
        pairs: list[tuple[int, int]],
        env: dict[bytes, bytes],
        group: int | None,
    ) -> None:
        """
        Set up the worker, and leave the server.
        """
        os.close(report_w)
        try:
            settle(self.lender, request, ambient, fds, pairs, env, group)
        except LaunchError as error:
            os.write(self.task_fd, bytes((START_FAILED,)) + report(error))
            os._exit(127)
        raise Became(request[1][0], request[1][1], env, self.task_fd)


class Nursery(server.Server):
    """
    The whole of the template after its preload.
    """

    def __init__(
        self,
        control: _socket.socket,
        application_pid: int,
        application_fd: int,
        load_main: "Callable[[], bytes | None]",
    ) -> None:
        super().__init__(control, application_pid, application_fd, -1, keeps=False)
        self.load_main = load_main  # returns why it cannot be
        self.watchers: set[server.Session] = set()  # those whose child watches the application by itself
        os.close(self.launcher.null_fd)
        self.launcher = WorkerLauncher()

    def hello(self, connections: int, facts: "dict[str, int | float | str]") -> None:
        """
        Say who we are, and hand over the first connections.
        """
        pairs = [channel.pair() for _ in range(connections)]
        words = (wire.HELLO, wire.PROTOCOL, sys.version, self.own_pid, 0, connections, {**self.statistics(), **facts})
        self.answer(words, tuple(far for _, far in pairs))
        for near, far in pairs:
            os.close(far)
            self.adopt(near)

    # A process of multiprocessing has `parent_process()`, and what it does when that has died must not be a race with
    # our SIGTERM. So there is a moment between the end of its connection and the signal.

    def start(self, session: server.Session, request: "tuple[Any, ...]", fds: list[int]) -> None:
        """
        Launch what is asked.
        """
        super().start(session, request, fds)
        if request[1][1:2] == (b"process",):
            self.watchers.add(session)
        else:
            self.watchers.discard(session)

    def terminate(self, session: server.Session) -> None:
        """
        Ask the child to end; one that watches by itself in a moment.
        """
        if session not in self.watchers:
            super().terminate(session)

    def start_grace(self, session: server.Session) -> None:
        """
        Give SIGTERM its time, or the child that moment.
        """
        if session in self.watchers:
            self.due[session] = time.monotonic() + NOTICE_SECONDS
        else:
            super().start_grace(session)

    def on_due(self, subject: object) -> None:
        """
        A session's timer, or the one of the house.
        """
        if isinstance(subject, server.Session) and subject.state == session_table.ENDING and subject in self.watchers:
            self.watchers.discard(subject)
            self.terminate(subject)
            self.start_grace(subject)
        else:
            super().on_due(subject)

    def forget(self, session: server.Session, *details: object) -> None:
        """
        Nothing is left to do for this session.
        """
        self.watchers.discard(session)
        super().forget(session, *details)

    def on_other(self, message: "tuple[Any, ...]") -> None:
        """
        LOAD_MAIN: the workers to come shall have the application's `__main__` loaded.
        """
        if message[0] != wire.LOAD_MAIN:
            super().on_other(message)
            return
        refusal = self.load_main()
        self.answer((wire.LOADED,) if refusal is None else (wire.FAILED, "preload", 0, refusal))

    def leave(self) -> None:
        """
        In a forked child: close the copies of all that is the server's. Nothing is taken out of the epoll set, which
        is the parent's too.
        """
        self.epoll.close()
        self.control.detach()
        for session in self.sessions:
            if session.connection is not None:
                session.connection.detach()
            if session.ends is not None:
                session.ends.close_given()
            for fd in (session.pidfd, session.report_fd):
                if fd >= 0 and fd not in self.watched:
                    os.close(fd)
        for fd in self.watched:
            os.close(fd)
        self.watched.clear()
        os.close(self.launcher.null_fd)


def open_nursery(control_fd: int, application_pid: int, load_main: "Callable[[], bytes | None]") -> Nursery:
    """
    From a process that has done its preload to a server.
    """
    take_no_signals()
    application_fd = os.pidfd_open(application_pid)
    if system.has_prctl():
        system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
    points = system.FAILPOINTS + system.WORKER_FAILPOINTS
    system.arm_failpoints(os.environ.get("SAFESPAWN_FAILPOINTS", ""), points)
    name_this("safespawn-tmpl")
    raise_descriptor_limit()
    control = _socket.socket(fileno=control_fd)
    channel.prepare(control)
    return Nursery(control, application_pid, application_fd, load_main)


def refuse(control_fd: int, stage: str, what: bytes) -> None:
    """
    Say that this template will not come up, and why.
    """
    control = _socket.socket(fileno=control_fd)
    channel.send(control, (wire.FAILED, stage, 0, what))
    control.detach()


def signals_of_python(*, interruptible: bool) -> None:
    """
    In a worker: what a fresh Python has. Ctrl-C is the application's to answer, unless the worker is *interruptible*.
    """
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)
    if not interruptible:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    elif signal.getsignal(signal.SIGINT) == signal.SIG_DFL:  # else the application ignores it
        signal.signal(signal.SIGINT, signal.default_int_handler)
