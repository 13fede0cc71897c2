"""
A whole command, from request to result: what `run` and `arun` do.

Theory of operation. The request goes out on a leased connection; the answer brings the application's pipe ends; then
everything is one wait: output to drain, input to feed, the exit. The command is over when it has exited and its output
has ended. Output that stays open after the exit belongs to somebody else (a grandchild in the background): it gets a
short grace, unless the caller waits for the end of it.

Whatever goes wrong on the way (deadline, cancellation, Ctrl-C, a callback's exception, too much output) ends the
child, with its tree, before the error leaves this flow; the connection is then closed rather than returned.

Runs in: application, any thread.
"""

import errno
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol

import attrs

from safespawn._core.child import (
    LATE_SECONDS,
    Child,
    Retracted,
    end_flow,
    exit_flow,
    kill_flow,
    lost_flow,
    send_request,
    start_flow,
    sweep_flow,
    take_news,
    unanswered_flow,
)
from safespawn._core.connection import Connection
from safespawn._core.flow import READ, DeadlinePassed, Flow, Ready, earliest
from safespawn._core.procfs import holders
from safespawn._core.spec import SpawnSpec
from safespawn._core.status import Outcome, decode_status
from safespawn._core.transfer import Drain, Feed, LimitReached, Streams
from safespawn._zygote import wire
from safespawn.errors import BootError, OutputLimitExceeded, SafespawnError, TimeoutExpired

ATTEMPTS = 4  # zygotes that die, or hang, before they get the request, until that is the answer; arbitrary
DRAIN_SECONDS = 0.2  # how long output may stay open after the exit; arbitrary: scheduling takes a hundredth of it


class Engine(Protocol):
    """
    Where connections come from and go back to; `safespawn._drive.engine.Engine`.
    """

    def lease_nowait(self, *, detached: bool = False) -> tuple[Connection, Any] | None:
        """
        As `lease_flow`, if nothing must be waited for.
        """

    def lease_flow(
        self, *, detached: bool = False, deadline: float | None = None, patient: bool = False
    ) -> Flow[tuple[Connection, Any]]:
        """
        A connection to a zygote of the application's present world, and that world as it was seen.
        """
        ...

    def give_back(self, connection: Connection) -> None:
        """
        Return a connection whose child is over.
        """

    def discard(self, connection: Connection) -> None:
        """
        Close a connection, which ends what is on it.
        """

    def is_readable(self, fd: int) -> bool:
        """
        Whether *fd* is readable now.
        """
        ...

    def adopt(self, process: Any) -> None:
        """
        Keep a process that its owner forgot while it runs.
        """


@attrs.define(slots=True)  # never changed; frozen, each of its attributes would cost a call
class CommandOptions:
    """
    How a command's streams and time are dealt with.

    Attributes:
        args: The command as the user wrote it, for errors and the result.
        timeout: Seconds, for the error; the deadline counts.
        deadline: Monotonic seconds, or None.
        input: What the child's stdin shall give, or None.
        wait_eof: Wait for the end of the output however long somebody else holds it.
        max_output_bytes: Most bytes to keep of each output.
        on_line: Called with each line of stdout.
        codec: Encoding and error handler of the lines, or None.
        keep_stdout: Whether stdout's bytes are wanted at the end.
        kill_tree: What ends the child ends its whole tree.
        patient: An event loop drives the flow.
    """

    args: Any
    timeout: float | None = None
    deadline: float | None = None
    input: Any = None
    wait_eof: bool = False
    max_output_bytes: int | None = None
    on_line: Callable[[Any], object] | None = None
    codec: tuple[str, str] | None = None
    keep_stdout: bool = True
    kill_tree: bool = True
    patient: bool = False


def launch_flow(
    engine: Engine, spec: SpawnSpec, deadline: float | None, *, patient: bool
) -> Flow[tuple[Child, list[int]]]:
    """
    Lease a connection and start *spec* on it.

    A request that did not reach its zygote, because that one had died since the last call, goes to the next one; so
    does one that lies unread in front of a zygote which hangs, in an exec from a dead file server, say. One that may
    have been read never does.

    Returns:
        The child and the application's pipe ends, the caller's to close; and its connection to return.
    """
    attempts = 0
    while True:
        try:
            leased = engine.lease_nowait(detached=spec.detached)
            if leased is None:
                leased = yield from engine.lease_flow(detached=spec.detached, deadline=deadline, patient=patient)
        except (SafespawnError, TimeoutError):
            raise
        except OSError as error:  # no descriptors or processes left for a look at this process, or for a zygote
            raise unsupplied(error, spec) from None
        connection, ambient = leased
        child = Child(connection, spec, time.monotonic())
        starting = connection.zygote.starting
        starting.add(connection)
        try:
            send_request(connection, spec, ambient)
            return child, (yield from start_flow(child, deadline, may_retract=attempts < ATTEMPTS - 1))
        except (BrokenPipeError, ConnectionResetError, Retracted) as missed:
            if not isinstance(missed, Retracted):
                connection.zygote.died()
            lost = child.lost("before start")
            engine.discard(connection)
            attempts += 1
            if attempts == ATTEMPTS:
                raise lost from None
        except SafespawnError as error:
            if getattr(error, "stage", None) in ("fds", "receive") or not _never_started(error):
                engine.discard(connection)
            else:
                engine.give_back(connection)
            child.close()
            raise
        except DeadlinePassed:
            try:
                yield from unanswered_flow(child)
            finally:  # Ctrl-C may come while it waits
                engine.discard(connection)
                child.close()
            raise
        except BaseException:
            engine.discard(connection)
            child.close()
            raise
        finally:
            starting.discard(connection)


def unsupplied(error: OSError, spec: SpawnSpec) -> SafespawnError:
    """
    The error for a command that there was no zygote for, for want of something in this process.
    """
    from safespawn._core.explain import spawn_error

    unusable = error.errno == errno.EACCES and not os.access(sys.executable, os.X_OK)
    if unusable or error.errno in (errno.ENOENT, errno.ENOTDIR):  # no interpreter, or no /proc: not the command's doing
        return unbooted(error)
    stage = "fds" if error.errno in (errno.EMFILE, errno.ENFILE) else "zygote"
    return spawn_error(error.errno or errno.EIO, None, stage=stage, argv=spec.argv)


_WANTING = {
    errno.EAGAIN: "the limit of processes is reached: see ulimit -u, and pids.max of the control group",
    errno.ENOMEM: "there is no memory left for another process",
    errno.EMFILE: "this program has as many descriptors open as it may: see ulimit -n",
    errno.EINVAL: "this program may open too few descriptors: see ulimit -n",
    errno.ENFILE: "the whole machine has as many files open as it may",
}  # fmt: skip


def unbooted(error: OSError) -> SafespawnError:
    """
    The error for a zygote that cannot be started, for want of something in this process.
    """
    if isinstance(error, SafespawnError):
        return error
    return BootError(str(error), executable=sys.executable, help=_WANTING.get(error.errno or 0, ""))


def _never_started(error: SafespawnError) -> bool:
    """
    Whether the zygote itself said that there is no child, so that the connection is idle again.
    """
    from safespawn.errors import SpawnError

    return isinstance(error, SpawnError)


def command_flow(engine: Engine, spec: SpawnSpec, options: CommandOptions) -> Flow[Outcome]:
    """
    Run *spec* to its end.

    Raises:
        TimeoutExpired, OutputLimitExceeded, SpawnError, SpawnLost, Unkillable, or what interrupted the wait.
    """
    streams: Streams | None = None
    child: Child | None = None
    healthy = False
    held_by: tuple[int, ...] = ()
    try:
        try:
            child, ends = yield from launch_flow(engine, spec, options.deadline, patient=options.patient)
        except DeadlinePassed:
            raise TimeoutExpired(options.args, options.timeout or 0.0) from None
        streams = connect(spec, ends, options) if ends else NO_STREAMS
        try:
            if child.status is None:  # else what it printed came with its exit
                held_by = yield from _attend(child, streams, options)
        except LimitReached:
            yield from end_flow(child, whole=options.kill_tree)
            raise _limit_error(child, streams, options) from None
        except (GeneratorExit, SafespawnError):
            raise
        except BaseException:
            try:
                yield from end_flow(child, whole=options.kill_tree)
            except SafespawnError:
                pass  # the interruption is what the caller must hear of; the connection is closed, which ends the child
            raise
        healthy = True
        return outcome(child, streams, held_by)
    finally:
        if streams is not None and streams is not NO_STREAMS:
            streams.close()
        if child is not None:
            if child.pidfd >= 0:
                child.close()
            if healthy:
                engine.give_back(child.connection)
            else:
                engine.discard(child.connection)


NO_STREAMS = Streams(None, (None, None))


def connect(spec: SpawnSpec, ends: list[int], options: CommandOptions) -> Streams:
    """
    Make the pipe ends that the zygote sent into streams. Which came is known from what was asked.
    """
    wanted = [number for number, stream in enumerate(spec.streams) if stream == wire.PIPE]
    if len(wanted) == len(ends) + 1 and wanted[0] == 0:
        wanted.pop(0)  # the zygote has written the input itself
    feed: Feed | None = None
    drains: list[Drain | None] = [None, None]
    given = dict(zip(wanted, ends, strict=False))
    ends.clear()
    for number, fd in given.items():
        if number == 0:
            feed = Feed(fd, options.input if options.input is not None else b"")
        else:
            drains[number - 1] = Drain(
                fd,
                limit=options.max_output_bytes,
                on_line=options.on_line if number == 1 else None,
                codec=options.codec,
                keep=number == 2 or options.keep_stdout,
            )
    return Streams(feed, (drains[0], drains[1]))


def _attend(child: Child, streams: Streams, options: CommandOptions) -> Flow[tuple[int, ...]]:
    """
    Move the streams until the command is over; returns who still holds the output then.
    """
    deadline = options.deadline
    doubt: float | None = child.started + LATE_SECONDS  # from then on the kernel's word counts beside the zygote's
    drained_by: float | None = None  # after the exit: when the grace of the output is over
    while child.status is None or streams.open_outputs:
        interest = streams.interest()
        if child.status is None:
            if not interest:
                if not (yield from exit_flow(child, deadline)):
                    yield from _expire(child, streams, options)
                return ()
            interest[child.connection.fileno()] = READ
            if doubt is None and child.pidfd >= 0:
                interest[child.pidfd] = READ
        ready = yield interest, earliest(deadline, drained_by, doubt)
        streams.turn(ready)
        now = time.monotonic()
        if doubt is not None and now >= doubt:
            doubt = None
        if child.status is None and (yield from _notice_flow(child, ready, deadline)):
            drained_by = None if options.wait_eof else now + DRAIN_SECONDS
        elif drained_by is not None and now >= drained_by:
            break
        elif deadline is not None and now >= deadline:
            yield from _expire(child, streams, options)
    return holders(streams.open_outputs) if streams.open_outputs else ()


def _notice_flow(child: Child, ready: Ready, deadline: float | None) -> Flow[bool]:
    """
    Take what the zygote, or the kernel, has to say; whether the exit is known now.
    """
    if child.connection.fileno() in ready:
        try:
            return take_news(child)
        except EOFError:
            yield from lost_flow(child)
            return True
    if child.pidfd in ready:  # the zygote's word is due, and has its own bound
        return (yield from exit_flow(child, deadline))
    return False


def _expire(child: Child, streams: Streams, options: CommandOptions) -> Flow[None]:
    """
    The deadline has passed: SIGKILL to the whole tree, take what was printed, say who holds the pipes.

    Raises:
        TimeoutExpired: Always.
    """
    known: tuple[str, ...] = ()
    if child.status is None:
        try:
            yield from kill_flow(child, whole=options.kill_tree)
        except SafespawnError as error:
            known = (str(error).partition("\n")[0],)
    elif options.kill_tree:
        yield from sweep_flow(child)
    drained_by = time.monotonic() + DRAIN_SECONDS
    while streams.open_outputs:
        interest = dict.fromkeys(streams.open_outputs, READ)
        ready = yield interest, drained_by
        try:
            streams.turn(ready)
        except LimitReached:
            break
        if time.monotonic() >= drained_by:
            break
    held_by = holders(streams.open_outputs) if streams.open_outputs else ()
    stdout, stderr = results(streams)
    raise TimeoutExpired(
        options.args, options.timeout or 0.0, output=stdout, stderr=stderr, pid=child.pid or None,
        held_by=held_by, known=known,
    )  # fmt: skip


def _limit_error(child: Child, streams: Streams, options: CommandOptions) -> OutputLimitExceeded:
    limit = options.max_output_bytes or 0
    first = streams.drains[0]
    name = "stdout" if first is not None and first.total > limit else "stderr"
    stdout, stderr = results(streams)
    return OutputLimitExceeded(
        options.args, limit_bytes=limit, stream=name, stdout=stdout, stderr=stderr, pid=child.pid
    )


def results(streams: Streams) -> tuple[bytes | None, bytes | None]:
    """
    What stdout and stderr gave; None for one that was not captured.
    """
    first, second = streams.drains
    return None if first is None else first.result(), None if second is None else second.result()


def outcome(child: Child, streams: Streams, held_by: tuple[int, ...]) -> Outcome:
    """
    The result of a child that has exited.
    """
    stdout = stderr = None
    if child.outputs:  # it was over before it was announced
        outputs = list(child.outputs)
        stderr = outputs.pop() if child.spec.streams[2] == wire.PIPE else None
        stdout = outputs.pop() if outputs else None
    elif streams is not NO_STREAMS:
        stdout, stderr = results(streams)
    ended = child.ended if child.ended is not None else time.monotonic()
    assert child.status is not None  # noqa: S101 - only called after the exit
    return Outcome(decode_status(child.status), stdout, stderr, child.pid, ended - child.started, child.usage, held_by)
