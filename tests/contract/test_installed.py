"""The standard library's names after `safespawn.install()`: each behaves as it did, and nothing is forked."""

# ruff: noqa: PLW1509, PLW1510 - the standard functions are called as programs call them

import asyncio
import concurrent.futures
import concurrent.futures.process
import contextlib
import functools
import inspect
import multiprocessing
import multiprocessing.pool
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import types
import warnings
from pathlib import Path

import pytest
import uvloop

import safespawn
from safespawn import _preexec as preexec
from safespawn.errors import BadArgument, BadArgumentType, UnsafeStart, UnsafeStartWarning
from support.children import ENV, STATUS, fields, reap_orphans, signals

STANDARD = {
    name: getattr(module, name.rpartition(".")[2])
    for module, names in {
        subprocess: ["subprocess.Popen", "subprocess.run", "subprocess.check_output"],
        os: ["os.system", "os.popen"],
        asyncio: ["asyncio.create_subprocess_exec"],
        multiprocessing: ["multiprocessing.Pool", "multiprocessing.Process"],
        concurrent.futures: ["concurrent.futures.ProcessPoolExecutor"],
    }.items()
    for name in names
}


def install(**options):
    """Without the word on what this test process has imported before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return safespawn.install(**options)


@pytest.fixture
def installed():
    """Everything is installed, and put back."""
    yield install()
    assert safespawn.uninstall() == ()


def run_code(code, directory):
    """A program that ends in order."""
    file = directory / "program.py"
    file.write_text(textwrap.dedent(code))
    done = subprocess.run([sys.executable, file], check=False, timeout=60, env=ENV, capture_output=True, text=True)
    reap_orphans()
    assert (done.returncode, done.stderr) == (0, "")


def standard_names():
    """The standard names that are the standard library's now."""
    return {
        name for name, value in STANDARD.items() if functools.reduce(getattr, name.split(".")[1:], _top(name)) is value
    }


def _top(name):
    return __import__(name.partition(".")[0])


# --- install and uninstall --------------------------------------------------------------------------------------------
def test_every_name_is_replaced_and_put_back():
    """`install` says what it replaced, a second call the same; `uninstall` puts back the very objects."""
    assert standard_names() == STANDARD.keys()
    first = install()
    assert set(first) >= STANDARD.keys()
    assert list(first) == sorted(first)
    assert standard_names() == set()
    assert install() == first
    assert safespawn.uninstall() == ()
    assert standard_names() == STANDARD.keys()
    assert safespawn.uninstall() == ()


def test_some_names():
    """Only what was named is replaced, and what it cannot work without."""
    try:
        assert install(names=["os.system"]) == ("os.system",)
        assert standard_names() == STANDARD.keys() - {"os.system"}
        assert len(install(names=["subprocess.Popen"])) == 2  # and how asyncio waits for one
    finally:
        safespawn.uninstall()


def test_an_unknown_name():
    """It is refused with the list of the known ones, and nothing is replaced."""
    with pytest.raises(BadArgument, match=r"does not know 'os\.fork'") as caught:
        safespawn.install(names=["os.system", "os.fork"])
    assert "subprocess.check_output" in str(caught.value)
    with pytest.raises(BadArgumentType, match="a list of names"):
        safespawn.install(names="os.system")
    assert standard_names() == STANDARD.keys()


def test_what_somebody_else_has_replaced_since_is_theirs(monkeypatch):
    """It is left alone, and named, until they have put ours back."""
    install(names=["os.system", "os.popen"])
    with monkeypatch.context() as context:
        context.setattr(os, "system", lambda command: command)
        assert install(names=["os.system", "os.popen"]) == ("os.popen",)
        assert safespawn.uninstall() == ("os.system",)
        assert os.system("x") == "x"
    assert safespawn.uninstall() == ()
    assert standard_names() == STANDARD.keys()


def test_old_references_are_told_once(monkeypatch):
    """A module that has taken a name before is named in one warning, with the name."""
    module = types.ModuleType("old_timer")
    module.start = subprocess.run
    monkeypatch.setitem(sys.modules, "old_timer", module)
    install(names=["os.system"])
    try:
        with pytest.warns(RuntimeWarning, match=r"old_timer\.start \(subprocess\.run\)") as caught:
            safespawn.install(names=["subprocess.run"])
        assert len(caught) == 1
        assert caught[0].filename == __file__
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            safespawn.install(names=["subprocess.run"])
    finally:
        safespawn.uninstall()


def test_nothing_is_started_and_nothing_forked(tmp_path):
    """Installing starts no zygote; commands, by every name, are no children of the program."""
    code = """
        import os, sys
        forks = []
        sys.addaudithook(lambda event, args: forks.append(event) if event in ("os.fork", "os.posix_spawn") else None)
        import safespawn
        safespawn.install()
        assert not forks and not os.listdir("/proc/self/task")[1:]
        import subprocess
        parent = "awk '/PPid/ {print $2}' /proc/self/status"
        outputs = [subprocess.getoutput(parent), os.popen(parent).read(), subprocess.check_output(parent, shell=True)]
        assert str(os.getpid()) not in map(str.strip, map(os.fsdecode, outputs)), outputs
        assert forks == ["os.posix_spawn"], forks
    """
    run_code(code, tmp_path)


# --- subprocess -------------------------------------------------------------------------------------------------------
@pytest.mark.usefixtures("installed")
class TestPopen:
    """`subprocess.Popen`."""

    def test_the_class(self):
        """It is the standard class to whoever asks: signature, alias, subclass, instance of the old name."""
        standard = STANDARD["subprocess.Popen"]
        assert inspect.signature(subprocess.Popen) == inspect.signature(standard)
        assert issubclass(subprocess.Popen, standard)
        assert subprocess.Popen[bytes]

        class Named(subprocess.Popen):
            name = "x"

        with Named(["true"]) as process:
            assert isinstance(process, (subprocess.Popen, standard))
            assert process.wait() == 0
        assert repr(process).startswith("<Named: returncode: 0 args: ['true']")

    def test_positional_arguments(self):
        """They are in the standard order."""
        with subprocess.Popen("printf hi", -1, None, None, subprocess.PIPE, None, None, True, True, "/", {}) as process:
            assert process.communicate() == (b"hi", None)

    def test_talking(self):
        """Pipes are files of bytes or text; the code is None while it runs."""
        with subprocess.Popen(["cat"], stdin=-1, stdout=-1, text=True, bufsize=1) as process:
            process.stdin.write("one\n")
            assert process.stdout.readline() == "one\n"
            assert process.poll() is None
            assert process.communicate("zwei\r\n", timeout=20) == ("zwei\n", None)
        assert process.returncode == 0
        assert process.args == ["cat"]

    def test_signals(self):
        """A process ended by a signal has its negative number; a late signal reaches nobody."""
        with subprocess.Popen(["sleep", "60"]) as process:
            process.terminate()
            assert process.wait(20) == -signal.SIGTERM
            process.kill()
            process.send_signal(signal.SIGINT)

    def test_timeouts(self):
        """`wait` and `communicate` raise TimeoutExpired with the command as it was given; it runs on."""
        with subprocess.Popen("echo begun; exec sleep 60", shell=True, stdout=subprocess.PIPE) as process:
            with pytest.raises(subprocess.TimeoutExpired) as caught:
                process.wait(0.01)
            assert caught.value.cmd == "echo begun; exec sleep 60"
            assert process.stdout.readline() == b"begun\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.communicate(timeout=0.01)
            assert process.poll() is None
            process.kill()

    def test_errors_are_the_standard_ones(self):
        """Class, errno and filename of a failed start; wrong arguments in the standard words."""
        with pytest.raises(FileNotFoundError) as caught:
            subprocess.Popen(["/no/such/program"])
        assert caught.value.filename == "/no/such/program"
        with pytest.raises(NotADirectoryError):
            subprocess.Popen(["true"], cwd="/dev/null")
        with pytest.raises(ValueError, match="only supported on Windows"):
            subprocess.Popen(["true"], creationflags=1)
        with pytest.raises(ValueError, match="only supported on Windows"):
            subprocess.Popen(["true"], startupinfo=object())
        with pytest.raises(TypeError, match="bufsize must be an integer"):
            subprocess.Popen(["true"], "1")

    def test_descriptors(self, tmp_path):
        """`pass_fds` and ``close_fds=False`` give what they gave; pipesize is the pipe's."""
        fd = os.open(tmp_path / "f", os.O_RDWR | os.O_CREAT)
        try:
            list_fds = ["ls", "/proc/self/fd"]
            assert str(fd) in subprocess.check_output(list_fds, pass_fds=[fd, 1], text=True).split()
            assert str(fd) not in subprocess.check_output(list_fds, close_fds=False, text=True).split()
            os.set_inheritable(fd, True)
            assert str(fd) in subprocess.check_output(list_fds, close_fds=False, text=True).split()
            assert str(fd) not in subprocess.check_output(list_fds, text=True).split()
        finally:
            os.close(fd)
        with subprocess.Popen(["cat"], stdin=-1, stdout=-1, pipesize=4096) as process:
            assert resource.getpagesize() == 4096
            assert {fcntl_size(file) for file in (process.stdin, process.stdout)} == {4096}

    def test_a_pipe_that_cannot_be_so_large(self, tmp_path):
        """Nothing runs, and nothing is left."""
        with pytest.raises(OSError):
            subprocess.Popen("touch started; exec sleep 60", shell=True, cwd=tmp_path, stdout=-1, pipesize=2**31 - 1)
        assert list(tmp_path.iterdir()) == []

    def test_what_the_process_is(self):
        """Group, session, umask and signals are as the standard class has them."""

        def status(**options):
            return fields(subprocess.check_output(STATUS, **options))

        def group(**options):
            return subprocess.check_output(
                ["sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat"], text=True, **options
            ).split()

        pid, pgid, sid = group()
        assert (int(pgid), int(sid)) == (os.getpgrp(), os.getsid(0))
        pid, pgid, sid = group(start_new_session=True)
        assert pid == pgid == sid
        pid, pgid, sid = group(process_group=0)
        assert pid == pgid != sid
        assert status(umask=0o027)["Umask"] == status(umask=0o7027)["Umask"] == "0027"
        assert signal.SIGPIPE not in signals(status()["SigIgn"])
        assert signal.SIGPIPE in signals(status(restore_signals=False)["SigIgn"])


def fcntl_size(file):
    """How much a pipe holds."""
    import fcntl

    return fcntl.fcntl(file, fcntl.F_GETPIPE_SZ)


@pytest.mark.usefixtures("installed")
class TestFunctions:
    """`subprocess.run` and the others."""

    def test_run(self):
        """Captures, feeds, checks, decodes."""
        done = subprocess.run(["tr", "a-z", "A-Z"], input="abc", capture_output=True, text=True, check=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, "ABC", "")
        with pytest.raises(subprocess.CalledProcessError) as caught:
            subprocess.run("echo x; exit 3", shell=True, check=True, stdout=subprocess.PIPE)
        assert (caught.value.returncode, caught.value.output, caught.value.cmd) == (3, b"x\n", "echo x; exit 3")
        with pytest.raises(ValueError, match="may not both be used"):
            subprocess.run(["true"], input=b"", stdin=subprocess.PIPE)
        with pytest.raises(ValueError, match="capture_output"):
            subprocess.run(["true"], capture_output=True, stderr=subprocess.PIPE)

    def test_a_timeout_ends_the_whole_tree(self):
        """A grandchild that holds the pipe does not make the caller wait."""
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            subprocess.run("echo begun; sleep 60 & sleep 60", shell=True, capture_output=True, timeout=1)
        assert caught.value.output == b"begun\n"

    def test_the_others(self):
        """Codes and outputs are the standard ones."""
        assert subprocess.call(["false"]) == 1
        assert subprocess.check_call(["true"]) == 0
        with pytest.raises(subprocess.CalledProcessError):
            subprocess.check_call(args=["false"])
        assert subprocess.check_output(["cat"], input=None) == b""
        assert subprocess.check_output(["cat"], input=None, text=True) == ""
        with pytest.raises(ValueError, match="stdout argument not allowed"):
            subprocess.check_output(["true"], stdout=1)
        assert subprocess.getoutput("echo a; echo b >&2") == "a\nb"
        assert subprocess.getstatusoutput("printf x; exit 2") == (2, "x")
        assert subprocess.getstatusoutput("kill -9 $$")[0] == -9

    def test_a_double_of_popen_is_used(self, monkeypatch):
        """Whoever puts something else behind `subprocess.Popen` sees what the functions start."""
        seen = []

        class Double(subprocess.Popen):
            def __init__(self, *args, **options):
                seen.append(args)
                super().__init__(*args, **options)

        monkeypatch.setattr(subprocess, "Popen", Double)
        assert subprocess.call(["true"]) == 0
        assert seen == [(["true"],)]
        monkeypatch.undo()


@pytest.mark.usefixtures("installed")
class TestShell:
    """`os.system` and `os.popen`."""

    def test_system(self):
        """It returns the wait status, for a shell that exits and for one that is killed."""
        assert os.system("exit 0") == 0
        assert os.waitstatus_to_exitcode(os.system("exit 3")) == 3
        assert os.waitstatus_to_exitcode(os.system("kill -9 $$")) == -9
        assert os.system(b"exit 1") == 256
        with pytest.raises(TypeError):
            os.system(3)

    def test_system_ignores_ctrl_c(self):
        """SIGINT and SIGQUIT reach the command, not the program, while it waits; then they are what they were."""
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGQUIT)
        own = os.getpid()
        ask = (
            f"while ! grep -q 'SigIgn.*[67]$' /proc/{own}/status; do :; done; kill -INT {own}; kill -QUIT {own}; exit 5"
        )
        assert os.system(ask) == 5 << 8
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGQUIT)) == before

    def test_popen(self):
        """It is a text stream that can be read by line; `close` tells None, or the code times 256."""
        with os.popen("echo a; echo b") as stream:
            assert list(stream) == ["a\n", "b\n"]
        stream = os.popen("cat >/dev/null; exit 2", "w", 1)
        assert isinstance(stream.fileno(), int)
        stream.write("x\n")
        assert stream.close() == 512
        assert os.popen("true").close() is None
        for wrong, kind in (((["ls"],), TypeError), (("ls", "rb"), ValueError), (("ls", "r", 0), ValueError)):
            with pytest.raises(kind):
                os.popen(*wrong)


@pytest.mark.usefixtures("installed")
def test_waitpid_knows_what_popen_has_started():
    """It tells the status once, without waiting if that is wanted; other children are the kernel's matter."""
    process = subprocess.Popen("read line; exit 3", shell=True, stdin=subprocess.PIPE)
    assert os.waitpid(process.pid, os.WNOHANG) == (0, 0)
    process.stdin.close()
    assert os.waitpid(process.pid, 0) == (process.pid, 3 << 8)
    with pytest.raises(ChildProcessError):
        os.waitpid(process.pid, 0)
    assert process.returncode is None
    assert process.poll() == 3
    process = subprocess.Popen(["sleep", "60"])
    process.kill()
    assert os.WTERMSIG(os.waitpid(process.pid, 0)[1]) == signal.SIGKILL
    assert process.poll() == -signal.SIGKILL
    pid = os.posix_spawn("/bin/true", ["true"], {})
    assert os.waitpid(pid, 0) == (pid, 0)


# --- preexec_fn -------------------------------------------------------------------------------------------------------
LIMIT = (64, 128)


def several():
    """What programs write."""
    os.setsid()
    os.umask(0o77)
    resource.setrlimit(resource.RLIMIT_NOFILE, LIMIT)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def closure(group, nice):
    """With values of its own."""
    return lambda: (os.setpgid(0, group), os.nice(nice))


def unknown():
    """Something else."""
    os.environ["UNKNOWN"] = "1"


RECOGNISED = {
    "setsid": (os.setsid, {"start_new_session": True}),
    "setpgrp": (os.setpgrp, {"process_group": 0}),
    "partial": (functools.partial(os.setpgid, 0, 0), {"process_group": 0}),
    "lambda": (lambda: os.setpgid(0, 0), {"process_group": 0}),
    "lambda setsid": (lambda: os.setsid(), {"start_new_session": True}),  # noqa: PLW0108 - that is what is written
    "umask": (functools.partial(os.umask, 0o1077), {"umask": 0o77}),
    "nice": (lambda: os.nice(5), {"nice": 5}),
    "limit": (
        functools.partial(resource.setrlimit, resource.RLIMIT_CORE, (0, 0)),
        {"rlimits": {resource.RLIMIT_CORE: (0, 0)}},
    ),
    "ignored": (functools.partial(signal.signal, signal.SIGHUP, signal.SIG_IGN), {"ignore_signals": {signal.SIGHUP}}),
    "default": (lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL), {"ignore_signals": set()}),
    "user": (lambda: (os.setgid(1), os.setuid(2), os.setsid()), {"group": 1, "user": 2, "start_new_session": True}),
    "several": (several, {
        "start_new_session": True, "umask": 0o77, "rlimits": {resource.RLIMIT_NOFILE: LIMIT},
        "ignore_signals": {signal.SIGUSR1},
    }),
    "closure": (closure(0, 3), {"process_group": 0, "nice": 3}),
}  # fmt: skip


@pytest.mark.parametrize("name", RECOGNISED)
def test_a_usual_preexec_fn_is_recognised(name):
    """It is read as the options that do the same."""
    function, options = RECOGNISED[name]
    assert preexec.recognise(function) == options


def conditional():
    """A branch is not followed."""
    if os.getpid():
        os.setsid()


def looping():
    """Nor is a loop."""
    for number in (1, 2):
        signal.signal(number, signal.SIG_IGN)


def forgiving():
    """What fails here is not to fail the start."""
    try:
        os.nice(-5)
    except PermissionError:
        pass


def without_rights():
    """The new user may not do that."""
    os.setuid(65534)
    os.nice(-5)


def raised_again():
    """The first one has taken what the second one wants."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (5, 5))
    resource.setrlimit(resource.RLIMIT_NOFILE, (50, 50))


NOT_RECOGNISED = [
    unknown,
    forgiving,
    without_rights,
    raised_again,
    lambda: (os.setuid(65534), os.setgid(65534)),
    conditional,
    looping,
    print,
    object(),
    lambda: print("x"),
    lambda: os.setpgid(os.getpid(), 0),
    lambda x=1: os.umask(x),
    functools.partial(unknown),
    functools.partial(signal.signal, signal.SIGINT, unknown),
    closure(os.getpid, 0),
]


@pytest.mark.parametrize("function", NOT_RECOGNISED)
def test_anything_else_is_not(function):
    """What is not understood to the end is not recognised."""
    assert preexec.recognise(function) is None


@pytest.mark.usefixtures("installed")
def test_a_recognised_preexec_fn_is_carried_out_without_a_fork():
    """The child has what was asked for, and is no child of this process."""
    forks = []
    os.register_at_fork(before=lambda: forks.append(1))
    status = fields(subprocess.check_output(STATUS, preexec_fn=several))
    assert status["Umask"] == "0077"
    assert signal.SIGUSR1 in signals(status["SigIgn"])
    assert int(status["PPid"]) != os.getpid()
    limits = subprocess.check_output(["cat", "/proc/self/limits"], preexec_fn=several, text=True)
    assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")] == [["64", "128"]]
    numbers = subprocess.check_output(["cat", "/proc/self/stat"], preexec_fn=closure(0, 3), text=True).split()
    assert (numbers[4], numbers[18]) == (numbers[0], "3")
    assert not forks


@contextlib.contextmanager
def a_second_thread():
    """While it runs, a fork of this process can hang."""
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    try:
        yield
    finally:
        go.set()
        thread.join()


@pytest.mark.usefixtures("installed")
def test_any_other_preexec_fn_is_run_by_the_standard_class():
    """It runs in a fork of this process, whose child the command is; everything works as it did."""
    with a_second_thread(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        status = fields(subprocess.check_output(STATUS, preexec_fn=unknown))
        assert int(status["PPid"]) == os.getpid()
        with subprocess.Popen(["cat"], stdin=-1, stdout=-1, preexec_fn=unknown) as process:
            assert process.communicate(b"x", timeout=20) == (b"x", None)
        with pytest.raises(subprocess.TimeoutExpired):
            subprocess.run(["sleep", "60"], preexec_fn=unknown, timeout=0.05)
    assert {(each.category, each.filename) for each in caught} == {(UnsafeStartWarning, __file__)}
    assert "preexec_fn=" in str(caught[0].message)
    assert "fork point" not in str(caught[0].message)


@pytest.mark.usefixtures("installed")
def test_any_other_preexec_fn_meets_the_guard():
    """With the policy "error" it is refused by its name, and nothing runs; a recognised one is no matter."""
    with safespawn.Supervisor(guard={"preexec": "error"}):
        with pytest.raises(UnsafeStart, match=r"subprocess\.Popen\(preexec_fn=.*unknown"):
            subprocess.run(["true"], preexec_fn=unknown)
        assert subprocess.run(["true"], preexec_fn=several).returncode == 0


# --- asyncio ----------------------------------------------------------------------------------------------------------
@pytest.fixture(params=["asyncio", "uvloop"])
def execute(request, installed):
    """Runs a coroutine on one of the loops."""

    def run(main):
        factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            return runner.run(asyncio.wait_for(main, 30))

    return run


def parent_of(pid):
    """The parent of a process."""
    return int(fields(Path(f"/proc/{pid}/status").read_text())["PPid"])


def test_async_talking(execute):
    """Streams, communicate, codes and signals of a process in a loop are asyncio's own."""

    async def main():
        process = await asyncio.create_subprocess_exec("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert isinstance(process, asyncio.subprocess.Process)
        assert process.returncode is None
        process.stdin.write(b"line\n")
        await process.stdin.drain()
        assert await process.stdout.readline() == b"line\n"
        assert await process.communicate(b"rest") == (b"rest", None)
        assert process.returncode == 0

        process = await asyncio.create_subprocess_shell("echo out; echo err >&2; exit 3", stdout=-1, stderr=-1)
        assert await process.communicate() == (b"out\n", b"err\n")
        assert await process.wait() == 3

        process = await asyncio.create_subprocess_exec("sleep", "60")
        assert parent_of(process.pid) != os.getpid()
        process.terminate()
        assert await process.wait() == -signal.SIGTERM
        with pytest.raises(ProcessLookupError):
            process.send_signal(signal.SIGTERM)

    execute(main())


def test_async_limit_and_errors(execute):
    """`limit=` bounds a line; a program that is not there, and options that cannot be, raise as from asyncio."""

    async def main():
        process = await asyncio.create_subprocess_shell("printf %100d 1", stdout=-1, limit=10)
        with pytest.raises(ValueError, match="limit"):
            await process.stdout.readline()
        await process.communicate()
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/no/such/program")
        for wrong in ({"text": True}, {"bufsize": 1}, {"shell": True}, {"encoding": "utf-8"}):
            with pytest.raises(ValueError, match="must be"):
                await asyncio.create_subprocess_exec("true", **wrong)
        with pytest.raises(ValueError, match="cmd must be a string"):
            await asyncio.create_subprocess_shell(["true"])

    execute(main())


def test_a_cancelled_communicate_leaves_the_process(execute):
    """The wait ends, the process runs on, and can be ended."""

    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "60", stdout=-1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.communicate(), 0.05)
        assert process.returncode is None
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    execute(main())


def test_many_processes_of_a_loop(execute):
    """Forty at once end with their own codes, and no thread is started for them."""

    async def one(number):
        process = await asyncio.create_subprocess_shell(f"exit {number}")
        return await process.wait()

    async def main():
        before = threading.active_count()
        assert await asyncio.gather(*map(one, range(40))) == list(range(40))
        assert threading.active_count() == before

    execute(main())


@pytest.mark.usefixtures("installed")
def test_the_loops_own_methods():
    """`loop.subprocess_exec` of asyncio's loop, which older code calls, works on the same processes."""

    async def main():
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        class Protocol(asyncio.SubprocessProtocol):
            def process_exited(self):
                ended.set_result(None)

        transport, _ = await loop.subprocess_exec(Protocol, "sh", "-c", "exit 4", stdin=None, stdout=None, stderr=None)
        await ended
        assert transport.get_returncode() == 4
        transport.close()

    asyncio.run(main())


def test_a_loop_that_is_closed_over_a_running_process(execute):
    """The process of a transport that is closed is killed, and nothing is left."""

    async def main():
        process = await asyncio.create_subprocess_exec("sleep", "60", stdin=-1, stdout=-1)
        process._transport.close()
        await process.wait()
        return process.returncode

    assert execute(main()) == -signal.SIGKILL


# --- processes and pools ----------------------------------------------------------------------------------------------
class Shouting(multiprocessing.Process):
    """Derived before anything was installed."""

    def __init__(self, queue):
        super().__init__()
        self.queue = queue

    def run(self):
        self.queue.send(os.getppid())


@pytest.mark.usefixtures("installed")
class TestPools:
    """multiprocessing and concurrent.futures."""

    def test_the_default_start_method(self):
        """It is ours, also for a class that was derived before; a program may still choose another safe one."""
        assert multiprocessing.get_start_method(allow_none=True) in (None, "safespawn")
        assert multiprocessing.get_context() is safespawn.get_context()
        here, there = multiprocessing.Pipe(duplex=False)
        process = Shouting(there)
        process.start()
        process.join()
        assert here.recv() != os.getpid()
        assert process.exitcode == 0
        process.close()
        here.close()
        there.close()

    def test_processes(self):
        """`multiprocessing.Process` ends with its code."""
        process = multiprocessing.Process(target=sys.exit, args=(7,))
        process.start()
        process.join()
        assert process.exitcode == 7
        process.close()

    def test_pool(self):
        """Both names make our pool; instances of either kind are instances."""
        with multiprocessing.Pool(2) as pool:
            assert isinstance(pool, safespawn.Pool)
            assert isinstance(pool, multiprocessing.pool.Pool)
            assert pool.map(abs, range(-4, 4)) == [4, 3, 2, 1, 0, 1, 2, 3]
        with multiprocessing.get_context().Pool(1) as pool:
            assert isinstance(pool, safespawn.Pool)
            assert pool.apply(os.getppid) != os.getpid()

    def test_pools_that_are_built_on_the_standard_one(self, tmp_path):
        """ThreadPool, and a class derived from Pool for what that keeps private, work as they did; initargs live on."""
        code = """
            import os, safespawn
            safespawn.install()
            import concurrent.futures, multiprocessing.pool

            def use(lock):
                lock.acquire()

            class Derived(multiprocessing.pool.Pool):
                def _setup_queues(self):
                    super()._setup_queues()
                    self.was_set_up = True

            if __name__ == "__main__":
                for make in (multiprocessing.Pool, multiprocessing.pool.Pool, concurrent.futures.ProcessPoolExecutor):
                    with make(1, initializer=use, initargs=(multiprocessing.Lock(),)) as pool:
                        assert list(pool.map(abs, [-1, -2])) == [1, 2]
                assert not issubclass(Derived, safespawn.Pool)
                assert issubclass(Derived, multiprocessing.pool.Pool)
                with Derived(1) as pool:
                    assert pool.was_set_up
                    assert pool.apply(os.getppid) != os.getpid()
                    pool.close()
                    pool.join()
                with multiprocessing.pool.ThreadPool(1) as pool:
                    assert isinstance(pool, multiprocessing.pool.Pool)
                    assert pool.map(abs, [-1, -2]) == [1, 2]
                    assert pool.apply(os.getpid) == os.getpid()
        """
        run_code(code, tmp_path)

    def test_executor(self):
        """Both names of ProcessPoolExecutor are ours, also for an event loop."""
        assert concurrent.futures.ProcessPoolExecutor is concurrent.futures.process.ProcessPoolExecutor
        with concurrent.futures.ProcessPoolExecutor(1) as executor:
            assert isinstance(executor, safespawn.Executor)
            assert list(executor.map(abs, [-1, -2])) == [1, 2]

            async def main():
                return await asyncio.get_running_loop().run_in_executor(executor, abs, -3)

            assert asyncio.run(main()) == 3

    def test_installed_functions_as_tasks(self):
        """`subprocess.check_output` can be sent to a worker, and is ours there."""
        with multiprocessing.Pool(1) as pool:
            parent = pool.apply(subprocess.check_output, (["sh", "-c", "echo $PPID"],))
            assert int(parent) != pool.apply(os.getpid)


def test_waitpid_of_a_popen_that_is_forgotten():
    """The process of an object that nobody holds any more can still be waited for by its pid."""
    code = (
        "import os, subprocess, warnings\n"
        "warnings.simplefilter('ignore')\n"
        "pid = subprocess.Popen(['sh', '-c', 'sleep 0.2; exit 3']).pid\n"
        "print(os.waitpid(pid, 0) == (pid, 3 << 8))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "safespawn", "exec", "-c", code], env=ENV, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr
