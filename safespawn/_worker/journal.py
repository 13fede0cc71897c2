"""
One page of truth about a worker, in memory that the application sees too.

A worker that is killed can say nothing any more. So it writes down what it does before it does it: the task that it
runs, since when, and the results that it has not sent yet. The application reads this when the worker is dead, and to
learn what a live one is at. The traceback that faulthandler writes at a crash goes into the same memory.

    cells    eight numbers of 64 bits
    results  records that were not sent yet; after a send the count goes back to 0, so a record may be seen twice
    stderr   a ring of the last bytes that Python code wrote to stderr
    label    the name of the function that runs, if NAMED is the task that runs
    text     what faulthandler wrote, one dump behind the other
    ring     log records on their way to the application (`ring`)

No lock: each cell has one writer, and the kernel orders a death after everything that came before it.

Runs in: worker (writes), application (reads; writes the cells INTERRUPT and AWAKE).
"""

import mmap
import os
from typing import Self

from safespawn._worker.ring import Ring

RUNNING, SINCE_NS, COMMITTED, INTERRUPT, STDERR_BYTES, AWAKE, ITEM, NAMED = range(8)  # ITEM: so many written
LEVELS = AWAKE  # of a supervised child, which gets no tasks: so many times it was sent the levels of its loggers
CELLS_BYTES = 64
RESULTS_AT = 64
RESULTS_BYTES = 60 * 1024
STDERR_AT = RESULTS_AT + RESULTS_BYTES
STDERR_RING_BYTES = 4 * 1024 - 64 - 128
LABEL_AT = STDERR_AT + STDERR_RING_BYTES
LABEL_BYTES = 128
TEXT_AT = 64 * 1024
TEXT_BYTES = 64 * 1024
RING_AT = 1024 * 1024  # a crash report of a hundred threads fits before it
RING_BYTES = 1024 * 1024  # some thousand log records
STRIDE = RING_AT + RING_BYTES  # from one worker's memory to the next one's


class Journal:
    """
    The memory, mapped.
    """

    def __init__(self, view: memoryview) -> None:
        self.view: memoryview = view
        self.cells: memoryview[int] = view[:CELLS_BYTES].cast("Q")
        self.results: memoryview[int] = view[RESULTS_AT : RESULTS_AT + RESULTS_BYTES]
        self.stderr: memoryview[int] = view[STDERR_AT : STDERR_AT + STDERR_RING_BYTES]
        self.label: memoryview[int] = view[LABEL_AT : LABEL_AT + LABEL_BYTES]
        self.text: memoryview[int] = view[TEXT_AT : TEXT_AT + TEXT_BYTES]
        self.ring: Ring = Ring(view[RING_AT : RING_AT + RING_BYTES])

    @classmethod
    def open(cls, fd: int, slot: int) -> "tuple[Self, int]":
        """
        In a worker: the journal in *slot* of *fd*, which is closed; and a descriptor for text, which is the caller's.
        """
        try:
            memory = mmap.mmap(fd, STRIDE, offset=slot * STRIDE)
            text_fd = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)  # with a position of its own
        finally:
            os.close(fd)
        os.lseek(text_fd, slot * STRIDE + TEXT_AT, os.SEEK_SET)
        return cls(memoryview(memory)), text_fd

    def unsent(self) -> bytes:
        """
        The records that a dead worker had not sent.
        """
        return bytes(self.results[: min(self.cells[COMMITTED], RESULTS_BYTES)])

    def note_stderr(self, data: bytes) -> None:
        """
        Keep the end of *data* in the ring.
        """
        data = data[-STDERR_RING_BYTES:]
        at = self.cells[STDERR_BYTES] % STDERR_RING_BYTES
        first = min(len(data), STDERR_RING_BYTES - at)
        self.stderr[at : at + first] = data[:first]
        self.stderr[: len(data) - first] = data[first:]
        self.cells[STDERR_BYTES] += len(data)

    def last_stderr(self) -> str:
        """
        The last lines written to stderr.
        """
        written = self.cells[STDERR_BYTES]
        ring = bytes(self.stderr)
        at = written % STDERR_RING_BYTES
        data = ring[:at] if written < STDERR_RING_BYTES else ring[at:] + ring[:at]
        return data.decode(errors="replace")

    def note_label(self, number: int, name: str) -> None:
        """
        The task *number* runs the function *name*.
        """
        data = name.encode(errors="replace")[: LABEL_BYTES - 1]
        self.label[: len(data) + 1] = data + b"\0"
        self.cells[NAMED] = number

    def text_end(self) -> int:
        """
        How far the text goes.
        """
        end = bytes(self.text).find(b"\0")
        return TEXT_BYTES if end < 0 else end

    def text_since(self, start: int) -> str:
        """
        The text from *start* on; all of it when the worker has begun anew meanwhile.
        """
        if start > self.text_end():
            start = 0
        return users_frames(bytes(self.text[start : self.text_end()]).decode(errors="replace"))

    def close(self) -> None:
        """
        Look no more.
        """
        self.ring.close()
        for view in (self.cells, self.results, self.stderr, self.label, self.text, self.view):
            view.release()


_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep


def users_frames(text: str) -> str:
    """
    A dump of faulthandler's without the frames that only say that it was a worker, at the end of the main thread's.
    """
    kept: list[str] = []
    ours = False
    for line in text.splitlines():
        is_frame = line.startswith("  File ")
        if not is_frame:
            ours = False
        elif _OURS in line and not ours:
            ours = True
            if kept and not kept[-1].startswith("  File "):
                waits = line.endswith((" in quick_words", " in receive"))
                kept.append("  (the worker waits for a task)" if waits else line)
        if not (is_frame and ours):
            kept.append(line)
    return "\n".join(kept) + "\n" if kept else ""
