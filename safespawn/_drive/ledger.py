"""
The journals of a pool's workers, as the application keeps them: one piece of shared memory for all.

Each worker gets a slot of its own. When it is dead and its last words are read, the slot's pages go back to the kernel
and the next worker may have it. Between the slots is room that nobody uses, so that a very long crash report runs into
nothing.

Runs in: application, where the pump runs.
"""

import mmap
import os
import sys

from safespawn._worker.journal import STRIDE, Journal

_UNTRACKED = {"trackfd": False} if sys.version_info >= (3, 13) else {}


class Ledger:
    """
    Slots for journals.

    Attributes:
        fd: The memory's descriptor, to be sent to workers.
    """

    def __init__(self, slots: int) -> None:
        name = f"safespawn-journals-{os.getpid()}-{id(self):x}"
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, slots * STRIDE)
            self.memory: mmap.mmap = mmap.mmap(fd, slots * STRIDE, **_UNTRACKED)
        except BaseException:
            os.close(fd)
            raise
        self.fd: int = fd
        self.is_owned: bool = True
        if not _UNTRACKED:  # the mapping keeps a descriptor of its own: that one will do
            hidden = _find(name, but=fd)
            if hidden >= 0:
                self.fd, self.is_owned = hidden, False
                os.close(fd)
        self._view = memoryview(self.memory)
        self._free = list(range(slots - 1, -1, -1))

    @property
    def is_full(self) -> bool:
        """
        Whether there is no slot left.
        """
        return not self._free

    def take(self) -> tuple[int, Journal]:
        """
        A slot's number, and what will be written there.
        """
        slot = self._free.pop()
        return slot, Journal(self._view[slot * STRIDE : (slot + 1) * STRIDE])

    def give_back(self, slot: int) -> None:
        """
        The worker that had *slot* is dead.
        """
        try:
            self.memory.madvise(mmap.MADV_REMOVE, slot * STRIDE, STRIDE)
        except OSError:  # a kernel that keeps the pages: they are written over
            self.memory[slot * STRIDE : (slot + 1) * STRIDE] = bytes(STRIDE)
        self._free.append(slot)

    def close(self) -> None:
        """
        Unmap.
        """
        if self.is_owned:
            self.is_owned = False
            os.close(self.fd)
        self.fd = -1
        try:
            self._view.release()
            self.memory.close()
        except BufferError:  # somebody still looks at a journal: it goes with him
            return


def _find(name: str, but: int) -> int:
    """
    The number of this process's other descriptor of the memfd *name*.
    """
    try:
        for entry in os.listdir("/proc/self/fd"):
            try:
                if int(entry) != but and name in os.readlink(f"/proc/self/fd/{entry}"):
                    return int(entry)
            except OSError:
                continue  # closed meanwhile
    except OSError:
        pass
    return -1
