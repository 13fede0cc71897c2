"""
Pipe ends as flows: bytes and lines in, bytes out. The async streams of `AsyncProcess` are these, driven.

Runs in: application, any thread; one reader and one writer at a time.
"""

import os

from safespawn._core.connection import track_write_end, untrack_write_end
from safespawn._core.flow import READ, WRITE, Flow
from safespawn.errors import ClosedError

_CHUNK_BYTES = 65536


class ReadEnd:
    """
    The read end of a child's output, owned, with what has been read beyond a line.
    """

    __slots__ = ("_buffer", "fd")

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self.fd: int = fd
        self._buffer = bytearray()

    def _more_flow(self) -> Flow[bytes]:
        """
        Whatever comes next; empty at the end.
        """
        while True:
            if self.fd < 0:
                raise ClosedError("this stream")
            try:
                return os.read(self.fd, _CHUNK_BYTES)
            except BlockingIOError:
                yield {self.fd: READ}, None

    def receive_flow(self, size: int) -> Flow[bytes]:
        """
        At least one byte and at most *size*; none at the end.
        """
        if not self._buffer:
            self._buffer += yield from self._more_flow()
        return self._take(size)

    def read_flow(self, size: int) -> Flow[bytes]:
        """
        *size* bytes, all until the end for -1; fewer only at the end.
        """
        while size < 0 or len(self._buffer) < size:
            chunk = yield from self._more_flow()
            if not chunk:
                break
            self._buffer += chunk
        return self._take(len(self._buffer) if size < 0 else size)

    def line_flow(self) -> Flow[bytes]:
        """
        Up to and with the next line end; the rest at the end.
        """
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            chunk = yield from self._more_flow()
            if not chunk:
                return self._take(len(self._buffer))
            self._buffer += chunk
        return self._take(end + 1)

    def read_ahead(self) -> bytes:
        """
        What had been read beyond what was asked for; it is not given again.
        """
        return self._take(len(self._buffer))

    def __del__(self) -> None:
        self.close()

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken

    def close(self) -> None:
        """
        Close it, once.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


class WriteEnd:
    """
    The write end of a child's stdin, owned; forked copies of this process give it up.
    """

    __slots__ = ("fd",)

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        track_write_end(fd)
        self.fd: int = fd

    def __del__(self) -> None:
        self.close()

    def write_flow(self, data: memoryview) -> Flow[None]:
        """
        Write all of *data*.
        """
        while data:
            if self.fd < 0:
                raise ClosedError("this stream")
            try:
                data = data[os.write(self.fd, data) :]
            except BlockingIOError:
                yield {self.fd: WRITE}, None

    def close(self) -> None:
        """
        Close it, once.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            untrack_write_end(fd)
            os.close(fd)
