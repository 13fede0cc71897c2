"""
A supervised child: a Python process that runs one function, for as long as that takes.

It is set up as a pool's worker, so what it logs, warns of and prints goes the same way. Then the function is called, in
the main thread. The request to stop is the end of the application's side of the task socket, which poll(2) tells of
whatever lies unread before it: so any number of threads may look whether it has come.

Runs in: supervised child.
"""

import inspect
import math
import os
import select
import signal
import sys
import time
from types import FrameType
from typing import Any, NoReturn

from safespawn._worker import current, journal, settling, within
from safespawn._worker.messages import RAISED, READY, SETUP, SETUP_FAILED
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

    def await_stop(self, timeout: float | None) -> bool:
        """
        `safespawn.stop_requested`.
        """
        self.asks = True
        look = select.poll()
        look.register(self.connection.fileno(), select.POLLRDHUP)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            left = max(0.0, deadline - time.monotonic())
            if look.poll(min(left, WAIT_SECONDS) * 1000):
                return True
            if left <= WAIT_SECONDS:
                return False
