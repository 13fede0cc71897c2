"""
A supervised child: a Python process that runs one function, for as long as that takes.

It is set up as a pool's worker, so what it logs, warns of and prints goes the same way. Then the function is called, in
the main thread. The request to stop is the end of the application's side of the task socket, which poll(2) tells of
whatever lies unread before it: so any number of threads may look whether it has come. What may lie there are the
levels of loggers, if they have changed since; one of these threads takes them.

Runs in: supervised child.
"""

import _socket
import array
import inspect
import marshal
import math
import os
import select
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

from safespawn._worker import current, journal, settling, within
from safespawn._worker.messages import LEVELS, RAISED, READY, RECEIVE_BYTES, SETUP, SETUP_FAILED, read_long
from safespawn._worker.payload import pack
from safespawn._worker.raised import pack_error
from safespawn._worker.stdio import flush_stdio
from safespawn._worker.worker import Gone, Worker

WAIT_SECONDS = 86_400.0  # in one call: poll(2) takes no more than 24 days


class Terminated(SystemExit):
    """
    Raised by SIGTERM in a child that does not ask whether it is to stop. Its `finally` clauses run; then it ends as
    that signal ends a process.
    """


class Supervised(Worker):
    """
    The child.
    """

    is_ready = False
    levels_seen = 0  # so many times it was sent the levels of its loggers, and has taken them
    asks = False  # whether it is to stop: then it ends by itself

    def serve(self) -> int:
        """
        From the first message to the end; returns the exit code.
        """
        signal.signal(signal.SIGTERM, self.on_term)
        try:
            return self.live()
        except Terminated:
            self.flush_words()
            self.die()

    def live(self) -> int:
        """
        Be set up, and call the function.
        """
        kind, body, fd = self.receive()
        if kind != SETUP:
            return 2
        try:
            settling.set_up(self, body, fd)
            current.worker = None  # it is none: it has no pool
            data, parts = body["target"]
            target, arguments, keywords = self.unpack(data, [memoryview(part) for part in parts])
        except (Gone, Terminated):
            raise
        except BaseException as error:  # noqa: BLE001 - whatever an import raises is told
            self.send(SETUP_FAILED, pack_error(error))
            return 1
        within.ward = self
        self.follow_levels()
        if body["ready"] == "started":
            self.say_ready(None)
        code = self.call(target, arguments, keywords)
        if self.is_copy:
            self.leave_copy(None)
        self.finish()
        return code

    def call(self, target: Any, arguments: Any, keywords: Any) -> int:
        """
        Call the function; what it raises is told.
        """
        try:
            result = target(*arguments, **keywords)
            if inspect.iscoroutine(result):
                import asyncio

                asyncio.run(result)
        except Terminated:
            raise
        except SystemExit as error:
            if error.code is None or isinstance(error.code, int):
                return error.code or 0
            sys.stderr.write(f"{error.code}\n")
            return 1
        except BaseException as error:  # noqa: BLE001 - it ends this process, as it would end a script
            if self.is_copy:
                self.leave_copy(error)
            if error.__traceback__ is not None:
                error.__traceback__ = error.__traceback__.tb_next  # without this frame
            self.send(RAISED, pack_error(error))
            sys.excepthook(type(error), error, error.__traceback__)
            return 1
        return 0

    def flush_words(self) -> None:
        """
        The end of one that SIGTERM has ended: as in order, but that a thread of its own is not waited for.
        """
        import atexit

        atexit._run_exitfuncs()  # noqa: SLF001
        flush_stdio()

    def on_term(self, _number: int, _frame: FrameType | None) -> None:
        """
        The handler of SIGTERM.
        """
        if not self.asks:
            raise Terminated

    def die(self) -> NoReturn:
        """
        End as SIGTERM ends a process, so that the status is a true one.
        """
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os._exit(128 + signal.SIGTERM)

    # --- the levels of loggers ---------------------------------------------------------------------------------------
    def follow_levels(self) -> None:
        """
        Take the application's levels when they change: with each record, beat, and question whether it is to stop. No
        thread waits for them, which would make this a process that had better not fork.
        """
        import logging

        from safespawn._worker import logs

        self.reading = threading.Lock()  # who has it reads the task socket; nobody waits for it
        self.levels_seen = self.cells[journal.LEVELS]
        for handler in logging.getLogger().handlers:
            if isinstance(handler, logs.Relay):
                handler.running = self.no_task

    def no_task(self) -> int:
        """
        The number of the task that a record belongs to.
        """
        self.look_for_levels()
        return 0

    def look_for_levels(self) -> None:
        """
        Take them, if there are any. Costs as much as to read a number.
        """
        if self.cells[journal.LEVELS] != self.levels_seen:
            self.take_levels()

    def take_levels(self) -> bool:
        """
        Take what the application has sent. Says whether it could be looked at: another thread may be at it, or what a
        signal's handler has interrupted; and to a forked copy nothing was sent.
        """
        if self.is_copy or not self.reading.acquire(blocking=False):
            return False
        from safespawn._worker import logs

        try:
            self.levels_seen = self.cells[journal.LEVELS]
            while words := self.words_nowait():
                if words[0] == LEVELS:
                    logs.set_levels(marshal.loads(memoryview(words)[1:]))  # noqa: S302 - the application's own words
        finally:
            self.reading.release()
        return True

    def words_nowait(self) -> bytes:
        """
        The next message; empty if there is none.
        """
        flags = _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
        try:
            data, ancillary, _, _ = self.connection.recvmsg(RECEIVE_BYTES, _socket.CMSG_SPACE(4), flags)
        except OSError:
            return b""
        return read_long(array.array("i", ancillary[0][2])[0]) if ancillary else data

    # --- what the function calls -------------------------------------------------------------------------------------
    def say_ready(self, value: Any) -> None:
        """
        `safespawn.ready`.
        """
        if self.is_ready:
            return
        data, parts = pack(value, what="task")
        self.is_ready = True
        self.note_beat()
        try:
            self.send(READY, (data, [bytes(part) for part in parts]))
        except Gone:
            return  # nobody is there who waits; `stop_requested` says so

    def note_beat(self) -> None:
        """
        `safespawn.beat`.
        """
        self.cells[journal.SINCE_NS] = time.monotonic_ns()
        self.cells[journal.ITEM] += 1
        self.look_for_levels()

    def await_stop(self, timeout: float | None) -> bool:
        """
        `safespawn.stop_requested`.
        """
        self.asks = True
        look = select.poll()
        look.register(self.connection.fileno(), select.POLLRDHUP | select.POLLIN)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            for _, found in look.poll(min(left, WAIT_SECONDS) * 1000):
                if found & ~select.POLLIN:
                    return True
                if not self.take_levels():  # not here
                    look.modify(self.connection.fileno(), select.POLLRDHUP)
                break
            else:
                if left <= WAIT_SECONDS:
                    return False
