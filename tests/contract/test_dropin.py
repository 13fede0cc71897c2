"""The drop-in modules: the public names of their models are there, and mean the same."""

import asyncio.subprocess
import concurrent.futures
import concurrent.futures.process
import concurrent.futures.thread
import errno
import importlib
import inspect
import multiprocessing
import multiprocessing.pool
import os
import pty
import re
import signal
import subprocess
import sys
import types
import warnings
from multiprocessing import forkserver
from pathlib import Path

import pytest

import safespawn
import safespawn.asyncio_subprocess
import safespawn.futures.process
import safespawn.multiprocessing.pool
import safespawn.subprocess
from safespawn.errors import UnsafeStart, UnsafeStartWarning
from support.applications import Application, Census
from support.children import ENV, PROGRAMS, reap_orphans

MODELS = {
    safespawn.subprocess: subprocess,
    safespawn.multiprocessing: multiprocessing,
    safespawn.multiprocessing.pool: multiprocessing.pool,
    safespawn.futures: concurrent.futures,
    safespawn.futures.process: concurrent.futures.process,
    safespawn.asyncio_subprocess: asyncio.subprocess,
}
SUBMODULES = [
    "multiprocessing." + name
    for name in (
        "connection context dummy managers process queues reduction shared_memory sharedctypes synchronize util".split()
    )
]


def public(model):
    """The public names of a module: what it exports, its constants, what it defines without an underscore."""
    names = {*getattr(model, "__all__", ())}
    for name, value in vars(model).items():
        if name.startswith("_") or isinstance(value, types.ModuleType):
            continue
        if getattr(value, "__module__", model.__name__) == model.__name__ or isinstance(value, (int, str)):
            names.add(name)
    return sorted(names)


def fits(ours, model):
    """What cannot be called on *ours* as it can on *model*; None if all can."""
    here, there = (list(inspect.signature(each).parameters.values()) for each in (ours, model))
    kinds = {parameter.kind for parameter in here}
    names = {parameter.name: parameter for parameter in here}
    for place, parameter in enumerate(there):
        if parameter.kind is parameter.VAR_POSITIONAL:
            if parameter.kind not in kinds:
                return f"takes no *{parameter.name}"
        elif parameter.kind is parameter.VAR_KEYWORD:
            if parameter.kind not in kinds:
                return f"takes no **{parameter.name}"
        elif parameter.name not in names and parameter.kind is not parameter.POSITIONAL_ONLY:
            if parameter.VAR_KEYWORD not in kinds:
                return f"has no {parameter.name}"
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            if place >= len(here) or here[place].kind is parameter.KEYWORD_ONLY:
                return f"does not take {parameter.name} by its place"
            if here[place].kind is not parameter.VAR_POSITIONAL and here[place].name != parameter.name:
                return f"has {here[place].name} in the place of {parameter.name}"
        if parameter.default is not parameter.empty and parameter.name in names:
            mine = names[parameter.name].default
            if mine is parameter.empty:
                return f"demands {parameter.name}"
            if isinstance(parameter.default, (int, str, type(None))) and mine != parameter.default:
                return f"has another default of {parameter.name}"
    for parameter in here:
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD,
        )  # fmt: skip
        if needed and parameter.name not in {each.name for each in there}:
            return f"demands {parameter.name}, which the model does not know"
    return None


# --- names ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("module", MODELS, ids=lambda module: module.__name__)
class TestNames:
    """Every public name of the model."""

    def test_is_there(self, module):
        """It is an attribute, and exported if it is there; constants are equal, exceptions the very classes."""
        model = MODELS[module]
        names = public(model)
        assert len(names) > 2
        assert {*getattr(model, "__all__", ())} <= {*module.__all__}
        for name in names:
            ours, theirs = getattr(module, name), getattr(model, name)
            if isinstance(theirs, (int, str)) or (isinstance(theirs, type) and issubclass(theirs, BaseException)):
                assert ours == theirs, name

    def test_can_be_called_alike(self, module):
        """Functions, classes and their public methods take what the model's take, with the same defaults."""
        model = MODELS[module]
        wrong = []
        for name in public(model):
            ours, theirs = getattr(module, name), getattr(model, name)
            if ours is theirs or not callable(theirs):
                continue
            pairs = [(name, ours, theirs)]
            if isinstance(theirs, type):
                assert isinstance(ours, type), name
                pairs += [
                    (f"{name}.{method}", getattr(ours, method, None), value)
                    for method, value in inspect.getmembers(theirs, inspect.isroutine)
                    if not method.startswith("_")
                ]
            for what, mine, model_of_it in pairs:
                problem = "is not there" if mine is None else fits(mine, model_of_it)
                if problem:
                    wrong.append(f"{what} {problem}")
        assert wrong == []


def test_the_check_of_signatures_finds_what_does_not_fit():
    """A parameter that is missing, elsewhere, demanded or of another default is told."""

    def model(a, b=1, *, c=None): ...

    # ruff: noqa: ARG005 - parameters are all that these have
    assert fits(model, model) is None
    assert fits(lambda a, b=1, *, c=None, d=2: None, model) is None
    assert fits(lambda *args, **options: None, model) is None
    assert fits(lambda a, b=1: None, model) == "has no c"
    assert fits(lambda b=1, a=0, *, c=None: None, model) == "has b in the place of a"
    assert fits(lambda a, *, b=1, c=None: None, model) == "does not take b by its place"
    assert fits(lambda a, b=2, *, c=None: None, model) == "has another default of b"
    assert fits(lambda a, b, *, c=None: None, model) == "demands b"
    assert fits(lambda a, b=1, *, c=None, d: None, model) == "demands d, which the model does not know"


@pytest.mark.parametrize("name", [*SUBMODULES, "futures.thread"])
def test_other_submodules_are_the_very_ones(name):
    """What starts no process is the standard module by another name."""
    standard = name.replace("futures.", "concurrent.futures.")
    assert importlib.import_module(f"safespawn.{name}") is importlib.import_module(standard)


def test_the_ways_of_importing(monkeypatch):
    """`from safespawn import subprocess`, the dotted import and the attribute of the package are one module."""
    from safespawn import multiprocessing as first
    from safespawn.multiprocessing import shared_memory
    from safespawn.multiprocessing.pool import ThreadPool

    assert first is safespawn.multiprocessing
    assert first.shared_memory is shared_memory
    assert ThreadPool is multiprocessing.pool.ThreadPool
    monkeypatch.delattr(safespawn, "subprocess")
    assert safespawn.subprocess is sys.modules["safespawn.subprocess"]
    with pytest.raises(AttributeError):
        safespawn.subprocess.no_such_name  # noqa: B018 - reading it is the test


def test_what_is_private_in_subprocess_is_the_standard_one():
    """Names that start nothing are passed on, those with an underscore too; what newer Pythons add as well."""
    assert safespawn.subprocess.list2cmdline is subprocess.list2cmdline
    assert safespawn.subprocess._args_from_interpreter_flags is subprocess._args_from_interpreter_flags
    assert safespawn.subprocess.CompletedProcess is subprocess.CompletedProcess


def test_a_double_of_popen_is_used(monkeypatch):
    """Whoever replaces `safespawn.subprocess.Popen` sees what the functions start; the standard one is not asked."""
    seen = []

    class Double(safespawn.subprocess.Popen):
        def __init__(self, *args, **options):
            seen.append(args)
            super().__init__(*args, **options)

    monkeypatch.setattr(safespawn.subprocess, "Popen", Double)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert safespawn.subprocess.call(["true"]) == 0
    assert seen == [(["true"],)]


def test_waitpid_knows_a_process_and_is_put_back():
    """`os.waitpid` is replaced with the first start, and `uninstall` puts the standard function back."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        safespawn.install(names=["os.system"])
    assert safespawn.uninstall() == ()
    standard = os.waitpid
    assert isinstance(standard, types.BuiltinFunctionType)
    process = safespawn.subprocess.Popen(["sh", "-c", "exit 3"])
    assert os.waitpid is not standard
    assert os.waitpid(process.pid, 0) == (process.pid, 3 << 8)
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, 0)
    assert process.wait() == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        safespawn.install(names=["os.waitpid"])
    assert safespawn.uninstall() == ()
    assert os.waitpid is standard


# --- start methods ----------------------------------------------------------------------------------------------------
@pytest.fixture
def chosen():
    """The module's start method may be changed, and is what it was afterwards."""
    yield safespawn.multiprocessing
    safespawn.multiprocessing.set_start_method(None, force=True)


def test_the_start_method_is_ours_and_can_be_chosen_once(chosen):
    """A safe one is taken, a second choice refused, as by the standard module; whose own default stays as it was."""
    before = multiprocessing.get_start_method(allow_none=True)
    assert chosen.get_start_method() == "safespawn"
    assert chosen.get_all_start_methods()[0] == "safespawn"
    assert chosen.get_context("safespawn") is chosen.get_context()
    chosen.set_start_method("spawn", force=True)
    with pytest.raises(RuntimeError, match="already been set"):
        chosen.set_start_method("forkserver")
    assert chosen.get_start_method() == "spawn"
    assert multiprocessing.get_start_method(allow_none=True) == before
    with pytest.raises(ValueError, match="cannot find context"):
        chosen.get_context("no such method")


def test_modules_to_preload(monkeypatch):
    """They are for the template, and for the fork server if that is chosen; one name is not a list of names."""
    context = safespawn.get_context()
    monkeypatch.setattr(context, "_preload", context._preload)
    monkeypatch.setattr(forkserver._forkserver, "_preload_modules", ["__main__"])
    safespawn.multiprocessing.set_forkserver_preload(iter(["json", "wave"]))
    assert context._preload == ("json", "wave")
    assert forkserver._forkserver._preload_modules == ["json", "wave"]
    with pytest.raises(TypeError, match="list of strings"):
        safespawn.multiprocessing.set_forkserver_preload("json")


def test_fork_is_met_by_the_guard(chosen):
    """It is had by name, with a warning, or refused if that is the guard's policy."""
    with pytest.warns(UnsafeStartWarning, match='start method "fork" is asked for at .*test_dropin'):
        assert chosen.get_context("fork") is multiprocessing.get_context("fork")
    with safespawn.Supervisor(guard={"start-method": "error"}), pytest.raises(UnsafeStart, match="fork"):
        chosen.set_start_method("fork", force=True)
    assert chosen.get_start_method() == "safespawn"


# --- what programs read though it is private --------------------------------------------------------------------------
def test_the_workers_of_a_pool():
    """`_pool` has the workers' pids; one that is ended is replaced, and the pool goes on."""
    with safespawn.multiprocessing.Pool(2) as pool:
        workers = pool._pool
        assert len(workers) == 2
        assert {worker.is_alive() for worker in workers} == {True}
        assert {worker.ident for worker in workers} >= {pool.apply(os.getpid)}
        workers[0].terminate()
        workers[0].join()
        assert not workers[0].is_alive()
        assert "stopped" in repr(workers[0])
        workers[0].kill()  # nobody is hit
        workers[1].join(0.01)
        assert workers[1].is_alive()
        assert pool.map(abs, range(-20, 0)) == list(range(20, 0, -1))
        new = {worker.pid for worker in pool._pool}
        assert workers[0].pid not in new
        assert workers[1].pid in new


def test_a_worker_is_not_said_to_have_ended_for_want_of_a_descriptor(monkeypatch):
    """The error says what is missing: a worker that runs is not reported as one that has ended."""

    def full(pid):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with safespawn.multiprocessing.Pool(1) as pool:
        worker = pool._pool[0]
        with monkeypatch.context() as patch:
            patch.setattr(os, "pidfd_open", full)
            for look in (worker.is_alive, worker.join, worker.terminate):
                with pytest.raises(OSError, match="Too many open files"):
                    look()
        assert worker.is_alive()
        assert pool.apply(os.getpid) == worker.pid


def test_the_workers_of_an_executor():
    """`_processes` has them by pid; there is none before the first call, and none when all are gone."""
    with safespawn.futures.ProcessPoolExecutor(2) as executor:
        assert executor._processes == {}
        pid = executor.submit(os.getpid).result()
        assert len(executor._processes) == 2
        assert executor._processes[pid].is_alive()
        assert executor._broken is False
    assert executor._processes == {}


def refuse():
    """An initializer that fails."""
    raise ZeroDivisionError("the initializer's")


def test_a_failed_initializer_is_logged(caplog):
    """As by the standard executor, by the logger concurrent.futures; and the executor says that it is broken."""
    with safespawn.futures.ProcessPoolExecutor(1, initializer=refuse) as executor:
        with pytest.raises(concurrent.futures.process.BrokenProcessPool):
            executor.submit(abs, 1).result()
        assert isinstance(executor._broken, str)
    records = [record for record in caplog.records if record.name == "concurrent.futures"]
    assert records
    assert "ZeroDivisionError: the initializer's" in caplog.text


# --- programs ---------------------------------------------------------------------------------------------------------
CHANGES = {
    "import subprocess": "from safespawn import subprocess",
    "import multiprocessing": "import safespawn.multiprocessing as multiprocessing",
    "from multiprocessing import ": "from safespawn.multiprocessing import ",
    "from multiprocessing.pool import ": "from safespawn.multiprocessing.pool import ",
    "from concurrent import futures": "from safespawn import futures",
    "from asyncio.subprocess import ": "from safespawn.asyncio_subprocess import ",
}


@pytest.fixture
def _wardens():
    """What a program leaves to this process, the subreaper, are its zygotes' wardens, which have ended."""
    yield
    reap_orphans()


def output(*argv, **options):
    """What a program says; it ends well."""
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=100, check=False, env=ENV,
                          **options)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("_wardens")
def test_a_program_with_other_imports_says_the_same(tmp_path):
    """Commands, processes, pools, executors, an event loop beside a thread: as a file, and by ``-m``."""
    text = Path(PROGRAMS, "dropin_program.py").read_text()
    standard = output(os.path.join(PROGRAMS, "dropin_program.py"))
    assert standard.count("\n") > 30
    for old, new in CHANGES.items():
        text, count = re.subn(rf"(?m)^{re.escape(old)}", new, text)
        assert count == 1, old
    (tmp_path / "changed.py").write_text(text)
    assert output(str(tmp_path / "changed.py")) == standard
    assert output("-m", "changed", cwd=tmp_path) == standard


@pytest.mark.usefixtures("_wardens")
def test_foreign_forks_delay_no_command():
    """All commands of four threads end while every copy that two others fork still holds what it got."""
    assert output("-W", "ignore", os.path.join(PROGRAMS, "dropin_forks.py")) == "80 True True True\n"


@pytest.mark.usefixtures("_wardens")
@pytest.mark.parametrize("what", ["command", "pool", "executor", "process"])
def test_ctrl_c(what):
    """At a terminal it ends the program as it ends any, soon, and nothing is left."""
    census = Census()
    terminal, inside = pty.openpty()
    with (
        open(terminal, "wb", buffering=0),
        open(inside, "rb", buffering=0),
        Application("dropin_interrupted", what, stdin=inside, start_new_session=True) as app,
    ):
        assert app.line() == "ready"
        os.write(terminal, b"\x03")
        _, err = app.process.communicate(timeout=30)
        assert app.process.returncode == -signal.SIGINT, err
    assert err.rstrip().endswith(b"KeyboardInterrupt")
    assert census.gone(10.0) == {}
