"""
From the options that a user writes to a `SpawnSpec`: checked once, with errors that name the option.

One function serves `run`, `Popen` and their async twins, so an option means the same everywhere.

Runs in: application, any thread. May read the user database (pwd, grp).
"""

import codecs
import errno
import math
import operator
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

import attrs

from safespawn._core.explain import spawn_error
from safespawn._core.spec import SpawnSpec
from safespawn._zygote import wire
from safespawn.errors import BadArgument, BadArgumentType, UnsupportedOption

SHELL = "/bin/sh"
PREFILL_BYTES = 65536  # what a pipe holds by default: so much input needs no writer in this process
_ENCODING = sys.getfilesystemencoding()
_ENCODING_ERRORS = sys.getfilesystemencodeerrors()
_MOST_FDS = wire.MAX_FDS - 5  # the message's body, the working directory and the three streams go the same way
_MOST_CPUS = 65536  # arbitrary: eight times what Linux can have
_MOST_NICE = 1000  # arbitrary: the kernel takes what is too much for the most
_MOST_PID = 2**31 - 1  # pid_t
_NO_LIMIT = 2**63  # what setrlimit takes is below; -1 is RLIM_INFINITY
_KNOWN_LIMITS = "a mapping of resource.RLIMIT_... to a number or to (soft, hard)"


class SpawnOptions(TypedDict, total=False):
    """
    The keyword options that `run`, `arun`, `Popen` and `aopen_process` have in common; docs/commands.md tells each.
    """

    executable: Any
    stdin: Any
    stdout: Any
    stderr: Any
    shell: bool
    cwd: Any
    env: Mapping[Any, Any] | None
    pass_fds: Iterable[int]
    start_new_session: bool
    process_group: int | None
    user: str | int | None
    group: str | int | None
    extra_groups: Iterable[str | int] | None
    umask: int
    rlimits: Mapping[int, Any] | None
    nice: int | None
    affinity: Iterable[int] | None
    pdeathsig: int | None
    no_new_privs: bool
    ignore_signals: Iterable[int]
    kill_tree: bool
    detach: bool
    preexec_fn: None
    close_fds: bool


_OPTIONS = frozenset(SpawnOptions.__annotations__)
_STREAM_OPTIONS = frozenset({"stdin", "stdout", "stderr"})
_RUN_OPTIONS = frozenset(
    "capture_output check encoding errors input max_output_bytes on_line text timeout "
    "universal_newlines wait_eof".split()
)  # what `run` takes beside these; for the advice only
_STREAM_NAMES = ("stdin", "stdout", "stderr")


def build_spec(
    args: Any, options: Mapping[str, Any], *, input: Any = None, hold: bool, watched: bool = True
) -> SpawnSpec:
    """
    Check a command and its options.

    Args:
        args: A sequence of str, bytes or path-like; with ``shell=True`` one string.
        options: As in `SpawnOptions`.
        input: Bytes for stdin that are known from the start, or None.
        hold: Keep the exited child's pid reserved until it is released.
        watched: Captured output is wanted while the command runs, not only at its end.

    Raises:
        BadArgument, BadArgumentType, UnsupportedOption: What is wrong, and what to write.
    """
    get = options.get
    argv = _plain_argv(args) if type(args) is list and not get("shell") else _argv(args, shell=bool(get("shell")))
    streams = (0, 1, 2)
    if options or input is not None:
        streams = _streams(get("stdin"), get("stdout"), get("stderr"), has_input=input is not None)
    flags = wire.TREE
    if hold:
        flags |= wire.HOLD
    elif not watched or wire.PIPE not in streams:
        flags |= wire.QUIET
    prefilled = None
    if input is not None and len(input) <= PREFILL_BYTES:
        prefilled = bytes(input)
    if _STREAM_OPTIONS.issuperset(options):  # nothing else is asked, as mostly
        return SpawnSpec(argv, streams=streams, input=prefilled, flags=flags)
    if not _OPTIONS.issuperset(options):
        raise _unknown(options, hold=hold)
    if get("preexec_fn") is not None:
        raise UnsupportedOption("preexec_fn")
    if get("close_fds", True) is False:
        raise UnsupportedOption(
            "close_fds=False", replacements=("pass_fds",), known=("every descriptor is closed but those that you name",)
        )
    executable = get("executable")
    if executable and get("shell"):
        argv = (_path("executable", executable), *argv[1:])  # as in subprocess: bash as "sh" would be another shell
    env = get("env")
    cwd = get("cwd")
    detach = bool(get("detach", False))
    if detach or get("start_new_session", False):
        flags |= wire.NEW_SESSION
    if detach and wire.PIPE in streams:
        flags &= ~wire.QUIET  # what outlives us must not keep its output in the zygote
    if not get("kill_tree", True):
        flags &= ~wire.TREE
    if get("no_new_privs", False):
        flags |= wire.NO_NEW_PRIVS
    return SpawnSpec(
        argv,
        None if executable is None else _path("executable", executable),
        None if env is None else _env(env),
        None if cwd is None else _path("cwd", cwd),
        streams,
        _pass_fds(get("pass_fds", ())),
        prefilled,
        flags,
        _process_group(get("process_group")),
        _umask(get("umask", -1)),
        _signals("ignore_signals", get("ignore_signals", ())),
        _credentials(options),
        detach,
    )


def _unknown(options: Mapping[str, Any], *, hold: bool) -> Exception:
    """
    The error for an option that does not exist; with the nearest one that does.
    """
    import difflib

    name = min(set(options) - _OPTIONS)
    near = difflib.get_close_matches(name, _OPTIONS if hold else _OPTIONS | _RUN_OPTIONS, 1)
    if name in _RUN_OPTIONS:
        help = "run() takes it; for a process, give it to communicate() or wait()"
    else:
        help = f"did you mean {near[0]!r}?" if near else "docs/commands.md lists the options"
    return BadArgumentType(f"unexpected keyword argument {name!r}", parameter=name, value=options[name], help=help)


# --- the command ------------------------------------------------------------------------------------------------------
def _plain_argv(words: list[Any]) -> tuple[bytes, ...]:
    """
    As `_argv` for a list of str, which nearly every command is.
    """
    try:
        argv = tuple([word.encode(_ENCODING, _ENCODING_ERRORS) for word in words])
    except (AttributeError, UnicodeError):
        return _argv(words, shell=False)
    if not argv or not argv[0] or 0 in b"".join(argv):
        return _argv(words, shell=False)
    return argv


def _argv(args: Any, *, shell: bool) -> tuple[bytes, ...]:
    if isinstance(args, (str, bytes, os.PathLike)):
        if shell:
            return (SHELL.encode(), b"-c", _bytes("args", args))
        if isinstance(args, os.PathLike):
            return (_bytes("args", args),)
        raise BadArgumentType(
            "a command is a sequence of arguments, not one string",
            parameter="args",
            value=args,
            help=f"write {_split(args)} - or shell=True, if a shell shall read it",
        )
    try:
        words = list(args)
    except TypeError:
        raise BadArgumentType(
            "a command is a sequence of arguments", parameter="args", value=args, help='write ["program", "argument"]'
        ) from None
    if not words:
        raise BadArgument("the command is empty", parameter="args", value=args, help='write ["program", "argument"]')
    argv = tuple([_bytes(f"args[{index}]", word) for index, word in enumerate(words)])
    if not shell and not argv[0]:  # as with subprocess, which finds a directory; Python's own exec refuses such an argv
        fact, advice = "the program's name, args[0], is empty", "put the program's name first in the list"
        raise spawn_error(errno.EACCES, "", stage="exec", argv=argv, known=(fact,), help=advice)
    return (SHELL.encode(), b"-c", *argv) if shell else argv


def _split(args: Any) -> str:
    import shlex

    try:
        return repr(shlex.split(os.fsdecode(args)))
    except ValueError:
        return repr([args])


def _bytes(parameter: str, value: Any) -> bytes:
    if type(value) is str:
        data = os.fsencode(value)
    else:
        try:
            data = os.fsencode(value)
        except TypeError:
            raise BadArgumentType(
                f"expected str, bytes or os.PathLike object, not {type(value).__name__}",
                parameter=parameter,
                value=value,
                help="convert it yourself: str(...) - what a program receives is text",
            ) from None
    if 0 in data:
        raise BadArgument("embedded null byte", parameter=parameter, value=value)
    return data


def _path(parameter: str, value: Any) -> bytes:
    return _bytes(parameter, value)


def _env(env: Any) -> dict[bytes, bytes]:
    try:
        items = list(env.items())
    except AttributeError:
        raise BadArgumentType(
            "an environment is a mapping of names to values",
            parameter="env",
            value=env,
            help="write {**os.environ, 'NAME': 'value'}",
        ) from None
    checked = {}
    for name, value in items:
        key = _bytes("env", name)
        if b"=" in key or not key:
            raise BadArgument("illegal environment variable name", parameter="env", value=name)
        checked[key] = _bytes(f"env[{os.fsdecode(key)!r}]", value)
    return checked


# --- descriptors ------------------------------------------------------------------------------------------------------
def _streams(stdin: Any, stdout: Any, stderr: Any, *, has_input: bool) -> tuple[int, int, int]:
    if has_input:
        if stdin is not None and stdin != subprocess.PIPE:
            raise BadArgument(
                "stdin and input arguments may not both be used",
                parameter="stdin",
                value=stdin,
                help="give one of them",
            )
        stdin = subprocess.PIPE
    return (_stream(0, stdin), _stream(1, stdout), _stream(2, stderr))


def _stream(number: int, value: Any) -> int:
    if value is None:
        return number  # closed ones are found out when they cannot be sent
    if value is subprocess.PIPE or value == subprocess.PIPE:
        return wire.PIPE
    if value == subprocess.DEVNULL:
        return wire.NULL
    if value == subprocess.STDOUT:
        if number == 2:
            return wire.STDOUT
        raise BadArgument(
            "STDOUT can only be used for stderr",
            parameter=_STREAM_NAMES[number],
            value=value,
            help="use PIPE or a file",
        )
    if isinstance(value, int):
        fd = int(value)
    else:
        try:
            fd = value.fileno()
        except AttributeError:
            raise BadArgumentType(
                f"{_STREAM_NAMES[number]} cannot be a {type(value).__name__}",
                parameter=_STREAM_NAMES[number],
                value=value,
                help="give PIPE, DEVNULL, STDOUT (stderr only), a descriptor, or a file with fileno()",
            ) from None
    if fd < 0:
        raise BadArgument(f"{fd} is no descriptor", parameter=_STREAM_NAMES[number], value=value, help="is it closed?")
    return fd


def _pass_fds(value: Any) -> tuple[int, ...]:
    if not value:
        return ()
    fds = _numbers("pass_fds", value)
    if len(fds) > _MOST_FDS:
        raise BadArgument(f"one message carries {_MOST_FDS} descriptors", parameter="pass_fds", value=value)
    for fd in fds:
        if fd <= 2:
            raise BadArgument(
                f"descriptor {fd} is a standard stream",
                parameter="pass_fds",
                value=value,
                help="use stdin, stdout, stderr",
            )
        try:
            os.fstat(fd)
        except OSError as error:
            fact = f"descriptor {fd} of pass_fds is not open"
            raise spawn_error(error.errno or errno.EBADF, None, stage="fds", known=(fact,)) from None
    return fds


def _numbers(parameter: str, value: Any) -> tuple[int, ...]:
    """
    An iterable of numbers, each once, in order.
    """
    try:
        return tuple(sorted({operator.index(each) for each in value}))
    except TypeError:
        raise BadArgumentType("an iterable of numbers is expected", parameter=parameter, value=value) from None


# --- what the process shall be ----------------------------------------------------------------------------------------
def _process_group(value: Any) -> int:
    if value is None or value == -1:
        return wire.GROUP_AUTO
    if not isinstance(value, int) or not 0 <= value <= _MOST_PID:
        raise BadArgument(
            "a process group is a number from 0 up", parameter="process_group", value=value, help="0 makes a new one"
        )
    return int(value)


def _umask(value: Any) -> int | None:
    if value is None or value == -1:
        return None
    if not isinstance(value, int) or not 0 <= value <= 0o777:
        raise BadArgument("umask is a number from 0 to 0o777", parameter="umask", value=value)
    return int(value)


def _signals(parameter: str, value: Any) -> tuple[int, ...]:
    if not value:
        return ()
    numbers = _numbers(parameter, value)
    for number in numbers:
        _signal(parameter, number)
        if number in (signal.SIGKILL, signal.SIGSTOP):
            raise BadArgument(f"nobody can ignore {signal.Signals(number).name}", parameter=parameter, value=value)
    return numbers


def _signal(parameter: str, value: Any) -> int:
    if isinstance(value, int) and value in signal.valid_signals():  # without those that the C library keeps: 32 and 33
        return int(value)
    raise BadArgument("no such signal", parameter=parameter, value=value, help="write signal.SIGTERM, say")


def _credentials(options: Mapping[str, Any]) -> tuple[object, ...] | None:
    """
    What must be done in a process of its own; None when nothing of it is asked.
    """
    get = options.get
    user, group, groups = get("user"), get("group"), get("extra_groups")
    rlimits, nice, affinity, death = get("rlimits"), get("nice"), get("affinity"), get("pdeathsig")
    if all(each is None for each in (user, group, groups, rlimits, nice, affinity, death)):
        return None
    if nice is not None and not isinstance(nice, int):
        raise BadArgumentType("nice is a number to add", parameter="nice", value=nice)
    if nice is not None and abs(nice) > _MOST_NICE:
        raise BadArgument(
            "nice is a small number to add: the kernel's range is -20 to 19", parameter="nice", value=nice
        )
    if isinstance(groups, (str, bytes)):
        raise BadArgument("groups must be a list, not a string", parameter="extra_groups", value=groups)
    return (
        None if user is None else _id("user", user),
        None if group is None else _id("group", group),
        None if groups is None else tuple([_id("group", each, parameter="extra_groups") for each in groups]),
        () if rlimits is None else _rlimits(rlimits),
        None if nice is None else int(nice),
        None if affinity is None else _cpus(affinity),
        None if death is None else _signal("pdeathsig", death),
    )


def _id(kind: str, value: Any, *, parameter: str = "") -> int:
    """
    A user's or group's number. Names are looked up here: the look-up may load libraries and start threads.
    """
    parameter = parameter or kind
    if isinstance(value, str):
        try:
            if kind == "user":
                import pwd

                return pwd.getpwnam(value).pw_uid
            import grp

            return grp.getgrnam(value).gr_gid
        except KeyError:
            raise BadArgument(f"no {kind} named {value!r}", parameter=parameter, value=value) from None
    if not isinstance(value, int):
        raise BadArgumentType(f"a {kind} is a name or a number", parameter=parameter, value=value)
    if not 0 <= value < 2**32 - 1:
        raise BadArgument(f"{kind} must be a number from 0 to 4294967294", parameter=parameter, value=value)
    return int(value)


def _rlimits(value: Any) -> tuple[tuple[int, int, int], ...]:
    import resource

    rows = []
    try:
        items = list(value.items())
    except AttributeError:
        raise BadArgumentType(f"rlimits is {_KNOWN_LIMITS}", parameter="rlimits", value=value) from None
    for number, limit in items:
        try:
            _, hard = resource.getrlimit(number)
            soft, hard = (limit, hard) if isinstance(limit, int) else limit
            if not -1 <= min(soft, hard) <= max(soft, hard) < _NO_LIMIT:
                raise ValueError
            rows.append((int(number), int(soft), int(hard)))
        except (TypeError, ValueError):
            raise BadArgument(f"rlimits is {_KNOWN_LIMITS}", parameter="rlimits", value=value) from None
    return tuple(rows)


def _cpus(value: Any) -> tuple[int, ...]:
    cpus = _numbers("affinity", value)
    if not cpus or cpus[0] < 0 or cpus[-1] >= _MOST_CPUS:
        raise BadArgument("affinity is a set of CPU numbers, at least one", parameter="affinity", value=value)
    return cpus


# --- text -------------------------------------------------------------------------------------------------------------
@attrs.frozen(slots=True)
class Text:
    """
    How output becomes str and input bytes.

    Attributes:
        encoding: A codec's name.
        errors: A codec error handler's name.
    """

    encoding: str
    errors: str

    def decode(self, data: bytes | None) -> str | None:
        """
        Output as text, every line end made a newline, as subprocess does.
        """
        if data is None:
            return None
        return data.decode(self.encoding, self.errors).replace("\r\n", "\n").replace("\r", "\n")


def text_mode(
    text: bool | None,  # noqa: FBT001 - in the order of subprocess
    encoding: str | None,
    errors: str | None,
    universal_newlines: bool | None = None,  # noqa: FBT001
) -> Text | None:
    """
    Whether streams are text, as subprocess decides it; None for bytes.
    """
    if text is not None and universal_newlines is not None and bool(text) != bool(universal_newlines):
        raise BadArgument("text and universal_newlines differ", parameter="text", value=text, help="give one of them")
    if not (text or encoding or errors or universal_newlines):
        return None
    if encoding is None:
        import locale

        encoding = "utf-8" if sys.flags.utf8_mode else locale.getencoding()
    codecs.lookup(encoding)  # LookupError now, as from subprocess, and not behind the command
    codecs.lookup_error(errors or "strict")
    return Text(encoding, errors or "strict")


def input_bytes(value: Any, text: Text | None) -> Any:
    """
    What `input=` gives the child, as a bytes-like object.
    """
    if value is None:
        return None
    if isinstance(value, str):
        if text is None:
            raise BadArgumentType(
                "a bytes-like object is required, not 'str'",
                parameter="input",
                value=value,
                help="encode it, or give text=True or an encoding",
            )
        return value.encode(text.encoding, text.errors)
    if text is not None:
        raise BadArgumentType(
            f"input must be str in text mode, not {type(value).__name__}", parameter="input", value=value
        )
    try:
        return memoryview(value).cast("B")
    except TypeError:
        raise BadArgumentType(
            f"a bytes-like object is required, not {type(value).__name__!r}", parameter="input", value=value
        ) from None


def deadline_after(timeout: Any, now: float) -> float | None:
    """
    *timeout* seconds from *now*; None for no limit. Zero and less have passed already.
    """
    if timeout is None:
        return None
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise BadArgumentType("timeout is a number of seconds", parameter="timeout", value=timeout) from None
    if seconds != seconds:  # noqa: PLR0124 - not a number
        raise BadArgument("timeout is not a number", parameter="timeout", value=timeout, help="None is no limit")
    return None if seconds == math.inf else now + seconds
