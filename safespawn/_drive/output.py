"""
A command's stdout, line by line: looked through for the line that says that it is ready, and passed on.

It is passed on to this process's own stdout, or to a function. Nothing here waits: while stdout takes nothing, the
command's output is left in its pipe, and the command waits as it would without us.

Runs in: application, where the pump runs.
"""

import os
import select
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safespawn._core.flow import READ, Flow
from safespawn._drive.pump import Pump

if TYPE_CHECKING:
    import re

CHUNK_BYTES = select.PIPE_BUF  # what a pipe takes without waiting once poll(2) says that it takes something
LINE_CHARS = 64 * 1024  # a longer line is looked at in pieces; arbitrary
DRAIN_SECONDS = 0.2  # for what others still hold open when the command has ended; arbitrary, as for `run`
RETRY_SECONDS = 0.02  # until a full stdout is looked at again; arbitrary


class Lines:
    """
    The reader.

    Args:
        pump: That serves it.
        fd: Our end of the pipe, owned.
        on_match: Called with the match of the first line that matches.
        pattern: What to look for, or None.
    """

    def __init__(
        self, pump: Pump, fd: int, on_match: Callable[[Any], object], pattern: "re.Pattern[str] | None"
    ) -> None:
        os.set_blocking(fd, False)
        self.fd: int = fd
        self.pump = pump
        self.on_match = on_match
        self.pattern = pattern
        self.on_line: Callable[[str], object] | None = None
        self.report: Callable[[BaseException], object] = pump.on_trouble
        self.rest: bytes = b""
        self.waiting: bytes = b""  # has been looked at, and not passed on
        self.watched: bool = False
        self.ended: bool = False

    def start(self) -> None:
        """
        Read.
        """
        if not self.watched and self.fd >= 0:
            self.watched = True
            self.pump.watch(self.fd, self._readable)

    def _pause(self) -> None:
        if self.watched:
            self.watched = False
            self.pump.unwatch(self.fd)

    def _readable(self, _events: int) -> None:
        if not self._pass_on():
            self._pause()
            self.pump.call_at(time.monotonic() + RETRY_SECONDS, self._again)
            return
        self._read()

    def _again(self) -> None:
        if self.fd < 0 or self.ended:
            return
        if self._pass_on():
            self.start()
        else:
            self.pump.call_at(time.monotonic() + RETRY_SECONDS, self._again)

    def _read(self) -> None:
        try:
            data = os.read(self.fd, CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.ended = True
            self._pause()
            if self.rest:
                self._look(self.rest)
                self.rest = b""
            self._pass_on()
            return
        if self.on_line is None:
            self.waiting += data
            self._pass_on()
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            self._look(line)
        if len(self.rest) > LINE_CHARS:
            self._look(self.rest)
            self.rest = b""

    def _look(self, line: bytes) -> None:
        text = line.decode(errors="backslashreplace")
        if self.on_line is not None:
            try:
                self.on_line(text)
            except BaseException as error:  # noqa: BLE001 - a callback of the user's must not end the engine
                self.report(error)
        if self.pattern is not None:
            match = self.pattern.search(text)
            if match is not None:
                self.pattern = None
                self.on_match(match)

    def _pass_on(self) -> bool:
        """
        Write what waits to stdout, as far as that takes it. Says whether all is written.
        """
        look = select.poll()
        try:
            look.register(1, select.POLLOUT)
            while self.waiting:
                ready = look.poll(0)
                if not ready:
                    return False
                self.waiting = self.waiting[os.write(1, self.waiting[:CHUNK_BYTES]) :]
        except BlockingIOError:
            return False
        except OSError:
            self.waiting = b""  # it is closed, or nobody reads it
        return True

    def drain_flow(self) -> Flow[None]:
        """
        The command has ended: take what is still in the pipe.
        """
        self._pause()
        limit = time.monotonic() + DRAIN_SECONDS
        while not self.ended and self.fd >= 0 and time.monotonic() < limit:
            if not self._pass_on():
                yield {}, min(limit, time.monotonic() + RETRY_SECONDS)
                continue
            ready = yield {self.fd: READ}, limit
            if not ready:
                break
            self._read()
        self._pass_on()

    def close(self) -> None:
        """
        Close the pipe.
        """
        self._pause()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
