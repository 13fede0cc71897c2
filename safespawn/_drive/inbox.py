"""
What workers say: results, log records, readiness.

Runs in: application, where the pump runs; `take` and `deliver` also in the thread of a caller that talks to its worker
directly.
"""

import errno
import functools
import marshal
import os
import time
from pickle import loads
from typing import TYPE_CHECKING, Any

from safespawn._core.dispatch import BUSY, LENT, PREPARING, Task
from safespawn._drive import doom, fate
from safespawn._drive.post import Post
from safespawn._drive.relay import defer, relay, report
from safespawn._drive.worker import start_error
from safespawn._worker import carried
from safespawn._worker.arena import receive
from safespawn._worker.messages import (
    BIG_RESULT,
    DONE,
    FREED,
    ITEM,
    LOG,
    LONG,
    OUTPUT,
    RAISED,
    READY,
    RECORD,
    RESULTS,
    SETUP_FAILED,
    START_FAILED,
)
from safespawn._worker.payload import unpack
from safespawn._worker.raised import unpack_error

if TYPE_CHECKING:
    from safespawn._drive.crew import Crew

_AFTER_RECORDS = frozenset((RESULTS, BIG_RESULT, SETUP_FAILED))  # messages behind the log records written before
_ASIDE = frozenset((START_FAILED, OUTPUT, LOG, LONG))  # LONG: its descriptor found no room here, so it is lost
EOF_SECONDS = 5.0  # from the end of a worker's socket to its exit


def watch(crew: "Crew", post: Post) -> None:
    """
    Have the pump read the worker's results.
    """
    socket = post.worker.socket
    if socket is not None and not post.watched and not post.eof:
        post.watched = True
        try:
            crew.pump.watch(socket.fileno(), functools.partial(on_socket, crew, post))
        except (OSError, ValueError):
            post.watched = False


def unwatch(crew: "Crew", post: Post) -> None:
    """
    The pump no longer reads the worker's results.
    """
    socket = post.worker.socket
    if socket is not None and post.watched:
        post.watched = False
        crew.pump.unwatch(socket.fileno())


def on_socket(crew: "Crew", post: Post, _events: int) -> None:
    seat = post.seat
    if seat is not None and seat.state is LENT:
        return  # its caller reads
    try:
        data, fd = post.worker.receive()
    except BlockingIOError:
        return
    if not data:
        post.eof = True
        unwatch(crew, post)
        crew.pump.call_at(time.monotonic() + EOF_SECONDS, functools.partial(fate.end_silent, crew, post))
        return
    source = post.source
    if source is not None and data[0] in _AFTER_RECORDS and source.pending:
        unwatch(crew, post)
        post.held = data, fd
        defer(crew.pump, crew.waits, source, functools.partial(resume, crew, post))
    else:
        heard(crew, post, data, fd)


def resume(crew: "Crew", post: Post) -> None:
    """
    The log records that a worker wrote before its last message are handled.
    """
    held, post.held = post.held, None
    if held is None:
        return  # it has died, and this was among its last words
    watch(crew, post)
    heard(crew, post, *held)


def heard(crew: "Crew", post: Post, data: bytes, fd: int) -> None:
    """
    Act upon one message.
    """
    results = take(crew, post, data, fd)
    if results is not None:
        crew.supply(post)
        deliver_all(crew, results)
        if crew.closing:
            crew.maybe_over()


def take(crew: "Crew", post: Post, data: bytes, fd: int) -> "list[tuple[Task, int, Any, Any]] | None":
    """
    Understand one message. Returns the results in it, with the tasks counted as finished; None if it has none.
    """
    kind = data[0]
    if kind == RESULTS:
        return records(crew, post, data, 1)
    if kind in _ASIDE:
        take_aside(crew, post, data, fd)
        return None
    body: Any = marshal.loads(memoryview(data)[1:]) if kind != SETUP_FAILED else None  # noqa: S302 - our own worker's
    if kind == BIG_RESULT:
        number, outcome, seconds, segment, size, spans = body
        try:
            if fd < 0:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            views = receive(fd, segment, size, spans, post.worker.freed.append)
        except OSError as error:
            from safespawn.pool_errors import PayloadLost

            post.worker.freed.append(segment)
            task = finish(crew, post, number, outcome, seconds)
            if task is not None:
                fail(crew, task, PayloadLost(what="result", errno=error.errno))
            return []
        finally:
            if fd >= 0:
                os.close(fd)
        task = finish(crew, post, number, outcome, seconds)
        return [] if task is None else [(task, outcome, views[0], views[1:])]
    if kind == FREED:
        post.segments.difference_update(body)
        crew.arena.released(body)
    elif kind == READY:
        post.ready = True
        if post.row is not None:
            post.row.update(state="ready")
        crew.failures = 0
        crew.note_event("ready", post, "")
        with crew.lock:
            seat = post.seat
            if seat is not None and seat.state is PREPARING:
                seat.state = BUSY
        crew.supply(post)
        if crew.closing:
            crew.check_end()
    elif kind == SETUP_FAILED:
        from safespawn.pool_errors import InitializerFailed

        cause = unpack_error(data[1:], crew.config.remote_traceback)
        failed = InitializerFailed(
            pool=crew.config.name, pid=post.worker.pid, known=(f"{type(cause).__name__}: {cause}",)
        )
        failed.__cause__ = cause
        crew.break_down(failed)
    return None


def open_outlet(crew: "Crew", post: Post, stream: int, fd: int) -> None:
    """
    A worker's output comes through the pipe *fd* from now on.
    """
    from safespawn._drive.outlets import Outlet, outlets

    seat = post.seat
    if fd < 0 or seat is None:
        return  # no room for its descriptor here: it is lost
    name = f"{crew.config.name}-{seat.index}"
    outlet = Outlet(fd, stream, crew.config.output, name, post.worker.pid, post.token)
    post.outlets.append(outlet)
    outlets.add(outlet)
    if crew.config.output == "return" and len(post.outlets) == len((1, 2)):
        out, err = post.outlets
        carried.claims[post.token] = lambda number: (out.find(number), err.find(number))


def take_aside(crew: "Crew", post: Post, data: bytes, fd: int) -> None:
    """
    Understand one message that has nothing to do with tasks.
    """
    kind = data[0]
    if kind == START_FAILED:
        post.start_error = start_error(data, (b"worker",))
    elif kind == OUTPUT:
        open_outlet(crew, post, marshal.loads(data[1:]), fd)  # noqa: S302 - our own worker's
    elif kind == LOG and post.source is not None:
        relay.post(functools.partial(relay.handle, data[1:], post.source))


def finish(crew: "Crew", post: Post, number: int, outcome: int, seconds: float) -> Task | None:
    seat = post.seat
    if seat is None:
        return None
    with crew.lock:
        if outcome == ITEM:
            return seat.tasks.get(number)
        task = crew.dispatcher.finish(seat, number, seconds)
        if task is not None:
            crew.seconds["queued"] += task.sent - task.submitted
            crew.seconds["running"] += seconds
            crew.seconds["pickling"] += task.pickling
    return task


def records(
    crew: "Crew", post: Post, data: bytes, start: int, *, written: int | None = None
) -> "list[tuple[Task, int, Any, Any]]":
    """
    The results in *data*, with their tasks, which count as finished.

    Args:
        crew: The pool's.
        post: Whose results.
        data: The records, from *start* on.
        start: Where they begin.
        written: How many items of streams a worker had written when it died, those in *data* with them: some of these
            may have come before, and are passed over.
    """
    found: list[tuple[Task, int, Any, Any]] = []
    seat = post.seat
    if seat is None:
        return found
    unpack_from, head, at, end = RECORD.unpack_from, RECORD.size, start, len(data)
    dispatcher = crew.dispatcher
    queued = running = pickling = 0.0
    again = 0 if written is None else post.items - (written - _items_in(data))  # those that have come before
    with crew.lock:
        while at + head <= end:
            number, outcome, size, seconds = unpack_from(data, at)
            at += head
            if at + size > end:
                break  # a record that was being written when its writer died
            if outcome == ITEM:
                post.items += 1
                task = seat.tasks.get(number) if again <= 0 else None
                again -= 1
            else:
                task = dispatcher.finish(seat, number, seconds)
                if task is not None:
                    queued += task.sent - task.submitted
                    pickling += task.pickling
                    running += seconds
            if task is not None:
                found.append((task, outcome, data[at : at + size], ()))
            at += size
        crew.seconds["queued"] += queued
        crew.seconds["running"] += running
        crew.seconds["pickling"] += pickling
    return found


def _items_in(data: bytes) -> int:
    """
    How many items of streams are in these records.
    """
    at = found = 0
    while at + RECORD.size <= len(data):
        _, outcome, size, _ = RECORD.unpack_from(data, at)
        at += RECORD.size + size
        found += outcome == ITEM and at <= len(data)
    return found


def deliver_all(crew: "Crew", results: "list[tuple[Task, int, Any, Any]]") -> None:
    """
    Bring results to whoever waits for them.
    """
    for task, outcome, payload, views in results:
        if outcome == DONE and not views and task.doom is None:
            try:
                value = loads(payload)  # noqa: S301 - from our own process, over a private socket
            except BaseException as error:  # noqa: BLE001 - whatever the user's __setstate__ raises is this task's
                unreadable(crew, task, error)
                continue
            crew.completed += 1
            try:
                task.sink.deliver(task, value)
            except BaseException as error:  # noqa: BLE001 - a callback of the user's must not end the pool
                report(error)
        else:
            deliver(crew, task, outcome, payload, views)


def unreadable(crew: "Crew", task: Task, error: BaseException) -> None:
    """
    A result that cannot be unpickled here is its task's trouble.
    """
    from safespawn.pool_errors import UnpicklableResult

    trouble = UnpicklableResult(error, "the result", task=task.label)
    trouble.__cause__ = error
    fail(crew, task, trouble)


def deliver(crew: "Crew", task: Task, outcome: int, payload: Any, views: Any) -> None:
    """
    Bring a result to whoever waits for it.
    """
    if outcome == RAISED:
        error = unpack_error(bytes(payload), crew.config.remote_traceback)
        if task.doom is not None:
            task.doom.ended_by = task.doom.ended_by or "exception"
            error = doom.doom_error(crew, task, None)
        fail(crew, task, error)
        return
    if task.doom is not None and outcome == DONE:  # too late; and our signals may have cut a wait of its short
        fail(crew, task, doom.doom_error(crew, task, None))
        return
    try:
        value = unpack(payload, views)
    except BaseException as error:  # noqa: BLE001 - whatever the user's __setstate__ raises is this task's
        unreadable(crew, task, error)
        return
    try:
        if outcome == DONE:
            crew.completed += 1
            task.sink.deliver(task, value)
        else:
            task.sink.item(task, value)
    except BaseException as error:  # noqa: BLE001 - a callback of the user's must not end the pool
        report(error)


def fail(crew: "Crew", task: Task, error: BaseException) -> None:
    crew.counts["failed"] += 1
    try:
        task.sink.fail(task, error)
    except BaseException as trouble:  # noqa: BLE001 - as above
        report(trouble)
