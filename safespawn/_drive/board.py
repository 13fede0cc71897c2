"""
What this application runs, in memory that `safespawn ps` and `safespawn top` may read.

What a process is, its CPU and its memory are in /proc. What only its owner knows is here: whether it is ready, how
often it was restarted, what happened to it last. Each owner publishes a row, and changes it when something happens:

    row = board.publish("child", "collector", pid=41273, state="starting")
    row.update(state="ready")
    row.note("exited with 1", state="waiting", pid=0, until=time.monotonic() + 0.4)
    row.update(state="starting", pid=41280, restarts=row.restarts + 1)
    row.update(state="stopping", until=time.monotonic() + 12.0)  # shown as "stopping, 12.0 s left"
    row.withdraw()

The memory is a memfd whose name is known, so any process of the same user finds it in /proc/PID/fd. A row is written
by one system call and carries a checksum: a reader takes no lock, can hold nobody up, and knows a row that is just
being written when he sees one. There is nothing to wait for, so rows may be changed from any thread, any event loop,
and from the handler of a signal. A change costs some microseconds; what changes with every task is not here but in the
worker's journal, at which a row points (*cells*).

The memory exists while there are rows. In a forked copy there are none: those of the original are the original's.

Runs in: application (writes); `safespawn ps` (reads).
"""

import binascii
import fcntl
import os
import struct
import threading
import time
from typing import Any, NamedTuple

NAME = "safespawn-board"
MAGIC = b"safespawn board\0"
VERSION = 1
ROWS = 4096  # shown at once; arbitrary. What is beyond them is counted
ROW_BYTES = 512
_HEAD = struct.Struct("<16sIIIIQ")  # magic, version, owner's pid, size of a row, rows in use up to here, rows not shown
_ROW = struct.Struct("<IIQqddddiq")  # checksum, bytes of text, pid, restarts, since, event at, task since, until, cells
_TEXTS = ("kind", "name", "owner", "state", "event", "task")
_LIMITS = {"kind": 16, "name": 80, "owner": 80, "state": 32, "event": 120, "task": 100}  # bytes; they fit a row


class Facts(NamedTuple):
    """
    A row, as read.

    Attributes:
        kind: "pool", "worker", "child", "supervisor", ...
        name: What its owner calls it.
        owner: Name of what it belongs to: a worker's pool, a child's supervisor; or empty.
        pid: Its process, or 0 while it has none.
        state: In a word or two.
        since: When that state came, in monotonic seconds.
        until: When it will end by itself, in monotonic seconds; 0: not known.
        restarts: How often it was started again.
        event: What happened to it last, in words; or empty.
        event_at: When, in monotonic seconds.
        task: What it does now; or empty.
        task_since: Since when, in monotonic seconds.
        cells: The owner's descriptor and the offset of the journal of a worker; or -1 and 0.
    """

    kind: str
    name: str
    owner: str = ""
    pid: int = 0
    state: str = ""
    since: float = 0.0
    until: float = 0.0
    restarts: int = 0
    event: str = ""
    event_at: float = 0.0
    task: str = ""
    task_since: float = 0.0
    cells: tuple[int, int] = (-1, 0)


class Row:
    """
    A row of this application's board, as its owner holds it. One owner changes it at a time.

    Attributes:
        facts: What was published last.
    """

    __slots__ = ("_board", "_slot", "facts")

    def __init__(self, board: "Board | None", slot: int, facts: Facts) -> None:
        self._board = board
        self._slot = slot
        self.facts: Facts = facts
        self._write()

    @property
    def restarts(self) -> int:
        """
        How often it was started again, so far.
        """
        return self.facts.restarts

    def update(self, **changes: Any) -> None:
        """
        Change what `Facts` has under these names. A new state is *since* now, its *until* not known unless given.
        """
        if changes.get("state", self.facts.state) != self.facts.state:
            changes.setdefault("since", time.monotonic())
            changes.setdefault("until", 0.0)
        self.facts = self.facts._replace(**changes)
        self._write()

    def note(self, event: str, **changes: Any) -> None:
        """
        What happened, now, in words; and what changed by it, as for `update`.
        """
        self.update(event=event, event_at=time.monotonic(), **changes)

    def withdraw(self) -> None:
        """
        It is no more. May be called twice.
        """
        board, self._board = self._board, None
        if board is not None and board.pid == os.getpid():
            board.take_back(self._slot)

    def _write(self) -> None:
        board = self._board
        if board is not None and board.fd >= 0 and board.pid == os.getpid():
            board.write(self._slot, encode(self.facts))


class Board:
    """
    The memory of one application.
    """

    def __init__(self) -> None:
        self.pid: int = os.getpid()
        self.fd: int = -1
        self.lock: threading.RLock = threading.RLock()  # of the slots; readers know nothing of it
        self.free: list[int] = []
        self.used: int = 0  # slots were in use up to here
        self.held: int = 0
        self.hidden: int = 0

    def publish(self, facts: Facts) -> Row:
        """
        A new row.
        """
        with self.lock:
            if not self._open():
                return Row(None, -1, facts)
            if self.free:
                slot = self.free.pop()
            elif self.used < ROWS:
                slot = self.used
                self.used += 1
            else:
                slot = -1
                self.hidden += 1
            self.held += 1
            self._write_head()
        return Row(self, slot, facts)

    def take_back(self, slot: int) -> None:
        """
        A row is no more; with the last one, the memory is not.
        """
        with self.lock:
            self.held -= 1
            if slot < 0:
                self.hidden -= 1
            else:
                self.write(slot, bytes(_ROW.size))
                self.free.append(slot)
            if self.held:
                self._write_head()
            else:
                fd, self.fd = self.fd, -1
                self.free.clear()
                self.used = 0
                if fd >= 0:
                    os.close(fd)

    def write(self, slot: int, data: bytes) -> None:
        """
        The bytes of a row, at once.
        """
        if slot >= 0:
            try:
                os.pwrite(self.fd, data, (slot + 1) * ROW_BYTES)
            except OSError:
                return  # no memory for it, or somebody has closed our descriptor: the work goes on

    def _open(self) -> bool:
        if self.fd >= 0:
            return True
        try:
            fd = os.memfd_create(NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        except OSError:
            return False
        try:
            os.ftruncate(fd, (ROWS + 1) * ROW_BYTES)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        except OSError:
            os.close(fd)
            return False
        self.fd = fd
        return True

    def _write_head(self) -> None:
        head = _HEAD.pack(MAGIC, VERSION, self.pid, ROW_BYTES, self.used, self.hidden)
        try:
            os.pwrite(self.fd, head, 0)
        except OSError:
            return


_boards: list[Board] = [Board()]


def publish(kind: str, name: str, **facts: Any) -> Row:
    """
    A new row on this application's board. Never fails: where there is no memory for it, nobody sees it.

    Args:
        kind: What it is.
        name: What its owner calls it.
        **facts: As the attributes of `Facts`.

    Runs in: application, any thread.
    """
    facts.setdefault("since", time.monotonic())
    board = _boards[0]
    if board.pid != os.getpid():  # a fork that skipped Python's hooks
        _forget_in_copy()
        board = _boards[0]
    return board.publish(Facts(kind, name, **facts))


def _forget_in_copy() -> None:
    board, _boards[0] = _boards[0], Board()
    fd, board.fd = board.fd, -1
    if fd >= 0:
        try:
            os.close(fd)
        except OSError:
            return


os.register_at_fork(after_in_child=_forget_in_copy)


def encode(facts: Facts) -> bytes:
    """
    A row's bytes.
    """
    texts = [getattr(facts, name).replace("\0", " ").encode(errors="replace")[: _LIMITS[name]] for name in _TEXTS]
    text = b"\0".join(texts)
    body = _ROW.pack(
        0, len(text), facts.pid, facts.restarts, facts.since, facts.event_at, facts.task_since, facts.until,
        *facts.cells,
    )[4:] + text  # fmt: skip
    return struct.pack("<I", binascii.crc32(body)) + body


def decode(data: bytes) -> Facts | None:
    """
    What a row says; None if there is none.

    Raises:
        ValueError: It is just being written.
    """
    checksum, size, pid, restarts, since, event_at, task_since, until, fd, offset = _ROW.unpack_from(data)
    if not checksum and not size:
        return None
    if binascii.crc32(data[4 : _ROW.size + size]) != checksum:
        raise ValueError("torn")
    texts = [text.decode(errors="replace") for text in data[_ROW.size : _ROW.size + size].split(b"\0")]
    kind, name, owner, state, event, task = texts
    return Facts(kind, name, owner, pid, state, since, until, restarts, event, event_at, task, task_since, (fd, offset))


LOOKS = 20  # at a row that is being written: it takes a microsecond


def read_board(pid: int) -> tuple[list[Facts], int] | None:
    """
    The board of the process *pid*: its rows, and how many more there are; None if it has none.

    Runs in: any process of the same user, in the same PID namespace.
    """
    fd = _find(pid)
    if fd < 0:
        return None
    try:
        magic, version, owner, row_bytes, used, hidden = _HEAD.unpack(os.pread(fd, _HEAD.size, 0))
        if magic != MAGIC or version != VERSION or owner != pid:
            return None  # another version's, or inherited by a copy
        rows: list[Facts] = []
        for slot in range(used):
            for _ in range(LOOKS):
                try:
                    facts = decode(os.pread(fd, row_bytes, (slot + 1) * row_bytes))
                except ValueError:
                    continue
                if facts is not None:
                    rows.append(facts)
                break
        return rows, hidden
    except (OSError, struct.error):
        return None
    finally:
        os.close(fd)


def open_memory(pid: int, number: int, name: str) -> int:
    """
    A descriptor for the memfd *name* that the process *pid* has under *number*, to read; -1 if that is something else.
    """
    path = f"/proc/{pid}/fd/{number}"
    try:
        if not os.readlink(path).startswith(f"/memfd:{name}"):
            return -1
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return -1


def _find(pid: int) -> int:
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return -1  # it has ended, or is another user's
    for name in names:
        fd = open_memory(pid, int(name), NAME)
        if fd >= 0:
            return fd
    return -1
