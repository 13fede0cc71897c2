"""
The application's end of the workers' logging: records are taken out of their rings and given to the handlers here.

One thread serves all pools of the process. It is started when the first record comes, and ends with the last pool.
Handlers run in it and nowhere else: one that blocks holds up no result for more than a second, no event loop at all.

A worker's result is delivered when the records that it wrote before are handled, and so is the news of its death. Who
delivers asks `Source.pending`, and goes on when

    all that was written by then is handled, or
    not one record of any worker was handled for a second: some handler is stuck. Until it moves, nobody waits again

What an owner of workers does, a pool or a supervisor:

    wake_fd = relay.hold()                                        # once, before the first one starts
    source = relay.open(worker.journal.ring, name, what, pid)
    worker.send_journal(slot, fd, inheritance, wake_fd)           # and in SETUP: "logging": "relay", "levels": levels
    if source.pending: defer(pump, waits, source, go_on)          # before its death, or its word, is told to anybody
    source.detach()                                               # before its journal is closed
    relay.let_go()                                                # once, when the last one is gone

Runs in: application. `serve` in the thread; the rest in any.
"""

import contextlib
import marshal
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from safespawn._worker.ring import WRITTEN, Ring

SLOW_SECONDS = 1.0
BATCH = 64  # records of one worker in a turn
REST_BYTES = 16 * 1024 * 1024  # of dead workers' records, while a handler is stuck
LOGGER = "safespawn.worker"


class Wait:
    """
    Somebody waits until a source has been handled up to a place.
    """

    __slots__ = ("_action", "place")

    def __init__(self, place: int, action: Callable[[], object]) -> None:
        self.place: int = place
        self._action: list[Callable[[], object]] = [action]

    def fire(self) -> None:
        """
        Go on. Once.
        """
        try:
            action = self._action.pop()
        except IndexError:
            return
        action()

    @property
    def is_over(self) -> bool:
        """
        Whether it goes on already.
        """
        return not self._action


class Source:
    """
    The records of one worker.

    Attributes:
        done: Up to where they are handled, in bytes.
        name, pid: Whose they are.
        what: The same for people: "worker 0 of pool 'images'".
    """

    def __init__(self, ring: Ring, name: str, what: str, pid: int) -> None:
        self.name: str = name
        self.what: str = what
        self.pid: int = pid
        self.done: int = ring.read
        self.lock: threading.Lock = threading.Lock()  # of taking, and of the waits; never held while one is handled
        self._ring: Ring | None = ring
        self._rest: deque[bytes] = deque()
        self._end = 0  # where the ring ended, once it is gone
        self._waits: deque[Wait] = deque()
        self._dropped = 0
        self._told = time.monotonic()
        self.gone: bool = False

    @property
    def pending(self) -> bool:
        """
        Whether there is something that was not handled, and that is worth waiting for.
        """
        return self.done != self.place and not relay.is_stuck and relay.thread_id != threading.get_ident()

    @property
    def place(self) -> int:
        """
        How far it has written.
        """
        ring = self._ring
        try:
            return self._end if ring is None else int(ring.cells[WRITTEN])
        except ValueError:  # it has just been detached
            return self._end

    def add(self, wait: Wait) -> None:
        """
        Have *wait* fired when its time has come, which may be now.
        """
        with self.lock:
            if self.done < wait.place:
                self._waits.append(wait)
                return
        wait.fire()

    def turn(self) -> bool:
        """
        Handle some records. Says whether there are more.
        """
        with self.lock:
            ring = self._ring
            if ring is not None:
                found = ring.take(BATCH)
                place, dropped = ring.read, ring.dropped
            else:
                found = [self._rest.popleft() for _ in range(min(BATCH, len(self._rest)))]
                place, dropped = (self.done if self._rest else self._end), self._dropped_in_all
        for message in found:
            relay.handle(message, self)
        if dropped != self._dropped:
            self._tell_dropped(dropped)
        with self.lock:
            self.done = place
            ready = []
            while self._waits and self._waits[0].place <= place:
                ready.append(self._waits.popleft())
            more = place != self.place
        for wait in ready:
            wait.fire()
        return more

    def _tell_dropped(self, dropped: int) -> None:
        count, self._dropped = dropped - self._dropped, dropped
        now = time.monotonic()
        seconds, self._told = now - self._told, now
        relay.say(
            30, self, f"{count} log records of {self.what} were dropped in the last "
            f"{seconds:.1f} s: the handlers here did not take them in time", {"dropped": count},
        )  # fmt: skip

    _dropped_in_all = 0

    def detach(self) -> None:
        """
        The ring's memory goes. What was not taken is copied.
        """
        with self.lock:
            ring = self._ring
            if ring is None:
                return
            while found := ring.take(BATCH):
                for message in found:
                    if relay.rest_bytes + len(message) > REST_BYTES:
                        ring.drop()
                    else:
                        relay.rest_bytes += len(message)
                        self._rest.append(message)
            self._end = ring.read
            self._dropped_in_all = ring.dropped
            self._ring = None
            self.gone = True
        if self._rest or self.done != self._end or self._dropped_in_all != self._dropped:
            relay.ensure()
            relay.wake()
        else:
            relay.forget(self)


class Relay:
    """
    The thread, and whom it serves.

    Attributes:
        handled: Records so far.
        thread_id: The thread's, while it runs; else 0.
        rest_bytes: Of dead workers' records.
    """

    def __init__(self) -> None:
        self.reset()
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """
        Nothing there. In a forked copy: what there is belongs to the original.
        """
        fd = getattr(self, "wake_fd", -1)
        self.wake_fd: int = -1
        if fd >= 0:
            os.close(fd)
        self.lock: threading.RLock = threading.RLock()
        self.holders = 0
        self.sources: dict[Source, None] = {}
        self.words: deque[Callable[[], object]] = deque()
        self.thread: threading.Thread | None = None
        self.thread_id = 0
        self.handled = 0
        self.stuck_at = -1
        self.rest_bytes = 0
        self._files: dict[str, tuple[str, str]] = {}

    # --- pools -------------------------------------------------------------------------------------------------------
    def hold(self) -> int:
        """
        A pool begins; returns the eventfd that its workers write to, which stays this object's.

        Raises:
            OSError: There is no descriptor left.
        """
        with self.lock:
            if self.wake_fd < 0:
                self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
            self.holders += 1
            return self.wake_fd

    def let_go(self, seconds: float = 0.0) -> None:
        """
        A pool has ended; with the last one, the thread ends too. Wait *seconds* at most for that.
        """
        with self.lock:
            self.holders = max(0, self.holders - 1)
            thread = self.thread
            if self.holders > 0:
                return
            if thread is not None:
                self.wake()  # it closes the descriptor
            elif self.wake_fd >= 0:
                fd, self.wake_fd = self.wake_fd, -1
                os.close(fd)
        if thread is not None and seconds and thread is not threading.current_thread():
            thread.join(seconds)

    def open(self, ring: Ring, name: str, what: str, pid: int) -> Source:
        """
        A worker begins.
        """
        source = Source(ring, name, what, pid)
        self.sources[source] = None
        return source

    def forget(self, source: Source) -> None:
        """
        All its records are handled, and no more will come.
        """
        self.sources.pop(source, None)

    @property
    def is_stuck(self) -> bool:
        """
        Whether nothing was handled since somebody has waited in vain.
        """
        return self.stuck_at == self.handled

    # --- waiting -----------------------------------------------------------------------------------------------------
    def wait(self, source: Source) -> None:
        """
        Wait in this thread until what *source* has written is handled, or some handler is seen to be stuck.
        """
        self.ensure()
        place = source.place
        while source.done < place and not self.is_stuck:
            turn = threading.Lock()
            turn.acquire()
            wait = Wait(place, turn.release)
            seen = self.handled
            source.add(wait)
            if turn.acquire(timeout=SLOW_SECONDS):
                return
            if self.handled == seen:
                self.stuck_at = seen

    # --- the thread --------------------------------------------------------------------------------------------------
    def ensure(self) -> None:
        """
        Have the thread run.
        """
        if self.thread is None:
            with self.lock:
                self._start()

    def _start(self) -> None:
        if self.thread is not None or self.wake_fd < 0:
            return  # another thread was quicker
        thread = threading.Thread(target=self.serve, name="safespawn logs", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            return  # no thread is allowed any more: at the end of the program, say
        self.thread = thread

    def wake(self) -> None:
        """
        Have the thread look.
        """
        with self.lock:  # the thread closes it
            if self.wake_fd >= 0:
                os.eventfd_write(self.wake_fd, 1)

    def serve(self) -> None:
        """
        The thread.
        """
        self.thread_id = threading.get_ident()
        fd = self.wake_fd
        while True:
            os.eventfd_read(fd)
            more = True
            while more:
                more = False
                while self.words:
                    self._call(self.words.popleft())
                for source in list(self.sources):
                    if source.turn():
                        more = True
                    elif source.gone:
                        self.forget(source)
            with self.lock:
                if self.holders <= 0 and not self.sources:
                    self.thread_id = 0
                    self.thread = None
                    self.wake_fd = -1
                    os.close(fd)
                    return

    def _call(self, action: Callable[[], object]) -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - a handler's trouble is its own, also one that wants to exit
            report(error)

    def post(self, action: Callable[[], object]) -> None:
        """
        Have *action* done in the thread.
        """
        self.words.append(action)
        self.ensure()
        self.wake()

    # --- records -----------------------------------------------------------------------------------------------------
    def handle(self, message: bytes, source: Source) -> None:
        """
        Give a worker's record to the handlers here.
        """
        import logging

        try:
            record = self.unpack(message, source, logging)
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)
        except BaseException as error:  # noqa: BLE001 - a handler's trouble is not the pool's, nor the end of the thread
            report(error)
        if source.gone:
            self.rest_bytes = max(0, self.rest_bytes - len(message))
        self.handled += 1

    def unpack(self, message: bytes, source: Source, logging: Any) -> Any:
        """
        A message as a record of logging's.
        """
        (
            name, level, level_name, text, path, line, function, created, msecs, thread, thread_name, task_name, task,
            extra, error,
        ) = marshal.loads(message)  # fmt: skip  # noqa: S302 - our own worker's plain data
        names = self._files.get(path)
        if names is None:
            if len(self._files) > 1000:
                self._files.clear()
            filename = os.path.basename(path)
            names = self._files[path] = filename, os.path.splitext(filename)[0]
        factory = logging.getLogRecordFactory()
        if factory is logging.LogRecord:
            record = factory.__new__(factory)
        else:
            record = factory(name, level, path, line, text, (), None, function)
        record.__dict__.update(
            name=name, msg=text, args=None, levelname=level_name, levelno=level, pathname=path, filename=names[0],
            module=names[1], exc_info=None, exc_text=None, stack_info=None, lineno=line, funcName=function,
            created=created, msecs=msecs, relativeCreated=(created - _began(logging)) * 1000.0, thread=thread,
            threadName=thread_name, processName=source.name, process=source.pid, taskName=task_name,
            worker=source.name, task_id=task or None,
        )  # fmt: skip
        if error is not None:
            record.exc_text, record.exc_type, record.exc_notes, record.stack_info = error
        if extra is not None:
            record.__dict__.update(extra)
        return record

    def say(self, level: int, source: Source, text: str, extra: dict[str, Any], error: str | None = None) -> None:
        """
        A record of our own, about a worker, for whoever has handlers. In the thread.
        """
        logging: Any = sys.modules.get("logging")
        if logging is None:
            return
        logger = logging.getLogger(LOGGER)
        if not logger.hasHandlers() or not logger.isEnabledFor(level):
            return
        record = logging.LogRecord(LOGGER, level, __file__, 0, text, None, None, "relay")
        record.__dict__.update(processName=source.name, process=source.pid, worker=source.name, task_id=None, **extra)
        record.exc_text = error
        try:
            logger.handle(record)
        except BaseException as trouble:  # noqa: BLE001 - as above
            report(trouble)

    def tell_death(self, source: Source, text: str, stack: str) -> None:
        """
        Log that a worker has died, behind its own records.
        """
        self.post(lambda: self.say(40, source, text, {}, stack.rstrip() or None))


def defer(pump: Any, waits: "dict[Wait, None]", source: Source, action: Callable[[], object]) -> None:
    """
    Have *action* done by *pump* when what *source* has written is handled, or some handler is seen to be stuck. Only
    where the pump runs.

    Args:
        pump: The pool's.
        waits: The pool's, kept by this function.
        source: Whose records come first.
        action: What comes after them.
    """
    wait = Wait(source.place, lambda: pump.call_soon(action))
    relay.ensure()
    source.add(wait)
    if wait.is_over:
        return
    if not waits:
        seen = relay.handled
        pump.call_at(time.monotonic() + SLOW_SECONDS, lambda: _look(pump, waits, seen))
    waits[wait] = None


def _look(pump: Any, waits: "dict[Wait, None]", seen: int) -> None:
    """
    Whether those who wait have reason to.
    """
    for wait in [each for each in waits if each.is_over]:
        del waits[wait]
    if not waits:
        return
    handled = relay.handled
    if handled == seen:
        relay.stuck_at = seen
        for wait in list(waits):
            wait.fire()
        waits.clear()
    else:
        pump.call_at(time.monotonic() + SLOW_SECONDS, lambda: _look(pump, waits, handled))


_start: list[float] = []


def _began(logging: Any) -> float:
    """
    When logging was loaded here: what `relativeCreated` counts from.
    """
    if not _start:
        record = logging.LogRecord("", 0, "", 0, "", None, None)
        _start.append(record.created - record.relativeCreated / 1000.0)
    return _start[0]


def report(error: BaseException) -> None:
    """
    Say that a callback or a handler has failed, as a thread would. Raises nothing, whatever the program's hook does.
    """
    if isinstance(error, SystemExit) and threading.excepthook is threading.__excepthook__:  # silent then
        told = RuntimeError(f"a callback or a handler has called sys.exit({error.code!r}), which ends nothing here")
        told.__cause__, error = error, told
    args = threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
    try:
        threading.excepthook(args)
    except BaseException:  # noqa: BLE001 - whoever reports has work to go on with
        with contextlib.suppress(BaseException):
            threading.__excepthook__(args)


relay: Relay = Relay()
