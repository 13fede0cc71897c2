"""
Every exception and warning of safespawn.

Runs in: application, any thread, under any driver; never imported by the zygote.
Never: starts anything, waits, or imports anything heavier than `subprocess`, which has base classes of these.

Each error answers three questions. `str(error)` is what happened, in the very words of the standard class
where there is one; then the `known:` lines, facts and nothing else; then `help:`, one action, and the slug
that is its anchor in docs/errors.md. Each fact is an attribute as well, and `error.facts()` has them all.

It is longer than a module should be, because the whole tree in one place is worth more. How the advice for a
failed start is found is another idea and another file, `_core/explain.py`.

All constructors end with the keywords *known* and *help*, told once, at SafespawnError.
"""

# SafespawnError
# ├── your call is wrong; nothing was started
# │   ├── BadArgument                (ValueError)
# │   ├── BadArgumentType            (TypeError)
# │   ├── UnsupportedOption          (ValueError)
# │   ├── ClosedError                (RuntimeError)        you ended it, then used it
# │   ├── ForeignCopy                (RuntimeError)        used in a forked copy of its owner
# │   └── OrderError                 (RuntimeError)        threads run before a fork point
# │       └── UnsafeStart                                  a bare fork, or its like, after it
# ├── SpawnError                     (OSError)             the command never started
# │   ├── SpawnNotFound              (FileNotFoundError)
# │   │   └── CommandNotFound                              at stage "exec"
# │   ├── SpawnDenied                (PermissionError)
# │   │   └── CommandNotExecutable                         at stage "exec"
# │   ├── SpawnNotADirectory         (NotADirectoryError)
# │   ├── SpawnWouldBlock            (BlockingIOError)     EAGAIN: no more processes allowed
# │   └── Spawn...                   one for each other class that OSError knows
# ├── the command started, and that is how it went
# │   ├── CalledProcessError         (subprocess.CalledProcessError)
# │   ├── TimeoutExpired             (subprocess.TimeoutExpired)
# │   ├── OutputLimitExceeded        (subprocess.SubprocessError)
# │   └── Unkillable                 (subprocess.SubprocessError)
# ├── BrokenError                    the world's doing: safespawn's own process failed
# │   ├── BootError                  (RuntimeError)        the zygote did not come up
# │   └── SpawnLost                  (subprocess.SubprocessError)
# │       └── ZygoteUnresponsive
# ├── ProtocolError                  (RuntimeError)
# │   ├── LocalProtocolError         our own side broke the rules
# │   └── RemoteProtocolError        the other side did
# └── those of pools, of children    pool_errors.py and child_errors.py have the trees; they are found here too:
#                                    errors.WorkerDied, errors.ChildFailed
#
# UserWarning
# └── ThreadOrderWarning             what OrderError says, under the policy "warn"
#     └── UnsafeStartWarning         what UnsafeStart says, under the policy "warn"

# PLR0913: an error has as many keyword parameters as it has facts.
# ruff: noqa: PLC0414 - a name that is given on is imported "as" itself, for the type checkers

from __future__ import annotations

import os
import reprlib
import signal
import subprocess

TYPE_CHECKING = False  # as in typing, which would take as long to import as all the rest
if TYPE_CHECKING:
    from collections.abc import Sequence
    from resource import struct_rusage
    from typing import Any, ClassVar

    from safespawn.child_errors import ChildError as ChildError
    from safespawn.child_errors import ChildFailed as ChildFailed
    from safespawn.child_errors import ChildNotReady as ChildNotReady
    from safespawn.child_errors import ChildrenGaveUp as ChildrenGaveUp
    from safespawn.pool_errors import CrashLoop as CrashLoop
    from safespawn.pool_errors import InitializerFailed as InitializerFailed
    from safespawn.pool_errors import MainReentered as MainReentered
    from safespawn.pool_errors import PayloadLost as PayloadLost
    from safespawn.pool_errors import PoolClosed as PoolClosed
    from safespawn.pool_errors import PoolError as PoolError
    from safespawn.pool_errors import PreloadError as PreloadError
    from safespawn.pool_errors import RemoteError as RemoteError
    from safespawn.pool_errors import RemoteTraceback as RemoteTraceback
    from safespawn.pool_errors import TaskCancelled as TaskCancelled
    from safespawn.pool_errors import TaskTimeout as TaskTimeout
    from safespawn.pool_errors import UnpicklableResult as UnpicklableResult
    from safespawn.pool_errors import UnpicklableTask as UnpicklableTask
    from safespawn.pool_errors import WaitInCallback as WaitInCallback
    from safespawn.pool_errors import WorkerDied as WorkerDied
    from safespawn.pool_errors import WorkerMemoryExceeded as WorkerMemoryExceeded
    from safespawn.pool_errors import WrongLoop as WrongLoop

    Argument = str | bytes | os.PathLike[str] | os.PathLike[bytes]
    Command = Argument | Sequence[Argument]
    Output = str | bytes | None

NULL_BYTE = "embedded null byte"  # the words of subprocess; BadArgument knows the help for both
ILLEGAL_ENVIRONMENT_NAME = "illegal environment variable name"
PREEXEC_REPLACEMENTS = (
    "start_new_session", "process_group", "user", "group", "extra_groups", "umask", "rlimits", "nice",
    "affinity", "pdeathsig", "no_new_privs", "ignore_signals",
)  # fmt: skip

_TAIL_LINES = 3  # arbitrary: enough for the last complaint of most programs
_TAIL_CHARS = 400  # arbitrary: bounds those lines, so that a log line with an error in it stays readable
_INDENT = "\n         "  # puts the further lines of one fact under its first, after "  known: "

_repr = reprlib.Repr()  # bounds what is shown of a value, and survives a class whose __repr__ raises
_repr.maxstring = _repr.maxother = 80  # arbitrary, characters
_short = _repr.repr


def _rebuild(cls: type[SafespawnError], args: tuple[Any, ...]) -> SafespawnError:
    """
    Make the bare instance that unpickling and copying then fill with its `__dict__`.

    `__init__` of the class is not run: a subclass with other parameters travels as well. Only OSError's own
    is, because errno, strerror and filename are no entries of `__dict__`.
    """
    error = cls.__new__(cls, *args)
    if isinstance(error, OSError):
        OSError.__init__(error, *args)
    return error


class SafespawnError(Exception):
    """
    The root: `except SafespawnError` catches all that safespawn itself raises.

    Args:
        *args: What the standard base class takes; for the others the one sentence that says what happened.
        known: Facts, one a line, to be shown after the first line.
        help: What to do; replaces the class's own advice.
    """

    slug: ClassVar[str] = "safespawn-error"
    _facts: ClassVar[tuple[str, ...]] = ()
    _advice: ClassVar[str] = ""
    known: tuple[str, ...]
    help: str

    def __init__(self, *args: object, known: Sequence[str] = (), help: str = "") -> None:
        super().__init__(*args)
        self.known = tuple(known)
        self.help = help or self._advice

    def __str__(self) -> str:
        lines = [super().__str__()]
        lines += ["  known: " + fact.replace("\n", _INDENT) for fact in self.known]
        if self.help:
            lines.append("  help:  " + self.help.replace("\n", _INDENT) + f"  [{self.slug}]")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # The next class knows its constructor's arguments: for OSError they are more than `args`.
        return _rebuild, (type(self), super().__reduce__()[1]), self.__dict__

    def facts(self) -> dict[str, Any]:
        """Return every fact by name, for a structured log."""
        return {name: getattr(self, name) for name in self._facts}


# --- your call is wrong -----------------------------------------------------------------------------------


class _BadParameter(SafespawnError):
    """What BadArgument and BadArgumentType share."""

    slug = "bad-argument"
    _facts = ("parameter", "value")
    _by_message: ClassVar[dict[str, str]] = {
        NULL_BYTE: "the kernel ends a string at its first NUL: remove it from the value",
        ILLEGAL_ENVIRONMENT_NAME: "a name is not empty and has no '=' in it: what follows is the value",
    }

    def __init__(
        self, message: str, *, parameter: str, value: object = ..., known: Sequence[str] = (), help: str = ""
    ) -> None:
        self.parameter = parameter
        self.value: str = "" if value is ... else _short(value)  # None is a value that is often the wrong one
        fact = f"parameter {parameter!r}" + (f" is {self.value}" if self.value else "")
        super().__init__(message, known=(fact, *known), help=help or self._by_message.get(message, ""))


class BadArgument(_BadParameter, ValueError):
    """
    A parameter has a value that cannot work; nothing was started.

    Args:
        message: What is wrong; NULL_BYTE and ILLEGAL_ENVIRONMENT_NAME bring their own help.
        parameter: Its name, as the caller wrote it: `args[2]`, `env`, `timeout`.
        value: The value; only its shortened repr is kept, "" if it is not given (it may be a secret).
    """


class BadArgumentType(_BadParameter, TypeError):
    """A parameter has a type that cannot work; nothing was started. Parameters as BadArgument."""

    slug = "bad-argument-type"


class UnsupportedOption(SafespawnError, ValueError):
    """
    An option of the standard library that safespawn refuses, with what to use in its place.

    Args:
        option: Its name; `preexec_fn` brings its replacements and help.
        replacements: The options that do the same safely.
    """

    slug = "unsupported-option"
    _facts = ("option", "replacements")

    def __init__(
        self, option: str, *, replacements: Sequence[str] = (), known: Sequence[str] = (), help: str = ""
    ) -> None:
        if option == "preexec_fn":
            replacements = replacements or PREEXEC_REPLACEMENTS
            known = known or ("a function cannot run between fork and exec: the command is started by another process",)
        if replacements and not help:
            help = "use in its place: " + ", ".join(replacements)
        self.option = option
        self.replacements: tuple[str, ...] = tuple(replacements)
        super().__init__(f"option {option!r} is not supported", known=known, help=help)


class ClosedError(SafespawnError, RuntimeError):
    """
    Something was used after you had ended it.

    Args:
        what: The thing: "Supervisor 'web'", "process 4127".
    """

    slug = "closed"
    _facts = ("what",)
    _advice = "it cannot be opened again: make a new one, or use it before its `with` block ends"

    def __init__(self, what: str, *, known: Sequence[str] = (), help: str = "") -> None:
        self.what = what
        super().__init__(f"{what} is closed", known=known, help=help)


class ForeignCopy(SafespawnError, RuntimeError):
    """
    An object was used in a forked copy of the process that owns it.

    Args:
        what: The thing, as in ClosedError.
        owner_pid: The process that made it.
        pid: The process that used it.
    """

    slug = "foreign-copy"
    _facts = ("what", "owner_pid", "pid")
    _advice = "make a new one in the copy; what the owner started stays the owner's to wait for and to end"

    def __init__(
        self, what: str = "this object", *, owner_pid: int, pid: int,
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        self.what = what
        self.owner_pid = owner_pid
        self.pid = pid
        message = f"{what} belongs to process {owner_pid}, not to its forked copy {pid}"
        super().__init__(message, known=known, help=help)


class OrderError(SafespawnError, RuntimeError):
    """
    Threads run already where the program must still be single-threaded.

    Args:
        what: What was about to happen: "Supervisor 'web' starts", "os.fork".
        threads: One text per thread, its name and where it was started.
    """

    slug = "thread-order"
    _facts: ClassVar[tuple[str, ...]] = ("what", "threads")
    _advice = 'start processes first and threads after; or set guard="warn" to go on regardless'

    def __init__(self, what: str, *, threads: Sequence[str], known: Sequence[str] = (), help: str = "") -> None:
        self.what = what
        self.threads: tuple[str, ...] = tuple(threads)
        known = (*(f"thread {thread}" for thread in threads), *known)
        super().__init__(f"{what} while {len(self.threads)} other thread(s) run", known=known, help=help)


class UnsafeStart(OrderError):
    """
    A process is started in a way that can hang, after the program's fork point.

    Args:
        what: "os.fork()", "subprocess.Popen(preexec_fn=app.setup)".
        kind: "fork", "preexec", "shell", "start-method" or "import".
        place: File and line of the program, or None.
        threads: One text per other thread that runs.
        imports: For the kind "import": each module that is being imported and where, the innermost first.
        is_late: Whether the program has a fork point, and it is past.
    """

    slug = "unsafe-start"
    _facts = ("what", "kind", "place", "threads", "imports")

    def __init__(
        self, what: str, *, kind: str, place: tuple[str, int] | None = None, threads: Sequence[str] = (),
        imports: Sequence[str] = (), is_late: bool = True, known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        self.what = what
        self.kind = kind
        self.place = place
        self.threads: tuple[str, ...] = tuple(threads)
        self.imports: tuple[str, ...] = tuple(imports)
        when = [f"while {self.imports[0]} is being imported"] if imports else ["after the fork point"] * is_late
        if threads:
            when.append(f"with {len(self.threads)} other thread(s)")
        at = "" if place is None else f" at {place[0]}:{place[1]}"
        known = (
            *(f"imported: {each}" for each in self.imports), *(f"thread {each}" for each in self.threads), *known
        )  # fmt: skip
        SafespawnError.__init__(self, ", ".join([f"{what}{at}", *when]), known=known, help=help)


class ThreadOrderWarning(UserWarning):
    """Threads run already where none should: what OrderError says, under `guard="warn"`."""


class UnsafeStartWarning(ThreadOrderWarning):
    """A process is started in a way that can hang: what UnsafeStart says, under the policy "warn"."""


# --- the command never started ----------------------------------------------------------------------------


class SpawnError(SafespawnError, OSError):
    """
    The command never started. `_core.explain.spawn_error` makes one of the right subclass, with help.

    Args:
        errno: As the kernel gave it.
        strerror: The standard text, if None.
        filename: What subprocess would name: the program, the cwd, or None.
        stage: What failed: "exec", "cwd", "fork", "pipe", "fds", "user", "rlimits", ...
        argv: The command.
    """

    slug = "spawn-error"
    _facts = ("errno", "strerror", "filename", "stage", "argv")

    def __init__(
        self, errno: int, strerror: str | None = None, filename: str | bytes | None = None, *,
        stage: str, argv: Sequence[Argument] = (), known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        strerror = os.strerror(errno) if strerror is None else strerror
        args = (errno, strerror) if filename is None else (errno, strerror, filename)
        super().__init__(*args, known=known, help=help)
        self.stage = stage
        self.argv: tuple[Argument, ...] = tuple(argv)


class SpawnNotFound(SpawnError, FileNotFoundError):
    """Something that the start needs does not exist: at stage "cwd" the directory."""

    slug = "spawn-not-found"


class CommandNotFound(SpawnNotFound):
    """The program, or the interpreter that its first line asks for, does not exist."""

    slug = "command-not-found"


class SpawnDenied(SpawnError, PermissionError):
    """The kernel refused a step of the start: EACCES or EPERM."""

    slug = "spawn-denied"


class CommandNotExecutable(SpawnDenied):
    """The program exists and may not be executed."""

    slug = "command-not-executable"


class SpawnNotADirectory(SpawnError, NotADirectoryError):
    """A part of the program's path, or the cwd, is a file."""

    slug = "spawn-not-a-directory"


class SpawnWouldBlock(SpawnError, BlockingIOError):
    """The kernel allows no further process for now: EAGAIN."""

    slug = "spawn-would-block"


# The rest: hardly seen when a command starts, but then still the class that `except` clauses expect.


class SpawnIsADirectory(SpawnError, IsADirectoryError):
    """EISDIR while starting."""


class SpawnFileExists(SpawnError, FileExistsError):
    """EEXIST while starting."""


class SpawnInterrupted(SpawnError, InterruptedError):
    """EINTR while starting."""


class SpawnNoChild(SpawnError, ChildProcessError):
    """ECHILD while starting."""


class SpawnNoProcess(SpawnError, ProcessLookupError):
    """ESRCH while starting, such as a process group that is gone."""


class SpawnTimedOut(SpawnError, TimeoutError):
    """ETIMEDOUT while starting, such as a program on a network file system that does not answer."""


class SpawnBrokenPipe(SpawnError, BrokenPipeError):
    """EPIPE or ESHUTDOWN while starting."""


class SpawnConnectionRefused(SpawnError, ConnectionRefusedError):
    """ECONNREFUSED while starting."""


class SpawnConnectionAborted(SpawnError, ConnectionAbortedError):
    """ECONNABORTED while starting."""


class SpawnConnectionReset(SpawnError, ConnectionResetError):
    """ECONNRESET while starting."""


# --- the command started ----------------------------------------------------------------------------------


class CalledProcessError(SafespawnError, subprocess.CalledProcessError):
    """
    The command ran and failed, and `check=True` asked for an exception.

    Args:
        returncode: Its exit status, or minus the number of the signal that ended it.
        cmd: The command.
        output: What it wrote to stdout, if captured; `stdout` is the same.
        stderr: What it wrote to stderr, if captured.
        pid: Its process id.
        duration: Seconds from start to exit.
        rusage: What it used.
    """

    slug = "called-process-error"
    _facts = ("returncode", "cmd", "stdout", "stderr", "pid", "duration", "rusage")

    def __init__(
        self, returncode: int, cmd: Command, output: Output = None, stderr: Output = None, *,
        pid: int | None = None, duration: float | None = None, rusage: struct_rusage | None = None,
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts: list[str] = []
        if pid is not None:
            facts.append(f"pid {pid}" + ("" if duration is None else f" ran {duration:.3g} s"))
        if returncode < 0:
            facts.append(f"it was killed by {_signal_name(-returncode)}")
        facts.append(_tail("stderr", stderr))
        help = help or _status_advice(returncode, captured=stderr is not None)
        super().__init__(returncode, cmd, output, stderr, known=(*facts, *known), help=help)
        self.args: tuple[Any, ...] = (returncode, cmd)
        self.pid = pid
        self.duration = duration
        self.rusage = rusage


class TimeoutExpired(SafespawnError, subprocess.TimeoutExpired):
    """
    The command was still running, or its pipes were still open, when the time was up.

    Args:
        cmd: The command.
        timeout: The limit, in seconds.
        output: What it had written to stdout, if captured; `stdout` is the same.
        stderr: What it had written to stderr, if captured.
        pid: Its process id.
        held_by: Processes that still hold its pipes open.
    """

    slug = "timeout-expired"
    _facts = ("cmd", "timeout", "stdout", "stderr", "pid", "held_by")
    _advice = "raise the timeout, or see from the output so far where the command stands"

    def __init__(
        self, cmd: Command, timeout: float, output: Output = None, stderr: Output = None, *,
        pid: int | None = None, held_by: Sequence[int] = (), known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        facts = [] if pid is None else [f"pid {pid}"]
        if held_by:
            facts.append("its pipes are still held by pid " + ", ".join(map(str, held_by)))
            help = help or "a descendant kept stdout or stderr open: give it its own, or end it as well"
        facts += [_tail(name, data) for name, data in (("stdout", output), ("stderr", stderr)) if data]
        super().__init__(cmd, timeout, output, stderr, known=(*facts, *known), help=help)
        self.args: tuple[Any, ...] = (cmd, timeout)
        self.pid = pid
        self.held_by: tuple[int, ...] = tuple(held_by)


class OutputLimitExceeded(SafespawnError, subprocess.SubprocessError):
    """
    The command wrote more than `max_output_bytes` and was ended for it.

    Args:
        cmd: The command.
        limit_bytes: The limit.
        stream: Which one went over: "stdout" or "stderr".
        stdout: What was kept of it.
        stderr: What was kept of it.
        pid: Its process id.
    """

    slug = "output-limit-exceeded"
    _facts = ("cmd", "limit_bytes", "stream", "stdout", "stderr", "pid")
    _advice = "raise max_output_bytes, send the stream to a file, or take it line by line with on_line="

    def __init__(
        self, cmd: Command, *, limit_bytes: int, stream: str, stdout: Output = None, stderr: Output = None,
        pid: int | None = None, known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        kept = stderr if stream == "stderr" else stdout
        facts = [] if pid is None else [f"pid {pid}"]
        facts += [_tail(stream, kept)] if kept else []
        message = f"Command '{cmd!s}' wrote more than {limit_bytes} bytes to {stream}"
        super().__init__(message, known=(*facts, *known), help=help)
        self.cmd = cmd
        self.limit_bytes = limit_bytes
        self.stream = stream
        self.stdout = stdout
        self.stderr = stderr
        self.pid = pid


class Unkillable(SafespawnError, subprocess.SubprocessError):
    """
    SIGKILL was sent, and the process is still there.

    Args:
        pid: The process.
        state: The letter of its state in /proc, or None if it could not be read.
        wchan: The kernel function that it waits in, if known.
        seconds: Time since SIGKILL.
    """

    slug = "unkillable"
    _facts = ("pid", "state", "wchan", "seconds")

    def __init__(
        self, pid: int, *, seconds: float, state: str | None = None, wchan: str | None = None,
        known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        self.pid = pid
        self.state = state
        self.wchan = wchan
        self.seconds = seconds
        if state == "D":
            help = help or "it waits for a device or a network mount, and dies when that answers"
        help = help or f"see /proc/{pid}/status and /proc/{pid}/stack for what holds it"
        facts = _state_facts(f"process {pid}", state, wchan)
        message = f"process {pid} is still there {seconds:.3g} s after SIGKILL"
        super().__init__(message, known=(*facts, *known), help=help)


# --- the world's doing ------------------------------------------------------------------------------------


class BrokenError(SafespawnError):
    """safespawn's own process failed: neither your call nor the command is at fault. Never raised itself."""

    slug = "broken"


class BootError(BrokenError, RuntimeError):
    """
    The zygote did not come up, so no command can be started.

    Args:
        reason: What went wrong, if the facts do not say it.
        executable: The Python interpreter that was to run it.
        exit_status: How it ended, minus the number of a signal; None if it had not, or nobody knows.
        output: What it wrote.
        seconds: How long it was waited for.
    """

    slug = "boot-error"
    _facts = ("executable", "exit_status", "output", "seconds")

    def __init__(
        self, reason: str = "", *, executable: str, exit_status: int | None = None, output: str = "",
        seconds: float | None = None, known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        self.executable = executable
        self.exit_status = exit_status
        self.output = output
        self.seconds = seconds
        if not reason:
            reason = "it gave no sign of life" if exit_status is None else f"it {_ended(exit_status)}"
        facts = [f"executable {executable!r}"]
        facts += [] if seconds is None else [f"it was waited for {seconds:.3g} s"]
        facts.append(_tail("its output", output))
        help = help or f"see that this runs: {executable} -I -S -c 'print(1)'"
        super().__init__(f"the zygote did not come up: {reason}", known=(*facts, *known), help=help)


class SpawnLost(BrokenError, subprocess.SubprocessError):
    """
    The zygote was lost with this command in flight; what became of the command is not invented.

    Args:
        argv: The command.
        pid: Its process id; None if it is not known whether it started.
        stage: How far it had come: "before start", "running", ...
        zygote_pid: The process that was lost.
        zygote_status: How that ended, as in BootError; None if it is not known.
    """

    slug = "spawn-lost"
    _facts: ClassVar[tuple[str, ...]] = ("argv", "pid", "stage", "zygote_pid", "zygote_status")
    _advice = "nothing was retried: call it again if the command is safe to run twice"

    def __init__(
        self, argv: Sequence[Argument], *, stage: str, pid: int | None = None, zygote_pid: int | None = None,
        zygote_status: int | None = None, known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        self.argv: tuple[Argument, ...] = tuple(argv)
        self.pid = pid
        self.stage = stage
        self.zygote_pid = zygote_pid
        self.zygote_status = zygote_status
        facts = [f"command {_short(list(self.argv))}, stage {stage!r}", *self._zygote_facts()]
        super().__init__(f"{self._cause()}: {self._doubt()}", known=(*facts, *known), help=help)

    def _cause(self) -> str:
        return "the zygote was lost"

    def _doubt(self) -> str:
        if self.pid is None:
            return "the command may or may not have run"
        return f"the command did start, as pid {self.pid}; how it ended is not known"

    def _zygote_facts(self) -> list[str]:
        if self.zygote_pid is None:
            return []
        if self.zygote_status is None:
            return [f"zygote {self.zygote_pid}: its exit status is not known"]
        return [f"zygote {self.zygote_pid} {_ended(self.zygote_status)}"]


class ZygoteUnresponsive(SpawnLost):
    """
    The zygote is there and did not answer in time.

    Args:
        argv: The command.
        seconds: How long it was waited for.
        zygote_state: The letter of its state in /proc, or None if it could not be read.
        wchan: The kernel function that it waits in, if known.
        stage: As in SpawnLost.
        pid: As in SpawnLost.
        zygote_pid: The process that does not answer.
        zygote_status: As in SpawnLost, if it has been ended since.
    """

    slug = "zygote-unresponsive"
    _facts = ("argv", "seconds", "zygote_state", "wchan", "pid", "stage", "zygote_pid", "zygote_status")

    def __init__(
        self, argv: Sequence[Argument], *, seconds: float, stage: str, zygote_state: str | None = None,
        wchan: str | None = None, pid: int | None = None, zygote_pid: int | None = None,
        zygote_status: int | None = None, known: Sequence[str] = (), help: str = "",
    ) -> None:  # fmt: skip
        self.seconds = seconds
        self.zygote_state = zygote_state
        self.wchan = wchan
        if zygote_state in {"T", "t"}:
            help = help or (
                f"it was stopped (SIGSTOP, a debugger, a freezer): `kill -CONT {zygote_pid}` wakes it\n"
                "call again if the command is safe to run twice"
            )
        zygote: dict[str, Any] = {"zygote_pid": zygote_pid, "zygote_status": zygote_status}
        super().__init__(argv, stage=stage, pid=pid, known=known, help=help, **zygote)

    def _cause(self) -> str:
        return f"the zygote did not answer for {self.seconds:.3g} s"

    def _zygote_facts(self) -> list[str]:
        ended = [] if self.zygote_status is None else super()._zygote_facts()  # it may well be alive
        return _state_facts(f"zygote {self.zygote_pid}", self.zygote_state, self.wchan) + ended


class ProtocolError(SafespawnError, RuntimeError):
    """
    A message between application and zygote was not what the protocol allows.

    Args:
        detail: Which rule, which message.
    """

    slug = "protocol-error"
    _facts = ("detail",)
    _advice = "a mistake in safespawn, or two versions of it at once: please report these lines"
    _subject: ClassVar[str] = "the protocol was broken"

    def __init__(self, detail: str, *, known: Sequence[str] = (), help: str = "") -> None:
        self.detail = detail
        super().__init__(f"{self._subject}: {detail}", known=known, help=help)


class LocalProtocolError(ProtocolError):
    """This side was about to send what the protocol does not allow; nothing was sent."""

    slug = "local-protocol-error"
    _subject = "a message was not sent, the protocol does not allow it"


class RemoteProtocolError(ProtocolError):
    """The other side sent what the protocol does not allow."""

    slug = "remote-protocol-error"
    _subject = "a message came that the protocol does not allow"


# --- pools ------------------------------------------------------------------------------------------------

_OF_POOLS = (
    "CrashLoop InitializerFailed MainReentered PayloadLost PoolClosed PoolError PreloadError RemoteError "
    "RemoteTraceback TaskCancelled TaskTimeout UnpicklableResult UnpicklableTask WaitInCallback WorkerDied "
    "WorkerMemoryExceeded WrongLoop"
).split()
_OF_CHILDREN = ("ChildError", "ChildFailed", "ChildNotReady", "ChildrenGaveUp")

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """Find the errors of pools, whose standard bases cost 20 ms to import, and of children, when first wanted."""
        if name in _OF_CHILDREN:
            from safespawn import child_errors

            return getattr(child_errors, name)
        if name not in _OF_POOLS:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from safespawn import pool_errors

        return getattr(pool_errors, name)


# --- words ------------------------------------------------------------------------------------------------


def _signal_name(number: int) -> str:
    """Return "SIGKILL" for 9, and "signal 77" for what has no name."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _ended(status: int) -> str:
    """Say how a process ended, from its exit status or minus the number of its signal."""
    return f"was killed by {_signal_name(-status)}" if status < 0 else f"ended with exit status {status}"


def _tail(name: str, data: str | bytes | None) -> str:
    """Say how the stream *name* ends: a few lines, safe to print on any terminal."""
    if data is None:
        return f"{name} was not captured"
    end = data[-4 * _TAIL_CHARS :]  # a character has at most 4 bytes
    text = end.decode("utf-8", "replace") if isinstance(end, bytes) else end
    text = "\n".join(text.rstrip().splitlines()[-_TAIL_LINES:])[-_TAIL_CHARS:]
    if not text:
        return f"{name} is empty" if not data else f"{name} ends with white space"
    safe = [char if char.isprintable() or char in "\t\n" else ascii(char)[1:-1] for char in text]
    return f"{name} ends with\n" + "".join(safe)


def _state_facts(who: str, state: str | None, wchan: str | None) -> list[str]:
    """Say what the state of /proc/PID/stat and the name in /proc/PID/wchan mean, if they are known."""
    words = {
        "D": "in the kernel, not to be interrupted",
        "T": "stopped",
        "t": "stopped by a debugger",
        "Z": "a zombie",
    }
    if state is None:
        return []
    meaning = f" ({words[state]})" if state in words else ""
    place = f", in {wchan}" if wchan and wchan != "0" else ""
    return [f"{who} has state {state}{meaning}{place}"]


def _status_advice(returncode: int, *, captured: bool) -> str:
    """Say what to do about a command that failed with *returncode*."""
    by_status = {
        -signal.SIGKILL: "if nobody sent it, the kernel may have run out of memory: see `dmesg`",
        -signal.SIGPIPE: "whoever read its output had stopped reading",
        126: "a shell says 126 when it found the program and could not execute it",
        127: "a shell says 127 when it did not find the program",
    }
    if returncode in by_status:
        return by_status[returncode]
    if returncode < 0:
        return "somebody sent the signal, or the command crashed: see its output and the kernel's log"
    advice = "the status is the command's own: its manual says what it means"
    return advice + ("" if captured else "; capture_output=True keeps what it says")
