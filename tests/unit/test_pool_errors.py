"""The errors of pools: what every class keeps to, what it is caught by, and what the help says."""

import asyncio
import builtins
import concurrent.futures
import copy
import multiprocessing
import multiprocessing.pool
import pickle
import signal
import subprocess
import sys
from concurrent.futures.process import BrokenProcessPool

import pytest

from safespawn import errors, pool_errors

SAMPLES = {
    pool_errors.PoolError: lambda c: c("something happened", known=("a", "b\nc"), help="do"),
    pool_errors.UnpicklableTask: lambda c: c(
        what="initializer", path="initargs[0]", type_name="_thread.lock", reason="TypeError: no", known=("more",)
    ),
    pool_errors.UnpicklableResult: lambda c: c(
        TypeError("no"), "<lock>", task="tasks.resize", path="result", type_name="_thread.lock"
    ),
    pool_errors.PayloadLost: lambda c: c("the result of task 7", errno=28),
    pool_errors.RemoteError: lambda c: c(
        type_name="x.E", message="boo", traceback_text="Traceback\n", reason="ImportError: no x"
    ),
    pool_errors.WorkerDied: lambda c: c(
        task="tasks.resize", task_id=7, pool="images", worker=2, pid=41273, returncode=-9, seconds=12.4,
        peak_rss_bytes=1 << 30, oom=True, stderr="a\nb\n", stack="Fatal\n  File x\n", known=("more",),
    ),
    pool_errors.WorkerMemoryExceeded: lambda c: c(
        limit_bytes=1 << 30, rss_bytes=3 << 29, task="tasks.resize", task_id=7, pid=41273, returncode=-9, seconds=1.0
    ),
    pool_errors.TaskTimeout: lambda c: c(
        task="tasks.resize", task_id=7, pool="images", worker=2, pid=41273, seconds=5, ran=5.25, stack="a\nb",
        ended_by="SIGTERM",
    ),
    pool_errors.TaskCancelled: lambda c: c(task="tasks.resize", task_id=7, seconds=1.5),
    pool_errors.PoolClosed: lambda c: c("pool 'images'"),
    pool_errors.WrongLoop: lambda c: c("pool 'images'"),
    pool_errors.WaitInCallback: lambda c: c("pool 'images'"),
    pool_errors.MainReentered: lambda c: c("Pool.map", filename="script.py", lineno=12),
    pool_errors.PreloadError: lambda c: c(
        module="heavy", reason="threads", place="heavy.py:3", threads=("a", "b"), traceback_text=""
    ),
    pool_errors.InitializerFailed: lambda c: c(pool="images", pid=41273),
    pool_errors.CrashLoop: lambda c: c(pool="images", deaths=5, seconds=2.0, last="worker 7 was killed by SIGSEGV"),
}  # fmt: skip

CAUGHT_BY = {
    pool_errors.UnpicklableTask: (pickle.PicklingError, pickle.PickleError, AttributeError, TypeError),
    pool_errors.UnpicklableResult: (multiprocessing.pool.MaybeEncodingError, pickle.PicklingError),
    pool_errors.WorkerDied: (BrokenProcessPool, concurrent.futures.BrokenExecutor, RuntimeError),
    pool_errors.WorkerMemoryExceeded: (pool_errors.WorkerDied, BrokenProcessPool, MemoryError),
    pool_errors.TaskTimeout: (
        TimeoutError, OSError, multiprocessing.TimeoutError, multiprocessing.ProcessError,
        concurrent.futures.TimeoutError, asyncio.TimeoutError,
    ),
    pool_errors.TaskCancelled: (concurrent.futures.CancelledError,),
    pool_errors.PoolClosed: (errors.ClosedError, ValueError, RuntimeError),
    pool_errors.WrongLoop: (RuntimeError,),
    pool_errors.WaitInCallback: (errors.OrderError, RuntimeError),
    pool_errors.MainReentered: (errors.OrderError, RuntimeError),
    pool_errors.PreloadError: (errors.BrokenError, ImportError),
    pool_errors.InitializerFailed: (errors.BrokenError, BrokenProcessPool),
    pool_errors.CrashLoop: (errors.BrokenError, BrokenProcessPool),
}  # fmt: skip

PUBLIC = [
    c
    for c in vars(pool_errors).values()
    if isinstance(c, type) and issubclass(c, errors.SafespawnError) and c.__module__ == pool_errors.__name__
]


def copies(error):
    """Yield a copy of each kind that Python knows."""
    yield copy.copy(error)
    yield copy.deepcopy(error)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(error, protocol))


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda c: c.__name__)
def test_every_error_keeps_the_promises(cls):
    """An error of each class has facts, a slug of its own and the shape, and survives pickling and copying whole."""
    error = SAMPLES[cls](cls)
    assert type(error) is cls
    assert cls is pool_errors.PoolError or error.facts()
    assert all(getattr(error, name) == value for name, value in error.facts().items())
    assert "slug" in vars(cls)

    lines = str(error).split("\n")
    assert all(line.startswith(("  known: ", "  help:  ", "         ")) for line in lines[1:])
    assert lines[-1].endswith(f"  [{cls.slug}]")
    assert error.args
    assert repr(error).startswith(cls.__name__ + "(")

    error.add_note("a note")
    for other in copies(error):
        assert type(other) is cls
        assert (str(other), other.args) == (str(error), error.args)
        assert (other.known, other.help) == (error.known, error.help)
        assert other.facts() == error.facts()
        assert other.__notes__ == ["a note"]


@pytest.mark.parametrize("cls", CAUGHT_BY, ids=lambda c: c.__name__)
def test_what_callers_catch_already_catches_ours(cls):
    """An `except` clause for the standard class of the same meaning catches the error."""
    for standard in CAUGHT_BY[cls]:
        with pytest.raises(standard):
            raise SAMPLES[cls](cls)


def test_slugs_differ():
    """No two classes, here and in errors.py, have the same slug by accident."""
    slugs = [c.slug for c in PUBLIC]
    assert len(set(slugs)) == len(slugs)
    others = {c.slug for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.SafespawnError)}
    assert not others & set(slugs)


def test_nothing_is_known_where_nothing_was_given():
    """An error made without facts invents none."""
    assert str(pool_errors.TaskTimeout(seconds=5)).split("\n")[0] == "the task did not end within 5 s"
    assert pool_errors.TaskTimeout(seconds=5).known == ()
    assert pool_errors.WorkerDied(returncode=3).known == ()
    assert pool_errors.RemoteError(type_name="E").known == ("the exception itself could not be brought over",)
    assert pool_errors.UnpicklableTask().known == ()
    assert pool_errors.PreloadError(module="m").args == ("preloading 'm' failed",)


def test_a_result_that_does_not_pickle_speaks_as_multiprocessing_does():
    """The first line is MaybeEncodingError's own, and so are the attributes."""
    error = pool_errors.UnpicklableResult(TypeError("no"), "<lock>")
    standard = multiprocessing.pool.MaybeEncodingError(
        TypeError("no"), type("V", (), {"__repr__": lambda _: "<lock>"})()
    )
    assert str(error).split("\n")[0] == str(standard)
    assert (error.exc, error.value, error.args) == (standard.exc, standard.value, standard.args)


def test_a_remote_traceback_looks_as_that_of_multiprocessing():
    """It has the attribute and the text, and pickles."""
    error = pool_errors.RemoteTraceback("Traceback\nE: no\n")
    assert str(error) == '\n"""\nTraceback\nE: no\n"""'
    for other in copies(error):
        assert (type(other), other.tb, str(other)) == (pool_errors.RemoteTraceback, error.tb, str(error))


def test_an_import_error_keeps_its_name():
    """`name`, which is no entry of `__dict__`, is in the copies of a PreloadError."""
    error = pool_errors.PreloadError(module="heavy", traceback_text="Traceback:\n  x\nValueError: no\n")
    assert error.args[0] == "preloading 'heavy' failed: ValueError: no"
    assert {e.name for e in (error, *copies(error))} == {"heavy"}


@pytest.mark.parametrize(
    ("facts", "line", "words"),
    [
        ({"returncode": -9, "oom": True}, "was killed by SIGKILL", "fewer workers"),
        ({"returncode": -9}, "was killed by SIGKILL", "if nobody sent it"),
        ({"returncode": -9, "oom": False}, "was killed by SIGKILL", "somebody sent SIGKILL"),
        ({"returncode": -11, "stack": "x"}, "was killed by SIGSEGV", "the stack ends"),
        ({"returncode": -11}, "was killed by SIGSEGV", "faulthandler"),
        ({"returncode": -15}, "was killed by SIGTERM", "somebody sent the signal"),
        ({"returncode": -(signal.SIGRTMIN + 2)}, f"was killed by signal {signal.SIGRTMIN + 2}", "somebody"),
        ({"returncode": 3}, "exited with status 3", "os._exit"),
        ({}, "was lost", "safe to run twice"),
    ],
)
def test_the_help_fits_the_cause(facts, line, words):
    """How the worker ended is in the first line, and the help is for just that."""
    error = pool_errors.WorkerDied(pid=41273, task="tasks.resize", **facts)
    assert str(error).split("\n")[0] == f"worker 41273 {line} while running tasks.resize"
    assert words in error.help


def test_a_worker_without_a_task_or_a_number_has_a_name():
    """The first line is a sentence whatever is missing."""
    died = pool_errors.WorkerDied
    assert died(pid=7, returncode=0).args == ("worker 7 exited with status 0 while it had no task",)
    assert died(worker=3, task="f").args == ("worker number 3 was lost while running f",)
    assert died(task="f").args == ("a worker was lost while running f",)


def test_output_of_a_worker_is_shown_short_and_printable():
    """What a worker wrote is cut to a few lines, and nothing in it reaches a terminal raw; the fact has it all."""
    noise = "\x1b[2J\udcff" + "x" * 10_000 + "\n" * 50 + "\n".join(f"line {i}" for i in range(50))
    error = pool_errors.WorkerDied(pid=7, returncode=1, stderr=noise, stack=noise)
    text = str(error)
    assert error.stderr == noise
    assert text.encode("utf-8")
    assert "\x1b" not in text
    assert len(text) < 2500
    assert "line 49" in text


def test_unpicklable_things_have_help_of_their_own():
    """A function is told to move to a module, an open thing to be opened in the worker, a deep one to be flat."""
    task = pool_errors.UnpicklableTask
    assert "top level" in task(path="function", type_name="function").help
    assert "cloudpickle" in task(reason="AttributeError: Can't pickle local object 'f.<locals>.g'").help
    assert "initializer" in task(path="args[0]", type_name="_thread.lock", reason="TypeError: no").help
    assert "flat" in task(reason="RecursionError: maximum recursion depth exceeded").help
    assert "import" in task(reason="PicklingError: __main__.C is of an interactive session").help


def test_the_errors_are_not_imported_with_the_package():
    """`import safespawn.errors` brings neither this module nor its expensive bases."""
    heavy = ["safespawn.pool_errors", "multiprocessing", "concurrent.futures"]
    code = f"import sys, safespawn.errors; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_no_builtin_is_hidden():
    """No class has the name of a built-in one, which `from safespawn.pool_errors import *` would replace."""
    assert not {c.__name__ for c in PUBLIC} & set(vars(builtins))


def test_every_error_of_pools_is_found_beside_the_others():
    """`safespawn.errors` has each public class of `pool_errors`, and tells of no other."""
    public = {
        name
        for name, value in vars(pool_errors).items()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == pool_errors.__name__
    }
    assert set(errors._OF_POOLS) == public
    assert all(getattr(errors, name) is getattr(pool_errors, name) for name in public)
