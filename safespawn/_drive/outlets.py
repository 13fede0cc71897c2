"""
What workers write to descriptors 1 and 2, where a pool was asked to see to that: from the workers' pipes to the
program's own output, to its log, or into the results.

One thread reads all pipes of the process and does nothing else, so no worker waits for long. It runs no user's code:
lines for the program's output and its log are handed to the thread of the log relay. When that does not get on, some
are kept, and the rest is counted and told.

Runs in: application.
"""

import os
import select
import sys
import threading
from collections import OrderedDict
from typing import Any

from safespawn._drive.relay import relay
from safespawn._worker import carried

READ_BYTES = 64 * 1024
RETURN_BYTES = 256 * 1024  # of a call's output on one stream; of more, the end
WAITING_BYTES = 1024 * 1024  # of one worker's lines, that nobody has taken yet
LINE_BYTES = 16 * 1024  # a longer line is several
UNCLAIMED = 1000  # outputs of calls whose results never came
LAST_BYTES = 16 * 1024 * 1024  # read of a dead worker's pipe; what is left is a living stranger's
NAMES = {1: "stdout", 2: "stderr"}
LEVELS = {1: 20, 2: 30}


class Outlet:
    """
    One stream of one worker.

    Args:
        fd: The pipe's end, which is this object's.
        stream: 1 or 2.
        mode: "prefix", "log", "return".
        name, pid: The worker's.
        token: What the worker marks the ends of calls with.
    """

    def __init__(self, fd: int, stream: int, mode: str, name: str, pid: int, token: bytes) -> None:
        os.set_blocking(fd, False)
        self.fd: int = fd
        self.stream: int = stream
        self.mode: str = mode
        self.name: str = name
        self.pid: int = pid
        self.mark: bytes = b"\0" + token
        self.lock: threading.Lock = threading.Lock()
        self.buffer: bytearray = bytearray()
        self.cut: int = 0
        self.texts: OrderedDict[int, str] = OrderedDict()
        self.waiting: int = 0
        self.lost: int = 0

    def read(self, most: int = READ_BYTES) -> bool:
        """
        Read what there is, *most* bytes or a little more. Says whether the stream goes on.
        """
        with self.lock:
            return self._read(most)

    def _read(self, most: int) -> bool:
        while self.fd >= 0 and most > 0:
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return True
            except OSError:
                data = b""
            if not data:
                return False
            most -= len(data)
            if self.mode == "return":
                self._keep(data)
            else:
                self._split(data)
        return self.fd >= 0

    def close(self) -> None:
        """
        Read the rest, and let go.
        """
        with self.lock:
            self._read(LAST_BYTES)
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)
            if self.buffer and self.mode != "return":
                self._hand_over([bytes(self.buffer)])
                self.buffer.clear()
            if self.lost:  # and no line came after them that could have told it
                lost, self.lost = self.lost, 0
                relay.post(lambda: self._bring([], lost))

    # --- into the results --------------------------------------------------------------------------------------------
    def _keep(self, data: bytes) -> None:
        buffer = self.buffer
        start = max(0, len(buffer) - carried.MARK_BYTES)
        buffer += data
        while (at := buffer.find(self.mark, start)) >= 0 and len(buffer) >= at + carried.MARK_BYTES:
            end = at + carried.MARK_BYTES
            number = int.from_bytes(buffer[at + len(self.mark) : end], "little")
            text = bytes(buffer[max(0, at - RETURN_BYTES) : at]).decode(errors="replace")
            self.cut += max(0, at - RETURN_BYTES)
            if self.cut:
                text = f"[cut by safespawn: {self.cut} bytes before this]\n{text}"
            self.cut = 0
            self.texts[number] = text
            if len(self.texts) > UNCLAIMED:
                self.texts.popitem(last=False)
            del buffer[:end]
            start = 0
        more = len(buffer) - RETURN_BYTES - carried.MARK_BYTES
        if more > READ_BYTES:
            self.cut += more
            del buffer[:more]

    def find(self, number: int) -> str:
        """
        The output of the call *number*, which has ended: so it is in the pipe, if it was not read.
        """
        with self.lock:
            while number not in self.texts and self._read_once():
                pass
            return self.texts.pop(number, "")

    def _read_once(self) -> bool:
        try:
            data = os.read(self.fd, READ_BYTES) if self.fd >= 0 else b""
        except OSError:
            return False
        if data:
            self._keep(data)
        return bool(data)

    # --- by lines ----------------------------------------------------------------------------------------------------
    def _split(self, data: bytes) -> None:
        buffer = self.buffer
        buffer += data
        lines = buffer.split(b"\n")
        rest = lines.pop()
        while len(rest) > LINE_BYTES:
            lines.append(rest[:LINE_BYTES])
            rest = rest[LINE_BYTES:]
        self.buffer = bytearray(rest)
        if lines:
            self._hand_over([bytes(line) for line in lines])

    def _hand_over(self, lines: list[bytes]) -> None:
        kept: list[bytes] = []
        for line in lines:
            if self.waiting + len(line) > WAITING_BYTES:
                self.lost += 1
            else:
                self.waiting += len(line) + 1
                kept.append(line)
        if kept:
            lost, self.lost = self.lost, 0
            relay.post(lambda: self._bring(kept, lost))

    def _bring(self, lines: list[bytes], lost: int) -> None:
        """
        In the thread of the relay.
        """
        try:
            if lost:
                self._write(f"[{lost} lines lost: they were not taken in time]")
            for line in lines:
                self._write(line.decode(errors="replace").rstrip("\r"))
            if self.mode == "prefix":
                getattr(sys, NAMES[self.stream]).flush()
        finally:
            with self.lock:
                self.waiting -= sum(map(len, lines)) + len(lines)

    def _write(self, line: str) -> None:
        if self.mode == "prefix":
            getattr(sys, NAMES[self.stream]).write(f"[{self.name}] {line}\n")
            return
        import logging

        logger = logging.getLogger(f"safespawn.{NAMES[self.stream]}.{self.name}")
        level = LEVELS[self.stream]
        if logger.isEnabledFor(level):
            record = logging.LogRecord(logger.name, level, "", 0, line, None, None)
            record.__dict__.update(processName=self.name, process=self.pid, worker=self.name, task_id=None)
            logger.handle(record)


class Outlets:
    """
    The thread, and the pipes that it reads.
    """

    def __init__(self) -> None:
        self.reset()
        os.register_at_fork(after_in_child=self.reset)

    def reset(self) -> None:
        """
        Nothing there. In a forked copy: what there is belongs to the original.
        """
        epoll, pipes = getattr(self, "epoll", None), getattr(self, "pipes", {})
        self.epoll: Any = None
        self.pipes: dict[int, Outlet] = {}
        self.lock = threading.RLock()
        self.wake_fd = -1
        if epoll is not None:
            epoll.close()
        for fd in pipes:
            try:
                os.close(fd)
            except OSError:
                continue

    def add(self, outlet: Outlet) -> None:
        """
        Have *outlet* read from now on.
        """
        with self.lock:
            if self.epoll is None:
                self.epoll = select.epoll()
                self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC)
                self.epoll.register(self.wake_fd, select.EPOLLIN)
                arguments = (self.epoll, self.wake_fd)
                threading.Thread(target=self._serve, args=arguments, name="safespawn output", daemon=True).start()
            self.pipes[outlet.fd] = outlet
            self.epoll.register(outlet.fd, select.EPOLLIN)

    def remove(self, outlet: Outlet) -> None:
        """
        Read what is left of *outlet*, and close it. With the last one the thread ends.
        """
        with self.lock:
            if self.pipes.pop(outlet.fd, None) is not None:
                self._unregister(outlet.fd)
            if not self.pipes and self.epoll is not None:
                self.epoll = None
                os.eventfd_write(self.wake_fd, 1)
        outlet.close()

    def _unregister(self, fd: int) -> None:
        try:
            self.epoll.unregister(fd)
        except OSError:
            return  # at its end already

    def _serve(self, epoll: Any, wake_fd: int) -> None:
        while True:
            for fd, _ in epoll.poll():
                if fd == wake_fd:
                    epoll.close()
                    os.close(wake_fd)
                    return
                with self.lock:
                    outlet = self.pipes.get(fd)
                if outlet is not None and not outlet.read():
                    with self.lock:
                        if self.pipes.get(fd) is outlet and self.epoll is epoll:
                            self._unregister(fd)


outlets: Outlets = Outlets()
