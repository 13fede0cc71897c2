"""
A pool's workers go: they die, are ended, have done their share.

A death is told by the worker's lifeline, never guessed from its socket. Then, in this order: what lies unread in its
socket is taken, the results that it had written down but not sent, the task that it ran fails with what is known, those
that it had not begun go to other workers, and the seat gets a new worker.

Runs in: application, where the pump runs.
"""

import functools
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import attrs

from safespawn._core.child import end_flow, exit_flow, kernels_word, release_flow, sweep_flow, take_news
from safespawn._core.dispatch import LENT, Task
from safespawn._core.flow import DeadlinePassed, Flow
from safespawn._core.procfs import oom_kills
from safespawn._drive import doom, inbox, muster
from safespawn._drive.post import Post
from safespawn._drive.relay import defer, relay
from safespawn._drive.worker import Worker
from safespawn._worker import carried
from safespawn._worker import journal as cells
from safespawn._worker.messages import STOP
from safespawn.errors import SafespawnError, _signal_name

if TYPE_CHECKING:
    from safespawn._drive.crew import Crew

TERM_SECONDS = 0.1  # between SIGTERM and SIGKILL of a worker whose task did not
CRASH_SECONDS = 10.0  # so many deaths of workers that had done nothing, in this time, are a loop
CRASHES_PER_SEAT = 3


@attrs.frozen
class LastWords:
    """
    What a dead worker has left.

    Attributes:
        delivered: Its results that had not been read.
        running: The task that it ran, or 0.
        since: When that began, in monotonic seconds, or 0.
        stack: Where it was, if it wrote that down.
        stderr: The end of what it wrote there.
    """

    delivered: list[tuple[Task, int, Any, Any]]
    running: int = 0
    since: float = 0.0
    stack: str = ""
    stderr: str = ""


def on_life(crew: "Crew", post: Post, _events: int) -> None:
    child = post.worker.child
    try:
        if not take_news(child):
            return
    except (EOFError, SafespawnError):
        crew.pump.unwatch(child.connection.fileno())
        orphaned(crew, post)
        return
    crew.pump.unwatch(child.connection.fileno())
    post.going = True
    crew.pump.spawn(_bury_flow(child), functools.partial(buried, crew, post))


def orphaned(crew: "Crew", post: Post) -> None:
    """
    The template has died; the worker may live on.
    """
    worker = post.worker
    post.going = False
    if crew.template is worker.child.connection.zygote:
        crew.template = None
    if worker.become_orphan():
        crew.pump.watch(worker.orphan_fd, functools.partial(on_orphan_end, crew, post))
        if post.stopping:
            crew.pump.spawn(_end_orphan_flow(worker, crew.config.grace, asked=not crew.terminating), ignore)
    else:
        buried(crew, post, None, None)


def on_orphan_end(crew: "Crew", post: Post, _events: int) -> None:
    worker = post.worker
    crew.pump.unwatch(worker.orphan_fd)
    status = kernels_word(worker.pid, worker.orphan_fd, worker.born)
    if status is not None:
        worker.child.status = status
    buried(crew, post, None, None)


def end_silent(crew: "Crew", post: Post) -> None:
    """
    A worker has closed its socket, and lives.
    """
    if post in crew.posts and not post.ended:
        kill(crew, post, 0.0)


def buried(crew: "Crew", post: Post, _result: Any, _error: BaseException | None) -> None:
    post.ended = True
    seat = post.seat
    if seat is not None and seat.state is LENT:
        post.worker.shut()  # its caller wakes, and hands over
        return
    settle(crew, post)


def settle(crew: "Crew", post: Post) -> None:
    """
    A worker is dead, and nobody else is at it: what becomes of its tasks.
    """
    if post not in crew.posts:
        return
    source = post.source
    if source is not None and source.pending:
        defer(crew.pump, crew.waits, source, functools.partial(settle, crew, post))
        return
    crew.posts.discard(post)
    crew.spares[:] = [each for each in crew.spares if each is not post]
    worker = post.worker
    inbox.unwatch(crew, post)
    words = last_words(crew, post)
    child = worker.child
    returncode = child.returncode
    victim, dropped, idle_death = clear_seat(crew, post, words.running)
    for each, outcome, payload, views in words.delivered:
        inbox.deliver(crew, each, outcome, payload, views)
    for each in dropped:
        if each.doom.why == "cancel":
            doom.tell_cancelled(crew, each)
        else:  # its time was over while its worker was stopped
            each.doom.ended_by = each.doom.ended_by or end_of(returncode)
            inbox.fail(crew, each, doom.doom_error(crew, each, post))
    crew.arena.released(post.segments)
    connection = child.connection
    zygote = connection.zygote
    if worker.orphan_fd < 0 and child.usage is not None and zygote.usable:
        zygote.give_back(connection)
    else:
        zygote.discard(connection)
    peak = None if child.usage is None else int(child.usage[2]) * 1024
    forget_words(post)
    worker.close()
    if not post.stopping:
        crew.counts["died"] += 1
        crew.note_event("died", post, f"returncode {returncode}")
        publish_death(crew, post, victim, words.stack)
    else:
        crew.note_event("stopped", post, "")
    if victim is not None:
        if victim.doom is not None:
            victim.doom.ended_by = victim.doom.ended_by or end_of(returncode)
        inbox.fail(crew, victim, death_error(crew, victim, post, words, returncode, peak))
    if crew.terminating:
        crew.fail_all(crew.end_error)  # what its caller's own exchange had left
    else:
        crew.supply_idle()  # what it had not begun: its successor may be long in coming
    if post.start_error is not None:
        muster.start_failed(crew, post.start_error)
        return
    if idle_death:
        note_crash(crew, returncode, words.stderr or words.stack)
    muster.fill(crew)
    if crew.closing:
        crew.check_end()


def last_words(crew: "Crew", post: Post) -> LastWords:
    """
    Read what a dead worker has left: in its socket, and in its journal.
    """
    worker = post.worker
    delivered: list[tuple[Task, int, Any, Any]] = []
    held, post.held = post.held, None
    if held is not None:
        delivered += inbox.take(crew, post, *held) or ()
    while True:
        try:
            data, fd = worker.receive()
        except (BlockingIOError, OSError):
            break
        if not data:
            break
        delivered += inbox.take(crew, post, data, fd) or ()
    journal = worker.journal
    if journal is None:
        return LastWords(delivered)
    written = journal.cells[cells.ITEM]
    delivered += inbox.records(crew, post, journal.unsent(), 0, written=written)
    return LastWords(
        delivered,
        running=journal.cells[cells.RUNNING],
        since=journal.cells[cells.SINCE_NS] * 1e-9,
        stack=journal.text_since(worker.text_from),
        stderr=journal.last_stderr(),
    )


def forget_words(post: Post) -> None:
    """
    Let go of what a worker has said, and keep its log records: its memory goes.
    """
    held, post.held = post.held, None
    if held is not None and held[1] >= 0:
        os.close(held[1])
    if post.source is not None:
        post.source.detach()
    if post.row is not None:
        post.row.withdraw()
    if post.outlets:
        from safespawn._drive.outlets import outlets

        carried.claims.pop(post.token, None)
        for outlet in post.outlets:
            outlets.remove(outlet)


def publish_death(crew: "Crew", post: Post, victim: Task | None, stack: str) -> None:
    """
    Have the log say that a worker has died, behind its own records; and `safespawn ps`, with its successor.
    """
    worker, source = post.worker, post.source
    how = words_for(worker.child.returncode)
    if post.seat is not None:
        restarts = crew.histories.get(post.seat.index, (0, ""))[0] + 1
        crew.histories[post.seat.index] = restarts, f"pid {worker.pid} died: {how}"
    if source is not None and not crew.terminating and (victim is None or victim.doom is None):
        what = "" if victim is None else f", task {victim.id} {victim.label}"
        text = f"{source.what} (pid {worker.pid}) died: {how}{what}"
        relay.tell_death(source, text, stack)


def words_for(returncode: int | None) -> str:
    """
    How a worker ended, in words.
    """
    if returncode is None:
        return "nobody knows how"
    return f"exit code {returncode}" if returncode >= 0 else _signal_name(-returncode)


def clear_seat(crew: "Crew", post: Post, running: int) -> tuple[Task | None, list[Task], bool]:
    """
    Take a dead worker's tasks back: those that it had not begun, and the one that it ran if that may be tried again.

    Args:
        crew: Its crew.
        post: The worker.
        running: The task that it ran, or 0.

    Returns:
        The task that died with it, if any; those that were cancelled before they began; and whether it died without
        having done anything.
    """
    seat = post.seat
    if seat is None:
        return None, [], False
    with crew.lock:
        idle_death = not seat.finished and not post.stopping and running not in seat.tasks
        victim, again = crew.dispatcher.clear(seat, running)
        dropped = [each for each in again if each.doom is not None and crew.dispatcher.cancel(each)]
        if victim is not None:
            victim.deaths += 1
            if victim.doom is None and victim.deaths <= victim.retries and not crew.terminating:
                crew.dispatcher.enqueue(victim, first=True)
                crew.counts["retried"] += 1
                victim = None
            else:
                crew.dispatcher.over(victim)
    return victim, dropped, idle_death


def death_error(
    crew: "Crew", task: Task, post: Post, words: LastWords, returncode: int | None, peak: int | None
) -> BaseException:
    """
    What *task* fails with, after its worker has died of it.
    """
    if task.doom is not None:
        return doom.doom_error(crew, task, post)
    if crew.terminating:
        return crew.end_error()
    from safespawn.pool_errors import WorkerDied

    zygote = post.worker.child.connection.zygote.child.connection.zygote  # its template's
    lost = returncode == -signal.SIGKILL and zygote.is_lost()
    return WorkerDied(
        task=task.label,
        task_id=task.id,
        pool=crew.config.name,
        worker=None if post.seat is None else post.seat.index,
        pid=post.worker.pid,
        returncode=returncode,
        seconds=max(0.0, time.monotonic() - words.since) if words.since else None,
        peak_rss_bytes=peak,
        oom=was_oom(crew, returncode),
        stderr=words.stderr,
        stack=words.stack,
        known=(f"zygote {zygote.pid} was lost, and all that came from it was killed with it",) if lost else (),
        help="see who has ended the zygote or its warden; nothing was retried" if lost else "",
    )


def was_oom(crew: "Crew", returncode: int | None) -> bool | None:
    if returncode != -signal.SIGKILL:
        return False
    before, crew.oom_kills = crew.oom_kills, oom_kills()
    if before is None or crew.oom_kills is None:
        return None
    return crew.oom_kills > before


def note_crash(crew: "Crew", returncode: int | None, words: str) -> None:
    """
    A worker died that had done nothing. Too many of those are a loop.
    """
    now = time.monotonic()
    crew.crashes.append(now)
    while crew.crashes and now - crew.crashes[0] > CRASH_SECONDS:
        crew.crashes.popleft()
    deaths = len(crew.crashes)
    if deaths > CRASHES_PER_SEAT * len(crew.dispatcher.seats) + 2:
        from safespawn.pool_errors import CrashLoop

        last = f"return code {returncode}" + (f": {words.strip()[-300:]}" if words.strip() else "")
        crew.break_down(CrashLoop(pool=crew.config.name, deaths=deaths, seconds=now - crew.crashes[0], last=last))


def kill(crew: "Crew", post: Post, grace: float) -> None:
    """
    End a worker's process with its tree.
    """
    worker = post.worker
    if post.ended:
        return
    if worker.orphan_fd >= 0:
        crew.pump.spawn(_end_orphan_flow(worker, grace, asked=False), ignore)
        return
    if post.going:
        if worker.child.status is None:
            worker.signal(signal.SIGKILL, whole=True)
        return
    post.going = True
    crew.pump.unwatch(worker.child.connection.fileno())
    crew.pump.spawn(_end_flow(worker, grace, asked=False), functools.partial(end_came, crew, post))


def end_came(crew: "Crew", post: Post, _result: Any, error: BaseException | None) -> None:
    if error is not None and post.worker.child.status is None:
        orphaned(crew, post)
    else:
        buried(crew, post, None, None)


def retire(crew: "Crew", post: Post) -> None:
    """
    Let a worker finish, within its grace.
    """
    if post.stopping or post.ended:
        return
    post.stopping = True
    worker = post.worker
    if post.row is not None:
        post.row.update(state="stopping", until=time.monotonic() + crew.config.grace)
    try:
        worker.send(STOP, None)
    except OSError:
        pass  # it has gone
    grace = crew.config.grace
    if worker.orphan_fd >= 0:
        crew.pump.spawn(_end_orphan_flow(worker, grace, asked=True), ignore)
        return
    if post.seat is None and not post.ready:
        worker.shut()  # a spare waits for words that will not come
    if post.going:
        return
    post.going = True
    crew.pump.unwatch(worker.child.connection.fileno())
    crew.pump.spawn(_end_flow(worker, grace, asked=True), functools.partial(end_came, crew, post))


def recycle(crew: "Crew", post: Post, why: str) -> None:
    """
    A worker has done its share: another one takes the seat, this one leaves.
    """
    seat = post.seat
    if seat is None or post.ended:
        return
    crew.counts["recycled"] += 1
    crew.note_event("recycled", post, why)
    with crew.lock:
        crew.dispatcher.clear(seat, 0)
    post.seat = None
    retire(crew, post)
    muster.fill(crew)
    crew.maybe_over()


def _bury_flow(child: Any) -> Flow[None]:
    """
    The worker has exited: end what it left behind, and have it reaped.
    """
    yield from sweep_flow(child)
    yield from release_flow(child)


def _end_flow(worker: Worker, grace: float, *, asked: bool) -> Flow[None]:
    """
    End a worker; one that was *asked* to may take *grace* seconds to do so by itself.
    """
    child = worker.child
    if child.status is None and asked:
        yield from exit_flow(child, time.monotonic() + grace)
        grace = TERM_SECONDS
    if child.status is None:
        yield from end_flow(child, whole=True, grace=grace)
    yield from _bury_flow(child)


def _end_orphan_flow(worker: Worker, grace: float, *, asked: bool) -> Flow[None]:
    """
    End a worker whose template has died; one that was *asked* to may take *grace* seconds to do so by itself.
    """
    ladder: list[tuple[int, float]] = [(signal.SIGTERM, grace), (signal.SIGKILL, 0.0)]
    if asked:
        ladder = [(0, grace), (signal.SIGTERM, TERM_SECONDS), (signal.SIGKILL, 0.0)]
    for number, seconds in ladder:
        worker.signal(number)
        limit = time.monotonic() + seconds
        while worker.orphan_fd >= 0 and time.monotonic() < limit:
            yield {}, min(limit, time.monotonic() + doom.LOOK_SECONDS)
        if worker.orphan_fd < 0:
            return


def ignore(_result: Any, error: BaseException | None) -> None:
    if error is not None and not isinstance(error, (SafespawnError, OSError, DeadlinePassed)):
        raise error


def end_of(returncode: int | None) -> str:
    """
    The short word for how a worker ended: "SIGKILL", "exit", or nothing where that is not known.
    """
    if returncode is None:
        return ""
    return "exit" if returncode >= 0 else _signal_name(-returncode)
