"""joblib's `Parallel` in safespawn's workers."""

import multiprocessing
import os
import signal
import time

import pytest

import safespawn
from support import pool_tasks

# ruff: noqa: D103 - what the calls do is in their names

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def _loaded(_warm):
    """What the imports leave for the life of the process, threads of BLAS, is there from the start."""
    pytest.importorskip("joblib")
    pytest.importorskip("numpy")


@pytest.fixture
def parallel():
    """`Parallel` with two workers of safespawn's; afterwards these are ended."""
    import joblib

    from safespawn.integrations import joblib as ours

    ours.register()

    def make(**options):
        return joblib.Parallel(**{"n_jobs": 2, "backend": "safespawn", **options})

    yield make
    ours.release()


def calls(function, *rows):
    """A call for each of *rows*."""
    import joblib

    return [joblib.delayed(function)(*row) for row in rows]


def my_pid(_=None):
    return os.getpid()


def kill_at(number, bad):
    if number == bad:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def nested(count):
    import joblib

    return joblib.Parallel(n_jobs=2)(joblib.delayed(abs)(-number) for number in range(count))


def threads_of_libraries():
    return os.environ["OMP_NUM_THREADS"]


def test_results(parallel) -> None:
    """Results are in order, workers are other processes, and the next `Parallel` has the same ones."""
    assert parallel()(calls(pow, *[(number, 2) for number in range(100)])) == [number**2 for number in range(100)]
    first = set(parallel(batch_size=1)(calls(my_pid, *[(number,) for number in range(50)])))
    second = set(parallel(batch_size=1)(calls(my_pid, *[(number,) for number in range(50)])))
    assert os.getpid() not in first | second
    assert len(first | second) <= 2


@pytest.mark.parametrize("form", ["generator", "generator_unordered"])
def test_generators(parallel, form) -> None:
    """Results may be read one by one; a generator that is dropped ends its calls, and others go on."""
    assert sorted(parallel(return_as=form)(calls(abs, (-2,), (-1,), (0,)))) == [0, 1, 2]
    began = time.monotonic()
    results = parallel(return_as=form)(calls(time.sleep, (0,), (60,), (60,), (60,)))
    next(results)
    with pytest.warns(UserWarning, match="have been cancelled"):
        results.close()
    assert parallel()(calls(abs, (-1,))) == [1]
    assert time.monotonic() - began < 30


def test_an_exception(parallel) -> None:
    """The first exception is raised with the worker's traceback, and ends what runs."""
    began = time.monotonic()
    with pytest.raises(ZeroDivisionError) as raised:
        parallel()(calls(divmod, (1, 0)) + calls(time.sleep, (60,), (60,), (60,)))
    assert "Traceback" in str(raised.value.__cause__)
    assert time.monotonic() - began < 30


def test_a_worker_that_dies(parallel) -> None:
    """Its call fails, by the name of the function, and the workers can be used again."""
    with pytest.raises(safespawn.WorkerDied, match=r"SIGKILL while running .*kill_at"):
        parallel()(calls(kill_at, *[(number, 5) for number in range(10)]))
    assert parallel()(calls(kill_at, *[(number, -1) for number in range(10)])) == list(range(10))


def test_a_timeout(parallel) -> None:
    """A call that takes too long is ended, and its worker is free again."""
    began = time.monotonic()
    with pytest.raises(multiprocessing.TimeoutError):  # joblib's
        parallel(timeout=0.5)(calls(time.sleep, (60,), (60,)))
    assert parallel()(calls(abs, (-1,), (-2,))) == [1, 2]
    assert time.monotonic() - began < 30


def test_what_is_defined_here_goes_by_value(parallel) -> None:
    """A lambda is sent, and so is what it refers to."""
    amount = 5
    assert parallel()(calls(lambda number: number + amount, (1,), (2,))) == [6, 7]


def test_nested(parallel) -> None:
    """A call may use joblib itself."""
    assert parallel()(calls(nested, (2,), (3,))) == [[0, 1], [0, 1, 2]]


def test_one_job_is_run_here(parallel) -> None:
    """With one job there are no workers."""
    assert set(parallel(n_jobs=1)(calls(my_pid, (), ()))) == {os.getpid()}


def test_numbers_of_jobs() -> None:
    """-1 stands for the usable CPUs, and 0 is refused."""
    from safespawn.integrations.joblib import SafespawnBackend

    backend = SafespawnBackend()
    cpus = len(os.sched_getaffinity(0))
    assert 1 <= backend.effective_n_jobs(-1) <= cpus
    assert backend.effective_n_jobs(3) == 3
    assert backend.effective_n_jobs(None) == 1
    assert backend.effective_n_jobs(-1000) == 1
    with pytest.raises(ValueError, match="no meaning"):
        backend.effective_n_jobs(0)


def test_threads_of_libraries(parallel) -> None:
    """`inner_max_num_threads` is what BLAS and OpenMP get."""
    import joblib

    with joblib.parallel_config(backend="safespawn", n_jobs=2, inner_max_num_threads=3):
        assert joblib.Parallel()(calls(threads_of_libraries, ())) == ["3"]


def test_idle_workers_end() -> None:
    """Workers that nobody uses for so long are ended, and the next `Parallel` has new ones."""
    import joblib

    from safespawn.integrations import joblib as ours

    ours.register()
    with joblib.parallel_config(backend="safespawn", n_jobs=2, idle_worker_timeout=0.2):
        joblib.Parallel()(calls(abs, (1,), (2,)))
        thread = ours._kept[0]._thread
        thread.join(30)
        assert not thread.is_alive()
        assert not ours._kept
        assert joblib.Parallel()(calls(abs, (1,), (2,))) == [1, 2]
    ours.release()


def test_two_at_once(parallel) -> None:
    """Two threads have each a `Parallel`; the failure of one does not touch the other."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as threads:
        good = threads.submit(parallel(batch_size=1), calls(pool_tasks.nap, *[(0.02,)] * 50))
        bad = threads.submit(parallel(batch_size=1), calls(divmod, (1, 0)))
        with pytest.raises(ZeroDivisionError):
            bad.result()
        assert len(good.result()) == 50
