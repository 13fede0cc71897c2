"""
A process that the caller holds: what `Popen` and `AsyncProcess` have in common, as flows.

Its exit is awaited at the pidfd, which any number of threads and tasks may do at once and which stays readable for
ever. Then one of them, whoever takes the claim first, reads the status from the connection and has the child reaped;
the others wait for that moment.

Runs in: application, any thread.
"""

import copy
import os
import signal
import time
import warnings
from typing import TYPE_CHECKING, Any

from safespawn._core.child import Child, end_flow, exit_flow, release_flow
from safespawn._core.command import DRAIN_SECONDS, Engine, launch_flow, results
from safespawn._core.flow import READ, Flow, earliest
from safespawn._core.procfs import holders
from safespawn._core.spec import SpawnSpec
from safespawn._core.transfer import Streams
from safespawn.errors import ClosedError, ForeignCopy, SafespawnError, TimeoutExpired

if TYPE_CHECKING:
    from safespawn._core.status import Usage

TICK_SECONDS = 0.002  # between looks at what another thread is just doing; arbitrary, the work takes 0.1 ms
POLL_SECONDS = 0.05  # how long a poll may wait for the word about a child that the kernel says has ended


class Process:
    """
    A started child and the knowledge of its end.
    """

    def __init__(self, engine: Engine, spec: SpawnSpec, args: Any) -> None:
        self.engine = engine
        self.spec = spec
        self.args = args
        self.owner_pid: int = os.getpid()
        self.child: Child | None = None
        self.returncode: int | None = None
        self.duration: float | None = None
        self.usage: Usage | None = None
        # The status can never be known. Kept and raised as copies: a traceback would keep the owner object alive.
        self.failure: BaseException | None = None
        self.runs_on: bool = True  # when nobody asks for it any more
        self._claim = [None]  # popped by the one who reads the status
        self._waiters: set[object] = set()

    def start_flow(self, *, patient: bool) -> Flow[list[int]]:
        """
        Start it; returns the application's pipe ends, the caller's.
        """
        self.child, ends = yield from launch_flow(self.engine, self.spec, None, patient=patient)
        return ends

    @property
    def pid(self) -> int:
        """
        The process id; reserved for this child until its exit has been seen.
        """
        return 0 if self.child is None else self.child.pid

    def check(self) -> None:
        """
        Refuse the use in a forked copy of the process that started it.
        """
        pid = os.getpid()
        if pid != self.owner_pid:
            raise ForeignCopy(f"process {self.pid}", owner_pid=self.owner_pid, pid=pid)

    @property
    def is_over(self) -> bool:
        """
        Whether there is nothing to collect: it never started, its status is known, or can never be.
        """
        return self.child is None or self.returncode is not None or self.failure is not None

    def looks_ended(self) -> bool:
        """
        Whether the kernel says that it has ended.
        """
        child = self.child
        if child is None or child.pidfd < 0:
            return True
        return self.engine.is_readable(child.pidfd)

    def wait_flow(self, timeout: float | None, deadline: float | None) -> Flow[int]:
        """
        Wait for the exit; returns the exit code.

        Raises:
            TimeoutExpired: *deadline* has passed; the child runs on.
            SpawnLost: It cannot be known.
        """
        token = object()
        self._waiters.add(token)
        try:
            while self.returncode is None:
                if self.failure is not None:
                    raise copy.copy(self.failure)
                child = self.child
                assert child is not None  # noqa: S101 - started before anybody can wait
                if child.pidfd >= 0 and not self.looks_ended():
                    yield {child.pidfd: READ}, deadline
                    if deadline is not None and time.monotonic() >= deadline and not self.looks_ended():
                        raise TimeoutExpired(self.args, timeout or 0.0, pid=self.pid)
                    continue
                if not (yield from self.collect_flow(deadline)) and deadline is not None:
                    raise TimeoutExpired(self.args, timeout or 0.0, pid=self.pid)
        finally:
            self._waiters.discard(token)
            self._let_go()
        return self.returncode

    def collect_flow(self, deadline: float | None) -> Flow[bool]:
        """
        It has ended: read the status, have it reaped, return the connection; False when *deadline* comes first.
        """
        try:
            self._claim.pop()
        except IndexError:  # another thread is at it
            tick = earliest(deadline, time.monotonic() + TICK_SECONDS)
            yield {}, tick
            return self.returncode is not None or deadline is None or time.monotonic() < deadline
        child = self.child
        assert child is not None  # noqa: S101
        healthy = False
        try:
            if not (yield from exit_flow(child, deadline)):
                self._claim.append(None)
                healthy = True
                return False
            yield from release_flow(child)
            self.usage = child.usage
            self.duration = (child.ended or time.monotonic()) - child.started
            self.engine.give_back(child.connection) if child.usage is not None else self.engine.discard(
                child.connection
            )
            healthy = True
            self.returncode = child.returncode
        except GeneratorExit:
            self._claim.append(None)
            healthy = True
            raise
        except Exception as error:
            self.failure = copy.copy(error)
            raise
        finally:
            if not healthy:
                if self.failure is None:
                    self._claim.append(None)  # interrupted: another one may try
                else:
                    self.engine.discard(child.connection)
            self._let_go()
        return True

    def _let_go(self) -> None:
        """
        Close the pidfd when the end is known and nobody waits at it.
        """
        if (self.returncode is not None or self.failure is not None) and not self._waiters and self.child is not None:
            self.child.close()

    def settle_flow(self) -> Flow[None]:
        """
        Its zygote has ended, and so has it: take down what can still be known, for whoever asks later.
        """
        if self.child is not None and self.returncode is None and self.failure is None:
            try:
                yield from self.collect_flow(time.monotonic() + POLL_SECONDS)
            except SafespawnError:
                return  # kept in `failure`

    def poll_flow(self) -> Flow[int | None]:
        """
        The exit code if it has ended, None if it runs.
        """
        if self.returncode is None and self.failure is None and self.looks_ended():
            yield from self.collect_flow(time.monotonic() + POLL_SECONDS)
        if self.failure is not None:
            raise copy.copy(self.failure)  # None would say that it runs
        return self.returncode

    def send_signal(self, number: int) -> None:
        """
        Signal the child, by its pidfd; nothing happens when it has ended.

        Raises:
            PermissionError: It runs as somebody else now.
        """
        self.check()
        child = self.child
        if self.returncode is not None or child is None or child.pidfd < 0:
            return
        token = object()
        self._waiters.add(token)  # or another thread could close the pidfd, and its number be another child's
        try:
            if child.pidfd >= 0:
                signal.pidfd_send_signal(child.pidfd, number)
        except ProcessLookupError:
            return
        finally:
            self._waiters.discard(token)
            self._let_go()

    def stop_flow(self, *, whole: bool, grace: float) -> Flow[None]:
        """
        End it: SIGTERM, *grace* seconds, SIGKILL, with its whole tree; then collect.

        Raises:
            Unkillable, SpawnLost.
        """
        child = self.child
        if child is None or self.returncode is not None or self.failure is not None:
            return
        try:
            self._claim.pop()
        except IndexError:  # somebody is reading the status: it has ended
            yield from self.wait_flow(None, None)
            return
        try:
            yield from end_flow(child, whole=whole, grace=grace)
        except Exception as error:
            self.failure = copy.copy(error)
            self.engine.discard(child.connection)
            self._let_go()
            raise
        finally:
            if self.failure is None:
                self._claim.append(None)
        yield from self.wait_flow(None, None)

    def communicate_flow(
        self, streams: Streams, *, timeout: float | None, deadline: float | None, wait_eof: bool
    ) -> Flow[tuple[int, ...]]:
        """
        Move the streams until their end and the child's; returns who still holds the output after its grace.

        Raises:
            TimeoutExpired: With what has come so far, which is kept for the next call; the child runs on.
            SpawnLost: The exit status cannot be known.
        """
        child = self.child
        assert child is not None  # noqa: S101 - started before anybody can talk to it
        if self.failure is not None:
            raise copy.copy(self.failure)
        drained_by: float | None = None
        token = object()
        self._waiters.add(token)
        try:
            while self.returncode is None or streams.open_outputs:
                interest = streams.interest()
                if self.returncode is None:
                    if not interest:
                        yield from self.wait_flow(timeout, deadline)
                        return ()
                    interest[child.pidfd] = READ
                elif drained_by is None and not wait_eof:  # collected here, or by another waiter
                    drained_by = time.monotonic() + DRAIN_SECONDS
                ready = yield interest, earliest(deadline, drained_by)
                streams.turn(ready)
                now = time.monotonic()
                if self.returncode is None and child.pidfd in ready:
                    yield from self.wait_flow(timeout, deadline)
                elif drained_by is not None and now >= drained_by:
                    break
                elif deadline is not None and now >= deadline:
                    stdout, stderr = results(streams)
                    raise TimeoutExpired(self.args, timeout or 0.0, output=stdout, stderr=stderr, pid=self.pid)
            return holders(streams.open_outputs) if streams.open_outputs else ()
        except TimeoutExpired as error:
            if error.output is None and error.stderr is None:
                error.output, error.stderr = results(streams)
            raise
        finally:
            self._waiters.discard(token)
            self._let_go()

    def forget(self, owner: object, args: Any) -> None:
        """
        Its owner object is gone: one that still runs goes on, in the engine's keeping, and a warning says so.
        """
        if self.is_over:
            return
        self.engine.adopt(self)
        runs = not self.looks_ended()
        if runs and not self.spec.detached:
            warnings.warn(f"process {self.pid} is still running: {args!r}", ResourceWarning, source=owner, stacklevel=3)

    def be_forgotten(self) -> None:
        """
        Its owner object is gone. It runs on, in the engine's keeping, or ends, as `runs_on` says.
        """
        if not self.is_over:
            if self.runs_on:
                self.engine.adopt(self)
                return
            self.abandon()
        self._waiters.clear()
        self._let_go()

    def abandon(self) -> None:
        """
        End it without waiting: close its connection.
        """
        if self.child is not None and self.returncode is None and self.failure is None:
            try:
                self._claim.pop()
            except IndexError:
                return
            self.failure = ClosedError(f"process {self.pid}")
            self.engine.discard(self.child.connection)
            self.child.close()
