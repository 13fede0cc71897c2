"""
`Popen` and `aopen_process`: a process to talk to while it runs.
"""

# ruff: noqa: ASYNC230, PT012, PT031 - local files do not block; what is raised comes in the middle of a block

import gc
import io
import os
import re
import signal
import subprocess
import threading
import time
import warnings

import pytest

import safespawn
from safespawn import DEVNULL, PIPE, STDOUT
from support.children import alive, program, state, survivors

MEGABYTE = 1024 * 1024
ASK = ["sh", "-c", 'echo ready; read reply; echo "got $reply"; exit 5']


async def test_a_conversation(face):
    """Lines go back and forth while the process runs; leaving the block waits for its end."""
    async with face.open(ASK, stdin=PIPE, stdout=PIPE) as process:
        assert process.returncode is None
        assert alive(process.pid)
        assert await process.readline() == b"ready\n"
        await process.write(b"me\n")
        assert await process.readline() == b"got me\n"
        assert await process.readline() == b""
    assert process.returncode == 5
    assert process.duration > 0
    assert process.rusage.ru_maxrss > 0
    assert process.stdin is not None
    assert process.stderr is None


async def test_text_streams(face):
    """In text mode lines are str, with every kind of line end translated, as in subprocess."""
    args = ["printf", "zw\\303\\266lf\\r\\nkeks\\n"]
    async with face.open(args, stdout=PIPE, text=True, encoding="utf-8") as process:
        assert await process.lines() == ["zwölf\n", "keks\n"]
    async with face.open(["cat"], stdin=PIPE, stdout=PIPE, encoding="latin-1") as process:
        await process.write("ü")
        await process.close_stdin()
        assert await process.read() == "ü"


async def test_reading_by_size_and_to_the_end(face):
    """read(n) gives n bytes, read() the rest, then nothing."""
    async with face.open(["head", "-c", "200000", "/dev/zero"], stdout=PIPE) as process:
        assert await process.read(10) == bytes(10)
        assert await process.read(100_000) == bytes(100_000)
        assert await process.read() == bytes(99_990)
        assert await process.read() == b""


async def test_a_very_long_line(face):
    """A line of ten megabytes comes whole."""
    script = "head -c 10485760 /dev/zero; echo; echo next"
    async with face.open(["sh", "-c", script], stdout=PIPE) as process:
        assert len(await process.readline()) == 10 * MEGABYTE + 1
        assert await process.readline() == b"next\n"


async def test_communicate(face):
    """`communicate` feeds stdin and collects both outputs, more than pipes hold, without a deadlock."""
    data = os.urandom(10 * MEGABYTE)
    async with face.open(["sh", "-c", "tee /dev/stderr"], stdin=PIPE, stdout=PIPE, stderr=PIPE) as process:
        stdout, stderr = await process.communicate(data, timeout=60)
    assert stdout == data
    assert stderr == data
    assert process.returncode == 0


async def test_communicate_without_pipes(face):
    """Streams that are no pipes are None; communicate then only waits."""
    process = await face.open(["true"])
    assert await process.communicate() == (None, None)
    assert process.returncode == 0
    process = await face.open(["sh", "-c", "cat >&2; exit 3"], stdin=PIPE, stderr=PIPE, text=True)
    assert await process.communicate("x") == (None, "x")
    assert process.returncode == 3


async def test_communicate_again_gives_the_same(face):
    """A second communicate gives the same once more."""
    process = await face.open(["echo", "x"], stdout=PIPE)
    assert await process.communicate() == (b"x\n", None)
    assert await process.communicate() == (b"x\n", None)


async def test_communicate_with_timeout_and_retry(face):
    """A communicate that runs out of time loses nothing: the next one has all, and the process has not been touched."""
    script = "echo before; read line; cat; echo after"
    data = b"go\n" + os.urandom(MEGABYTE)
    read_fd, write_fd = os.pipe()
    os.set_inheritable(read_fd, True)
    gate = f"read line <&{read_fd}"
    process = await face.open(
        ["bash", "-c", script.replace("read line", gate)], stdin=PIPE, stdout=PIPE, pass_fds=[read_fd]
    )
    os.close(read_fd)
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await process.communicate(data, timeout=0.2)
    assert failure.value.stdout == b"before\n"
    assert isinstance(failure.value, subprocess.TimeoutExpired)
    assert process.returncode is None
    os.close(write_fd)
    stdout, _ = await process.communicate(timeout=30)
    assert stdout == b"before\n" + data + b"after\n"
    assert process.returncode == 0


async def test_communicate_takes_input_once(face):
    """Input for a second communicate, or for a stdin that is no pipe, is refused."""
    process = await face.open(["cat"], stdin=PIPE, stdout=PIPE)
    with pytest.raises(safespawn.TimeoutExpired):
        await process.communicate(b"x" * 10, timeout=0)
    with pytest.raises(ValueError, match="input"):
        await process.communicate(b"more")
    assert await process.communicate() == (b"x" * 10, None)
    process = await face.open(["true"], stdin=DEVNULL)
    with pytest.raises(ValueError, match="not a pipe"):
        await process.communicate(b"x")
    await process.wait()


async def test_communicate_with_a_child_that_does_not_read(face):
    """A child that ends before it has read its input is no error."""
    process = await face.open(["sh", "-c", "exit 3"], stdin=PIPE, stdout=PIPE)
    assert await process.communicate(b"x" * MEGABYTE) == (b"", None)
    assert process.returncode == 3


async def test_communicate_after_reading(face):
    """What was read before communicate is not given again."""
    async with face.open(["sh", "-c", "echo one; read x; echo two"], stdin=PIPE, stdout=PIPE) as process:
        assert await process.readline() == b"one\n"
        assert await process.communicate(b"\n") == (b"two\n", None)


@pytest.mark.parametrize("options", [{}, {"encoding": "utf-8"}, {"stdin": PIPE, "stderr": PIPE}], ids=repr)
async def test_communicate_keeps_what_a_reader_had_buffered(face, options):
    """What a stream had read ahead beyond a line is in communicate's output, as text too and with several pipes."""
    async with face.open(["printf", "one\\nzw\\303\\266\\nthree\\r\\n"], stdout=PIPE, **options) as process:
        line, rest = await process.readline(), (await process.communicate())[0]
    if "encoding" in options:
        assert (line, rest) == ("one\n", "zwö\nthree\n")
    else:
        assert (line, rest) == (b"one\n", b"zw\xc3\xb6\nthree\r\n")


async def test_wait_and_timeout(face):
    """`wait` gives the exit code; with a timeout that passes it raises, and the process runs on."""
    process = await face.open(["sh", "-c", "read x; exit 9"], stdin=PIPE)
    with pytest.raises(safespawn.TimeoutExpired) as failure:
        await process.wait(timeout=0.05)
    assert failure.value.timeout == 0.05
    assert failure.value.cmd == process.args
    with pytest.raises(safespawn.TimeoutExpired):
        await process.wait(timeout=0)
    assert alive(process.pid)
    await process.close_stdin()
    assert await process.wait(timeout=30) == 9
    assert await process.wait() == 9
    assert await process.wait(timeout=0) == 9


async def test_the_pid_is_reserved_until_the_exit_was_seen(face):
    """A process that has ended stays a zombie, so that its pid is nobody else's, until wait has returned."""
    process = await face.open(["sh", "-c", "read x"], stdin=PIPE)
    await process.close_stdin()
    while state(process.pid) != "Z":
        os.sched_yield()
    process.kill()  # hits nobody
    assert await process.wait() == 1
    assert state(process.pid) is None


@pytest.mark.parametrize("name", ["SIGTERM", "SIGKILL", "SIGINT", "SIGUSR1"])
async def test_signals(face, name):
    """Signals arrive, and the exit code tells the one that ended the process."""
    number = getattr(signal, name)
    process = await face.open(["sleep", "1000"])
    if name == "SIGTERM":
        process.terminate()
    elif name == "SIGKILL":
        process.kill()
    else:
        process.send_signal(number)
    assert await process.wait() == -number
    process.send_signal(number)
    process.terminate()
    process.kill()


async def test_a_stopped_process_can_be_woken_and_ended(face):
    """SIGSTOP and SIGCONT are signals like others: the process goes on, and a stopped one can be stopped for good."""
    async with face.open(["sh", "-c", "echo ready; read x; exit 4"], stdin=PIPE, stdout=PIPE) as process:
        await process.readline()
        process.send_signal(signal.SIGSTOP)
        while state(process.pid) != "T":
            os.sched_yield()
        with pytest.raises(safespawn.TimeoutExpired):
            await process.wait(timeout=0.05)
        process.send_signal(signal.SIGCONT)
        await process.close_stdin()
        assert await process.wait() == 4
    process = await face.open(["sleep", "1000"])
    process.send_signal(signal.SIGSTOP)
    while state(process.pid) != "T":
        os.sched_yield()
    assert await process.stop() == -signal.SIGTERM


async def test_stop_ends_the_whole_tree(face):
    """`stop` ends child, grandchild and whoever has a session of his own, and returns the exit code."""
    async with face.open(program("tree.py", "child", "grandchild", "session"), stdout=PIPE) as process:
        pids = list(map(int, (await process.readline()).split()))
        assert pids[0] == process.pid
        assert len(pids) == 4
        assert await process.stop() == -signal.SIGTERM
        assert survivors(pids) == []


async def test_stop_kills_what_does_not_listen(face):
    """A tree that ignores SIGTERM is killed after the grace."""
    async with face.open(program("tree.py", "child", "session", "stubborn"), stdout=PIPE) as process:
        pids = list(map(int, (await process.readline()).split()))
        begun = time.monotonic()
        assert await process.stop(grace=0.2) == -signal.SIGKILL
        assert 0.2 <= time.monotonic() - begun < 5
        assert survivors(pids) == []


async def test_stop_of_one_alone(face):
    """With kill_tree=False only the process itself is ended."""
    async with face.open(program("tree.py", "child", "silent"), stdout=PIPE, kill_tree=False) as process:
        leader, child = map(int, (await process.readline()).split())
        assert leader == process.pid
        assert await process.stop() == -signal.SIGTERM
        assert alive(child)
        os.kill(child, signal.SIGKILL)
    assert survivors([child]) == []


async def test_stop_twice(face):
    """`stop` of what has ended already gives its exit code."""
    process = await face.open(["sh", "-c", "exit 3"])
    await process.wait()
    assert await process.stop() == 3
    assert await process.stop() == 3


async def test_stop_of_one_that_has_ended_unseen(face):
    """`stop` of a process that ended before gives the code with which it ended."""
    process = await face.open(["sh", "-c", "exit 3"])
    while state(process.pid) != "Z":
        os.sched_yield()
    assert await process.stop() == 3


async def test_leaving_by_an_exception_ends_the_process(face):
    """An exception in the block ends the process with its tree, and comes out as it is."""
    with pytest.raises(LookupError, match="mine"):
        async with face.open(program("tree.py", "grandchild", "session"), stdout=PIPE) as process:
            pids = list(map(int, (await process.readline()).split()))
            raise LookupError("mine")
    assert process.returncode == -signal.SIGTERM
    assert survivors(pids) == []


async def test_leaving_closes_the_pipes(face):
    """Leaving the block closes the pipes first, so that a process which reads or writes them ends."""
    async with face.open(["cat"], stdin=PIPE, stdout=PIPE) as process:
        pass
    assert process.returncode == 0
    async with face.open(["yes"], stdout=PIPE) as process:
        await process.readline()
    assert process.returncode == -signal.SIGPIPE


async def test_a_forgotten_process_is_told(face):
    """A process that is forgotten while it runs gives a ResourceWarning, runs on, and ends with its owner."""
    async with face.supervisor() as inner:
        process = await inner.open(["sleep", "1000"])
        pid = process.pid
        with pytest.warns(ResourceWarning, match=f"process {pid} is still running"):
            del process
            gc.collect()
        assert alive(pid)
    assert survivors([pid]) == []


async def test_a_forgotten_process_that_has_ended_is_collected(face):
    """A process that has ended unseen and is forgotten leaves neither warning nor zombie."""
    process = await face.open(["true"])
    pid = process.pid
    while state(pid) != "Z":
        os.sched_yield()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del process
        gc.collect()
    await face.run(["true"])
    safespawn.statistics()  # which looks at what was forgotten
    while state(pid) is not None:
        os.sched_yield()


async def test_repr(face):
    """The repr says what subprocess's says."""
    process = await face.open(["sh", "-c", "exit 3"])
    assert re.fullmatch(r"<\w+: returncode: None args: \['sh', '-c', 'exit 3'\]>", repr(process.process))
    await process.wait()
    assert "returncode: 3" in repr(process.process)


async def test_many_processes_at_once(face):
    """A hundred processes run at the same time, each with its own streams and exit code."""
    processes = [
        await face.open(["sh", "-c", f"read x; echo {n}; exit {n}"], stdin=PIPE, stdout=PIPE) for n in range(100)
    ]
    for number, process in reversed(list(enumerate(processes))):
        assert await process.communicate(b"\n") == (b"%d\n" % number, None)
        assert process.returncode == number


async def test_streams_that_are_given(face, tmp_path):
    """A process writes to a file, to the null device, and both outputs into one pipe."""
    with open(tmp_path / "file", "w+b") as file:
        async with face.open(["echo", "x"], stdout=file, stderr=DEVNULL) as process:
            assert process.stdout is None
            assert await process.wait() == 0
        file.seek(0)
        assert file.read() == b"x\n"
    async with face.open(["sh", "-c", "echo out; echo err >&2"], stdout=PIPE, stderr=STDOUT) as process:
        assert await process.lines() == [b"out\n", b"err\n"]


async def test_a_pipe_between_two_processes(face):
    """The stdout of one process is the stdin of another, which sees its end."""
    read_fd, write_fd = os.pipe()
    first = await face.open(["sh", "-c", "echo b; echo a"], stdout=write_fd)
    second = await face.open(["sort"], stdin=read_fd, stdout=PIPE)
    os.close(read_fd)
    os.close(write_fd)
    assert await second.communicate() == (b"a\nb\n", None)
    assert await first.wait() == 0


async def test_writing_to_one_that_does_not_read(face):
    """Writing to a process that has closed its stdin raises BrokenPipeError."""
    async with face.open(["sh", "-c", "exec <&-; echo ready; exec sleep 1000"], stdin=PIPE, stdout=PIPE) as process:
        assert await process.readline() == b"ready\n"
        with pytest.raises(BrokenPipeError):
            await process.write(b"x")
        process.kill()


async def test_held_by(face):
    """`communicate` ends soon after the process although a grandchild holds its stdout, and says who that is."""
    process = await face.open(program("tree.py", "child", "exits"), stdout=PIPE)
    begun = time.monotonic()
    stdout, _ = await process.communicate(timeout=30)
    assert time.monotonic() - begun < 5
    leader, child = map(int, stdout.split())
    assert leader == process.pid
    assert process.returncode == 0
    assert process.held_by == (child,)
    assert alive(child)
    os.kill(child, signal.SIGKILL)
    assert survivors([child]) == []


# --- what only the blocking face has ----------------------------------------------------------------------------------
def test_poll():
    """`poll` gives None while the process runs and its exit code from the moment at which it has ended."""
    with safespawn.Popen(["sh", "-c", "read x; exit 3"], stdin=PIPE) as process:
        assert process.poll() is None
        process.stdin.close()
        while process.poll() is None:
            pass
        assert process.poll() == process.returncode == 3


def test_the_file_objects_are_those_of_subprocess():
    """The pipes are file objects of the kinds, modes and buffering that subprocess gives."""
    for options in ({}, {"text": True}, {"bufsize": 0}, {"bufsize": 1, "text": True}, {"bufsize": 4096}):
        mine = safespawn.Popen(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE, **options)
        theirs = subprocess.Popen(["cat"], stdin=PIPE, stdout=PIPE, stderr=PIPE, **options)
        with mine, theirs:
            for name in ("stdin", "stdout", "stderr"):
                ours, other = getattr(mine, name), getattr(theirs, name)
                base = io.FileIO if options.get("bufsize") == 0 else type(other)
                assert isinstance(ours, base)
                assert ours.readable() == other.readable()
                if name == "stdin":
                    assert getattr(ours, "line_buffering", None) == getattr(other, "line_buffering", None)
                assert getattr(ours, "write_through", None) == getattr(other, "write_through", None)
                assert os.get_inheritable(ours.fileno()) is False


def test_line_buffering():
    """With bufsize=1 in text mode a written line reaches the process without flush."""
    with safespawn.Popen(["cat"], stdin=PIPE, stdout=PIPE, text=True, bufsize=1) as process:
        process.stdin.write("line\n")
        assert process.stdout.readline() == "line\n"


@pytest.mark.parametrize("method", ["wait", "communicate"])
def test_several_threads_wait_for_one_process(method):
    """Eight threads wait for one process, and each gets its exit code."""
    codes = []
    with safespawn.Popen(["sh", "-c", "read x; exit 6"], stdin=PIPE) as process:

        def wait():
            if method == "wait":
                codes.append(process.wait())
            else:
                process.wait(timeout=30)
                codes.append(process.poll())

        threads = [threading.Thread(target=wait) for _ in range(8)]
        for thread in threads:
            thread.start()
        process.stdin.close()
        for thread in threads:
            thread.join(30)
    assert codes == [6] * 8


def test_one_thread_stops_what_others_wait_for():
    """`stop` in one thread wakes the waiters in the others with the same code."""
    codes = []
    process = safespawn.Popen(["sleep", "1000"])
    threads = [threading.Thread(target=lambda: codes.append(process.wait())) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert process.stop() == -signal.SIGTERM
    for thread in threads:
        thread.join(30)
    assert codes == [-signal.SIGTERM] * 4


def test_threads_start_processes_at_once():
    """Eight threads run commands at the same time, each gets its own result."""
    wrong = []

    def work(number):
        for turn in range(20):
            text = f"{number}-{turn}"
            result = safespawn.run(["cat"], input=text.encode(), stdout=PIPE)
            if result.stdout.decode() != text:
                wrong.append((text, result))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []


def test_a_foreign_fork_does_not_hold_stdin_open():
    """A copy of the application, forked while a process reads its stdin, does not keep that open."""
    with safespawn.Popen(["cat"], stdin=PIPE, stdout=PIPE) as process:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # a fork while pytest's watchdog thread runs
            pid = os.fork()
        if pid == 0:
            signal.pause()
        try:
            assert process.communicate(b"x", timeout=20) == (b"x", None)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
