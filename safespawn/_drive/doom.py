"""
A running task is ended: its time is over, nobody wants it, or it takes too much memory.

The ladder: the stack is asked for, an exception is raised in the task, then its worker gets SIGTERM and SIGKILL.

Runs in: application, where the pump runs.
"""

import functools
import os
import time
from typing import TYPE_CHECKING

from safespawn._core import dispatch
from safespawn._core.dispatch import IDLE, Task
from safespawn._core.flow import Flow
from safespawn._drive import fate, inbox
from safespawn._drive.post import Doom, Post
from safespawn._drive.worker import Worker
from safespawn._worker import journal as cells
from safespawn._worker.journal import Journal
from safespawn._worker.messages import INTERRUPT_SIGNAL, STACKS_SIGNAL

if TYPE_CHECKING:
    from safespawn._drive.crew import Crew

STACKS_SECONDS = 0.1  # for a dump, which takes a millisecond where the worker can run at all
SOFT_SECONDS = 0.2  # for a task to end by the exception that is raised in it
LOOK_SECONDS = 0.005  # between looks at what has no descriptor
WATCH_SECONDS = 0.2  # between looks at the workers' memory


def limit(crew: "Crew", post: Post, when: float) -> None:
    """
    Look at the worker's tasks at the monotonic time *when*. There is one timer for each worker and not for each task:
    tasks end long before their limits.
    """
    if not post.limit or when < post.limit:
        post.limit = when
        crew.pump.call_at(when, functools.partial(look, crew, post))


def look(crew: "Crew", post: Post) -> None:
    """
    End those tasks of a worker whose time is over.
    """
    post.limit = 0.0
    with crew.lock:
        timed = [] if post.seat is None else [each for each in post.seat.tasks.values() if each.timeout is not None]
    now = time.monotonic()
    for task in timed:
        when = task.sent + (task.timeout or 0.0)
        if when > now:
            limit(crew, post, when)
        elif task.doom is None:
            doom_task(crew, post, task, Doom("timeout"))


def doom_task(crew: "Crew", post: Post, task: Task, doom: Doom) -> None:
    """
    End a running task: the stack, an exception in it, SIGTERM, SIGKILL.
    """
    seat = post.seat
    if task.doom is not None or post.ended or seat is None or task.id not in seat.tasks:
        return
    task.doom = doom
    crew.pump.spawn(doom_flow(crew, post, task, doom), fate.ignore)


def _runs(task: Task, post: Post) -> bool:
    """
    Whether *task* is not over, and its worker neither, as far as is known.
    """
    return task.state is dispatch.SENT and not post.ended


def doom_flow(crew: "Crew", post: Post, task: Task, doom: Doom) -> Flow[None]:
    worker = post.worker
    journal = worker.journal
    if doom.why == "cancel" and journal is not None:
        yield from _begun_flow(crew, post, task, journal)
    asked = False
    if _runs(task, post) and journal is not None and journal.cells[cells.RUNNING] == task.id:
        if doom.why != "cancel":
            doom.stack = yield from stack_flow(worker)
        if _runs(task, post) and worker.journal is journal:
            journal.cells[cells.INTERRUPT] = task.id
            asked = True
    limit = time.monotonic() + (SOFT_SECONDS if doom.why != "memory" else LOOK_SECONDS)
    while time.monotonic() < limit:
        if not _runs(task, post):
            return
        if asked and journal is not None and journal.cells[cells.INTERRUPT] == task.id:
            # Until it has been heard: a signal that comes just before a wait begins does not end that wait, and one
            # that comes in an import is let pass.
            worker.signal(INTERRUPT_SIGNAL)
        yield {}, time.monotonic() + LOOK_SECONDS
    if _runs(task, post):
        fate.kill(crew, post, fate.TERM_SECONDS)


def _begun_flow(crew: "Crew", post: Post, task: Task, journal: Journal) -> Flow[None]:
    """
    Wait until a cancelled task has begun. It may stand behind another one, which shall not suffer: then its owner is
    told at once, and it is ended when its turn comes.
    """
    limit = time.monotonic() + LOOK_SECONDS
    while task.state is dispatch.SENT and not post.ended and journal.cells[cells.RUNNING] != task.id:
        if time.monotonic() >= limit and task.sink is not NOBODY:
            tell_cancelled(crew, task)
        yield {}, time.monotonic() + LOOK_SECONDS


def tell_cancelled(crew: "Crew", task: Task) -> None:
    """
    Tell the owner of a task that it was cancelled before it began, once.
    """
    if task.sink is not NOBODY:
        from safespawn.pool_errors import TaskCancelled

        crew.counts["cancelled"] += 1
        inbox.fail(crew, task, TaskCancelled(task=task.label, task_id=task.id))
        task.sink = NOBODY


class Nobody:
    """
    Who waits for a task that was cancelled while it stood behind another one.
    """

    def deliver(self, task: Task, value: object) -> None:
        """
        Too late.
        """

    def fail(self, task: Task, error: BaseException) -> None:
        """
        It was told before.
        """

    def item(self, task: Task, value: object) -> None:
        """
        Too late.
        """


NOBODY = Nobody()


def stack_flow(worker: Worker) -> Flow[str]:
    """
    What a worker runs, as faulthandler tells it; empty where it does not come.
    """
    journal = worker.journal
    if journal is None:
        return ""
    start = journal.text_end()
    if start > cells.TEXT_BYTES - 8192:
        return ""  # no room for another one
    worker.signal(STACKS_SIGNAL)
    limit = time.monotonic() + STACKS_SECONDS
    last = start
    while time.monotonic() < limit:
        yield {}, time.monotonic() + LOOK_SECONDS
        if worker.journal is not journal:
            return ""
        end = journal.text_end()
        if end > start and end == last:
            break
        last = end
    text = journal.text_since(start)
    worker.text_from = journal.text_end()
    return text


def doom_error(crew: "Crew", task: Task, post: Post | None) -> BaseException:
    from safespawn import pool_errors

    doom: Doom = task.doom
    ran = time.monotonic() - task.sent
    pid = None if post is None else post.worker.pid
    index = None if post is None or post.seat is None else post.seat.index
    if doom.why == "timeout":
        crew.counts["timed_out"] += 1
        return pool_errors.TaskTimeout(
            task=task.label, task_id=task.id, pool=crew.config.name, worker=index, pid=pid,
            seconds=task.timeout or 0.0, ran=ran, stack=doom.stack, ended_by=doom.ended_by,
        )  # fmt: skip
    if doom.why == "memory":
        return pool_errors.WorkerMemoryExceeded(
            task=task.label, task_id=task.id, pool=crew.config.name, worker=index, pid=pid, seconds=ran,
            limit_bytes=crew.config.max_rss_bytes or 0, rss_bytes=doom.size, stack=doom.stack,
        )  # fmt: skip
    crew.counts["cancelled"] += task.sink is not NOBODY
    return pool_errors.TaskCancelled(task=task.label, task_id=task.id, seconds=ran)


def watch_memory(crew: "Crew") -> None:
    """
    Look at what the workers occupy.
    """
    limit = crew.config.max_rss_bytes or 0
    page = os.sysconf("SC_PAGE_SIZE")
    for post in list(crew.posts):
        if post.ended or post.seat is None:
            continue
        try:
            with open(f"/proc/{post.worker.pid}/statm", "rb") as file:
                size = int(file.read().split()[1]) * page
        except (OSError, IndexError):
            continue
        if size <= limit:
            continue
        journal = post.worker.journal
        running = journal.cells[cells.RUNNING] if journal is not None else 0
        task = post.seat.tasks.get(running)
        if task is not None:
            doom_task(crew, post, task, Doom("memory", size=size))
        elif not post.seat.tasks and post.seat.state is IDLE:
            with crew.lock:
                idle = post.seat.state is IDLE
                if idle:
                    crew.dispatcher.leave(post.seat)
            if idle:
                fate.recycle(crew, post, "memory")
    if not crew.pump.stopped:
        crew.pump.call_at(time.monotonic() + WATCH_SECONDS, functools.partial(watch_memory, crew))


def stacks_flow(crew: "Crew") -> Flow[dict[int, str]]:
    """
    What each worker runs now, by index.
    """
    found: dict[int, str] = {}
    for post in list(crew.posts):
        if post.seat is not None and post.ready and not post.ended:
            index = post.seat.index
            found[index] = yield from stack_flow(post.worker)
    return found
