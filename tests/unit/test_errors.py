"""The error tree: what every class of it keeps to, and what the help says in the well-known cases."""

import ast
import builtins
import copy
import errno
import os
import pickle
import resource
import stat
import subprocess
from pathlib import Path

import pytest

from safespawn import errors
from safespawn._core.explain import spawn_error

DOCS = Path(__file__).parents[2] / "docs" / "errors.md"

RUSAGE = resource.getrusage(resource.RUSAGE_SELF)


def walk(cls):
    """Yield every class of errors.py below *cls*; those of pools have a test of their own."""
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from walk(child)


PUBLIC = sorted(
    {c for c in (errors.SafespawnError, *walk(errors.SafespawnError)) if not c.__name__.startswith("_")},
    key=lambda c: c.__name__,
)
NEVER_RAISED = {errors.SafespawnError, errors.BrokenError}  # for `except` clauses: they have no facts

SAMPLES = {
    errors.SafespawnError: lambda c: c("something happened", known=("a", "b\nc"), help="do"),
    errors.BrokenError: lambda c: c("something broke", help="do"),
    errors.BadArgument: lambda c: c(errors.NULL_BYTE, parameter="args[1]", value="a\0b", known=("more",)),
    errors.BadArgumentType: lambda c: c("not a string", parameter="args", value=12, help="pass a list"),
    errors.UnsupportedOption: lambda c: c("preexec_fn"),
    errors.ClosedError: lambda c: c("Supervisor 'web'", known=("since 3 s",)),
    errors.ForeignCopy: lambda c: c("Supervisor 'web'", owner_pid=10, pid=11),
    errors.OrderError: lambda c: c("os.fork", threads=("'a', started at x.py:1", "'b'")),
    errors.UnsafeStart: lambda c: c(
        "os.fork()", kind="fork", place=("x.py", 3), threads=("'a'",), imports=("plugin (x.py:1)",), known=("more",)
    ),
    errors.CalledProcessError: lambda c: c(
        -9,
        ["x"],
        b"out",
        b"1\n2\n3\n4\n",
        pid=7,
        duration=0.25,
        rusage=resource.getrusage(0),
        known=("more",),
    ),
    errors.TimeoutExpired: lambda c: c("x y", 1.5, "out\n", None, pid=7, held_by=(8, 9)),
    errors.OutputLimitExceeded: lambda c: c(["x"], limit_bytes=10, stream="stdout", stdout=b"0123", pid=7),
    errors.Unkillable: lambda c: c(7, seconds=3.0, state="D", wchan="rpc_wait_bit_killable"),
    errors.BootError: lambda c: c(executable="/usr/bin/python3", exit_status=-11, output="oops", seconds=2.0),
    errors.SpawnLost: lambda c: c(["x", b"y"], stage="running", pid=7, zygote_pid=5, zygote_status=-9),
    errors.ZygoteUnresponsive: lambda c: c(
        ["x"], seconds=5.0, stage="before start", zygote_state="T", wchan="do_signal_stop", zygote_pid=5
    ),
    errors.ProtocolError: lambda c: c("two hellos"),
    errors.LocalProtocolError: lambda c: c("two hellos"),
    errors.RemoteProtocolError: lambda c: c("two hellos", known=("message 3",)),
}


def sample(cls):
    """Make one error of *cls*, with every fact that it can have."""
    if issubclass(cls, errors.SpawnError):
        number = next(n for n in (errno.EIO, *errno.errorcode) if issubclass(cls, type(OSError(n, ""))))
        return cls(number, None, "nope", stage="exec", argv=["nope", b"x"], known=("a",), help="do")
    return SAMPLES[cls](cls)


def standard_text(error):
    """What the standard class says of the same thing."""
    if isinstance(error, OSError):
        return str(OSError(*error.args, *([error.filename] if error.filename is not None else [])))
    if isinstance(error, subprocess.CalledProcessError):
        return str(subprocess.CalledProcessError(error.returncode, error.cmd))
    if isinstance(error, subprocess.TimeoutExpired):
        return str(subprocess.TimeoutExpired(error.cmd, error.timeout))
    return str(error.args[0])


def copies(error):
    """Yield a copy of each kind that Python knows."""
    yield copy.copy(error)
    yield copy.deepcopy(error)
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        yield pickle.loads(pickle.dumps(error, protocol))


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda c: c.__name__)
def test_every_error_keeps_the_promises(cls):
    """An error of each class has facts, an anchor and the shape, and survives pickling and copying whole."""
    error = sample(cls)
    assert type(error) is cls
    assert cls in NEVER_RAISED or error.facts()
    assert all(getattr(error, name) == value for name, value in error.facts().items())
    assert f"\n## {cls.slug}\n" in DOCS.read_text(encoding="utf-8")

    lines = str(error).split("\n")
    assert lines[0] == standard_text(error)
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


def test_a_fact_set_later_is_copied_too():
    """What the caller adds to an error after it was made is in its copies."""
    error = errors.CalledProcessError(1, ["x"])
    error.stdout, error.here = b"late", "also"
    assert [(e.output, e.here) for e in copies(error)] == [(b"late", "also")] * 6


class Odd(errors.SpawnLost):
    """A user's subclass, with a constructor of its own."""

    def __init__(self, job):
        super().__init__(["x"], stage=f"job {job}")
        self.job = job


def test_a_subclass_with_another_constructor_is_copied():
    """A subclass pickles and copies although its constructor takes other parameters."""
    assert [(e.job, e.stage, str(e)) for e in copies(Odd(3))] == [(3, "job 3", str(Odd(3)))] * 6


def test_the_anchors_are_all_in_use():
    """docs/errors.md has one section for each slug, and none for anything else."""
    from safespawn import child_errors, pool_errors

    pools = {
        c.slug
        for module in (child_errors, pool_errors)
        for c in vars(module).values()
        if getattr(c, "__module__", "") == module.__name__ and hasattr(c, "slug")
    }
    text = DOCS.read_text(encoding="utf-8")
    sections = [line[3:] for line in text.splitlines() if line.startswith("## ")]
    of_warnings = {"thread-order-warning", "unsafe-start-warning"}
    assert sorted(sections) == sorted({c.slug for c in PUBLIC} | pools | of_warnings)


def test_nothing_is_said_where_nothing_is_known():
    """An error without facts and help is its first line and no other."""
    assert str(errors.SafespawnError("it happened")) == "it happened"
    assert str(errors.SpawnError(errno.EIO, stage="exec")) == "[Errno 5] Input/output error"


# --- the classes of OSError


BUILT_IN = [c for c in vars(builtins).values() if isinstance(c, type) and issubclass(c, OSError)]


@pytest.mark.parametrize("stage", ["exec", "cwd", "fork", "fds", "user"])
def test_each_errno_has_the_class_that_oserror_gives_it(stage):
    """For every errno of the system, `except` clauses for the standard class catch ours as well."""
    for number in errno.errorcode:
        error = spawn_error(number, "nope", stage=stage, argv=["nope"])
        standard = OSError(number, os.strerror(number), "nope")
        assert isinstance(error, errors.SpawnError)
        assert [c for c in BUILT_IN if isinstance(error, c)] == [c for c in BUILT_IN if isinstance(standard, c)]
        assert str(error).split("\n")[0] == str(standard)
        for name in ("errno", "strerror", "filename", "args"):
            assert getattr(error, name) == getattr(standard, name)
        assert error.help


@pytest.mark.parametrize("filename", ["nope", b"nope", "a\udcff", None])
def test_the_filename_is_told_as_the_standard_class_tells_it(filename):
    """Names as str, bytes, undecodable or absent give the standard first line."""
    error = spawn_error(errno.ENOENT, filename, stage="exec", argv=["nope"])
    standard = OSError(2, os.strerror(2), filename) if filename is not None else OSError(2, os.strerror(2))
    assert str(error).split("\n")[0] == str(standard)
    assert error.filename == standard.filename
    assert "\n".join(str(error).split("\n")[1:]).encode()  # our own lines can be printed anywhere


def test_a_missing_directory_is_not_called_a_missing_command():
    """ENOENT is CommandNotFound when the program is missing, and SpawnNotFound when cwd is."""
    assert type(spawn_error(errno.ENOENT, "x", stage="exec")) is errors.CommandNotFound
    assert type(spawn_error(errno.ENOENT, "/x", stage="cwd")) is errors.SpawnNotFound
    assert type(spawn_error(errno.EPERM, "x", stage="exec")) is errors.CommandNotExecutable
    assert type(spawn_error(errno.EPERM, None, stage="user")) is errors.SpawnDenied


# --- the advice for a failed start


def explain(number, filename, **kwargs):
    """Return the text of a failed start."""
    kwargs = {"stage": "exec", "argv": [filename], **kwargs}
    return str(spawn_error(number, filename, **kwargs))


def make(path, content, mode=0o755):
    """Write a file and return its name."""
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def test_a_name_that_is_not_in_path(tmp_path):
    """A bare name that PATH does not have is told with the PATH that was searched."""
    text = explain(errno.ENOENT, "nope", path=f"{tmp_path}:/nowhere")
    assert "no such file in the 2 directories of PATH" in text
    assert f"'{tmp_path}:/nowhere'" in text
    assert "PATH is empty" in explain(errno.ENOENT, "nope", path="")
    assert "give the program's absolute path, or a PATH" in explain(errno.ENOENT, "nope", path="")


@pytest.mark.parametrize(
    ("argv", "advice"),
    [
        (["ls -l"], "['ls', '-l']"),
        (["~/bin/x"], "only a shell expands"),
        ([""], "put the program's name first"),
    ],
)
def test_a_name_that_only_a_shell_would_understand(argv, advice):
    """A whole command line, a tilde and an empty name each get the advice that fits."""
    assert advice in explain(errno.ENOENT, argv[0], argv=argv)


def test_a_path_that_does_not_exist(tmp_path):
    """The topmost directory that is missing is named; a relative path is looked up in the given cwd."""
    assert f"{str(tmp_path / 'a')!r} does not exist" in explain(errno.ENOENT, str(tmp_path / "a/b/c"))
    text = explain(errno.ENOENT, "a/b", cwd=str(tmp_path))
    assert f"{str(tmp_path / 'a')!r} does not exist" in text
    assert f"starts from {str(tmp_path)!r}" in text


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"#!/no/such/python -u\n", "the interpreter in its first line, '/no/such/python', does not"),
        (b"#! /bin/sh\r\necho\r\n", "its first line ends with CR"),
        (
            b"\x7fELF" + bytes(400) + b"/lib/ld-none.so.1\0\0",
            "the loader that it asks for, '/lib/ld-none.so.1'",
        ),
        (b"#!/bin/sh\n", "exists by now"),
        (b"\x7fELF" + bytes(400), "exists by now"),
        (b"\x7fELF" + b"\1" * 400, "exists by now"),
        (b"#!\t/no/such/python\t-u\nx y\n", "the interpreter in its first line, '/no/such/python', does not"),
        (b"#! /no/such/python -u -v\n\n", "the interpreter in its first line, '/no/such/python', does not"),
        (b"#!/no/such/X \n", "the interpreter in its first line, '/no/such/X', does not"),
        (b"#!/no/such/X\ny z\n", "the interpreter in its first line, '/no/such/X', does not"),
    ],
)
def test_a_program_that_exists_and_is_not_found(tmp_path, content, expected):
    """ENOENT for a file that exists is told as its missing interpreter, by path, by cwd and by PATH."""
    file = make(tmp_path / "tool", content)
    assert expected in explain(errno.ENOENT, file)
    assert expected in explain(errno.ENOENT, os.fsencode(file))
    assert expected in explain(errno.ENOENT, "./tool", cwd=str(tmp_path))
    assert expected in explain(errno.ENOENT, "tool", path=f"/nowhere:{tmp_path}")


def test_a_link_to_nothing(tmp_path):
    """ENOENT for a dangling link names the link and its target."""
    (tmp_path / "link").symlink_to("gone")
    assert "is a symbolic link to 'gone', which does not exist" in explain(errno.ENOENT, str(tmp_path / "link"))


def test_a_fifo_is_not_opened(tmp_path):
    """A program's name that is a FIFO does not block the explanation."""
    os.mkfifo(tmp_path / "fifo")
    for number in (errno.ENOENT, errno.EACCES, errno.ENOEXEC):
        assert explain(number, str(tmp_path / "fifo"))


def test_a_file_that_may_not_be_executed(tmp_path):
    """EACCES is told as what the file lacks: it is a directory, has no x bit, or names a bad interpreter."""
    plain = make(tmp_path / "plain", b"", 0o644)
    script = make(tmp_path / "script", f"#!{plain}\n".encode())
    assert "is a directory" in explain(errno.EACCES, str(tmp_path))
    assert f"chmod +x {plain!r}" in explain(errno.EACCES, plain)
    assert f"may not be executed: {plain!r}" in explain(errno.EACCES, script)
    assert "has mode -rwxr-xr-x" in explain(errno.EACCES, make(tmp_path / "good", b"#!/bin/sh\n"))
    assert "must be searchable" in explain(errno.EACCES, str(tmp_path / "gone"))


@pytest.mark.parametrize("mode", [0o100, 0o010, 0o001])
def test_a_file_that_somebody_may_execute(tmp_path, mode):
    """Is not said to lack the right for everybody."""
    text = explain(errno.EACCES, make(tmp_path / "tool", b"#!/bin/sh\n", mode))
    assert "no execute permission" not in text
    assert f"has mode {stat.filemode(mode | stat.S_IFREG)}" in text


def test_a_file_system_that_fails_while_it_is_asked(tmp_path, monkeypatch):
    """Then nothing more is known than what the kernel said."""
    (tmp_path / "link").symlink_to("gone")

    def refuse(_path):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "readlink", refuse)
    text = explain(errno.ENOENT, str(tmp_path / "link"), argv=["tool"])
    assert "command 'tool' did not start: stage 'exec' failed" in text
    assert "calling again is safe once the cause is gone" in text


def test_a_program_on_a_file_system_without_execution(tmp_path, monkeypatch):
    """Is told so; and one whose head cannot be read is told with its mode."""
    tool = make(tmp_path / "tool", b"#!/no/such/python\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "statvfs", lambda _: type("Info", (), {"f_flag": os.ST_NOEXEC}))
        assert f"{tool!r} lies on a file system mounted noexec" in explain(errno.EACCES, tool)
        assert "move it" in explain(errno.EACCES, tool)
    asked = []

    def refuse(path, flags):
        asked.append((path, flags))
        raise PermissionError(errno.EACCES, "unreadable")

    monkeypatch.setattr(os, "open", refuse)
    assert "has mode -rwxr-xr-x" in explain(errno.EACCES, tool)
    assert "see SELinux or AppArmor" in explain(errno.EACCES, tool)
    assert asked[:1] == [(tool, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)]


def test_what_is_said_of_a_directory_that_exists(tmp_path):
    """It is not said to be missing, whatever else is wrong with it."""
    assert "does not exist" not in explain(errno.EACCES, str(tmp_path), stage="cwd")
    assert f"'{tmp_path}/gone' does not exist" in explain(errno.ENOENT, f"{tmp_path}/gone", stage="cwd")
    assert "does not exist" not in explain(errno.ENOENT, None, stage="cwd", argv=["x"])


def test_the_applications_own_limit_is_named():
    """The soft one, which counts."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1] - 1, before[1]))
    try:
        assert f"it may have {before[1] - 1} descriptors" in explain(errno.EMFILE, None, stage="fds", argv=["x"])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_name_with_a_space_among_other_words():
    """Is no command line."""
    assert "whole command line" not in explain(errno.ENOENT, "my tool", argv=["my tool", "x"])
    assert "whole command line" not in explain(errno.ENOENT, "tool", argv=["tool"])
    assert "the command did not start" in explain(errno.EAGAIN, None, stage="fork", argv=[])


def test_a_file_in_no_known_format(tmp_path):
    """ENOEXEC asks for a first line, or tells of an empty file or another processor."""
    assert "`#!/bin/sh`" in explain(errno.ENOEXEC, make(tmp_path / "a", b"echo hi\n"))
    assert f"{str(tmp_path / 'b')!r} is empty" in explain(errno.ENOEXEC, make(tmp_path / "b", b""))
    assert "'gone' is neither a program" in explain(errno.ENOEXEC, "gone", path="/nowhere")
    assert "another processor" in explain(errno.ENOEXEC, make(tmp_path / "c", b"\x7fELF\2\1\1"))


def test_arguments_that_are_too_long():
    """E2BIG names the one argument that is too long, or else the total."""
    one = 32 * os.sysconf("SC_PAGESIZE")
    assert f"argv[1] has {one:,} bytes; one string may have {one - 1:,}" in explain(
        errno.E2BIG, "true", argv=["true", "x" * one]
    )
    assert "argv has 2 strings" in explain(errno.E2BIG, "true", argv=["true", "x" * (one - 1)])
    assert "argv has 0 strings, 0 bytes in all, the longest 0" in explain(errno.E2BIG, "true", argv=[])
    text = explain(errno.E2BIG, "true", argv=["true", "é" * 50, "\ud800"])
    assert "argv has 3 strings, 108 bytes in all, the longest 100" in text


@pytest.mark.parametrize(
    ("number", "stage", "expected"),
    [
        (errno.ENOENT, "cwd", "create the directory"),
        (errno.ENOTDIR, "cwd", "give a directory"),
        (errno.EACCES, "cwd", "must be able to search"),
        (errno.EAGAIN, "fork", "pids.max"),
        (errno.ENOMEM, "fork", "memory.max"),
        (errno.EMFILE, "fds", "the application could not take"),
        (errno.EMFILE, "pipe", "the zygote, not the application"),
        (errno.ENFILE, "pipe", "the whole system"),
        (errno.ETXTBSY, "exec", "open for writing"),
        (errno.ENOTDIR, "exec", "a part of the program's path is a file"),
        (errno.ELOOP, "exec", "in a circle of symbolic links"),
        (errno.EPERM, "exec", "must be searchable"),
        (errno.EINVAL, "user", "uid_map"),
        (errno.EINVAL, "group", "gid_map"),
        (errno.EPERM, "nice", "CAP_SYS_NICE"),
        (errno.EINVAL, "rlimits", "a soft limit may not be above its hard limit"),
        (errno.EPERM, "session", "a group leader cannot start a session"),
        (errno.EPERM, "user", "CAP_SETUID"),
        (errno.EPERM, "group", "CAP_SETGID"),
        (errno.EPERM, "extra_groups", "CAP_SETGID"),
        (errno.EACCES, "nice", "CAP_SYS_NICE"),
        (errno.EPERM, "rlimits", "CAP_SYS_RESOURCE"),
        (errno.EINVAL, "affinity", "os.sched_getaffinity"),
        (errno.EIO, "whatever", "stage 'whatever' failed"),
    ],
)
def test_each_well_known_failure_has_its_advice(number, stage, expected):
    """The stage decides what an errno means, and the text says it."""
    assert expected in explain(number, "/no/such/place" if stage == "cwd" else None, stage=stage, argv=["x"])


def test_the_callers_facts_and_help_are_taken():
    """What the caller knows is added to the facts, and its help replaces ours."""
    error = spawn_error(errno.EAGAIN, None, stage="fork", known=("pids.max is 10",), help="ask ops")
    assert error.known[-1] == "pids.max is 10"
    assert error.help == "ask ops"


@pytest.mark.parametrize("filename", ["a\0b", "/" + "x" * 5000, "\ud800", "a\nb"])
def test_a_strange_name_is_no_second_error(filename):
    """A name that no file system takes still gives an error with the shape of all others."""
    for stage, number in (("exec", errno.ENOENT), ("exec", errno.EACCES), ("cwd", errno.ENOENT)):
        lines = explain(number, filename, stage=stage).split("\n")
        assert len(lines) >= 3
        assert all(line.startswith(("  known: ", "  help:  ", "         ")) for line in lines[1:])


# --- the other texts


def test_bad_arguments_speak_as_subprocess_does():
    """The first lines for a NUL byte and a bad environment name are those of subprocess."""
    with pytest.raises(ValueError) as nul:
        subprocess.run(["a\0b"], check=False)
    with pytest.raises(ValueError) as name:
        subprocess.run(["true"], env={"a=b": "c"}, check=False)
    assert str(nul.value) == errors.NULL_BYTE
    assert str(name.value) == errors.ILLEGAL_ENVIRONMENT_NAME
    assert errors.BadArgument(errors.NULL_BYTE, parameter="args").help


def test_a_value_is_shown_in_bounded_length():
    """A huge value and a value whose repr raises are both told in one short line."""

    class Broken:
        def __repr__(self):
            raise RuntimeError

    for value in ("x" * 10**6, b"x" * 10**6, ["y" * 1000] * 1000, Broken()):
        error = errors.BadArgument("bad", parameter="p", value=value)
        assert 0 < len(error.value) < 1000
    assert errors.BadArgument("bad", parameter="p").value == ""
    assert errors.BadArgument("bad", parameter="p", value=None).value == "None"


def test_preexec_fn_is_refused_with_all_replacements():
    """The error for preexec_fn names each option that does a part of its work."""
    error = errors.UnsupportedOption("preexec_fn")
    assert error.replacements == errors.PREEXEC_REPLACEMENTS
    assert all(name in error.help for name in error.replacements)


@pytest.mark.parametrize(
    ("stderr", "expected"),
    [
        (b"1\n2\n3\n4\n\n", "stderr ends with\n         2\n         3\n         4"),
        ("one\n", "stderr ends with\n         one"),
        (b"\xff\x1b[31mred", "stderr ends with\n         \ufffd\\x1b[31mred"),
        (b"", "stderr is empty"),
        (b"\n \n", "stderr ends with white space"),
        (None, "stderr was not captured"),
    ],
)
def test_the_end_of_stderr_is_shown(stderr, expected):
    """The last three lines of stderr are in the text, safe for any terminal, or why they are not."""
    assert f"  known: {expected}\n" in str(errors.CalledProcessError(1, ["x"], stderr=stderr))


def test_a_huge_stderr_is_shown_in_bounded_length():
    """One endless line of stderr makes no endless error."""
    assert len(str(errors.CalledProcessError(1, ["x"], stderr=b"\xf0\x9f\x98\x80" * 10**6))) < 1000


@pytest.mark.parametrize(("number", "name"), [(9, "SIGKILL"), (63, "signal 63")])
def test_a_signal_is_named(number, name):
    """A command that a signal ended is told with the signal's name, or its number if it has none."""
    assert f"it was killed by {name}" in str(errors.CalledProcessError(-number, ["x"]))


def test_a_lost_command_is_not_said_to_have_ended():
    """SpawnLost says which of the two is unknown: whether the command ran, or how it ended."""
    assert "may or may not have run" in str(errors.SpawnLost(["x"], stage="before start"))
    assert "how it ended is not known" in str(errors.SpawnLost(["x"], stage="running", pid=7))
    assert "its exit status is not known" in str(errors.SpawnLost(["x"], stage="running", zygote_pid=5))
    silent = str(errors.ZygoteUnresponsive(["x"], seconds=5, stage="running", zygote_pid=5, zygote_state="T"))
    assert "exit status" not in silent
    assert "`kill -CONT 5`" in silent


def test_importing_the_errors_is_light():
    """The module imports subprocess and little modules only: not even typing."""
    tree = ast.parse(Path(errors.__file__).read_text(encoding="utf-8"))
    imported = {a.name for node in tree.body if isinstance(node, ast.Import) for a in node.names}
    imported |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert imported == {"__future__", "os", "reprlib", "signal", "subprocess"}
