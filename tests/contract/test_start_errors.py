"""
Commands that cannot start: the class, errno and filename are subprocess's, and nothing is left of them.
"""

# ruff: noqa: ASYNC221, ASYNC230 - subprocess is asked the same beside it; local files do not block

import errno
import os
import shutil
import subprocess

import pytest

import safespawn
from safespawn import PIPE
from support.children import both


@pytest.fixture
def folder(tmp_path):
    """
    A folder of things that are no programs.
    """
    (tmp_path / "text").write_text("no program\n")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "garbage").write_bytes(b"\x7fELF garbage\n")
    (tmp_path / "orphan").write_text("#!/no/such/interpreter\n")
    (tmp_path / "dos").write_text("#!/bin/sh\r\necho\r\n", newline="")
    (tmp_path / "noshebang").write_text("echo no first line\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for name in ("empty", "garbage", "orphan", "dos", "noshebang"):
        (tmp_path / name).chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "missing", "text", "empty", "garbage", "orphan", "dos", "noshebang", "folder", "dangling", "loop",
        "text/below", "missing/below", "",
    ],
)  # fmt: skip
async def test_what_cannot_be_executed(face, folder, name):
    """A file that is none, no program, or without its interpreter raises what subprocess raises, by path."""
    path = str(folder / name) if name else ""
    theirs, ours = await both(face, [path, "argument"])
    assert ours == theirs
    assert theirs["errno"]


@pytest.mark.parametrize(
    "name", ["missing-everywhere", "text", "folder", "noshebang", "orphan", "dangling", "~/bin/x", "a\nb"]
)
async def test_what_cannot_be_executed_in_path(face, folder, name):
    """The same through PATH, where subprocess takes the child's."""
    theirs, ours = await both(face, [name], env={"PATH": f"/no/such/folder:{folder}:/bin"})
    assert ours == theirs
    assert theirs["errno"]


@pytest.mark.parametrize("name", ["missing", "text", "folder/missing", "text/below", "loop"])
@pytest.mark.parametrize("form", [str, os.fsencode, os.fspath, "path"], ids=["str", "bytes", "fspath", "Path"])
async def test_a_cwd_that_is_none(face, folder, name, form):
    """A working directory that is missing or no directory raises subprocess's error, with the directory as filename."""
    path = folder / name if form == "path" else form(folder / name)
    with pytest.raises(OSError, match=name.split("/")[0]) as theirs:
        subprocess.run(["true"], cwd=path, check=False)
    with pytest.raises(type(theirs.value)) as ours:
        await face.run(["true"], cwd=path)
    assert ours.value.errno == theirs.value.errno
    assert os.fspath(ours.value.filename) == os.fsdecode(theirs.value.filename)
    assert ours.value.stage == "cwd"


async def test_the_first_error_that_says_more_than_missing(face, tmp_path):
    """A file in PATH that may not be executed decides the error, unless a later one runs."""
    for name in ("first", "second", "third"):
        (tmp_path / name).mkdir()
    (tmp_path / "first" / "tool").mkdir()
    path = os.pathsep.join(str(tmp_path / name) for name in ("nowhere", "first", "second", "third"))
    theirs, ours = await both(face, ["tool"], env={"PATH": path})
    assert ours == theirs
    assert theirs["errno"] == errno.EACCES
    (tmp_path / "third" / "tool").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "third" / "tool").chmod(0o755)
    theirs, ours = await both(face, ["tool"], env={"PATH": path}, stdout=PIPE)
    assert ours == theirs == (0, b"found\n", None)


async def test_the_first_program_in_path_wins(face, tmp_path):
    """Of several programs of one name the first in the child's PATH runs; the application's PATH does not count."""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tool").write_text(f"#!/bin/sh\necho {name}\n")
        (tmp_path / name / "tool").chmod(0o755)
    for order in (("first", "second"), ("second", "first")):
        path = os.pathsep.join(str(tmp_path / name) for name in order)
        theirs, ours = await both(face, ["tool"], env={"PATH": path}, stdout=PIPE)
        assert ours == theirs == (0, f"{order[0]}\n".encode(), None)


async def test_without_path_the_default_one_counts(face):
    """An environment without PATH searches os.defpath, as subprocess does; an empty one searches the child's cwd."""
    theirs, ours = await both(face, ["echo", "x"], env={}, stdout=PIPE)
    assert ours == theirs == (0, b"x\n", None)
    theirs, ours = await both(face, ["echo", "x"], env={"PATH": ""}, stdout=PIPE)
    assert ours == theirs
    assert theirs["errno"] == errno.ENOENT


async def test_relative_entries_count_from_the_childs_cwd(face, tmp_path):
    """A relative directory in PATH, an empty one, and a relative program are looked up where the child runs."""
    (tmp_path / "bin").mkdir()
    for place in ("bin/tool", "here"):
        (tmp_path / place).write_text('#!/bin/sh\necho "$0"\n')
        (tmp_path / place).chmod(0o755)
    for args, path in (
        (["tool"], "bin"),
        (["tool"], "./bin"),
        (["here"], ":/bin"),
        (["here"], "/bin:"),
        (["bin/tool"], "/bin"),
    ):
        theirs, ours = await both(face, args, env={"PATH": path}, cwd=tmp_path, stdout=PIPE)
        assert ours == theirs
        assert theirs[0] == 0


@pytest.mark.parametrize("size", [131_071, 131_072])
async def test_one_long_argument(face, size):
    """One argument may have 131,071 bytes; with one more the kernel says E2BIG, as to subprocess."""
    theirs, ours = await both(face, ["sh", "-c", "echo ${#1}", "sh", "x" * size], stdout=PIPE)
    assert ours == theirs
    if size == 131_071:
        assert ours == (0, b"131071\n", None)
    else:
        assert theirs["errno"] == errno.E2BIG


async def test_many_long_arguments(face):
    """A megabyte of arguments runs; nine, more than any kernel takes, are E2BIG."""
    words = ["x" * 100_000] * 10
    theirs, ours = await both(face, ["sh", "-c", "echo $#", "sh", *words], stdout=PIPE)
    assert ours == theirs == (0, b"10\n", None)
    theirs, ours = await both(face, ["sh", "-c", "echo $#", "sh", *words * 9], stdout=PIPE)
    assert ours == theirs
    assert theirs["errno"] == errno.E2BIG


async def test_a_large_environment(face):
    """An environment far larger than a datagram arrives whole; one variable of 131,072 bytes is E2BIG."""
    env = {f"NAME{number}": "x" * 10_000 for number in range(60)}
    result = await face.run(["/usr/bin/env"], env=env, stdout=PIPE)
    assert sorted(result.stdout.split()) == sorted(f"{key}={value}".encode() for key, value in env.items())
    theirs, ours = await both(face, ["/usr/bin/env"], env={"NAME": "x" * 131_072})
    assert ours == theirs
    assert theirs["errno"] == errno.E2BIG


@pytest.mark.parametrize(
    ("args", "kind"),
    [
        ([], ValueError),
        ("ls -l", TypeError),
        (b"ls -l", TypeError),
        (["echo", 7], TypeError),
        (["echo", None], TypeError),
        ([["echo"]], TypeError),
        (7, TypeError),
        (None, TypeError),
        (["echo", "a\0b"], ValueError),
        (["a\0b"], ValueError),
        (["echo", b"\0"], ValueError),
        (["echo", "\ud800"], UnicodeEncodeError),
    ],
    ids=repr,
)
async def test_a_command_that_is_none(face, args, kind):
    """A command that is empty, one string, or has words that no program can get is refused before anything starts."""
    before = safespawn.statistics()["zygote"]
    with pytest.raises(kind):
        await face.run(args)
    with pytest.raises(kind):
        await face.open(args)
    after = safespawn.statistics()["zygote"]
    assert (after["started"], after["failed"]) == (before["started"], before["failed"])


async def test_a_string_is_refused_with_the_list_to_write(face):
    """The error for a string shows the list, and says how a shell is asked for."""
    with pytest.raises(TypeError, match="shell=True") as failure:
        await face.run("grep -r 'two words' .")
    assert "['grep', '-r', 'two words', '.']" in str(failure.value)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"env": {"A=B": "x"}}, ValueError),
        ({"env": {"": "x"}}, ValueError),
        ({"env": {"A": "x\0y"}}, ValueError),
        ({"env": {"A\0": "x"}}, ValueError),
        ({"env": {"A": 7}}, TypeError),
        ({"env": ["A=B"]}, TypeError),
        ({"cwd": "a\0b"}, ValueError),
        ({"cwd": 7}, TypeError),
        ({"executable": "a\0b"}, ValueError),
        ({"umask": 0o1000}, ValueError),
        ({"umask": "022"}, ValueError),
        ({"process_group": -5}, ValueError),
        ({"user": "no-such-user-anywhere"}, ValueError),
        ({"group": "no-such-group-anywhere"}, ValueError),
        ({"user": -1}, ValueError),
        ({"user": 2**40}, ValueError),
        ({"user": 1.5}, TypeError),
        ({"extra_groups": ["no-such-group-anywhere"]}, ValueError),
        ({"extra_groups": "root"}, ValueError),
        ({"rlimits": 7}, TypeError),
        ({"rlimits": {"RLIMIT_CPU": 1}}, ValueError),
        ({"rlimits": {7: (1, 2, 3)}}, ValueError),
        ({"rlimits": {7: 2**70}}, ValueError),
        ({"nice": "high"}, TypeError),
        ({"nice": 2**40}, ValueError),
        ({"affinity": []}, ValueError),
        ({"affinity": {-1}}, ValueError),
        ({"affinity": {"zero"}}, TypeError),
        ({"affinity": 1}, TypeError),
        ({"affinity": {2**40}}, ValueError),
        ({"process_group": 2**31}, ValueError),
        ({"process_group": 2**40}, ValueError),
        ({"ignore_signals": [32]}, ValueError),
        ({"pdeathsig": 0}, ValueError),
        ({"pdeathsig": 999}, ValueError),
        ({"ignore_signals": [9]}, ValueError),
        ({"ignore_signals": ["SIGTERM"]}, TypeError),
        ({"ignore_signals": 15}, TypeError),
        ({"pass_fds": [1]}, ValueError),
        ({"pass_fds": [999]}, OSError),
        ({"pass_fds": ["x"]}, TypeError),
        ({"pass_fds": 5}, TypeError),
        ({"close_fds": False}, ValueError),
        ({"pass_fds": range(3, 400)}, ValueError),
    ],
    ids=repr,
)
async def test_an_option_that_cannot_work(face, options, kind):
    """An option with a value of the wrong type or range is refused with its name, before anything starts."""
    before = safespawn.statistics()["zygote"]
    with pytest.raises(kind) as failure:
        await face.run(["true"], **options)
    assert isinstance(failure.value, (safespawn.SafespawnError, UnicodeError))
    assert next(iter(options)) in str(failure.value)
    after = safespawn.statistics()["zygote"]
    assert (after["started"], after["failed"]) == (before["started"], before["failed"])


async def test_preexec_fn_is_refused_with_its_replacements(face):
    """preexec_fn is refused, and the error lists the options that do the same."""
    with pytest.raises(safespawn.errors.UnsupportedOption) as failure:
        await face.run(["true"], preexec_fn=os.setsid)
    for name in ("start_new_session", "process_group", "user", "umask", "rlimits", "nice", "pdeathsig"):
        assert name in failure.value.replacements
        assert name in str(failure.value)
    await face.run(["true"], preexec_fn=None)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("capture_outputs", "capture_output"),
        ("time_out", "timeout"),
        ("pass_fd", "pass_fds"),
        ("enviroment", None),
        ("new_session", "start_new_session"),
        ("max_output", "max_output_bytes"),
    ],
)
async def test_an_unknown_option_is_refused_with_the_nearest(face, wrong, right):
    """A misspelt option raises TypeError, which names the one that was meant, be it of the process or of run."""
    with pytest.raises(TypeError, match=wrong) as failure:
        await face.run(["true"], **{wrong: True})
    if right:
        assert repr(right) in str(failure.value)


async def test_options_of_run_are_not_taken_by_open(face):
    """timeout, check and input belong to run: a process that is opened refuses them."""
    for name in ("timeout", "check", "input", "capture_output", "on_line", "max_output_bytes"):
        with pytest.raises(TypeError, match=name) as failure:
            await face.open(["true"], **{name: None})
        assert "run() takes it" in str(failure.value)


async def test_a_failed_start_leaves_the_next_one_alone(face):
    """After fifty failed starts of each kind commands run as before, from the same zygote."""
    boots = safespawn.statistics()["boots"]
    for _ in range(50):
        with pytest.raises(FileNotFoundError):
            await face.run(["no-such-program"], input=b"x", capture_output=True)
        with pytest.raises(FileNotFoundError):
            await face.run(["no-such-program"], nice=1, input=b"x", capture_output=True)
        with pytest.raises(FileNotFoundError):
            await face.open(["no-such-program"], stdin=PIPE, stdout=PIPE)
    assert (await face.run(["echo", "well"], stdout=PIPE)).stdout == b"well\n"
    assert safespawn.statistics()["boots"] == boots


@pytest.mark.parametrize("options", [{}, {"user": 12345} if os.getuid() == 0 else {"group": os.getgid()}], ids=repr)
async def test_a_program_that_is_being_written_is_the_error_that_subprocess_has(face, tmp_path, options):
    """A program that somebody keeps open for writing does not start (ETXTBSY, on most kernels); later it does."""
    tool = shutil.copy("/bin/true", tmp_path / "tool")
    tmp_path.chmod(0o755)
    with open(tool, "ab"):
        theirs, ours = await both(face, [str(tool)], **options)
    assert ours == theirs
    assert (await face.run([str(tool)])).returncode == 0
