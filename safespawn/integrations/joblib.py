"""
A backend for joblib: the batches of a `Parallel` run in safespawn's workers.

    import joblib
    from safespawn.integrations.joblib import register

    register()
    with joblib.parallel_config(backend="safespawn", n_jobs=4):
        cross_val_score(model, x, y)

As joblib's own backend it keeps its workers from one `Parallel` to the next, and sends what the main module defines by
value, so that a script needs no ``if __name__ == "__main__"``. Unlike it: a worker that dies fails the call whose batch
it ran, and no other call; a call that is given up ends its own batches only; arrays travel in shared memory without
names and without files.

Runs in: application, any thread. Needs: joblib, 1.3 or newer.
"""

# pyright: reportMissingImports=false

import functools
import os
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from safespawn._core.cpus import usable_cpus
from safespawn.executor import Executor

if TYPE_CHECKING:  # joblib has no types; what is used of it
    from concurrent.futures import Future

    class _Base:
        nesting_level: int | None
        inner_max_num_threads: int | None

        def __init__(self, nesting_level: int | None, inner_max_num_threads: int | None) -> None: ...
        def reset_batch_stats(self) -> None: ...
else:
    from joblib.parallel import AutoBatchingMixin, ParallelBackendBase

    class _Base(AutoBatchingMixin, ParallelBackendBase):
        """
        joblib's two halves of a backend that sizes its batches by the time they take.
        """


NAME = "safespawn"
NAME_OF_WORKERS = "joblib"  # in messages, and in ps
IDLE_SECONDS = 300.0  # for workers that nobody uses; joblib's own figure
_THREADS_OF_LIBRARIES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "NUMBA_NUM_THREADS", "NUMEXPR_NUM_THREADS",
)  # fmt: skip
# What `Parallel` hands to every backend, for files that joblib's own maps into memory; nothing of it is needed here.
_JOBLIBS = frozenset("max_nbytes mmap_mode temp_folder verbose context prefer require".split())


def register(*, make_default: bool = False) -> None:
    """
    Make the backend known to joblib, by the name "safespawn".

    Args:
        make_default: Also for every `Parallel` that names none.
    """
    from joblib.parallel import register_parallel_backend

    register_parallel_backend(NAME, SafespawnBackend, make_default=make_default)


def release() -> None:
    """
    End the workers that are kept for the next `Parallel`. Those that one uses now end after it.
    """
    with _lock:
        ended, _kept[:] = list(_kept), []
        idle = [workers for workers in ended if not workers.users]
    for workers in idle:
        workers.shutdown()


class SafespawnBackend(_Base):
    """
    The backend; joblib makes one for each `parallel_config`, or for each `Parallel`.

    Args:
        nesting_level: joblib's.
        inner_max_num_threads: Threads of BLAS and OpenMP in a worker; default: the CPUs divided by the workers.
        idle_worker_timeout: Seconds after which workers that nobody uses are ended.
        **options: As `safespawn.Executor`: preload, env, cwd, initializer, max_tasks_per_child and the others.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = True
    supports_sharedmem = False
    uses_threads = False
    default_n_jobs = 1

    def __init__(
        self,
        nesting_level: int | None = None,
        inner_max_num_threads: int | None = None,
        idle_worker_timeout: float = IDLE_SECONDS,
        **options: Any,
    ) -> None:
        super().__init__(nesting_level=nesting_level, inner_max_num_threads=inner_max_num_threads)
        self.parallel: Any = None
        self._idle_seconds = idle_worker_timeout
        self._options = options
        self._workers: _Workers | None = None
        self._futures: set[Future[Any]] = set()

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """
        How many workers *n_jobs* stands for: -1 is one for each CPU that this process may use, -2 one less.
        """
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        return n_jobs if n_jobs > 0 else max(usable_cpus() + 1 + n_jobs, 1)

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """
        Get ready for *parallel*; returns how many workers there are.

        Raises:
            FallbackToBackend: One worker would be no gain: joblib runs the calls here.
        """
        count = self.effective_n_jobs(n_jobs)
        if count == 1:
            from joblib.parallel import FallbackToBackend, SequentialBackend

            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        self.parallel = parallel
        options = {key: value for key, value in options.items() if key not in _JOBLIBS}
        idle_seconds = options.pop("idle_worker_timeout", self._idle_seconds)
        options = {**self._options, **options}
        if self.inner_max_num_threads is not None:
            given = options.get("env") or os.environ
            threads = dict.fromkeys(_THREADS_OF_LIBRARIES, str(self.inner_max_num_threads))
            options["env"] = {**given, **threads}
        self._give_back()
        self._workers = _lease(count, idle_seconds, options)
        return count

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], object] | None = None) -> "Future[Any]":
        """
        Have a batch of calls run; *callback* is called with its future when that is done.
        """
        workers = self._workers
        assert workers is not None  # noqa: S101 - joblib configures before it submits
        future = workers.submit(_Batch(func))
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, future: "Future[Any]") -> Any:
        """
        What the batch returned.

        Raises:
            Exception: What a call of it raised; `WorkerDied` and the others when there was no result.
        """
        return future.result()

    def terminate(self) -> None:
        """
        A `Parallel` is over. The workers stay for the next one, for a while.
        """
        self._give_back()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:  # noqa: FBT001, FBT002 - joblib's signature
        """
        A `Parallel` is given up: end its batches. The workers stay, but for those whose call does not end.
        """
        del ensure_ready  # they are ready in any case
        for future in list(self._futures):
            future.cancel(running=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue] - they are ours

    def _give_back(self) -> None:
        workers, self._workers = self._workers, None
        if workers is not None:
            _give_back(workers)


class _Batch:
    """
    A batch of calls: it is called after the first of them in messages, and unpickled as joblib's own.
    """

    __slots__ = ("args", "func")

    def __init__(self, batch: Any) -> None:
        self.func = batch.items[0][0]
        self.args = (batch,)

    def __call__(self) -> Any:
        return self.args[0]()

    def __reduce__(self) -> Any:
        return self.args[0].__reduce__()


# --- workers, kept from one Parallel to the next ---------------------------------------------------------------------
class _Workers(Executor):
    """
    An executor that sends what the main module defines by value.

    Attributes:
        key: What it was made of.
        users: How many backends use it.
        idle_since: Monotonic time at which the last of them gave it back.
        idle_seconds: How long it is kept then.
        watched: Whether its thread will look at that.
    """

    key: Any = None
    users = 0
    idle_since = 0.0
    idle_seconds = IDLE_SECONDS
    watched = False

    def _open(self) -> None:
        self._by_value = True
        super()._open()

    @property
    def is_usable(self) -> bool:
        """
        Whether it can take further calls, of this process.
        """
        crew = self._crew
        return crew.pid == os.getpid() and not crew.closing and crew.broken is None

    def watch(self) -> None:
        """
        Have its thread look whether it has been idle for too long.
        """
        self.watched = True
        pump, when = self._crew.pump, self.idle_since + self.idle_seconds
        look = functools.partial(_look, weakref.ref(self))
        pump.call_soon(functools.partial(pump.call_at, when, look))


_lock = threading.Lock()
_kept: list[_Workers] = []


def _lease(count: int, idle_seconds: float, options: dict[str, Any]) -> _Workers:
    """
    Workers of this kind: those that are kept, or new ones.
    """
    key = (count, repr(sorted(options.items())))
    with _lock:
        found = next((workers for workers in _kept if workers.key == key and workers.is_usable), None)
        for workers in list(_kept):
            if workers is not found and not (workers.users and workers.is_usable):
                _kept.remove(workers)  # others are wanted now
                workers.shutdown(wait=False)
        if found is None:
            found = _Workers(count, **{"name": NAME_OF_WORKERS, **options})
            found.key = key
            _kept.append(found)
        found.users += 1
        found.idle_seconds = idle_seconds
    return found


def _give_back(workers: _Workers) -> None:
    with _lock:
        workers.users -= 1
        if workers.users:
            return
        if workers not in _kept:  # they were released
            workers.shutdown(wait=False)
            return
        workers.idle_since = time.monotonic()
        if not workers.watched:
            workers.watch()


def _look(owner: "weakref.ref[_Workers]") -> None:
    """
    End workers that have been idle for too long. Where their pump runs.
    """
    workers = owner()
    if workers is None:
        return
    with _lock:
        workers.watched = False
        if workers.users or workers not in _kept:
            return
        if time.monotonic() < workers.idle_since + workers.idle_seconds:
            workers.watch()
            return
        _kept.remove(workers)
    workers.shutdown(wait=False)


def _forget_in_copy() -> None:
    """
    In a forked copy of the program: the workers are the original's, and so is whoever held the lock.
    """
    global _lock  # noqa: PLW0603 - the copy's own
    _lock = threading.Lock()
    _kept.clear()


os.register_at_fork(after_in_child=_forget_in_copy)
