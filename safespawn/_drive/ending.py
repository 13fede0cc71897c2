"""
A pool ends: in order, at once, or because it cannot go on.

In order: no new tasks come, and when none is left the workers are let go (`fate.retire`). At once, or broken: what has
no result yet fails, and the workers are killed. Either way the pump ends when the last worker has gone; whoever serves
it then lets go of its descriptors (`release`).

Runs in: application, where the pump runs; `maybe_over` and `end_error` in any thread.
"""

import copy
import functools
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from safespawn._core.dispatch import BUSY, LENT, STARTING
from safespawn._drive import fate, inbox
from safespawn._drive.relay import SLOW_SECONDS, relay, report
from safespawn.errors import BrokenError

if TYPE_CHECKING:
    from safespawn._drive.crew import Crew


def maybe_over(crew: "Crew") -> None:
    """
    After close, when no task is left: have the pump look whether this is the end.
    """
    if crew.closing and not crew.dispatcher.unfinished:
        crew.pump.call_soon(functools.partial(check_end, crew))


def check_end(crew: "Crew") -> None:
    """
    After close: the workers go when all is done; the pump when they have gone.
    """
    if not crew.closing:
        return
    if crew.terminating or not crew.dispatcher.unfinished or not crew.started:
        for post in list(crew.posts):
            seat = post.seat
            if seat is not None and seat.state is LENT:
                continue
            fate.retire(crew, post)
        starting = any(seat.state is STARTING for seat in crew.dispatcher.seats)
        if not crew.posts and not starting and not crew.booting:
            _finished(crew)


def end_error(crew: "Crew") -> BaseException:
    """
    What a task gets that comes too late, or was under way when the pool ended.
    """
    if crew.broken is not None:
        error = copy.copy(crew.broken)
        error.__cause__ = crew.broken.__cause__
        return error
    from safespawn.pool_errors import PoolClosed

    return PoolClosed(f"pool {crew.config.name!r}")


def terminate(crew: "Crew") -> None:
    """
    End everything now.
    """
    with crew.lock:
        crew.terminating = True
    fail_all(crew, functools.partial(end_error, crew))
    for post in list(crew.posts):
        if post.stopping:
            if post.worker.child.status is None and not post.ended:
                post.worker.signal(signal.SIGKILL, whole=post.worker.orphan_fd < 0)
            continue
        post.stopping = True
        fate.kill(crew, post, fate.TERM_SECONDS if post.seat is not None and post.seat.state in (BUSY, LENT) else 0.0)
    check_end(crew)


def fail_all(crew: "Crew", make: Callable[[], BaseException]) -> None:
    """
    Every task that is queued or runs has no result.
    """
    tasks, sources = crew.drain(sent=True)
    for source in sources:
        source.fail(make())
    for task in tasks:
        inbox.fail(crew, task, make())


def break_down(crew: "Crew", error: BaseException) -> None:
    """
    The pool cannot go on.
    """
    if crew.broken is None:
        crew.broken = error
        if crew.row is not None:
            crew.row.update(state="broken")
        crew.note_event("broken", None, str(error))
    with crew.lock:
        crew.terminating = True
    fail_all(crew, functools.partial(end_error, crew))
    for post in list(crew.posts):
        if not post.stopping:
            post.stopping = True
            fate.kill(crew, post, 0.0)
    if crew.closing:
        check_end(crew)


def on_trouble(crew: "Crew", error: BaseException) -> None:
    """
    A bug of ours, or no memory left: nobody shall wait for ever.
    """
    report(error)
    if not crew.pump.stopped:
        break_down(crew, _engine_error(crew, error))


def _engine_error(crew: "Crew", error: BaseException) -> BrokenError:
    broken = BrokenError(f"the engine of pool {crew.config.name!r} has failed: {type(error).__name__}: {error}")
    broken.__cause__ = error
    return broken


def _finished(crew: "Crew") -> None:
    if crew.ended.is_set():
        return
    crew.pump.stopped = True
    crew.arena.close()
    crew.ended.set()
    for action in crew.on_ended:
        action()


def lose_pump(crew: "Crew", error: BaseException) -> None:
    """
    The pump cannot go on: nobody shall wait for it.
    """
    report(error)
    crew.broken = crew.broken or _engine_error(crew, error)
    with crew.lock:
        crew.closing = crew.terminating = True
        lent = [seat for seat in crew.dispatcher.seats if seat.state is LENT]
        for seat in lent:
            seat.state = BUSY  # its caller, who reads the socket, is woken, and finds that it has failed
    fail_all(crew, functools.partial(end_error, crew))
    for post in list(crew.posts):
        post.worker.shut()


def release(crew: "Crew") -> None:
    """
    After the pump has ended: let go of its descriptors.
    """
    for post in list(crew.posts):  # it ended early: closing the lifelines ends them
        post.worker.child.connection.zygote.discard(post.worker.child.connection)
        fate.forget_words(post)
        post.worker.close()
    crew.posts.clear()
    if crew.row is not None:
        crew.row.withdraw()
    for ledger in crew.ledgers:
        ledger.close()
    if crew.config.inheritance is not None:
        crew.config.inheritance.close()
        crew.config.inheritance = None
    crew.pump.close()
    if crew.wake_fd >= 0:
        crew.wake_fd = -1
        relay.let_go(SLOW_SECONDS if crew.thread else 0.0)  # an event loop does not wait
