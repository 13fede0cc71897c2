"""From options to the record that the zygote gets: each field, each flag, each refusal with its parameter."""

import errno
import math
import os
import pwd
import resource
import signal
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from safespawn._core import options
from safespawn._core.options import build_spec, deadline_after, input_bytes, text_mode
from safespawn._core.spec import SpawnSpec
from safespawn._zygote import wire
from safespawn.errors import BadArgument, BadArgumentType, SpawnError, UnsupportedOption

PIPE, NULL, OUT = wire.PIPE, wire.NULL, wire.STDOUT
HOLD, QUIET, SESSION, TREE, NO_PRIVS = wire.HOLD, wire.QUIET, wire.NEW_SESSION, wire.TREE, wire.NO_NEW_PRIVS
ALONE = os.getpid() + 10**6


def spec_of(*, hold=False, watched=True, args=("tool",), input=None, **given):
    """What these options come to."""
    return build_spec(args, given, input=input, hold=hold, watched=watched)


# --- flags ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ({"hold": True}, TREE | HOLD),
        ({"hold": True, "watched": False}, TREE | HOLD),
        ({}, TREE | QUIET),
        ({"stdout": subprocess.PIPE}, TREE),
        ({"stdout": subprocess.PIPE, "watched": False}, TREE | QUIET),
        ({"kill_tree": False}, QUIET),
        ({"start_new_session": True}, TREE | QUIET | SESSION),
        ({"detach": True}, TREE | QUIET | SESSION),
        ({"detach": True, "stdout": subprocess.PIPE, "watched": False}, TREE | SESSION),
        ({"start_new_session": True, "stdout": subprocess.PIPE, "watched": False}, TREE | QUIET | SESSION),
        ({"no_new_privs": True}, TREE | QUIET | NO_PRIVS),
        ({"detach": False, "no_new_privs": False, "kill_tree": True, "start_new_session": False}, TREE | QUIET),
    ],
)
def test_the_flags(given, flags):
    """Who is held, announced at once, a session of its own, ended with its tree."""
    spec = spec_of(**given)
    assert spec.flags == flags
    assert spec.detached == bool(given.get("detach"))


def test_output_is_watched_unless_it_is_said_not_to_be():
    """A start is announced while the command runs, if anybody looks at its pipes."""
    assert build_spec(["x"], {"stdout": subprocess.PIPE}, hold=False).flags == TREE


# --- streams and input ------------------------------------------------------------------------------------------------
class File:
    """Something with a descriptor."""

    def __init__(self, fd):
        self.fd = fd

    def fileno(self):
        return self.fd


@pytest.mark.parametrize(
    ("given", "streams"),
    [
        ({}, (0, 1, 2)),
        ({"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}, (PIPE, PIPE, PIPE)),
        ({"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT}, (NULL, NULL, OUT)),
        ({"stdin": 7, "stdout": File(8), "stderr": 1}, (7, 8, 1)),
        ({"input": b"x"}, (PIPE, 1, 2)),
        ({"input": b"x", "stdin": subprocess.PIPE}, (PIPE, 1, 2)),
        ({"stdin": False}, (0, 1, 2)),
    ],
)
def test_the_streams(given, streams):
    """Each is a number of its own or one of the protocol's."""
    assert spec_of(**given).streams == streams
    assert [type(each) for each in spec_of(**given).streams] == [int] * 3


@pytest.mark.parametrize(("size", "prefilled"), [(0, True), (1, True), (65536, True), (65537, False)])
def test_input_that_a_pipe_holds_goes_along(size, prefilled):
    """The zygote writes it; what is longer is fed from here."""
    data = bytearray(size)
    for more in ({}, {"cwd": "/"}):
        assert spec_of(input=data, **more).input == (bytes(size) if prefilled else None)
    assert spec_of().input is None


# --- the command ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("args", "given", "argv"),
    [
        (["a", "ü"], {}, (b"a", "ü".encode())),
        (["a", ""], {}, (b"a", b"")),
        (["a", b"\xff", Path("/p")], {}, (b"a", b"\xff", b"/p")),
        (("a", "b"), {}, (b"a", b"b")),
        (Path("/p"), {}, (b"/p",)),
        ("a b", {"shell": True}, (b"/bin/sh", b"-c", b"a b")),
        (b"a b", {"shell": True}, (b"/bin/sh", b"-c", b"a b")),
        (["a b", "c"], {"shell": True}, (b"/bin/sh", b"-c", b"a b", b"c")),
        (["", "c"], {"shell": True}, (b"/bin/sh", b"-c", b"", b"c")),
        ("a b", {"shell": True, "executable": "/bin/bash"}, (b"/bin/bash", b"-c", b"a b")),
        (["a"], {"executable": "/bin/b"}, (b"a",)),
        (["a\udcff"], {}, (b"a\xff",)),
    ],
)
def test_the_command(args, given, argv):
    """As bytes, whatever it was given as; a shell has its own program in front."""
    spec = spec_of(args=args, **given)
    assert spec.argv == argv
    assert spec.executable == (os.fsencode(given["executable"]) if "executable" in given else None)


@pytest.mark.parametrize(
    ("args", "shell", "cls", "parameter", "value"),
    [
        ("a b", False, BadArgumentType, "args", "a b"),
        (b"a", False, BadArgumentType, "args", b"a"),
        ("a 'b", False, BadArgumentType, "args", "a 'b"),
        (5, False, BadArgumentType, "args", 5),
        ([], False, BadArgument, "args", []),
        ((), False, BadArgument, "args", ()),
        ([], True, BadArgument, "args", []),
        (["a", "b\0"], False, BadArgument, "args[1]", "b\0"),
        (["a", 1], False, BadArgumentType, "args[1]", 1),
        (["a", "b", "\0"], False, BadArgument, "args[2]", "\0"),
        ("a\0", True, BadArgument, "args", "a\0"),
        (Path("a\0"), False, BadArgument, "args", Path("a\0")),
    ],
)
def test_what_is_no_command(args, shell, cls, parameter, value):
    """Each is refused with the word that is wrong."""
    with pytest.raises(cls) as caught:
        spec_of(args=args, shell=shell)
    assert (caught.value.parameter, caught.value.value) == (parameter, repr(value))
    assert not str(caught.value).startswith("None")
    assert caught.value.help


@pytest.mark.parametrize(
    ("args", "advice"), [("a 'b c'", "['a', 'b c']"), (b"a b", "['a', 'b']"), ("a 'b", '["a \'b"]')]
)
def test_a_command_line_is_refused_with_the_list_to_write(args, advice):
    """As a shell would split it, or whole where it cannot be split."""
    with pytest.raises(BadArgumentType) as caught:
        spec_of(args=args)
    assert advice in caught.value.help


def test_a_program_without_a_name_is_not_found():
    """As with subprocess, it is an error of the start."""
    with pytest.raises(SpawnError) as caught:
        spec_of(args=["", "x"])
    assert (caught.value.errno, caught.value.stage, caught.value.filename) == (errno.EACCES, "exec", "")


# --- the other fields -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({"cwd": "/x"}, "cwd", b"/x"),
        ({"cwd": Path("/x")}, "cwd", b"/x"),
        ({"cwd": None}, "cwd", None),
        ({"env": {"A": "1", b"B": b"\xff"}}, "env", {b"A": b"1", b"B": b"\xff"}),
        ({"env": {}}, "env", {}),
        ({"env": None}, "env", None),
        ({"process_group": 0}, "group", 0),
        ({"process_group": 7}, "group", 7),
        ({"process_group": 2**31 - 1}, "group", 2**31 - 1),
        ({"process_group": None}, "group", wire.GROUP_AUTO),
        ({"process_group": -1}, "group", wire.GROUP_AUTO),
        ({"umask": 0}, "umask", 0),
        ({"umask": 0o777}, "umask", 0o777),
        ({"umask": -1}, "umask", None),
        ({"umask": None}, "umask", None),
        ({"ignore_signals": [signal.SIGINT, 1, 1]}, "ignore", (1, 2)),
        ({"ignore_signals": ()}, "ignore", ()),
        ({"pass_fds": ()}, "pass_fds", ()),
        ({"close_fds": True}, "pass_fds", ()),
        ({"preexec_fn": None}, "pass_fds", ()),
        ({"cwd": "/"}, "credentials", None),
    ],
)
def test_a_field(given, field, expected):
    """Each option is the record's field, in the protocol's form."""
    assert getattr(spec_of(**given), field) == expected


def test_one_option_alone():
    """Leaves all others as if nothing had been asked."""
    assert spec_of(cwd="/") == SpawnSpec((b"tool",), cwd=b"/", flags=TREE | QUIET)
    assert spec_of(nice=1).umask is None


LIMIT = resource.RLIMIT_NOFILE
HARD = resource.getrlimit(LIMIT)[1]


@pytest.mark.parametrize(
    ("given", "place", "expected"),
    [
        ({"user": 7}, 0, 7),
        ({"user": 0}, 0, 0),
        ({"user": 2**32 - 2}, 0, 2**32 - 2),
        ({"user": "root"}, 0, 0),
        ({"group": 8}, 1, 8),
        ({"group": "root"}, 1, 0),
        ({"extra_groups": []}, 2, ()),
        ({"extra_groups": [5, "root"]}, 2, (5, 0)),
        ({"rlimits": {LIMIT: (10, 20)}}, 3, ((LIMIT, 10, 20),)),
        ({"rlimits": {LIMIT: 10}}, 3, ((LIMIT, 10, HARD),)),
        ({"rlimits": {LIMIT: (-1, -1)}}, 3, ((LIMIT, -1, -1),)),
        ({"rlimits": {LIMIT: (2**63 - 1, 2**63 - 1)}}, 3, ((LIMIT, 2**63 - 1, 2**63 - 1),)),
        ({"nice": 0}, 4, 0),
        ({"nice": -1000}, 4, -1000),
        ({"nice": 1000}, 4, 1000),
        ({"affinity": {3, 1}}, 5, (1, 3)),
        ({"affinity": [0, 65535]}, 5, (0, 65535)),
        ({"pdeathsig": signal.SIGTERM}, 6, 15),
    ],
)
def test_what_needs_a_process_of_its_own(given, place, expected):
    """One of seven fields is set, the others are as if nothing had been asked."""
    wanted = [None, None, None, (), None, None, None]
    wanted[place] = expected
    assert spec_of(**given).credentials == tuple(wanted)


def test_everything_at_once():
    """Each option comes to the field of its own."""
    assert spec_of(
        args=["a"], executable="e", env={"A": "1"}, cwd="/", stdin=5, process_group=3, umask=1, ignore_signals=[1],
        user=1, group=2, extra_groups=[3], nice=4, affinity=[0], pdeathsig=9,
    ) == SpawnSpec(
        (b"a",), b"e", {b"A": b"1"}, b"/", (5, 1, 2), (), None, TREE | QUIET, 3, 1, (1,),
        (1, 2, (3,), (), 4, (0,), 9), detached=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "cls", "parameter"),
    [
        ({"stdin": subprocess.STDOUT}, BadArgument, "stdin"),
        ({"stdout": subprocess.STDOUT}, BadArgument, "stdout"),
        ({"stderr": -9}, BadArgument, "stderr"),
        ({"stdout": File(-1)}, BadArgument, "stdout"),
        ({"stderr": "log"}, BadArgumentType, "stderr"),
        ({"stdin": 5, "input": b""}, BadArgument, "stdin"),
        ({"env": ["A=1"]}, BadArgumentType, "env"),
        ({"env": {"A=B": "1"}}, BadArgument, "env"),
        ({"env": {"": "1"}}, BadArgument, "env"),
        ({"env": {"A": 1}}, BadArgumentType, "env['A']"),
        ({"env": {1: "A"}}, BadArgumentType, "env"),
        ({"cwd": "a\0"}, BadArgument, "cwd"),
        ({"executable": 5}, BadArgumentType, "executable"),
        ({"executable": 5, "shell": True}, BadArgumentType, "executable"),
        ({"pass_fds": ["x"]}, BadArgumentType, "pass_fds"),
        ({"pass_fds": [2]}, BadArgument, "pass_fds"),
        ({"pass_fds": range(3, 3 + wire.MAX_FDS - 4)}, BadArgument, "pass_fds"),
        ({"process_group": "x"}, BadArgument, "process_group"),
        ({"process_group": -2}, BadArgument, "process_group"),
        ({"process_group": 2**31}, BadArgument, "process_group"),
        ({"umask": 0o1000}, BadArgument, "umask"),
        ({"umask": -2}, BadArgument, "umask"),
        ({"umask": "022"}, BadArgument, "umask"),
        ({"ignore_signals": [signal.SIGKILL]}, BadArgument, "ignore_signals"),
        ({"ignore_signals": [signal.SIGSTOP]}, BadArgument, "ignore_signals"),
        ({"ignore_signals": [0]}, BadArgument, "ignore_signals"),
        ({"ignore_signals": [32]}, BadArgument, "ignore_signals"),
        ({"ignore_signals": 5}, BadArgumentType, "ignore_signals"),
        ({"user": -1}, BadArgument, "user"),
        ({"user": 2**32 - 1}, BadArgument, "user"),
        ({"user": "no such user"}, BadArgument, "user"),
        ({"user": 1.5}, BadArgumentType, "user"),
        ({"group": "no such group"}, BadArgument, "group"),
        ({"extra_groups": "root"}, BadArgument, "extra_groups"),
        ({"extra_groups": ["no such group"]}, BadArgument, "extra_groups"),
        ({"extra_groups": [-1]}, BadArgument, "extra_groups"),
        ({"nice": 1.5}, BadArgumentType, "nice"),
        ({"nice": 1001}, BadArgument, "nice"),
        ({"nice": -1001}, BadArgument, "nice"),
        ({"affinity": []}, BadArgument, "affinity"),
        ({"affinity": [-1, 0]}, BadArgument, "affinity"),
        ({"affinity": [65536]}, BadArgument, "affinity"),
        ({"affinity": 1}, BadArgumentType, "affinity"),
        ({"pdeathsig": 0}, BadArgument, "pdeathsig"),
        ({"pdeathsig": "TERM"}, BadArgument, "pdeathsig"),
        ({"rlimits": [1]}, BadArgumentType, "rlimits"),
        ({"rlimits": {LIMIT: (1, -2)}}, BadArgument, "rlimits"),
        ({"rlimits": {LIMIT: (-2, 1)}}, BadArgument, "rlimits"),
        ({"rlimits": {LIMIT: (1, 2**63)}}, BadArgument, "rlimits"),
        ({"rlimits": {LIMIT: (1, 2, 3)}}, BadArgument, "rlimits"),
        ({"rlimits": {999: 1}}, BadArgument, "rlimits"),
        ({"rlimits": {LIMIT: "x"}}, BadArgument, "rlimits"),
        ({"timout": 1}, BadArgumentType, "timout"),
        ({"zzz": 1, "aaa": 2}, BadArgumentType, "aaa"),
    ],
)
def test_what_cannot_be(given, cls, parameter):
    """Each is refused with its parameter and value, and nothing else."""
    with pytest.raises(cls) as caught:
        spec_of(**given)
    assert type(caught.value) is cls
    assert caught.value.parameter == parameter
    assert caught.value.value not in ("", "None")
    assert not str(caught.value).startswith("None")


def test_a_descriptor_that_is_not_open():
    """It is an error of the start, with errno and fact."""
    with pytest.raises(SpawnError, match=f"descriptor {ALONE} of pass_fds is not open") as caught:
        spec_of(pass_fds=[ALONE])
    assert (caught.value.errno, caught.value.stage) == (errno.EBADF, "fds")


def test_as_many_descriptors_as_a_message_carries(monkeypatch):
    """From 3 up, beside the body, the directory and the streams."""

    class System:
        fstat = staticmethod(lambda _fd: None)

    monkeypatch.setattr(options, "os", System)
    fds = tuple(range(3, 3 + wire.MAX_FDS - 5))
    assert options._pass_fds(fds) == fds
    monkeypatch.undo()
    with pytest.raises(BadArgument, match=f"one message carries {wire.MAX_FDS - 5} descriptors"):
        spec_of(pass_fds=(*fds, 1000))


def test_descriptors_are_passed_once_and_in_order():
    """Whatever iterable they came in."""
    fds = os.pipe()
    assert spec_of(pass_fds=iter([fds[1], fds[0], fds[1]])).pass_fds == tuple(sorted(fds))
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("given", "hold", "advice"),
    [
        ({"std_in": 1}, False, "did you mean 'stdin'?"),
        ({"capture_outptu": 1}, False, "did you mean 'capture_output'?"),
        ({"capture_outptu": 1}, True, "docs/commands.md"),
        ({"timeout": 1}, True, "run() takes it"),
        ({"zzzzzz": 1}, False, "docs/commands.md"),
    ],
)
def test_the_nearest_option_is_named(given, hold, advice):
    """What `run` alone takes is not offered for a process."""
    with pytest.raises(BadArgumentType) as caught:
        spec_of(hold=hold, **given)
    assert advice in caught.value.help


@pytest.mark.parametrize("given", [{"preexec_fn": print}, {"close_fds": False}])
def test_what_is_not_supported(given):
    """It is refused with what to write instead."""
    with pytest.raises(UnsupportedOption) as caught:
        spec_of(**given)
    assert caught.value.replacements
    assert caught.value.option.startswith(next(iter(given)))


def test_a_user_is_looked_up_by_name():
    """The database is asked, for users and for groups."""
    own = pwd.getpwuid(os.getuid()).pw_name
    assert spec_of(user=own).credentials[0] == os.getuid()
    for option, kind in (("user", "user"), ("group", "group"), ("extra_groups", "group")):
        with pytest.raises(BadArgument, match=f"no {kind} named 'nobody knows'"):
            spec_of(**{option: "nobody knows" if option == kind else ["nobody knows"]})


def test_users_and_groups_are_not_mixed_up(monkeypatch):
    """A user's number is that of the user database, though a group has the same name."""
    monkeypatch.setattr("pwd.getpwnam", lambda name: type("Entry", (), {"pw_uid": 77 if name == "x" else None}))
    monkeypatch.setattr("grp.getgrnam", lambda name: type("Entry", (), {"gr_gid": 88 if name == "x" else None}))
    assert spec_of(user="x", group="x", extra_groups=["x"]).credentials[:3] == (77, 88, (88,))


# --- text, input, time ------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), None),
        ((False, None, None), None),
        ((None, None, None, False), None),
        ((True, "utf-8", None), ("utf-8", "strict")),
        ((None, "latin-1", None), ("latin-1", "strict")),
        ((None, "ascii", "replace"), ("ascii", "replace")),
        ((None, "ascii", None, True), ("ascii", "strict")),
        ((True, "ascii", None, True), ("ascii", "strict")),
        ((False, "ascii", None, False), ("ascii", "strict")),
    ],
)
def test_when_streams_are_text(given, expected):
    """Any one of the four options makes them text."""
    mode = text_mode(*given)
    assert mode == (None if expected is None else options.Text(*expected))


@pytest.mark.parametrize("utf8_mode", [0, 1])
def test_the_encoding_is_the_locales(monkeypatch, utf8_mode):
    """Or UTF-8, where Python's mode says so."""
    monkeypatch.setattr(options, "sys", SimpleNamespace(flags=SimpleNamespace(utf8_mode=utf8_mode)))
    monkeypatch.setattr("locale.getencoding", lambda: "latin-1")
    for given in ((True, None, None), (None, None, "replace"), (None, None, None, True)):
        assert text_mode(*given).encoding == ("utf-8" if utf8_mode else "latin-1")


@pytest.mark.parametrize(
    ("given", "cls"),
    [((True, None, None, False), BadArgument), ((False, None, None, True), BadArgument),
     ((True, "no such codec", None), LookupError), ((True, "ascii", "no such handler"), LookupError)],
)  # fmt: skip
def test_a_text_mode_that_cannot_be(given, cls):
    """It is refused before anything is started."""
    with pytest.raises(cls) as caught:
        text_mode(*given)
    assert getattr(caught.value, "parameter", "text") == "text"


def test_line_ends_are_one():
    """CR LF and CR are newlines; undecodable bytes are as the handler has them; None stays None."""
    assert options.Text("ascii", "replace").decode(b"a\r\nb\rc\nd\xff") == "a\nb\nc\nd\ufffd"
    assert options.Text("ascii", "strict").decode(None) is None


def test_input_in_its_mode():
    """Text is encoded as the text mode says, a buffer is taken byte for byte, and the other one is refused."""
    text = options.Text("latin-1", "replace")
    assert input_bytes(None, None) is None
    assert input_bytes(None, text) is None
    assert input_bytes("ü\u20ac", text) == b"\xfc?"
    wide = memoryview(bytes(8)).cast("I")
    assert len(input_bytes(wide, None)) == 8
    assert bytes(input_bytes(bytearray(b"ab"), None)) == b"ab"
    for value, mode in (("a", None), (b"a", text), (5, None)):
        with pytest.raises(BadArgumentType) as caught:
            input_bytes(value, mode)
        assert caught.value.parameter == "input"
        assert type(value).__name__ in str(caught.value).split("\n")[0]
        assert caught.value.value == repr(value)


@pytest.mark.parametrize(
    ("timeout", "expected"), [(None, None), (0, 100.0), (-1, 99.0), (2.5, 102.5), ("3", 103.0), (math.inf, None)]
)
def test_a_deadline(timeout, expected):
    """Seconds from now; infinitely many are no limit."""
    assert deadline_after(timeout, 100.0) == expected


@pytest.mark.parametrize(("timeout", "cls"), [(math.nan, BadArgument), ("x", BadArgumentType), ([], BadArgumentType)])
def test_what_is_no_timeout(timeout, cls):
    """It is refused, and named."""
    with pytest.raises(cls) as caught:
        deadline_after(timeout, 100.0)
    assert type(caught.value) is cls
    assert (caught.value.parameter, caught.value.value) == ("timeout", repr(timeout))
    assert str(caught.value).startswith("timeout is")
