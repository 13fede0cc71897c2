"""
A ring of messages in memory that a worker and the application share: one writes, the other reads.

What was written is there for the reader whatever becomes of the writer: a worker that is killed has lost no record that
it was through with, and one that it was in the middle of is not there, not even half. Neither side ever waits in here.

    cells   how far was written, how far was read (bytes since the beginning), how many messages found no room
    data    messages, each in one piece: its length, its bytes, and what is missing to a multiple of eight

A message that would not fit before the end of the memory begins at its start; the reader is told by a length. A writer
that finds all read goes back to the start, too: so a ring that is read in time uses little of its memory.

The order of the stores is kept by x86-64; where it is not, the reader looks when the eventfd has told him, and that
system call orders them.

Runs in: worker (puts), application (takes).
"""

from struct import Struct
from typing import Any

WRITTEN, READ, DROPPED = range(3)
HEAD_BYTES = 64
_LENGTH = Struct("<I")
_SKIP = 0xFFFFFFFF
_REST_BYTES = 64 * 1024  # of the memory are used again and again while the reader keeps up


class Ring:
    """
    The memory, seen from either side.

    Attributes:
        written: How far this side, if it writes, has written.
        read: How far this side, if it reads, has read.
    """

    def __init__(self, view: Any) -> None:
        self.cells: Any = view[:HEAD_BYTES].cast("Q")
        self.data: Any = view[HEAD_BYTES:]
        self.size: int = len(self.data) & ~7
        self.written: int = self.cells[WRITTEN]
        self.read: int = self.cells[READ]

    def put(self, message: bytes) -> bool:
        """
        Write *message*. Says whether there was room for it.
        """
        length = len(message)
        need = (length + 11) & ~7
        size = self.size
        written = self.written
        read = self.cells[READ]
        at = written % size
        if at + need > size or (at > _REST_BYTES and read == written):
            skip = size - at
            if skip + need > size - (written - read):
                return False
            _LENGTH.pack_into(self.data, at, _SKIP)
            written += skip
            at = 0
        elif need > size - (written - read):
            return False
        _LENGTH.pack_into(self.data, at, length)
        self.data[at + 4 : at + 4 + length] = message
        self.written = written = written + need
        self.cells[WRITTEN] = written
        return True

    def take(self, limit: int) -> list[bytes]:
        """
        The next messages, *limit* at most. Their room is free again.
        """
        found: list[bytes] = []
        written = self.cells[WRITTEN]
        data, size, read = self.data, self.size, self.read
        while read != written and len(found) < limit:
            at = read % size
            (length,) = _LENGTH.unpack_from(data, at)
            if length == _SKIP:
                read += size - at
                continue
            if not 0 < length <= size - at - 4:  # somebody has written over it
                read = written
                break
            found.append(bytes(data[at + 4 : at + 4 + length]))
            read += (length + 11) & ~7
        self.read = read
        self.cells[READ] = read
        return found

    @property
    def is_empty(self) -> bool:
        """
        Whether the reader has read all.
        """
        return bool(self.cells[WRITTEN] == self.read)

    @property
    def dropped(self) -> int:
        """
        How many messages found no room, so far.
        """
        return int(self.cells[DROPPED])

    def drop(self) -> None:
        """
        Count a message that found no room.
        """
        self.cells[DROPPED] += 1

    def close(self) -> None:
        """
        Look no more.
        """
        self.cells.release()
        self.data.release()
