"""
Feeding stdin and draining stdout and stderr of one child, as far as that goes without waiting.

Cost is linear in the bytes: output is kept as the chunks that came and joined once, input is a moving view.

Runs in: application, any thread. Owns the descriptors that it is given.
"""

import codecs
import errno
import fcntl
import os
from collections.abc import Callable
from typing import Any

from safespawn._core.connection import track_write_end, untrack_write_end
from safespawn._core.flow import READ, WRITE

CHUNK_BYTES = 65536  # what a pipe holds by default
_WIDE_BYTES = 1024 * 1024  # what an unprivileged user may make it hold: fewer turns for a child that writes much
_READS_PER_TURN = 16  # then the other streams get their turn


class LimitReached(Exception):
    """
    A stream has given more than the caller wants to keep.
    """


class Drain:
    """
    One output stream: its chunks, and its lines as they come.

    Args:
        fd: The pipe's read end, owned from now on.
        limit: Most bytes to keep, or None.
        on_line: Called with each line, without its end.
        codec: Encoding and error handler of the lines, or None for bytes.
        keep: Whether the chunks are wanted at the end.
        close: Closes *fd*, where a file object owns it; such a descriptor stays blocking, for the object's other users.
        begun: What of the stream had been read before.
    """

    __slots__ = ("_chunks", "_close", "_keep", "_limit", "_lines", "_turns", "_wide", "fd", "total")

    def __init__(
        self,
        fd: int,
        *,
        limit: int | None = None,
        on_line: Callable[[Any], object] | None = None,
        codec: tuple[str, str] | None = None,
        keep: bool = True,
        close: Callable[[], object] | None = None,
        begun: bytes = b"",
    ) -> None:
        if close is None:
            os.set_blocking(fd, False)
        self._close = close
        self._turns = _READS_PER_TURN if close is None else 1
        self.fd = fd
        self.total = len(begun)
        self._chunks: list[bytes] = [begun] if begun else []
        self._keep = keep
        self._limit = limit
        self._lines = None if on_line is None else LineSplitter(on_line, codec)
        self._wide = False

    def read(self) -> bool:
        """
        Take what is there; False at the end of the stream, which is then closed.

        Raises:
            LimitReached: More than the limit has come; what is kept is cut there.
        """
        for _ in range(self._turns):
            try:
                chunk = os.read(self.fd, _WIDE_BYTES if self._wide else CHUNK_BYTES)
            except BlockingIOError:
                return True
            if not chunk:
                self.close()
                if self._lines is not None:
                    self._lines.end()
                return False
            self._take(chunk)
            if len(chunk) < CHUNK_BYTES:
                return True  # drained, most likely: the next look at the set tells
            if not self._wide:
                self._widen()
        return True

    def _take(self, chunk: bytes) -> None:
        self.total += len(chunk)
        over = 0 if self._limit is None else self.total - self._limit
        if over > 0:
            chunk = chunk[:-over]
        if self._keep:
            self._chunks.append(chunk)
        if self._lines is not None:
            self._lines.feed(chunk)
        if over > 0:
            raise LimitReached

    def _widen(self) -> None:
        self._wide = True
        try:
            fcntl.fcntl(self.fd, fcntl.F_SETPIPE_SZ, _WIDE_BYTES)
        except OSError:
            return  # over the user's share of pipe pages: it works as it is

    def close(self) -> None:
        """
        Close the read end.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if self._close is None:
                os.close(fd)
            else:
                self._close()

    def result(self) -> bytes:
        """
        All that was kept so far.
        """
        if len(self._chunks) != 1:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]


class Feed:
    """
    The input stream: what is still to be written.

    Args:
        fd: The pipe's write end, owned from now on.
        data: What the child shall read; the end of it is the end of the stream.
        close: Closes *fd*, where a file object owns it.
    """

    __slots__ = ("_close", "_view", "fd")

    def __init__(self, fd: int, data: Any, *, close: Callable[[], object] | None = None) -> None:
        self._close = close
        if close is None:
            track_write_end(fd)
        self.fd: int = fd
        os.set_blocking(fd, False)
        self._view = memoryview(data).cast("B")

    def write(self) -> bool:
        """
        Write what fits; False when everything is written or nobody reads, the end being closed then.
        """
        try:
            while self._view:
                self._view = self._view[os.write(self.fd, self._view[:_WIDE_BYTES]) :]
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EPIPE:
                raise
        self.close()
        return False

    def close(self) -> None:
        """
        Close the write end: the child reads the end of its input.
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            if self._close is None:
                untrack_write_end(fd)
                os.close(fd)
            else:
                self._close()


class LineSplitter:
    """
    Chunks in, lines out, without their ends; the last line may lack one.
    """

    __slots__ = ("_call", "_decoder", "_parts")

    def __init__(self, call: Callable[[Any], object], codec: tuple[str, str] | None) -> None:
        self._call = call
        self._parts: list[Any] = []
        self._decoder: Any = None
        if codec is not None:
            import io

            inner = codecs.getincrementaldecoder(codec[0])(codec[1])
            self._decoder = io.IncrementalNewlineDecoder(inner, translate=True)

    def feed(self, chunk: bytes, *, last: bool = False) -> None:
        """
        Call for each line that *chunk* completes.
        """
        piece: Any = chunk if self._decoder is None else self._decoder.decode(chunk, last)
        end: Any = b"\n" if self._decoder is None else "\n"
        if end not in piece:
            if piece:
                self._parts.append(piece)
            return
        first, *lines = piece.split(end)
        self._parts.append(first)
        complete = [piece[:0].join(self._parts), *lines]
        self._parts = [rest] if (rest := complete.pop()) else []
        for line in complete:
            self._call(line)

    def end(self) -> None:
        """
        The stream has ended: what is left is the last line.
        """
        self.feed(b"", last=True)
        if self._parts:
            parts, self._parts = self._parts, []
            self._call(parts[0][:0].join(parts))


class Streams:
    """
    The streams of one child together, as an interest set and what to do when some are ready.
    """

    __slots__ = ("drains", "feed")

    def __init__(self, feed: Feed | None, drains: tuple[Drain | None, Drain | None]) -> None:
        self.feed: Feed | None = feed
        self.drains: tuple[Drain | None, Drain | None] = drains

    def interest(self) -> dict[int, int]:
        """
        What to wait for; empty when all streams have ended.
        """
        wanted = {drain.fd: READ for drain in self.drains if drain is not None and drain.fd >= 0}
        if self.feed is not None and self.feed.fd >= 0:
            wanted[self.feed.fd] = WRITE
        return wanted

    def turn(self, ready: dict[int, int]) -> None:
        """
        Move what can be moved.

        Raises:
            LimitReached: An output has given more than is wanted.
        """
        for drain in self.drains:
            if drain is not None and drain.fd in ready:
                drain.read()
        if self.feed is not None and self.feed.fd in ready:
            self.feed.write()

    @property
    def open_outputs(self) -> list[int]:
        """
        The read ends whose end has not been seen.
        """
        return [drain.fd for drain in self.drains if drain is not None and drain.fd >= 0]

    def close(self) -> None:
        """
        Close whatever is open.
        """
        if self.feed is not None:
            self.feed.close()
        for drain in self.drains:
            if drain is not None:
                drain.close()
