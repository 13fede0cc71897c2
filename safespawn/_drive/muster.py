"""
A pool's workers come: the template, the forks, the seats, the spares.

All of it is done by the pool's pump (`Crew.pump`).

Runs in: application, where the pump runs.
"""

import errno
import functools
import os
import sys
import time
import warnings
from typing import TYPE_CHECKING, Any

from safespawn._core.connection import MOST_FDS
from safespawn._core.dispatch import BUSY, EMPTY, ENDING, IDLE, LENT, PREPARING, STARTING, Seat, Task, unwrapped
from safespawn._core.explain import spawn_error
from safespawn._core.flow import Flow
from safespawn._core.procfs import oom_kills
from safespawn._drive import board, doom, fate, inbox
from safespawn._drive.levels import current_levels
from safespawn._drive.post import Post
from safespawn._drive.relay import relay
from safespawn._drive.template import BOOT_SECONDS, THREADS_OF_LIBRARIES, Template, TemplateKey
from safespawn._drive.worker import Worker, send_setup, start_worker_flow, worker_spec
from safespawn._worker import elsewhere
from safespawn._worker.carried import TOKEN_BYTES
from safespawn._worker.journal import STRIDE
from safespawn.errors import BrokenError

if TYPE_CHECKING:
    from safespawn._drive.crew import Crew

START_ATTEMPTS = 3  # in a row, of one seat


def begin(crew: "Crew") -> None:
    crew.oom_kills = oom_kills()
    crew.row = board.publish("pool", crew.config.name, state="running")
    if crew.config.logging == "relay" or crew.config.output in ("prefix", "log"):
        try:
            crew.wake_fd = relay.hold()
        except OSError:  # no descriptor is left: its workers have no way to log
            crew.config.logging = "inherit" if crew.config.logging == "relay" else crew.config.logging
            crew.config.output = "inherit"
        else:
            if relay.thread is None:
                crew.pump.watch(crew.wake_fd, functools.partial(first_record, crew))
    if crew.config.max_rss_bytes is not None:
        crew.pump.call_at(time.monotonic() + doom.WATCH_SECONDS, functools.partial(doom.watch_memory, crew))
    fill(crew)


def first_record(crew: "Crew", _events: int) -> None:
    """
    A worker has logged something: from now on a thread sees to that.
    """
    crew.pump.unwatch(crew.wake_fd)
    relay.ensure()


def fill(crew: "Crew") -> None:
    """
    A worker for every empty seat, and the spares.
    """
    if crew.closing and not crew.dispatcher.unfinished:
        return
    if crew.broken is not None or crew.terminating or crew.booting:
        return
    vacant = [seat for seat in crew.dispatcher.seats if seat.state is EMPTY]
    for seat in list(vacant):
        if crew.spares:
            spare = crew.spares.pop()
            vacant.remove(seat)
            with crew.lock:
                seat.state = STARTING
            take_seat(crew, seat, spare)
    if not vacant and len(crew.spares) >= crew.config.spares:
        return
    boot(crew)


def boot(crew: "Crew") -> None:
    """
    Get hold of a template: the one there is, or a new one.
    """
    crew.booting = True
    key = TemplateKey(
        preload=crew.config.preload,
        main=crew.config.main,
        env=None if crew.config.env is None else tuple(crew.config.env.items()),
    )
    crew.pump.spawn(template_flow(crew, key), functools.partial(template_came, crew, key))


def template_flow(crew: "Crew", key: TemplateKey) -> Flow[tuple[Template, Any]]:
    """
    A template, with `__main__` loaded if that is wanted and can be.
    """
    connections = min(crew.config.size, MOST_FDS - 1)  # with the template's pidfd
    while True:
        template, ambient = yield from crew.engine.template_flow(key, connections=connections)
        if not crew.main_wanted or template.has_main or crew.config.main is None or crew.main_refused:
            return template, ambient
        try:
            yield from template.load_main_flow(time.monotonic() + BOOT_SECONDS)
        except BrokenError as error:
            # The workers will load it themselves, and a task that needs it says what happens.
            crew.engine.retire(key, template)
            crew.main_refused = isinstance(error, ImportError) or crew.main_tries > 1
            crew.main_tries += 1
            if getattr(error, "reason", "") == "threads":
                warnings.warn(
                    f"pool {crew.config.name!r}: the program's own file starts a thread when it is imported, so "
                    f"each worker loads it for itself. {error}",
                    RuntimeWarning,
                    stacklevel=2,
                )


def template_came(crew: "Crew", key: TemplateKey, came: Any, error: BaseException | None) -> None:
    crew.booting = False
    if isinstance(error, BrokenError) and not isinstance(error, ImportError) and not crew.terminating:
        crew.boot_failures += 1  # somebody has ended it, or the zygote under it
        if crew.boot_failures < START_ATTEMPTS:
            crew.booting = True
            crew.pump.call_at(time.monotonic() + 0.05, functools.partial(boot, crew))
            return
    if error is not None:
        crew.break_down(error)
        return
    crew.boot_failures = 0
    template, ambient = came
    crew.template = template
    if crew.terminating:
        crew.check_end()
        return
    if not crew.started or (crew.main_wanted and not template.has_main and not crew.main_refused and crew.config.main):
        if crew.started:
            boot(crew)  # asked for while the template was booting
        elif crew.closing:
            crew.check_end()  # closed before anything was asked of it
        return
    for seat in crew.dispatcher.seats:
        if seat.state is EMPTY:
            with crew.lock:
                seat.state = STARTING
            flow = start_worker_flow(crew.engine, template, spec_of(crew, seat.index, ambient), None)
            crew.pump.spawn(flow, functools.partial(worker_came, crew, seat, template, key))
    for _ in range(crew.config.spares - len(crew.spares)):
        flow = start_worker_flow(crew.engine, template, spec_of(crew, -1, ambient), None)
        crew.pump.spawn(flow, functools.partial(spare_came, crew))


def spec_of(crew: "Crew", index: int, ambient: Any) -> Any:
    config = crew.config
    env = dict(ambient.carried[0] if config.env is None else config.env)
    threads = str(config.library_threads).encode()
    for variable in THREADS_OF_LIBRARIES:
        env.setdefault(variable, threads)
    cpus = cpus_of(crew, index) if index >= 0 else None
    name = f"{config.name}-{index}" if index >= 0 else f"{config.name}-spare"
    return worker_spec(name.encode(errors="replace"), b"pool", env=env, cwd=config.cwd, cpus=cpus)


def cpus_of(crew: "Crew", index: int) -> tuple[int, ...] | None:
    """
    The CPUs of the worker on the seat *index*; None for the application's.
    """
    sets = crew.config.cpus
    return sets[index % len(sets)] if sets else None


def start_failed(crew: "Crew", error: BaseException) -> None:
    """
    A worker did not come up. Too often in a row, and the pool cannot go on.
    """
    crew.failures += 1
    others = any(post.ready and not post.stopping for post in crew.posts)
    if crew.failures >= START_ATTEMPTS * len(crew.dispatcher.seats) and not others:
        crew.break_down(error)
    else:
        crew.pump.call_at(time.monotonic() + min(1.0, 0.01 * crew.failures), functools.partial(fill, crew))
    if crew.closing:
        crew.check_end()


def worker_came(
    crew: "Crew", seat: Seat, template: Template, key: TemplateKey, worker: Worker | None, error: BaseException | None
) -> None:
    if worker is None:
        with crew.lock:
            seat.state = EMPTY
        assert error is not None  # noqa: S101 - one of the two is given
        if getattr(error, "stage", None) == "threads" or isinstance(error, BrokenError):
            crew.engine.retire(key, template)  # it has a thread by now, is stopped or gone: the next one may do
        start_failed(crew, error)
        return
    post = Post(worker, None)
    crew.posts.add(post)
    watch_life(crew, post)
    crew.counts["started"] += 1
    take_seat(crew, seat, post)


def spare_came(crew: "Crew", worker: Worker | None, error: BaseException | None) -> None:
    if worker is None:
        del error  # a spare that did not come is no loss
        return
    post = Post(worker, None)
    post.is_spare = True
    crew.posts.add(post)
    watch_life(crew, post)
    crew.counts["started"] += 1
    if crew.closing:
        fate.retire(crew, post)
    else:
        crew.spares.append(post)


def take_seat(crew: "Crew", seat: Seat, post: Post) -> None:
    """
    Tell a worker who it is.
    """
    worker = post.worker
    post.seat = seat
    with crew.lock:
        gone = seat.index >= len(crew.dispatcher.seats) or crew.dispatcher.seats[seat.index] is not seat
        seat.worker = post
        seat.state = PREPARING
    if gone or crew.terminating:
        post.seat = None
        fate.retire(crew, post)
        return
    body: dict[str, Any] = {
        "pool": crew.config.name,
        "index": seat.index,
        "cpus": cpus_of(crew, seat.index) if post.is_spare else None,
        "is_spare": post.is_spare,
        **program_facts(crew.config.main),
        "logging": crew.config.logging,
        "levels": None if crew.config.logging == "off" else current_levels(),
        "finalizer": crew.config.finalizer,
        "output": _output(crew, post),
    }
    crew.note_event("started", post, "")
    post.levels = body["levels"]
    try:
        ledger = crew.ledger()
        slot, worker.journal = ledger.take()
        worker.place = (ledger, slot)
        if crew.wake_fd >= 0 and crew.config.logging == "relay":
            post.source = relay.open(
                worker.journal.ring, f"{crew.config.name}-{seat.index}",
                f"worker {seat.index} of pool {crew.config.name!r}", worker.pid,
            )  # fmt: skip
    except OSError as error:  # a worker of which nothing would be known at its death is none
        post.start_error = spawn_error(error.errno or errno.EMFILE, None, stage="fds", argv=(b"worker",))
        fate.kill(crew, post, 0.0)
        return
    try:
        publish(crew, post, seat.index, (ledger.fd, slot * STRIDE))
        worker.send_journal(slot, ledger.fd, crew.config.inheritance, -1 if post.source is None else crew.wake_fd)
        send_setup(worker, crew.arena, body, crew.config.initializer)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has died: the lifeline tells
    except OSError as error:  # no memory or no descriptor for what it is to be told
        post.start_error = spawn_error(error.errno or 0, None, stage="fds", argv=(b"worker",))
        fate.kill(crew, post, 0.0)
        return
    inbox.watch(crew, post)


def publish(crew: "Crew", post: Post, index: int, cells: tuple[int, int]) -> None:
    """
    Have `safespawn ps` show a worker.
    """
    restarts, why = crew.histories.get(index, (0, ""))
    post.row = board.publish(
        "worker", f"{crew.config.name}-{index}", owner=crew.config.name, pid=post.worker.pid, state="starting",
        restarts=restarts, event=why, event_at=time.monotonic() if why else 0.0, cells=cells,
    )  # fmt: skip


def watch_life(crew: "Crew", post: Post) -> None:
    crew.pump.watch(post.worker.child.connection.fileno(), functools.partial(fate.on_life, crew, post))


def resize(crew: "Crew", size: int) -> None:
    """
    Another number of workers. Only where the pump runs.
    """
    leaving: list[Post] = []
    ending: list[Seat] = []
    with crew.lock:
        seats = crew.dispatcher.seats
        again: list[Task] = []
        for seat in seats[size:]:
            again += seat.own
            seat.own.clear()
            if seat.state in (IDLE, PREPARING):
                crew.dispatcher.leave(seat)
                leaving.append(seat.worker)
            elif seat.state is BUSY:
                crew.dispatcher.leave(seat)  # with what it has
                ending.append(seat)
        kept = [*ending, *(seat for seat in seats[size:] if seat.state is LENT)]
        crew.dispatcher.seats = seats[:size] + [Seat(index) for index in range(len(seats), size)]
        for task in again:
            crew.dispatcher.waiting -= 1
            crew.dispatcher.enqueue(task)
    crew.config.size = size
    for post in leaving:
        fate.retire(crew, post)
    for seat in kept:  # it leaves when its tasks are through
        leave_when_done(crew, seat)
    fill(crew)
    crew.supply_idle()


def leave_when_done(crew: "Crew", seat: Seat) -> None:
    with crew.lock:
        post = seat.worker
        if seat.state in (IDLE, BUSY):  # it was lent
            crew.dispatcher.leave(seat)
        done = not seat.tasks and seat.state is ENDING
    if post is None or post.ended:
        return
    if done:
        fate.retire(crew, post)
    else:
        crew.pump.call_at(time.monotonic() + 0.02, functools.partial(leave_when_done, crew, seat))


def _output(crew: "Crew", post: Post) -> tuple[str, bytes] | None:
    """
    What a worker is told of its output.
    """
    output = crew.config.output
    if output == "inherit":
        return None
    if output.startswith("/"):
        return "file", os.fsencode(output)
    post.token = os.urandom(TOKEN_BYTES)
    return output, post.token


def program_facts(main: "tuple[str, str] | None") -> dict[str, Any]:
    """
    What every worker, and every supervised child, is told of this program.
    """
    return {
        "path": list(map(str, sys.path)),
        "elsewhere": elsewhere.places(),
        "argv": list(map(str, sys.argv)),
        "main": main,
        "authkey": _authkey(),
        "application": os.getpid(),
    }


def _authkey() -> bytes | None:
    process = sys.modules.get("multiprocessing.process")
    return None if process is None else bytes(process.current_process().authkey)


def is_main(function: Any) -> bool:
    return getattr(unwrapped(function), "__module__", None) in {"__main__", "__mp_main__"}
