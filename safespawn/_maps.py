"""
Maps: a function over many items, in chunks that are made as the workers want them.

Runs in: application, any thread; `chunk_done` and `fail` where the pump runs.
"""

import time
from _thread import allocate_lock
from collections.abc import Callable
from typing import Any

from safespawn._core.dispatch import EACH, EACH_STAR, Pace, Task, describe
from safespawn._progress import reporter
from safespawn._tasks import pace_key, task_options
from safespawn._worker.payload import Repeated

CHUNK_SECONDS = 0.004  # of work in a chunk of a map; arbitrary, two hundred times what a message costs
LEAST_SECONDS = 0.0003  # of work: less is not worth a message
CHUNK_BYTES = 4 * 1024 * 1024


class MapJob:
    """
    A function over many items: chunks are made as the workers want them, large enough to take `CHUNK_SECONDS`.
    """

    def __init__(
        self,
        sink: Any,
        function: Callable[..., Any],
        items: Any,
        *,
        star: bool,
        chunksize: int | None,
        by_value: bool,
        options: dict[str, Any],
        progress: Any = None,
    ) -> None:
        self.sink = sink
        self.function = pace_key(function)
        self.calls = Repeated(function, by_value=by_value)
        self.items = items
        self.total = len(items)
        self.mode = EACH_STAR if star else EACH
        self.chunksize = chunksize
        self.options = task_options(options)
        self.priority: int = options.get("priority", 0)
        self.progress = reporter(progress, describe(function))
        if chunksize is None and options.get("timeout") is not None:
            self.chunksize = 1  # the time is that of one call
        self.counted_out = False
        self.results: list[Any] = [None] * self.total
        self.at = 0
        self.left = self.total
        self.item_bytes = 0
        self.lock = allocate_lock()
        self.failed = False

    def draw(self, pace: Pace | None, share: int) -> Task | None:
        """
        The next chunk.
        """
        with self.lock:
            at = self.at
            left = self.total - at
            if left <= 0 or self.failed:
                return None
            if self.chunksize is not None:
                size = self.chunksize
            elif pace is None:
                size = 1
            else:
                size = min(int(CHUNK_SECONDS / max(pace.average, 1e-7)), -(-left // share))
                size = max(size, int(LEAST_SECONDS / max(pace.average, 1e-7)))
                if self.item_bytes:
                    size = min(size, CHUNK_BYTES // self.item_bytes)
            size = max(1, min(size, left))
            self.at = at + size
        chunk = self.items[at : at + size]
        began = time.monotonic()
        payload, parts, head = self.calls.pack(chunk)
        if not self.item_bytes:
            self.item_bytes = max(1, (len(payload) + sum(part.nbytes for part in parts)) // size)
        task = Task(self.mode, payload, parts, self.function, _Chunk(self, at, size), **self.options)
        task.items, task.head = size, head
        task.pickling = time.monotonic() - began
        return task

    def chunk_done(self, at: int, size: int, value: list[Any]) -> None:
        """
        A chunk's results.
        """
        if self.failed:
            return
        self.results[at : at + size] = value
        self.left -= size
        try:
            if self.progress is not None:
                self.progress(self.total - self.left, self.total)
        finally:
            if not self.left:
                self.sink.deliver(None, self.results)

    def fail(self, error: BaseException) -> None:
        """
        The first error is the map's; nothing more is begun.
        """
        if not self.failed:
            self.failed = True
            self.at = self.total
            self.items = ()
            self.sink.fail(None, error)


class _Chunk:
    __slots__ = ("at", "job", "size")

    def __init__(self, job: MapJob, at: int, size: int) -> None:
        self.job, self.at, self.size = job, at, size

    def deliver(self, task: Task, value: Any) -> None:
        del task
        self.job.chunk_done(self.at, self.size, value)

    def fail(self, task: Task, error: BaseException) -> None:
        del task
        self.job.fail(error)
