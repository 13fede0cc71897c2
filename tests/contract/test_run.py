"""
`run` and `arun`: results, output, input, text, shells. What subprocess does too is asked of both.
"""

# ruff: noqa: ASYNC221, ASYNC230 - subprocess is asked the same beside it; local files do not block

import io
import os
import signal
import subprocess
import sys
import tempfile

import pytest

import safespawn
from safespawn import DEVNULL, PIPE, STDOUT
from safespawn._core.connection import Connection
from safespawn._zygote import wire
from support.children import ENV, PYTHON, both, program, reap_orphans, survivors

MEGABYTE = 1024 * 1024


@pytest.mark.parametrize(
    "script",
    [
        "exit 0",
        "exit 1",
        "exit 255",
        "kill -TERM $$",
        "kill -KILL $$",
        "kill -SEGV $$",
        "kill -PIPE $$",
        "echo out; echo err >&2; exit 3",
        "printf 'no line end'",
        "printf '\\377\\000\\376'",
        ":",
    ],
)
async def test_the_result_is_that_of_subprocess(face, script):
    """Exit code, signal, stdout and stderr are what subprocess.run gives."""
    theirs, ours = await both(face, ["sh", "-c", script], capture_output=True)
    assert ours == theirs


@pytest.mark.parametrize(
    "streams", [{"capture_output": True}, {"stdout": PIPE}, {"stderr": PIPE}, {"stdout": PIPE, "stderr": STDOUT}]
)
@pytest.mark.parametrize(("out", "err"), [(0, 0), (1, 0), (0, 7), (3072, 0), (1536, 1537), (65536, 0), (70000, 70000)])
async def test_short_and_long_output_is_that_of_subprocess(face, out, err, streams):
    """What a command printed is whole, on either side of the size that travels with the word of its exit."""
    script = f"head -c {out} /dev/zero; head -c {err} /dev/zero | tr '\\0' e >&2"
    streams = {"stdout": DEVNULL, "stderr": DEVNULL, **streams} if "capture_output" not in streams else streams
    theirs, ours = await both(face, ["sh", "-c", script], **streams)
    assert ours == theirs


async def test_short_output_comes_with_the_word_of_the_exit(face, monkeypatch):
    """A short command that prints little is over with one message from the zygote, at least now and then."""
    kinds = []
    receive = Connection.receive

    def note(self, **options):
        message, fds = receive(self, **options)
        kinds.append((message[0], len(fds)))
        return message, fds

    await face.run(["true"])
    monkeypatch.setattr(Connection, "receive", note)
    for _ in range(200):  # on a busy machine the moment may be over first
        kinds.clear()
        result = await face.run(["printf", "x"], capture_output=True)
        assert (result.stdout, result.stderr) == (b"x", b"")
        if kinds == [(wire.EXITED, 0)]:
            break
    else:
        pytest.fail(f"never; the last time it was {kinds}")


async def test_output_is_whole_whichever_way_it_came(face):
    """A command that now ends within the moment and now outlasts it gives the same output."""
    script = "printf a; read -r seconds; [ -z $seconds ] || sleep $seconds; printf b; printf c >&2"
    for seconds in ("", "0.01", "0.01", "", "", "0.004", ""):
        result = await face.run(["sh", "-c", script], input=f"{seconds}\n".encode(), capture_output=True)
        assert (result.stdout, result.stderr) == (b"ab", b"c")


async def test_nothing_is_captured_unasked(face, capfd):
    """Without capture stdout and stderr are the application's, and None in the result."""
    result = await face.run(["sh", "-c", "echo out; echo err >&2"])
    assert (result.stdout, result.stderr) == (None, None)
    assert capfd.readouterr() == ("out\n", "err\n")


async def test_the_result_says_more_than_subprocess(face):
    """pid, duration, rusage and held_by are filled in; it is a subprocess.CompletedProcess all the same."""
    result = await face.run(["sh", "-c", "echo $$; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done"], stdout=PIPE)
    assert isinstance(result, subprocess.CompletedProcess)
    assert result.pid == int(result.stdout)
    assert 0 < result.duration < 30
    assert result.rusage.ru_utime + result.rusage.ru_stime > 0
    assert result.rusage.ru_maxrss > 100  # KiB: no program is smaller
    assert result.held_by == ()
    assert result.args[0] == "sh"
    theirs = subprocess.CompletedProcess(result.args, 0, result.stdout)
    assert repr(result) == repr(theirs)


@pytest.mark.parametrize(
    "options",
    [
        {"text": True},
        {"universal_newlines": True},
        {"encoding": "utf-8"},
        {"encoding": "latin-1"},
        {"encoding": "utf-16"},
        {"errors": "replace"},
        {"errors": "surrogateescape"},
        {"encoding": "ascii", "errors": "backslashreplace"},
    ],
    ids=repr,
)
async def test_text_is_decoded_as_subprocess_does(face, options):
    """Encodings, error handlers and all three kinds of line ends give the same str, or the same error."""
    text = "häß\r\nzwei\rdrei\n\x85\u2028end".encode(options.get("encoding", "utf-8"), "replace")
    script = f"import sys; sys.stdout.buffer.write({text!r}); sys.stderr.buffer.write(b'e\\r\\n')"
    if options.get("encoding") == "utf-16":
        script = f"import sys; sys.stdout.buffer.write({text!r})"
    theirs, ours = await both(face, [*PYTHON, "-c", script], capture_output=True, **options)
    assert ours == theirs


async def test_undecodable_output_raises_as_in_subprocess(face):
    """Output that is no text raises UnicodeDecodeError in text mode."""
    with pytest.raises(UnicodeDecodeError):
        await face.run(["printf", "\\377"], stdout=PIPE, encoding="utf-8")


@pytest.mark.parametrize("text", ["", "one line\n", "zwölf\r\nkeks\n", "no end"])
async def test_text_input_is_encoded_as_subprocess_does(face, text):
    """A str given as input reaches the child in the encoding."""
    for options in ({"text": True}, {"encoding": "utf-16-le"}):
        theirs, ours = await both(face, ["od", "-c"], input=text, stdout=PIPE, **options)
        if options.get("encoding"):
            theirs, ours = await both(face, ["cat"], input=text, stdout=PIPE, **options)
        assert ours == theirs


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 1 * MEGABYTE, 3 * MEGABYTE])
async def test_input_of_any_size_arrives_whole(face, size):
    """Input smaller, equal and larger than a pipe comes back as it was."""
    data = os.urandom(size)
    result = await face.run(["cat"], input=data, stdout=PIPE)
    assert result.stdout == data


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_input_is_any_bytes_like_object(face, kind):
    """bytes, bytearray and memoryview are all input."""
    assert (await face.run(["cat"], input=kind(b"some bytes"), stdout=PIPE)).stdout == b"some bytes"


@pytest.mark.parametrize("size", [1000, 65536, 5 * MEGABYTE])
async def test_a_child_that_does_not_read_its_input_is_no_error(face, size):
    """A child that ends, or closes its stdin, before it has read its input leaves its own result, as in subprocess."""
    for script in ("exit 3", "exec <&-; echo closed; exit 4", "head -c 10 >/dev/null; echo some; exit 5"):
        theirs, ours = await both(face, ["sh", "-c", script], input=b"x" * size, capture_output=True)
        assert ours == theirs


async def test_both_directions_at_once(face):
    """Thirty megabytes go in while the same come out of stdout and as many of stderr, without a deadlock."""
    data = os.urandom(MEGABYTE) * 30
    result = await face.run(["sh", "-c", "tee /dev/stderr"], input=data, capture_output=True, timeout=60)
    assert result.stdout == data
    assert result.stderr == data


async def test_stdin_pipe_without_input_is_empty(face):
    """stdin=PIPE with nothing to write gives the child the end of file at once, as in subprocess."""
    theirs, ours = await both(face, ["wc", "-c"], stdin=PIPE, stdout=PIPE)
    assert ours == theirs == (0, b"0\n", None)


async def test_the_streams_that_are_no_pipes(face, tmp_path):
    """DEVNULL, STDOUT, files, descriptors and whatever has fileno() serve as streams."""
    assert (await face.run(["cat"], stdin=DEVNULL, stdout=PIPE)).stdout == b""
    both_kinds = ["sh", "-c", "echo out; echo err >&2"]
    assert (await face.run(both_kinds, stdout=PIPE, stderr=STDOUT)).stdout == b"out\nerr\n"
    assert (await face.run(both_kinds, stdout=DEVNULL, stderr=PIPE)).stderr == b"err\n"
    with open(tmp_path / "file", "w+b") as file:
        result = await face.run(both_kinds, stdout=file, stderr=STDOUT)
        assert (result.stdout, result.stderr) == (None, None)
        file.seek(0)
        assert file.read() == b"out\nerr\n"
        file.seek(0)
        assert (await face.run(["cat"], stdin=file, stdout=PIPE)).stdout == b"out\nerr\n"
        file.seek(4)
        assert (await face.run(["cat"], stdin=file.fileno(), stdout=PIPE)).stdout == b"err\n"


async def test_stderr_to_stdout_of_the_application(face, capfd):
    """stderr=STDOUT follows an inherited stdout."""
    await face.run(["sh", "-c", "echo err >&2"], stderr=STDOUT)
    assert capfd.readouterr() == ("err\n", "")


async def test_stdout_and_stderr_may_be_swapped(face, capfd):
    """stdout=2, stderr=1 crosses the application's streams."""
    await face.run(["sh", "-c", "echo out; echo err >&2"], stdout=2, stderr=1)
    assert capfd.readouterr() == ("err\n", "out\n")


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"stdout": STDOUT}, ValueError),
        ({"stdin": STDOUT}, ValueError),
        ({"stdout": "a name"}, TypeError),
        ({"stdin": io.BytesIO(b"")}, OSError),
        ({"stdout": 999}, OSError),
        ({"stdout": -7}, ValueError),
        ({"input": b"x", "stdin": DEVNULL}, ValueError),
        ({"capture_output": True, "stdout": PIPE}, ValueError),
        ({"capture_output": True, "stderr": DEVNULL}, ValueError),
        ({"input": "text"}, TypeError),
        ({"input": b"bytes", "text": True}, TypeError),
        ({"input": 7}, TypeError),
        ({"timeout": "soon"}, TypeError),
        ({"text": True, "universal_newlines": False}, ValueError),
        ({"max_output_bytes": -1}, ValueError),
    ],
    ids=repr,
)
async def test_streams_and_options_that_cannot_work(face, options, kind):
    """A stream, input or timeout that cannot work raises the standard class before anything runs."""
    before = safespawn.statistics()["zygote"]["started"]
    with pytest.raises(kind):
        await face.run(["true"], **options)
    assert safespawn.statistics()["zygote"]["started"] == before


async def test_a_closed_file_is_refused(face):
    """A closed file as a stream raises ValueError, as in subprocess."""
    with tempfile.TemporaryFile() as file:
        pass
    with pytest.raises(ValueError, match="closed file"):
        await face.run(["true"], stdin=file)


async def test_check(face):
    """check=True raises for an exit code and for a signal what subprocess raises, and nothing for zero."""
    await face.run(["true"], check=True)
    for script in ("echo out; echo err >&2; exit 3", "kill -9 $$"):
        args = ["sh", "-c", script]
        with pytest.raises(subprocess.CalledProcessError) as theirs:
            subprocess.run(args, check=True, capture_output=True)
        with pytest.raises(safespawn.CalledProcessError) as ours:
            await face.run(args, check=True, capture_output=True)
        assert isinstance(ours.value, subprocess.CalledProcessError)
        for name in ("returncode", "cmd", "stdout", "stderr", "output"):
            assert getattr(ours.value, name) == getattr(theirs.value, name)
        assert str(ours.value).splitlines()[0] == str(theirs.value)
        assert ours.value.pid > 0
        assert ours.value.rusage is not None


async def test_check_returncode(face):
    """check_returncode() of the result raises as check=True does."""
    (await face.run(["true"])).check_returncode()
    with pytest.raises(safespawn.CalledProcessError) as failure:
        (await face.run(["sh", "-c", "echo out; exit 9"], stdout=PIPE)).check_returncode()
    assert (failure.value.returncode, failure.value.stdout) == (9, b"out\n")


async def test_check_output(face):
    """check_output gives stdout, in text or bytes, takes input=None as empty, and raises on failure."""
    assert await face.check_output(["echo", "x"]) == b"x\n"
    assert await face.check_output(["echo", "x"], text=True) == "x\n"
    assert await face.check_output(["cat"], input=None) == subprocess.check_output(["cat"], input=None) == b""
    assert await face.check_output(["cat"], input=None, text=True) == ""
    assert await face.check_output(["sh", "-c", "echo err >&2"], stderr=STDOUT) == b"err\n"
    with pytest.raises(safespawn.CalledProcessError) as failure:
        await face.check_output(["sh", "-c", "echo x; exit 2"])
    assert failure.value.output == b"x\n"
    for name in ("stdout", "check"):
        with pytest.raises(ValueError, match=name):
            await face.check_output(["true"], **{name: True})


def test_call_and_check_call():
    """`call` gives the exit code; check_call raises for one that is not zero."""
    assert safespawn.call(["sh", "-c", "exit 7"]) == 7
    assert safespawn.check_call(["true"]) == 0
    with pytest.raises(safespawn.CalledProcessError) as failure:
        safespawn.check_call(["false"])
    assert failure.value.returncode == 1


@pytest.mark.parametrize(
    "options",
    [
        {"args": 'echo $((1+2)); echo "$0"'},
        {"args": b"echo bytes"},
        {"args": ["echo $0 $1", "zero", "one"]},
        {"args": "echo $0", "executable": "/bin/bash"},
        {"args": "exit 9"},
        {"args": "no-such-command-anywhere"},
        {"args": ""},
    ],
    ids=repr,
)
async def test_shell(face, options):
    """shell=True runs what subprocess runs: one string, a sequence with positional parameters, another shell."""
    theirs, ours = await both(face, shell=True, capture_output=True, **options)
    assert ours == theirs


async def test_executable(face):
    """executable= is what runs; args[0] is only its name."""
    for options in ({"executable": "/bin/sh"}, {"executable": "sh"}, {"executable": b"/bin/sh"}):
        theirs, ours = await both(face, ["another name", "-c", "echo $0"], stdout=PIPE, **options)
        assert ours == theirs == (0, b"another name\n", None)


async def test_arguments_arrive_byte_for_byte(face):
    """str, bytes, paths, surrogates, empty and odd arguments reach the program as they are."""
    odd = ["", " ", "a b", "'\"\\$`*?", "ü", "\udcff\udc80", "-", "\n", "x" * 10000, b"\xff\xfe", os.path]
    odd[-1] = __import__("pathlib").Path("/a path")
    theirs, ours = await both(face, ["printf", "%s|", *odd], stdout=PIPE)
    assert ours == theirs


async def test_a_tuple_a_generator_and_a_path_are_commands(face):
    """Any iterable of words is a command; so is one path."""
    assert (await face.run(("echo", "tuple"), stdout=PIPE)).stdout == b"tuple\n"
    assert (await face.run(iter(["echo", "iterator"]), stdout=PIPE)).stdout == b"iterator\n"
    assert (await face.run(__import__("pathlib").Path("/bin/true"))).returncode == 0


async def test_on_line(face):
    """on_line is called with each line without its end, the last one included, while the child runs."""
    lines = []
    result = await face.run(["printf", "one\\ntwo\\n\\nlast"], on_line=lines.append)
    assert lines == [b"one", b"two", b"", b"last"]
    assert result.stdout is None
    lines.clear()
    result = await face.run(
        ["printf", "eins\\r\\nzw\\303\\266lf\\rdrei"], on_line=lines.append, stdout=PIPE, text=True, encoding="utf-8"
    )
    assert lines == ["eins", "zwölf", "drei"]
    assert result.stdout == "eins\nzwölf\ndrei"


async def test_on_line_sees_a_line_before_the_child_ends(face):
    """The first line is there while the child still waits for what the callback does."""
    with tempfile.TemporaryDirectory() as folder:
        fifo = os.path.join(folder, "fifo")
        os.mkfifo(fifo)
        holder = os.open(fifo, os.O_RDWR)  # so that nobody waits for the other side to open

        def answer(line):
            os.write(holder, b"answer to " + line + b"\n")

        try:
            script = 'echo question; read reply <"$0"; echo "$reply" >&2'
            result = await face.run(["sh", "-c", script, fifo], on_line=answer, stderr=PIPE, timeout=30)
        finally:
            os.close(holder)
    assert result.stderr == b"answer to question\n"


async def test_an_error_in_on_line_ends_the_command(face):
    """An exception of the callback comes out as it is, and the command with its tree is gone."""
    pids = []

    def fail(line):
        pids.extend(map(int, line.split()))
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await face.run(["sh", "-c", "sleep 1000 & echo $$ $!; wait"], on_line=fail)
    assert len(pids) == 2
    assert survivors(pids) == []


async def test_on_line_that_cannot_work(face):
    """A callback that is none, or whose stdout goes elsewhere, is refused."""
    with pytest.raises(TypeError):
        await face.run(["true"], on_line="not callable")
    with pytest.raises(ValueError, match="on_line"):
        await face.run(["true"], on_line=print, stdout=DEVNULL)


async def test_a_coroutine_function_as_on_line_is_refused(async_face):
    """on_line is not awaited, so a coroutine function is refused with the other way to do it."""

    async def callback(line):
        raise AssertionError

    with pytest.raises(TypeError, match="async for"):
        await async_face.run(["true"], on_line=callback)


async def test_max_output_bytes(face):
    """A command that prints more than allowed is ended at once, and the error has what was allowed."""
    with pytest.raises(safespawn.errors.OutputLimitExceeded) as failure:
        await face.run(["yes"], stdout=PIPE, max_output_bytes=1000)
    assert failure.value.stdout == b"y\n" * 500
    assert (failure.value.stream, failure.value.limit_bytes) == ("stdout", 1000)
    assert survivors([failure.value.pid]) == []
    with pytest.raises(safespawn.errors.OutputLimitExceeded) as failure:
        await face.run(["sh", "-c", "yes >&2"], capture_output=True, max_output_bytes=10, text=True)
    assert failure.value.stderr == "y\n" * 5
    assert failure.value.stream == "stderr"


async def test_output_within_the_limit_is_no_error(face):
    """Exactly as many bytes as allowed pass."""
    assert (await face.run(["printf", "12345"], stdout=PIPE, max_output_bytes=5)).stdout == b"12345"


async def test_large_output_is_whole(face):
    """A hundred megabytes of output come whole."""
    result = await face.run(["head", "-c", str(100 * MEGABYTE), "/dev/zero"], stdout=PIPE)
    is_whole = result.stdout == bytes(100 * MEGABYTE)  # in one short step: the loop stands still meanwhile
    assert is_whole, len(result.stdout)


async def test_an_interpreter_that_uses_its_stdin_as_a_script(face):
    """A program that reads its script from stdin reads all of it."""
    result = await face.run([sys.executable, "-I", "-S"], input=b"print(6 * 7)\n", stdout=PIPE)
    assert result.stdout == b"42\n"


async def test_a_child_with_many_results_in_a_row(face):
    """A hundred commands in a row each have their own result."""
    for number in range(100):
        assert (await face.run(["sh", "-c", f"exit {number}"])).returncode == number


async def test_a_stopped_child_is_waited_for(face):
    """A child that stops itself has not ended; woken by another process it ends with its own status."""
    script = "(sleep 0.05; kill -CONT $$) & kill -STOP $$; exit 6"
    assert (await face.run(["sh", "-c", script])).returncode == 6


async def test_sigpipe_ends_a_child_as_in_a_shell(face):
    """A child writes into a pipe that nobody reads and dies of SIGPIPE, since that is not ignored there."""
    result = await face.run(["bash", "-c", "yes | head -n 1; echo ${PIPESTATUS[0]}"], stdout=PIPE)
    assert result.stdout == b"y\n%d\n" % (128 + signal.SIGPIPE)


async def test_the_arguments_of_the_audit_event(face):
    """Each start raises the audit event subprocess.Popen with the command, before it runs."""
    result = await face.run(program("audit.py", face.name), stdout=PIPE, env=ENV)
    assert result.stdout == b"[('echo', ['echo', 'heard'], None, None)]\n"


# --- what is over before it was announced ----------------------------------------------------------------------------
@pytest.fixture
def fresh(tmp_path):
    """Makes a shell script of a name that the zygote has not seen: it is not announced before its moment is over."""

    def make(text):
        path = tmp_path / f"script-{len(list(tmp_path.iterdir()))}"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return make


async def test_the_output_of_a_quick_leader_is_not_over_while_somebody_holds_it(face, fresh):
    """What its child in the background writes later belongs to the output, also where the leader took a millisecond."""
    for options in ({}, {"user": os.getuid()}):
        result = await face.run([fresh("(sleep 0.05; echo late) & echo early")], stdout=PIPE, wait_eof=True, **options)
        assert (result.returncode, result.stdout, result.held_by) == (0, b"early\nlate\n", ())


async def test_who_holds_the_output_of_a_quick_leader_is_told(face, fresh):
    """One that stays behind with the pipe is named, and what was printed is there."""
    result = await face.run([fresh("sleep 60 & echo $!; exit 3")], stdout=PIPE, stderr=STDOUT)
    assert (result.returncode, result.held_by) == (3, (int(result.stdout),))
    os.kill(int(result.stdout), signal.SIGKILL)
    reap_orphans()
