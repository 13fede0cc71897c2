"""
One process of a supervised child, from its start to its burial: what the table of a run says, done.

Its exit is awaited at its pidfd, which tells it whatever has become of the zygote or the template. How it ended comes
by its lifeline, or where that is broken from the kernel. Before its end is told, what it has said is read to the end,
what it has left of its tree is swept up, and it is reaped.

Runs in: application, where the pump runs.
"""

import contextlib
import functools
import marshal
import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from safespawn._core import restart, upkeep
from safespawn._core.child import KILL_SECONDS, Child, exit_flow, kernels_word, release_flow, sweep_flow, tell
from safespawn._core.command import launch_flow
from safespawn._core.connection import close_all
from safespawn._core.flow import Flow, earliest
from safespawn._core.procfs import birth, looks, oom_kills
from safespawn._core.terms import Function, Program
from safespawn._drive import doom, readiness
from safespawn._drive.nursling import start_function_flow
from safespawn._drive.output import Lines
from safespawn._drive.relay import Source, defer, relay
from safespawn._drive.worker import Worker, start_error
from safespawn._worker.journal import LEVELS as LEVELS_SENT
from safespawn._worker.messages import LEVELS, LOG, RAISED, READY, SETUP_FAILED, START_FAILED
from safespawn._worker.payload import unpack
from safespawn._worker.raised import unpack_error
from safespawn._zygote import wire
from safespawn.errors import SafespawnError

if TYPE_CHECKING:
    from safespawn._core.terms import Terms
    from safespawn._drive.charge import Charge
    from safespawn._drive.keeper import Keeper
    from safespawn._drive.levels import Levels
    from safespawn._drive.pump import Timer

T = TypeVar("T")
NEWS_SECONDS = 6.0  # for the zygote's word on how it ended; a little over that one's own limit
PATIENCE_SECONDS = 1.0  # for the start of a process that nobody wants any more; fifty times what a start takes
LOOK_SECONDS = 0.25  # between looks whether who is asked is stopped or busy; arbitrary
ORPHAN_SECONDS = 1.0  # for the warden to end a command whose zygote has gone, which takes it a moment
SWEEPS = 100  # looks for what it has left, until nothing is found; what was killed takes a moment to be gone
SWEEP_SECONDS = 0.01  # between two


def without_frames(error: BaseException) -> BaseException:
    """
    An error of a start, which the events keep: without its traceback, and those of its causes, each of which would keep
    a zygote, a template, an environment. One that is not ours nor the system's is a bug, and keeps them.
    """
    seen: list[BaseException] = []
    left: list[BaseException | None] = [error]
    while left:
        each = left.pop()
        if isinstance(each, (SafespawnError, OSError)) and each not in seen:
            each.__traceback__ = None
            seen.append(each)
            left += [each.__cause__, each.__context__]
    return error


class Run:
    """
    A process of a child.

    Attributes:
        machine: Its state.
        why: Why it was asked to end; "" if it was not.
        end: How it ended, once that is known.
        error: What it raised, or why it did not start.
        value: What it passed to `ready`.
    """

    def __init__(self, charge: "Charge", number: int) -> None:
        self.charge = charge
        self.keeper: Keeper = charge.keeper
        self.terms: Terms = charge.terms
        self.number: int = number
        self.mark: bytes = os.urandom(8).hex().encode()
        self.machine: upkeep.Machine = upkeep.Machine(upkeep.RUN_TABLE, upkeep.BORN)
        self.began: float = time.monotonic()
        self.ready_at: float | None = None
        self.asked_at: float | None = None
        self.child: Child | None = None
        self.worker: Worker | None = None
        self.lines: Lines | None = None
        self.probing: readiness.Probe | None = None
        self.pid: int | None = None
        self.born: int = 0
        self.why: str = ""
        self.end: str = ""
        self.end_wanted: str = ""  # how it counts as ended, if we end it
        self.returncode: int | None = None
        self.error: BaseException | None = None
        self.value: Any = None
        self.status_text = ""  # what it says of itself, by STATUS=
        self.stderr: str = ""
        self.oom: bool | None = False
        self.stacks: str = ""
        self.outgrown: str = ""  # how it was too large as soon as it was ready, if it was
        self.doubts: tuple[str, ...] = ()  # what else is known of why it does not get ready
        self.beat_at: float | None = None  # of a command, by WATCHDOG=1
        self.oom_before: int | None = None
        self.left: int = 0  # processes
        self.source: Source | None = None  # of its log records
        self.levels: Levels | None = None  # of loggers, as it was told them last
        self._held: list[bytes] = []  # a message that waits for the records before it
        self._starting: Any = None  # the flow that starts it
        self._lifeline = -1  # a command's, while it is watched
        self._timers: list[Timer] = []

    def __repr__(self) -> str:
        return f"<run {self.number} of {self.terms.name!r}, {self.machine.state}>"

    @property
    def state(self) -> str:
        """
        Its state.
        """
        return self.machine.state

    def send(self, event: str) -> bool:
        """
        Something has happened.
        """
        return self.machine.send(event, self)

    def later(self, seconds: float, action: Callable[[], object]) -> None:
        """
        Do *action* in some time, unless this process is gone by then: no timer of days keeps what is left of it.
        """
        self._timers.append(self.keeper.later(seconds, action))

    # --- the start ---------------------------------------------------------------------------------------------------
    def begin(self) -> None:
        """
        Ask for the process.
        """
        self.keeper.tell("starting", self.terms.name, None, run=self.number)
        self.oom_before = oom_kills()
        what = self.terms.what
        flow: Flow[Any]
        try:
            self.probing = readiness.probe_for(self)
        except OSError as error:  # no descriptor is left: this start has failed, and nothing else
            self.keeper.pump.call_soon(functools.partial(self._started, None, error))
            return
        if isinstance(what, Function):
            flow = start_function_flow(self, what)
        else:
            self.keeper.engine.shun_stopped()
            spec = readiness.with_notice(what.spec, self.probing, self.mark)
            flow = launch_flow(self.keeper.engine, spec, None, patient=True)
        if isinstance(self.probing, readiness.PortProbe):
            flow = self.probing.first_flow(flow)
        self._starting = self.keeper.pump.spawn(flow, self._started)

    def _started(self, came: Any, error: BaseException | None) -> None:
        if error is not None:
            self.error = without_frames(error)
            self.end = restart.FAILED
            self.send(upkeep.FAILED)
            return
        what = self.terms.what
        if isinstance(what, Program):
            self.child, ends = came
            if what.pipes_output and ends:
                pattern = self.terms.ready.what if self.terms.ready.kind == "line" else None
                self.lines = Lines(self.keeper.pump, ends.pop(0), self._line, pattern)
                self.lines.on_line, self.lines.report = self.terms.on_line, self.keeper.report
            close_all(ends)
        else:
            worker: Worker = came
            self.worker, self.child = worker, worker.child
        assert self.child is not None  # noqa: S101 - it has started
        self.pid = self.child.pid
        self.born = birth(self.pid)
        self.send(upkeep.STARTED)

    def start_patience(self) -> None:
        """
        Effect: it may be started at this moment, and then it is ended in order; but who starts it may be stopped.
        """
        seconds = min(PATIENCE_SECONDS, self.keeper.grace(self.terms.stop_timeout))
        self.later(seconds, functools.partial(self.send, upkeep.UNANSWERED))

    def cancel_start(self) -> None:
        """
        Effect: give the start up. Its connection is closed by that, which ends what there may be of it.
        """
        self.end = restart.FAILED
        self.keeper.pump.cancel(self._starting)

    def watch(self) -> None:
        """
        Effect: hear of its end, and of what it says.
        """
        assert self.child is not None  # noqa: S101 - it has started
        pump = self.keeper.pump
        pump.watch(self.child.pidfd, self._exited)
        if self.worker is not None and self.worker.socket is not None:
            pump.watch(self.worker.socket.fileno(), self._words)
        else:
            self._lifeline = self.child.connection.fileno()
            pump.watch(self._lifeline, self._lifeline_speaks)
        if self.lines is not None:
            self.lines.start()
        self.charge.note_pid(self)

    def _lifeline_speaks(self, _events: int) -> None:
        """
        A command's exit is told, which its pidfd tells as well; or its zygote has gone. Then the warden ends it, or
        where that has gone too nobody would: it could neither be swept up after, nor end with the application.
        """
        self._let_lifeline_be()
        child = self.child
        assert child is not None  # noqa: S101 - it has started
        try:
            message, _ = child.connection.receive(peek=True)
        except OSError:
            return
        if message is None:
            child.connection.zygote.died()
            self.later(ORPHAN_SECONDS, self._end_orphan)

    def _end_orphan(self) -> None:
        if self.state in upkeep.ALIVE:
            self._kill_group()
            self.signal(signal.SIGKILL)

    def tell_levels(self, levels: "Levels") -> None:
        """
        Have a function log at the levels of this program. One that has not read the last ones is told another time.
        """
        worker = self.worker
        if worker is None or worker.journal is None or self.state not in (upkeep.STARTING, upkeep.UP):
            return
        try:
            worker.send(LEVELS, levels)
        except OSError:  # above all BlockingIOError; or it has ended
            return
        self.levels = levels
        worker.journal.cells[LEVELS_SENT] += 1

    def _let_lifeline_be(self) -> None:
        fd, self._lifeline = self._lifeline, -1
        if fd >= 0:
            self.keeper.pump.unwatch(fd)

    def probe(self) -> None:
        """
        Effect: find out when it is ready, within its time.
        """
        self.later(self.terms.ready_timeout, self._late)
        if self.probing is not None:
            try:
                self.probing.start()
            except (OSError, RuntimeError) as error:  # no further thread is allowed, say
                self.error = error
                self.charge.on_unusable(self)
        elif self.terms.ready.kind == "started" and self.worker is None:
            self.send(upkeep.READY)

    def _late(self) -> None:
        if self.state == upkeep.STARTING:
            self.charge.on_late(self)

    def _exited(self, _events: int) -> None:
        assert self.child is not None  # noqa: S101 - it has started
        self.keeper.pump.unwatch(self.child.pidfd)
        if self.state == upkeep.STARTING:
            self._hear_ready()
        self.send(upkeep.EXITED)

    def _hear_ready(self) -> None:
        """
        A function may have said that it is ready, and ended before anybody listened: then it did not fail to start.
        """
        worker = self.worker
        if worker is None or worker.socket is None:
            return
        if not self._held:
            try:
                data, fd = worker.receive()
            except OSError:
                return
            if fd >= 0:
                os.close(fd)
            self.keeper.pump.unwatch(worker.socket.fileno())
            if data:
                self._held.append(data)  # the rest is read at its burial
        if self._held and self._held[0][0] == READY:
            self._take(self._held.pop())

    def _words(self, _events: int) -> None:
        worker = self.worker
        if worker is None or worker.socket is None:
            return
        try:
            data, fd = worker.receive()
        except BlockingIOError:
            return
        if fd >= 0:
            os.close(fd)
        if not data:
            self.keeper.pump.unwatch(worker.socket.fileno())
            return
        if self.source is not None and data[0] != LOG and self.source.pending:
            self.keeper.pump.unwatch(worker.socket.fileno())
            self._held.append(data)
            defer(self.keeper.pump, self.keeper.waits, self.source, self._resume)
        else:
            self._take(data)

    def _resume(self) -> None:
        """
        What it has logged before its last message is handled.
        """
        if self._held:
            worker = self.worker
            if worker is not None and worker.socket is not None:
                self.keeper.pump.watch(worker.socket.fileno(), self._words)
            self._take(self._held.pop())

    def _take(self, data: bytes) -> None:
        """
        Understand one message of a Python child.
        """
        kind = data[0]
        if kind == READY:
            body, parts = marshal.loads(memoryview(data)[1:])  # noqa: S302 - our own child's words
            if self.terms.ready.kind in ("notify", "started"):
                try:
                    self.value = unpack(body, [memoryview(part) for part in parts])
                except BaseException as error:  # noqa: BLE001 - whatever its __setstate__ raises is a failed start
                    self.error = error
                    self.charge.on_unusable(self)
                else:
                    self.send(upkeep.READY)
        elif kind in (RAISED, SETUP_FAILED):
            self.error = unpack_error(data[1:])
        elif kind == START_FAILED:
            self.error = start_error(data, (self.terms.name.encode(errors="replace"),))
        elif kind == LOG and self.source is not None:
            relay.post(functools.partial(relay.handle, data[1:], self.source))

    def _line(self, match: Any) -> None:
        self.value = match
        self.send(upkeep.READY)

    # --- the ladder --------------------------------------------------------------------------------------------------
    def stop(self, why: str, end: str = restart.STOPPED) -> None:
        """
        It is to end, in order.
        """
        if not self.why:
            self.why, self.end_wanted = why, end
        self.send(upkeep.STOP)

    def signal(self, number: int) -> None:
        """
        Signal the process itself.
        """
        child = self.child
        if child is not None and child.pidfd >= 0 and self.state in upkeep.ALIVE:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(child.pidfd, number)

    def ask(self) -> None:
        """
        Effect: the message, and SIGTERM for the process itself; a stopped one must wake to hear it. Its tree is noted
        down first, by the zygote, which then knows it also when the process that holds it together has ended.
        """
        child = self.child
        assert child is not None  # noqa: S101 - it has started
        self.asked_at = time.monotonic()
        self.keeper.tell("stopping", self.terms.name, self.pid, why=self.why, seconds=self.terms.stop_timeout)
        if self.probing is not None:
            self.probing.close()
        if self.worker is not None:
            with contextlib.suppress(OSError):
                if self.worker.socket is not None:
                    self.worker.socket.shutdown(1)  # SHUT_WR: nothing more will be said to it
        tell(child, 0, whole=True)
        zygote = child.connection.zygote
        if zygote.is_busy or zygote.is_stopped() or not self._by_lifeline(self.terms.stop_signal):
            self.signal(self.terms.stop_signal)
        if zygote.is_busy or not self._by_lifeline(signal.SIGCONT):
            self.signal(signal.SIGCONT)

    def _by_lifeline(self, number: int) -> bool:
        """
        Have the zygote send a signal, behind what it was asked before. Says whether it could be asked.
        """
        assert self.child is not None  # noqa: S101 - it has started
        try:
            self.child.connection.send((wire.KILL, int(number), False))
        except OSError:
            return False
        return True

    def start_grace(self) -> None:
        """
        Effect: give it its time.
        """
        seconds = self.keeper.grace(self.terms.stop_timeout)
        self.later(seconds, functools.partial(self.send, upkeep.GRACE_OVER))

    def dump(self) -> None:
        """
        Effect: see what it does instead of ending.
        """
        self.keeper.pump.spawn(self.stacks_flow(), self._stacks_came)

    def _stacks_came(self, text: str | None, _error: BaseException | None) -> None:
        self.stacks = text or ""
        self.send(upkeep.STACKS)

    def stacks_flow(self) -> Flow[str]:
        """
        What its threads do; for a command, what the kernel says of it.
        """
        if self.worker is not None:
            text = yield from doom.stack_flow(self.worker)
            if text.strip():
                return text
        if self.pid is None:
            return ""
        state, wchan = looks(self.pid)
        return f"state {state or 'unknown'}" + (f", in the kernel's {wchan}" if wchan else "")

    def say_verdict(self) -> None:
        """
        Effect: tell that it is killed, and what it did.
        """
        seconds = time.monotonic() - (self.asked_at or self.began)
        self.keeper.tell("killed", self.terms.name, self.pid, seconds=round(seconds, 3), stacks=self.stacks)

    def kill(self) -> None:
        """
        Effect: SIGKILL, for the process and its tree; whatever state the zygote is in.
        """
        child = self.child
        assert child is not None  # noqa: S101 - it has started
        tell(child, signal.SIGKILL, whole=True)
        self._kill_group()  # its template or zygote may have gone, or be stopped
        self.signal(signal.SIGKILL)

    def _kill_group(self) -> None:
        """
        SIGKILL for its process group, if that is its own, and its number is not somebody else's by now.
        """
        pid = self.pid
        with contextlib.suppress(OSError):
            if pid is not None and birth(pid) == self.born and os.getpgid(pid) == pid:
                os.killpg(pid, signal.SIGKILL)

    def start_doubt(self) -> None:
        """
        Effect: even SIGKILL may not end a process that sleeps in the kernel.
        """
        self.later(KILL_SECONDS, functools.partial(self.send, upkeep.STUCK))

    # --- the end -----------------------------------------------------------------------------------------------------
    def bury(self) -> None:
        """
        Effect: learn how it ended, and leave nothing of it.
        """
        self.returncode = None
        self._let_lifeline_be()
        if self.probing is not None:
            self.probing.close()
        assert self.child is not None  # noqa: S101 - it has started
        self.keeper.pump.spawn(self._bury_flow(self.child), self._buried)

    def _bury_flow(self, child: Child) -> Flow[None]:
        try:
            yield from self._news_flow(child)
            for _ in range(SWEEPS):
                swept = yield from self._answered_flow(child, sweep_flow(child))
                if not swept:
                    break
                self.left += swept
                yield {}, time.monotonic() + SWEEP_SECONDS
            yield from self._answered_flow(child, release_flow(child))
        except (SafespawnError, OSError, EOFError):  # the zygote or the template has gone, is stopped or busy
            self._kill_group()  # of what it would sweep up
            if child.status is None:
                child.status = kernels_word(child.pid, child.pidfd, self.born)
        if self.lines is not None:
            yield from self.lines.drain_flow()

    def _news_flow(self, child: Child) -> Flow[None]:
        """
        The zygote's or the template's word on how it ended.
        """
        began = time.monotonic()
        if child.status is None:
            self._check_answers(child, began)
            yield from self._answered_flow(child, exit_flow(child, began + NEWS_SECONDS))
        if child.status is None:
            child.connection.zygote.suspect()
            raise child.unresponsive("exited, status unknown", time.monotonic() - began)

    def _answered_flow(self, child: Child, flow: Flow[T]) -> Flow[T]:
        """
        *flow*, which asks the zygote or the template, for as long as that one can answer.
        """
        began = time.monotonic()
        try:
            want = next(flow)
            while True:
                ready = yield want[0], earliest(want[1], time.monotonic() + LOOK_SECONDS)
                if not ready:
                    self._check_answers(child, began)
                    if want[1] is None or time.monotonic() < want[1]:
                        continue
                want = flow.send(ready)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        finally:
            flow.close()

    def _check_answers(self, child: Child, began: float) -> None:
        """
        Do not wait for a zygote or template that is stopped; nor for a template that has been importing something for
        another child since before this began. It is told to kill what is left, once it can.
        """
        zygote, now = child.connection.zygote, time.monotonic()
        if zygote.is_stopped():
            zygote.suspect()
        elif not zygote.is_busy or now < began + LOOK_SECONDS:
            return
        with contextlib.suppress(OSError):
            child.connection.send((wire.KILL, int(signal.SIGKILL), True))
        raise child.unresponsive("exited, status unknown", now - began)

    def _buried(self, _nothing: None, error: BaseException | None) -> None:
        if self.source is not None and self.source.pending:
            defer(self.keeper.pump, self.keeper.waits, self.source, functools.partial(self._buried, None, error))
            return
        if error is not None:
            self.keeper.report(error)
        self._read_last_words()
        child = self.child
        assert child is not None  # noqa: S101 - it has started
        self.returncode = child.returncode
        if self.returncode == -signal.SIGKILL and not self.why:
            after = oom_kills()
            self.oom = None if after is None or self.oom_before is None else after > self.oom_before
        self.end = self.end_wanted or restart.end_of(self.returncode)
        if self.end == restart.SIGNAL and self.error is not None:
            self.end = restart.ERROR  # it said so before it was killed
        self._let_go()
        self.send(upkeep.BURIED)

    def _read_last_words(self) -> None:
        worker = self.worker
        if worker is None:
            return
        if self._held:
            self._take(self._held.pop())
        if worker.socket is not None:
            self.keeper.pump.unwatch(worker.socket.fileno())
            while True:
                try:
                    data, fd = worker.receive()
                except OSError:
                    break
                if fd >= 0:
                    os.close(fd)
                if not data:
                    break
                try:
                    self._take(data)
                except Exception as error:  # noqa: BLE001 - half of a message of a process that is dead
                    self.keeper.report(error)
        if worker.journal is not None:
            self.stderr = worker.journal.last_stderr() or worker.journal.text_since(worker.text_from)

    def _let_go(self) -> None:
        """
        Close what is open for it.
        """
        if self.probing is not None:
            self.probing.close()
            self.probing = None
        if self.lines is not None:
            self.lines.close()
        worker, self.worker = self.worker, None
        if self.source is not None:
            self.source.detach()
        if worker is not None:
            worker.close()
        child = self.child
        if child is not None:
            if child.usage is not None and child.connection.zygote.usable:
                self.keeper.engine.give_back(child.connection)
            else:
                self.keeper.engine.discard(child.connection)
            child.close()

    def abandon(self) -> None:
        """
        Nobody serves it any more: closing its lifeline ends it.
        """
        if self.state not in (upkeep.GONE, upkeep.BORN, upkeep.UNWANTED):
            self.machine.state = upkeep.GONE
            self._let_lifeline_be()
            self._let_go()

    # --- reports -----------------------------------------------------------------------------------------------------
    def report_failed(self) -> None:
        """
        Effect: there is no process.
        """
        if self.probing is not None:
            self.probing.close()
            self.probing = None
        self.end = self.end_wanted or self.end
        self._tell_exit()
        self.charge.on_run_over(self)

    def report_ready(self) -> None:
        """
        Effect: it can be used.
        """
        self.ready_at = time.monotonic()
        self.charge.on_run_ready(self)

    def settle(self) -> None:
        """
        It has been ready for a while.
        """
        self.charge.on_settled(self)

    def report_over(self) -> None:
        """
        Effect: it is gone.
        """
        if self.left:
            self.keeper.tell("leaked", self.terms.name, self.pid, count=self.left)
        self._tell_exit()
        self.charge.on_run_over(self)

    def report_stuck(self) -> None:
        """
        Effect: it is still there, and nothing can be done about it.
        """
        assert self.child is not None  # noqa: S101 - it has started
        self.keeper.pump.unwatch(self.child.pidfd)
        self._let_lifeline_be()
        self.keeper.tell("leaked", self.terms.name, self.pid, count=1, stuck=True)
        self._read_last_words()
        self.end = restart.LOST
        self._let_go()
        self._tell_exit()
        self.charge.on_run_over(self)

    def _tell_exit(self) -> None:
        while self._timers:
            self.keeper.pump.call_off(self._timers.pop())
        self.keeper.tell(
            "exited", self.terms.name, self.pid,
            end=self.end, returncode=self.returncode, duration=round(time.monotonic() - self.began, 6),
            error=self.error, stderr=self.stderr, oom=self.oom,
            usage=None if self.child is None else self.child.usage,
        )  # fmt: skip

    # --- facts -------------------------------------------------------------------------------------------------------
    @property
    def beats(self) -> tuple[int, float] | None:
        """
        How often it has beaten, and when it did last, monotonic; None where nobody can say.
        """
        if self.worker is None or self.worker.journal is None:
            return None if self.beat_at is None else (0, self.beat_at)
        from safespawn._worker import journal

        cells = self.worker.journal.cells
        return cells[journal.ITEM], cells[journal.SINCE_NS] * 1e-9
