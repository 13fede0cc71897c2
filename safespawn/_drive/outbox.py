"""
What workers are sent: tasks, and the memory that is theirs again.

What a worker with room is given is decided under the crew's lock (`_core.dispatch`), and sent after that. What a living
worker did not take goes back into the queue; what one that has died did not take is seen to by `fate`.

Runs in: application; whoever submits a task or takes a result, in its thread.
Never: waits for a worker that does not read.
"""

import contextlib
import functools
import time
from typing import TYPE_CHECKING, Any

from safespawn._core.dispatch import BUSY, Seat, Source, Task
from safespawn._drive import doom, fate, inbox
from safespawn._drive.levels import current_levels
from safespawn._drive.post import Post
from safespawn._drive.worker import Worker
from safespawn._worker.messages import BIG_TASK, CREDIT, INLINE_BYTES, LEVELS, RELEASED, TASKS

if TYPE_CHECKING:
    from safespawn._drive.crew import Crew

UNREAD_SECONDS = 0.05  # until a worker that did not read is sent something again; arbitrary


def supply_idle(crew: "Crew") -> None:
    """
    Give what waits to the idle workers.
    """
    while True:
        with crew.lock:
            seat = _seat_for_next(crew)
            if seat is None:
                return
            found = crew.dispatcher.pick(seat, time.monotonic())
            if found is None:
                crew.dispatcher.rest(seat)
                return
            post = seat.worker
        carry_out(crew, seat, post, found)


def _seat_for_next(crew: "Crew") -> Seat | None:
    """
    An idle seat for which there is something, taken out of the idle ones.
    """
    dispatcher = crew.dispatcher
    if not dispatcher.waiting:
        return None
    idle = dispatcher.idle
    shared = any(dispatcher.queues[level] for level in dispatcher.levels)
    for at in range(len(idle) - 1, -1, -1):
        if shared or idle[at].own:
            seat = idle.pop(at)
            seat.state = BUSY
            return seat
    return None


def supply(crew: "Crew", post: Post) -> None:
    """
    Give a busy or just idle worker what waits for it.
    """
    while True:
        with crew.lock:
            seat = post.seat
            if seat is None or seat.state is not BUSY:
                return
            max_tasks = crew.config.max_tasks
            if max_tasks is not None and seat.tasks:
                return  # one at a time, so that the count is exact
            if max_tasks is not None and seat.finished >= max_tasks:
                crew.dispatcher.leave(seat)
                break
            found = crew.dispatcher.pick(seat, time.monotonic())
            if found is None:
                if not seat.tasks:
                    crew.dispatcher.rest(seat)
                return
        carry_out(crew, seat, post, found)
    crew.pump.call_soon(functools.partial(fate.recycle, crew, post, "max_tasks"))


def carry_out(crew: "Crew", seat: Seat, post: Post, found: "list[Task] | Source") -> None:
    """
    Send what was picked.
    """
    if type(found) is not list:
        source: Any = found
        expected = crew.dispatcher.paces.get(source.function)
        try:
            task = source.draw(expected, 2 * len(crew.dispatcher.seats))
        except BaseException as error:  # noqa: BLE001 - the user's iterator, or an item that cannot be pickled
            source.fail(error)
            task = None
        with crew.lock:
            here = seat.worker is post and seat.state is BUSY  # making the task may have taken its time
            if task is None:
                crew.dispatcher.remove_source(source)
                crew.dispatcher.count_out(source)
                if here and not seat.tasks:
                    crew.dispatcher.rest(seat)
            else:
                task.id = crew.dispatcher.number()
                task.submitted = time.monotonic()
                crew.dispatcher.unfinished += 1
                if here:
                    crew.dispatcher.send(seat, [task], crew.dispatcher.expected(task), task.submitted)
                else:
                    crew.dispatcher.enqueue(task, first=True)
        if not here and crew.terminating:
            crew.fail_all(crew.end_error)
            return
        if task is None or not here:
            crew.maybe_over()
            supply_idle(crew)
            return
        batch = [task]
    else:
        batch = found
    try:
        send(crew, post, batch)
    except (BrokenPipeError, ConnectionResetError):
        return  # its death is told by the lifeline, with these tasks on it; if it was told before, they are queued
    except OSError as error:
        not_sent(crew, seat, post, batch, error)


def not_sent(crew: "Crew", seat: Seat, post: Post, batch: list[Task], error: OSError) -> None:
    """
    A living worker did not get *batch*. If it does not read, the tasks go back into the queue; what cannot be sent
    at all fails.
    """
    full = isinstance(error, BlockingIOError)
    with crew.lock:
        if seat.worker is not post:
            return  # it has died meanwhile: these tasks are queued again, or are its successor's
        mine = [task for task in batch if seat.tasks.pop(task.id, None) is not None]
        for task in reversed(mine):
            crew.dispatcher.enqueue(task, first=True) if full else crew.dispatcher.over(task)
        rests = not seat.tasks and seat.state is BUSY
        if rests and not full:
            crew.dispatcher.rest(seat)
    if full:
        if rests:  # no result of its will bring it to mind
            later = time.monotonic() + UNREAD_SECONDS
            crew.pump.call_soon(lambda: crew.pump.call_at(later, functools.partial(supply, crew, post)))
        return
    from safespawn.pool_errors import PayloadLost

    for task in mine:
        inbox.fail(crew, task, PayloadLost(what="task", errno=error.errno))


def send(crew: "Crew", post: Post, batch: list[Task]) -> None:
    """
    Send *batch* to the worker in one message; with it, the segments of its own that are free again.
    """
    worker = post.worker
    if worker.freed:
        _send_freed(worker)
    if crew.config.logging != "off":
        levels = current_levels()
        if post.levels is not levels:
            worker.send(LEVELS, levels)
            post.levels = levels
    first = batch[0]
    if first.parts or len(first.payload) > INLINE_BYTES:
        segment = crew.arena.place([first.payload, *(first.parts or ())])
        try:
            post.segments.add(segment.number)
            where = (segment.number, segment.size, segment.spans)
            worker.send(BIG_TASK, (first.id, first.mode, first.head, where), segment.fd)
        except BaseException:
            crew.arena.sent(segment)
            post.segments.discard(segment.number)
            crew.arena.released([segment.number])
            raise
        crew.arena.sent(segment)
    else:
        worker.send(TASKS, [(task.id, task.mode, task.payload, task.head) for task in batch])
    for task in batch:
        if task.timeout is not None:
            crew.pump.call_soon(functools.partial(doom.limit, crew, post, task.sent + task.timeout))


def _send_freed(worker: Worker) -> None:
    freed = []
    while worker.freed:  # finalizers add to it at any moment, other senders take from it
        with contextlib.suppress(IndexError):
            freed.append(worker.freed.pop())
    try:
        worker.send(RELEASED, freed)
    except OSError:
        worker.freed.extend(freed)
        raise


def credit(crew: "Crew", task: Task, count: int) -> None:
    """
    Let a streaming task send *count* items more.
    """
    with crew.lock:
        seat = next((seat for seat in crew.dispatcher.seats if task.id in seat.tasks), None)
        post = None if seat is None else seat.worker
    if post is not None:
        try:
            post.worker.send(CREDIT, count)
        except OSError:
            return  # it has died, or reads nothing: told elsewhere
