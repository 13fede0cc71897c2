"""
Shared memory for large payloads, without names: memfd segments that travel as descriptors.

The sender copies a payload into a segment and sends its descriptor; the receiver maps that privately, writes to its
view as it likes, and reports the segment's number when its last view is gone. Then the sender writes the next payload
into the same memory: fresh pages cost six times as much as warm ones. Nothing has a name, so nothing can be left
behind: when both processes are gone, or drop it, the kernel frees the memory.

    place()      the segment is busy; its descriptor may be sent
    sent()       kept for the next payload if the budget allows, otherwise given to the receiver for good
    released()   nobody reads it any more: the next place() may write to it

The sender must hear `released` only when no process has the segment mapped, because pages that the receiver has not
written to show what the sender writes. A copy that the receiver forked while it held views counts as well.

Runs in: application and workers, any thread.
Never: waits, except for the copying itself; imports anything but C modules.
"""

from __future__ import annotations

import mmap
import os
import sys
from _thread import allocate_lock
from _weakref import ref
from fcntl import F_ADD_SEALS, F_SEAL_SHRINK, fcntl
from itertools import count

TYPE_CHECKING = False  # as in typing, which workers need not import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import CodeType
    from typing import Any, Final

KEEP_BYTES: Final = 256 * 1024 * 1024  # arbitrary: a few large arrays per worker stay warm
ALIGNMENT: Final = 64  # bytes: a cache line, and the widest vector register
_KEEP_SEGMENTS = 64  # each costs one descriptor, before Python 3.13 two, of a limit that is often 1024
_COPY_BYTES = 4 * 1024 * 1024  # memory is copied under the GIL: at 10 GB/s other threads wait 0.4 ms for it
_PAGE = mmap.PAGESIZE
_UNTRACKED: dict[str, Any] = {"trackfd": False} if sys.version_info >= (3, 13) else {}

# Before Python 3.13 each mapping holds a duplicate of its descriptor; later, only the kernel's limit of 65,530 mappings
# counts. Beyond these numbers of live mappings, both arbitrary, a payload is copied instead.
_MAPPINGS = 8192 if _UNTRACKED else 256


# --- the sender's side -----------------------------------------------------------------------------------------------


class Segment:
    """
    One payload in shared memory.

    Attributes:
        number: Its name in `Arena.released`; never used twice by one arena.
        fd: The memfd; borrowed, and open until `Arena.sent` or `Arena.released`.
        spans: Offset and size of each part.
        size: Bytes that the receiver has to map.
    """

    __slots__ = ("block", "fd", "number", "size", "spans")

    def __init__(self, number: int, block: _Block, spans: tuple[tuple[int, int], ...], size: int) -> None:
        self.number: int = number
        self.block: _Block = block
        self.fd: int = block.fd
        self.spans: tuple[tuple[int, int], ...] = spans
        self.size: int = size

    def __repr__(self) -> str:
        return f"<Segment {self.number}, {len(self.spans)} parts in {self.size} bytes>"


class _Block:
    """
    One memfd: it is owned by its arena, and by one thread while that fills it.
    """

    __slots__ = ("capacity", "fd", "mapping", "warm")

    def __init__(self, capacity: int) -> None:
        self.capacity: int = capacity
        self.mapping: mmap.mmap | None = None
        self.warm: int = 0  # bytes from the start that have their pages
        self.fd: int = os.memfd_create("safespawn-arena", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, capacity)
            fcntl(self.fd, F_ADD_SEALS, F_SEAL_SHRINK)  # a mapping of it can never end in SIGBUS
        except BaseException:
            os.close(self.fd)
            raise

    def fill(self, parts: Sequence[memoryview], spans: Sequence[tuple[int, int]], size: int) -> None:
        """
        Copy *parts* to their *spans*.

        Pages that do not exist yet are made by pwrite: it is faster than a page fault each, holds no GIL, and says
        ENOSPC or ENOMEM where a fault would kill the process. Pages that exist are written through a mapping, twice
        as fast again.
        """
        if size > self.warm:
            for part, (offset, _) in zip(parts, spans, strict=True):
                done = 0
                while done < len(part):
                    done += os.pwrite(self.fd, part[done:], offset + done)
            self.warm = size
            return
        if self.mapping is None or len(self.mapping) < size:
            mapping = mmap.mmap(self.fd, self.warm, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, **_UNTRACKED)
            if self.mapping is not None:
                self.mapping.close()
            self.mapping = mapping  # of existing pages only, so that populating it allocates nothing
        with memoryview(self.mapping) as view:
            for part, (offset, length) in zip(parts, spans, strict=True):
                for done in range(0, length, _COPY_BYTES):
                    end = min(done + _COPY_BYTES, length)
                    view[offset + done : offset + end] = part[done:end]

    def close(self) -> None:
        """
        Give the memory up on this side; a receiver that has it mapped keeps it.
        """
        os.close(self.fd)
        if self.mapping is not None:
            self.mapping.close()


class _Holdings:
    """
    What an arena has in one process. A forked copy starts with new ones, and leaves these as they are.
    """

    __slots__ = ("busy", "created", "free", "held_bytes", "lock", "pid", "recycled")

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.lock = allocate_lock()
        self.free: list[_Block] = []  # the last one was used last
        self.busy: dict[int, _Block] = {}
        self.held_bytes = 0  # of both, by capacity
        self.created = 0
        self.recycled = 0


class Arena:
    """
    The segments of one sender.

    Args:
        keep_bytes: How much memory may stay allocated for the next payloads. What is on its way or in use at the
            receiver counts as well, but is never refused.

    Runs in: any thread. In a forked copy of its process it is a new, empty arena.
    """

    def __init__(self, *, keep_bytes: int = KEEP_BYTES) -> None:
        self._keep_bytes = keep_bytes
        self._numbers = count(1)
        self._holdings = _Holdings()
        self._inherited: list[_Holdings] = []  # its descriptors may be other files by now: closed by nobody

    def place(self, parts: Sequence[bytes | memoryview]) -> Segment:
        """
        Copy *parts*, each contiguous, into a segment: each at a multiple of 64 bytes.

        Returns:
            The segment; busy until `released` has its number.

        Raises:
            OSError: No memory (ENOSPC, ENOMEM) or no descriptor (EMFILE, ENFILE) for it; nothing is left behind.
        """
        views = [_view(part) for part in parts]
        spans: list[tuple[int, int]] = []
        size = 0
        for view in views:
            offset = -(-size // ALIGNMENT) * ALIGNMENT
            size = offset + len(view)
            spans.append((offset, len(view)))
        size = max(size, 1)  # a mapping has at least one byte
        block, holdings = self._take(size)
        try:
            block.fill(views, spans, size)
        except BaseException:
            with holdings.lock:
                holdings.held_bytes -= block.capacity
            block.close()
            raise
        number = next(self._numbers)
        with holdings.lock:
            holdings.busy[number] = block
        return Segment(number, block, tuple(spans), size)

    def sent(self, segment: Segment) -> None:
        """
        Say that the descriptor of *segment* has been sent: it may be closed here.

        The segment is kept for recycling if it fits into `keep_bytes`.
        """
        holdings = self._own()
        with holdings.lock:
            if holdings.busy.get(segment.number) is not segment.block:
                return  # released already, or of another process
            dropped = self._shrink(holdings)
            if self._is_over(holdings):
                del holdings.busy[segment.number]
                holdings.held_bytes -= segment.block.capacity
                dropped.append(segment.block)
        for block in dropped:
            block.close()

    def released(self, numbers: Iterable[int]) -> None:
        """
        Say that no process has these segments mapped: they may be written to again.

        Numbers that are not known, or no longer, are passed over. A segment that was never sent is given back the
        same way.
        """
        holdings = self._own()
        with holdings.lock:
            for number in numbers:
                block = holdings.busy.pop(number, None)
                if block is not None:
                    holdings.free.append(block)
            dropped = self._shrink(holdings)
        for block in dropped:
            block.close()

    def close(self) -> None:
        """
        Give all memory up on this side; receivers keep what they have mapped.
        """
        holdings = self._own()
        with holdings.lock:
            blocks = [*holdings.free, *holdings.busy.values()]
            holdings.free.clear()
            holdings.busy.clear()
            holdings.held_bytes -= sum(block.capacity for block in blocks)
        for block in blocks:
            block.close()

    def statistics(self) -> dict[str, int]:
        """
        Return how many segments and bytes are held, how many of them are busy, how many were made and made again.
        """
        holdings = self._own()
        with holdings.lock:
            return {
                "segments": len(holdings.free) + len(holdings.busy),
                "bytes": holdings.held_bytes,
                "busy": len(holdings.busy),
                "recycled": holdings.recycled,
                "created": holdings.created,
            }

    def _own(self) -> _Holdings:
        """
        Return the holdings of this process.

        In a forked copy, descriptor numbers may have been closed and used again, and the lock may be held by a thread
        that is not there.
        """
        holdings = self._holdings
        if holdings.pid != os.getpid():
            self._inherited.append(holdings)
            self._holdings = holdings = _Holdings()
        return holdings

    def _take(self, size: int) -> tuple[_Block, _Holdings]:
        """
        Return a block of at least *size* bytes, counted as held, in the hands of nobody else.
        """
        capacity = _capacity(size)
        holdings = self._own()
        with holdings.lock:
            fits = [block for block in holdings.free if capacity <= block.capacity <= 4 * capacity]
            if fits:
                best = min(fits, key=lambda block: (block.warm < size, block.capacity))
                holdings.free.remove(best)
                holdings.recycled += 1
                return best, holdings
            holdings.held_bytes += capacity
            dropped = self._shrink(holdings)  # first, so that at a limit there is room
        for block in dropped:
            block.close()
        try:
            fresh = _Block(capacity)
        except BaseException:
            with holdings.lock:
                holdings.held_bytes -= capacity
            raise
        with holdings.lock:
            holdings.created += 1
        return fresh, holdings

    def _is_over(self, holdings: _Holdings) -> bool:
        """
        Say whether more is held than may be kept; the caller has the lock.
        """
        return holdings.held_bytes > self._keep_bytes or len(holdings.free) + len(holdings.busy) > _KEEP_SEGMENTS

    def _shrink(self, holdings: _Holdings) -> list[_Block]:
        """
        Take out free blocks, the longest unused first, until no more is held than may be kept.

        Returns:
            The blocks; the caller has the lock and closes them after it has given that back.
        """
        dropped: list[_Block] = []
        while holdings.free and self._is_over(holdings):
            block = holdings.free.pop(0)
            holdings.held_bytes -= block.capacity
            dropped.append(block)
        return dropped


def _view(part: bytes | memoryview) -> memoryview:
    """
    Return *part* as flat bytes; what is empty cannot be cast.
    """
    view = memoryview(part)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _capacity(size: int) -> int:
    """
    Return the size class: four steps to each power of two, whole pages. What is not written to costs no memory.
    """
    step = max(_PAGE, 1 << max((size - 1).bit_length() - 3, 0))
    return -(-size // step) * step


# --- the receiver's side ---------------------------------------------------------------------------------------------


class _Mapping(mmap.mmap):
    """
    The memory of one segment, and the mark whose end is the memory's own.
    """

    __slots__ = ("mark",)
    mark: CodeType


class _Lease(ref["CodeType"]):
    """
    A weak reference to a mapping's mark, with what to do at its end.

    The mark is an odd thing, a code object, for a reason. To a mapping that lies in a dead reference cycle, the garbage
    collector says goodbye first (weak references, `__del__`), and lets the `__del__` methods of the cycle run after;
    they may still read an array there, or put it back into the world, and by then the sender would have been told to
    overwrite it. An object that the collector does not know of dies at its true end and not before. Of the types with
    weak references the code object is the only such one.
    """

    __slots__ = ("key", "number", "on_release", "pid")
    key: int
    number: int
    on_release: Callable[[int], object]
    pid: int


_MARK = compile("0", "<segment>", "eval")
_keys = count()
_leases: dict[int, _Lease] = {}  # by key, since weak references to equal code objects are equal


def _end(
    lease: ref[CodeType],
    # Bound early: at the end of the interpreter the module's own names may be gone.
    pop: Any = _leases.pop,
    getpid: Any = os.getpid,
    is_finalizing: Any = sys.is_finalizing,
) -> None:
    """
    Report the end of a lease, once, in the process that holds it; a forked copy says nothing.
    """
    if pop(lease.key, None) is None or lease.pid != getpid():  # type: ignore[attr-defined]
        return
    try:
        lease.on_release(lease.number)  # type: ignore[attr-defined]
    except Exception:
        if not is_finalizing():
            raise  # to sys.unraisablehook, as from any callback of a weak reference


def receive(
    fd: int, number: int, size: int, spans: Iterable[Sequence[int]], on_release: Callable[[int], object]
) -> list[memoryview]:
    """
    Map a segment that came as *fd*; what is written to the views stays in this process.

    Before Python 3.13 the mapping holds a duplicate of *fd* for as long as it lives. So beyond 256 live mappings, and
    wherever the kernel refuses one, the payload is copied instead, and released at once.

    Args:
        fd: The memfd; borrowed, the caller may close it afterwards.
        number: Of the segment, for *on_release*.
        size: Of the segment.
        spans: Offset and size of each part.
        on_release: Called with *number*, exactly once, when no view and nothing made from one is left: in the thread
            that drops the last one, perhaps out of the garbage collector. So it takes no lock and does little; what it
            raises goes to `sys.unraisablehook`.

    Returns:
        One writable view per span.

    Raises:
        ValueError: The spans, or *size*, are not inside the segment; *on_release* is not called.
        OSError: There is no memory; *on_release* is not called.
    """
    checked = [(int(offset), int(length)) for offset, length in spans]
    if size < 1 or any(offset < 0 or length < 0 or offset + length > size for offset, length in checked):
        raise ValueError(f"spans {checked} are not inside a segment of {size} bytes")
    mapping: mmap.mmap | None = None
    if len(_leases) < _MAPPINGS:
        try:
            mapping = _Mapping(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE, **_UNTRACKED)
        except OSError:  # EMFILE, ENFILE, ENOMEM: too many of something; the copy needs none of it
            mapping = None
    if isinstance(mapping, _Mapping):
        mapping.mark = _MARK.replace()
        lease = _Lease(mapping.mark, _end)
        lease.key, lease.number, lease.on_release, lease.pid = next(_keys), number, on_release, os.getpid()
        _leases[lease.key] = lease
    else:
        mapping = _copy(fd, size)
    view = memoryview(mapping)
    views = [view[offset : offset + length] for offset, length in checked]
    if not isinstance(mapping, _Mapping):
        on_release(number)
    return views


def _copy(fd: int, size: int) -> mmap.mmap:
    """
    Return the first *size* bytes of *fd* in memory of our own.
    """
    mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with memoryview(mapping) as view:
        done = 0
        while done < size:
            step = os.preadv(fd, [view[done:]], done)
            if step == 0:
                raise ValueError(f"the segment has {done} bytes, not {size}")
            done += step
    return mapping
