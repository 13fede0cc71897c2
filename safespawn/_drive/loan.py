"""
A caller's own exchange with a worker: `Pool.apply` sends its task and reads the result in the thread that waits for it.

The worker is lent: the pump does not read its socket, and nobody sends it anything else. However the caller leaves,
with the result, interrupted, or because the worker has died, the worker is the pump's again, with the task if that
still runs.

Runs in: application, the thread that waits; `reclaim` also in the handler of a signal.
"""

import functools
import threading
import time
from typing import TYPE_CHECKING, Any

from safespawn._core import dispatch
from safespawn._core.dispatch import BUSY, LENT, Task
from safespawn._drive import doom, fate, inbox, outbox
from safespawn._drive.post import Doom, Post
from safespawn._drive.relay import relay
from safespawn._drive.tempo import BRISK_SECONDS
from safespawn._worker import journal as cells

if TYPE_CHECKING:
    from safespawn._drive.crew import Crew


def lend(crew: "Crew", task: Task) -> Post | None:
    """
    An idle worker for *task*, to which the caller talks directly; None when none is idle, or others wait.
    """
    now = time.monotonic()
    task.thread = threading.get_ident()
    with crew.lock:
        dispatcher = crew.dispatcher
        if not dispatcher.idle or dispatcher.waiting or crew.closing or crew.terminating or task.key is not None:
            return None
        # The handler of a signal may raise after any call: there is none until all is written down.
        task.id = dispatcher.submitted = dispatcher.submitted + 1
        task.seat = seat = dispatcher.idle[-1]
        seat.state = LENT
        seat.lender = task
        seat.tasks[task.id] = task
        task.state = dispatch.SENT
        task.submitted = task.sent = now
        dispatcher.unfinished += 1
        dispatcher.idle.pop()
        post: Post = seat.worker
    inbox.unwatch(crew, post)
    return post


def reclaim(crew: "Crew", task: Task) -> None:
    """
    The caller of *task* has been interrupted, wherever that was: if it still has a worker, the pump takes it over.
    """
    seat = task.seat
    if seat is not None and seat.state is LENT and seat.lender is task:
        post = seat.worker
        _hand_over(crew, post)
        crew.pump.call_soon(functools.partial(outbox.supply, crew, post))


def can_wait_for_end(crew: "Crew") -> bool:
    """
    Whether this thread can wait until the workers are gone. In the handler of a signal it may have interrupted
    itself with the lock in its hands. A worker that it was lent is taken over.
    """
    for seat in crew.dispatcher.seats:
        task = seat.lender
        if seat.state is LENT and task is not None and task.thread == threading.get_ident():
            reclaim(crew, task)
    return not crew.lock._is_owned()  # type: ignore[attr-defined]  # noqa: SLF001 - what Condition uses


def exchange(crew: "Crew", post: Post, task: Task, held: Any = None) -> bool:
    """
    Send *task* and wait for its end, in this thread. Says whether it came to one here: if not, the pump goes on
    with it, and delivers. Ctrl-C comes while it waits, if it is *held* (`interrupts`), and not while it receives.
    """
    try:
        outbox.send(crew, post, [task])
        pace = crew.dispatcher.paces.get(task.function)
        worker = post.worker
        brisk = task.sent - worker.last_words < BRISK_SECONDS and pace is not None and pace.average < BRISK_SECONDS
        awake = brisk and crew.tempo.awake
        if worker.journal is not None and worker.awake is not crew.tempo.awake:
            worker.journal.cells[cells.AWAKE] = worker.awake = crew.tempo.awake
        while True:
            found = worker.quick_words() if awake else None
            if found is None:
                if held is not None:
                    held.wait(post.worker.await_words, None)
                    if post.source is not None and post.source.pending:
                        held.wait(relay.wait, post.source)
                found = post.worker.receive(0)
            data, fd = found
            if not data:
                break
            if post.source is not None and post.source.pending:
                relay.wait(post.source)
            results = inbox.take(crew, post, data, fd)
            if results is not None:
                worker.last_words = time.monotonic()
                if brisk:
                    crew.tempo.note(worker.last_words - task.sent)
                _give_back(crew, post)
                for each, outcome, payload, views in results:
                    inbox.deliver(crew, each, outcome, payload, views)
                return True
    except (BrokenPipeError, ConnectionResetError):
        pass
    except BaseException as error:
        _hand_over(crew, post)
        if isinstance(error, OSError) and post.seat is not None:
            outbox.not_sent(crew, post.seat, post, [task], error)
            return task.state is dispatch.OVER
        crew.pump.call_soon(functools.partial(doom.doom_task, crew, post, task, Doom("cancel")))
        raise
    _hand_over(crew, post)
    return False


def _take_from_caller(crew: "Crew", post: Post) -> None:
    """
    The pump reads the worker's results again.
    """
    with crew.lock:
        seat = post.seat
        if seat is not None and seat.state is LENT:
            seat.state = BUSY
            seat.lender = None  # it would keep the result
    inbox.watch(crew, post)


def _give_back(crew: "Crew", post: Post) -> None:
    """
    A caller is through with its worker.
    """
    _take_from_caller(crew, post)
    outbox.supply(crew, post)
    if crew.closing:
        crew.maybe_over()
    if post.ended:
        crew.pump.call_soon(functools.partial(_bury_if_dead, crew, post))


def _hand_over(crew: "Crew", post: Post) -> None:
    """
    A caller leaves its worker with the task on it.
    """
    _take_from_caller(crew, post)
    crew.pump.call_soon(functools.partial(_bury_if_dead, crew, post))


def _bury_if_dead(crew: "Crew", post: Post) -> None:
    """
    See to a worker that ended while its seat was lent: its caller has handed it over.
    """
    if post.ended and post in crew.posts:
        fate.settle(crew, post)
