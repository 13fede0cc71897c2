"""
Why a command did not start: from an errno and a stage to the right class, the facts, and the advice.

Runs in: application, when a start has failed.
Never: raises an error of its own, or waits. It looks at the file system (is the program there, what is its
first line), opens regular files only, and leaves out what it cannot find out.

The classes, and the advice for whatever happens after the start, are in `safespawn/errors.py`.
"""

from __future__ import annotations

import errno as e
import os
import reprlib
import stat
from typing import TYPE_CHECKING, NamedTuple

from safespawn import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from safespawn.errors import Argument

_HEAD_BYTES = 4096  # one page: a first line ends within 256 bytes, an ELF file names its loader near the top
_STRING_PAGES = 32  # Linux: one argument or environment string may fill so many pages, its NUL included

_repr = reprlib.Repr()  # bounded: an argument may have many megabytes
_repr.maxstring = _repr.maxother = 80  # arbitrary, characters
_short = _repr.repr

_SPAWN_CLASS: dict[type[OSError], type[errors.SpawnError]] = {
    OSError: errors.SpawnError,
    FileNotFoundError: errors.SpawnNotFound,
    PermissionError: errors.SpawnDenied,
    NotADirectoryError: errors.SpawnNotADirectory,
    BlockingIOError: errors.SpawnWouldBlock,
    IsADirectoryError: errors.SpawnIsADirectory,
    FileExistsError: errors.SpawnFileExists,
    InterruptedError: errors.SpawnInterrupted,
    ChildProcessError: errors.SpawnNoChild,
    ProcessLookupError: errors.SpawnNoProcess,
    TimeoutError: errors.SpawnTimedOut,
    BrokenPipeError: errors.SpawnBrokenPipe,
    ConnectionRefusedError: errors.SpawnConnectionRefused,
    ConnectionAbortedError: errors.SpawnConnectionAborted,
    ConnectionResetError: errors.SpawnConnectionReset,
}
_EXEC_CLASS: dict[type[errors.SpawnError], type[errors.SpawnError]] = {
    errors.SpawnNotFound: errors.CommandNotFound,
    errors.SpawnDenied: errors.CommandNotExecutable,
}


class _Failure(NamedTuple):
    """What is known of a failed start, with the defaults filled in."""

    errno: int
    filename: str | None
    stage: str
    argv: Sequence[Argument]
    cwd: str
    path: str

    @property
    def file(self) -> str | None:
        """Where *filename* is; None if there is nothing, not even a dangling link."""
        if not self.filename:
            return None
        folders = [""] if "/" in self.filename else self.path.split(os.pathsep)
        files = (os.path.join(self.cwd, folder, self.filename) for folder in folders)
        return next((file for file in files if os.path.lexists(file)), None)


Explanation = tuple[tuple[str, ...], str]  # facts, one a line, and the advice


def _command(failure: _Failure) -> str:
    return f"command {_short(failure.argv[0])}" if failure.argv else "the command"


def _in_general(failure: _Failure) -> Explanation:
    fact = f"{_command(failure)} did not start: stage {failure.stage!r} failed"
    return (fact,), "nothing has run, so calling again is safe once the cause is gone"


def _not_found(failure: _Failure) -> Explanation:
    name, file = failure.filename, failure.file
    if not name:
        return (f"{_command(failure)} has an empty name",), "put the program's name first in the list"
    if file is not None:
        return _interpreter_missing(file)
    if "/" in name:
        facts: tuple[str, ...] = (f"{_first_missing(os.path.join(failure.cwd, name))!r} does not exist",)
        if not os.path.isabs(name):
            facts = (*facts, f"a relative path starts from {os.path.abspath(failure.cwd)!r}")
        advice = "correct the path, or give the bare name to have it searched in PATH"
    elif failure.path:
        folders = failure.path.split(os.pathsep)
        facts = (f"no such file in the {len(folders)} directories of PATH, {_short(failure.path)}",)
        advice = "correct the name, install the program, or give its absolute path"
    else:
        facts = ("PATH is empty",)
        advice = "give the program's absolute path, or a PATH in env="
    if name.startswith("~"):
        advice = "only a shell expands `~`: use os.path.expanduser"
    elif len(failure.argv) == 1 and " " in name:
        advice = f"this looks like a whole command line: pass one string per argument, {_short(name.split())}"
    return facts, advice


def _first_missing(path: str) -> str:
    """Return the topmost part of *path* that does not exist."""
    path = os.path.abspath(path)
    while not os.path.lexists(parent := os.path.dirname(path)):
        path = parent
    return path


def _interpreter_missing(file: str) -> Explanation:
    """Explain ENOENT for a file that exists: the kernel then means what the file asks for."""
    if not os.path.exists(file):
        target = os.readlink(file)
        return (f"{file!r} is a symbolic link to {target!r}, which does not exist",), "repair the link"
    head = _head(file)
    interpreter = _interpreter(head)
    if interpreter.endswith("\r"):
        fact = f"{file!r} exists; its first line ends with CR, and the kernel looks for that name"
        return (fact,), f"save it with Unix line ends: sed -i 's/\\r$//' {file!r}"
    if interpreter and not os.path.exists(interpreter):
        fact = f"{file!r} exists; the interpreter in its first line, {interpreter!r}, does not"
        return (fact,), "install the interpreter, or correct the line that begins with #!"
    if head.startswith(b"\x7fELF"):
        start = head.find(b"/")
        loader = os.fsdecode(head[start:].split(b"\0", 1)[0]) if 0 < start < head.find(b"\0", start) else ""
        if loader and not os.path.exists(loader):
            fact = f"{file!r} exists; the loader that it asks for, {loader!r}, does not"
            return (fact,), "it was built for another C library or processor: use a build for this system"
    return (f"{file!r} exists by now",), "it, or what it runs on, may be only just there: call again"


def _head(file: str) -> bytes:
    """Return the first bytes of *file*; none if it is not a regular file that may be read."""
    if not stat.S_ISREG(os.stat(file).st_mode):
        return b""
    try:
        # O_NONBLOCK: between stat and open the file may have been replaced by a FIFO.
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError:
        return b""
    try:
        return os.read(fd, _HEAD_BYTES)
    finally:
        os.close(fd)


def _interpreter(head: bytes) -> str:
    """Return the interpreter that a script's first line names, "" if it names none."""
    if not head.startswith(b"#!"):
        return ""
    line = head[2:].split(b"\n", 1)[0].strip(b" \t")
    return os.fsdecode(line.replace(b"\t", b" ").split(b" ", 1)[0])


def _not_executable(failure: _Failure) -> Explanation:
    file = failure.file
    if file is None:
        facts, _ = _in_general(failure)
        return facts, "each directory on the way must be searchable (x) by the command's user"
    info = os.stat(file)
    if stat.S_ISDIR(info.st_mode):
        return (f"{file!r} is a directory",), "name the program inside it"
    if not info.st_mode & 0o111:
        advice = f"chmod +x {file!r}, or put the program that reads it first: ['python3', {file!r}]"
        return (f"{file!r} has no execute permission for anybody",), advice
    if os.statvfs(file).f_flag & os.ST_NOEXEC:
        fact = f"{file!r} lies on a file system mounted noexec"
        return (fact,), "move it, or put the program that reads it first"
    interpreter = _interpreter(_head(file))
    if interpreter and not os.access(interpreter, os.X_OK):
        fact = f"{file!r} names an interpreter that may not be executed: {interpreter!r}"
        return (fact,), "correct its first line"
    fact = f"{file!r} has mode {stat.filemode(info.st_mode)}, owner {info.st_uid}, group {info.st_gid}"
    advice = "let the command's user execute it and search the directories above; else see SELinux or AppArmor"
    return (fact,), advice


def _no_format(failure: _Failure) -> Explanation:
    file = failure.file
    head = b"" if file is None else _head(file)
    name = repr(file or failure.filename)
    if head.startswith(b"\x7fELF"):
        fact = f"{name} is a program for another processor, or a damaged one"
        return (fact,), f"use a build for this one, {os.uname().machine}"
    if file is not None and os.stat(file).st_size == 0:
        return (f"{name} is empty",), "write the program again"
    fact = f"{name} is neither a program of this system nor a script whose first line begins with #!"
    return (fact,), f"add a first line such as `#!/bin/sh`, or run its interpreter: ['sh', {name}]"


def _too_long(failure: _Failure) -> Explanation:
    sizes = [_size(argument) for argument in failure.argv]
    one = _STRING_PAGES * os.sysconf("SC_PAGESIZE") - 1
    advice = "hand the data over by input= or in a file"
    longest = max(sizes, default=0)
    if longest > one:
        fact = f"argv[{sizes.index(longest)}] has {longest:,} bytes; one string may have {one:,}"
        return (fact,), advice
    total = sum(sizes) + len(sizes)  # each ends with a NUL
    fact = f"argv has {len(sizes):,} strings, {total:,} bytes in all, the longest {longest:,}"
    limits = f"argv and environment may have {os.sysconf('SC_ARG_MAX'):,} bytes, one string of them {one:,}"
    return (fact, limits), advice + ", call in several parts, or make the environment smaller"


def _size(argument: Argument) -> int:
    try:
        return len(os.fsencode(argument))
    except UnicodeEncodeError:
        return len(str(argument))


def _cwd(failure: _Failure) -> Explanation:
    fact = f"the directory given as cwd is at fault, not {_command(failure)}"
    facts: tuple[str, ...] = (fact,)
    if failure.errno == e.ENOENT and failure.filename:
        facts = (fact, f"{_first_missing(failure.filename)!r} does not exist")
    advice = {
        e.ENOENT: "create the directory, or correct cwd=",
        e.ENOTDIR: "cwd= names a file, or a path through one: give a directory",
    }
    denied = "the command's user must be able to search (x) it and those above it"
    return facts, advice.get(failure.errno, denied)


def _no_descriptors(failure: _Failure) -> Explanation:
    if failure.errno == e.ENFILE:
        return ("the whole system has no file descriptor left",), "see /proc/sys/fs/file-nr for use and limit"
    if failure.stage == "fds":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        fact = f"the application could not take the command's pipes: it may have {limit} descriptors"
        return (fact,), f"look for a leak in /proc/{os.getpid()}/fd, or raise the limit: `ulimit -n`"
    fact = f"the zygote, not the application, had no descriptor left at stage {failure.stage!r}"
    return (fact,), "run fewer commands at once, or raise the limit before the zygote starts: `ulimit -n`"


def _say(fact: str, advice: str) -> Callable[[_Failure], Explanation]:
    """Make an explanation that needs no look at the system; the stage is put into it."""
    return lambda failure: ((fact.format(stage=failure.stage, command=_command(failure)),), advice)


_DENIED = "{command} did not start: the kernel refused stage '{stage}'"

# (stage, errno): the stage "" stands for each that has no row of its own.
_EXPLAIN: dict[tuple[str, int], Callable[[_Failure], Explanation]] = {
    ("exec", e.ENOENT): _not_found,
    ("exec", e.EACCES): _not_executable,
    ("exec", e.EPERM): _not_executable,
    ("exec", e.ENOEXEC): _no_format,
    ("exec", e.ENOTDIR): _say("a part of the program's path is a file", "correct the path"),
    ("exec", e.E2BIG): _too_long,
    ("exec", e.ETXTBSY): _say(
        "somebody has the program's file open for writing",
        "wait until it is closed; write a new program under another name, close it, then os.replace",
    ),
    ("exec", e.ELOOP): _say("the program's path runs in a circle of symbolic links", "repair the links"),
    ("cwd", e.ENOENT): _cwd,
    ("cwd", e.ENOTDIR): _cwd,
    ("cwd", e.EACCES): _cwd,
    ("", e.EAGAIN): _say(
        "{command} did not start: no further process is allowed, at stage '{stage}'",
        "run fewer at once, or raise the limit: `ulimit -u` (RLIMIT_NPROC, per user), pids.max of the cgroup",
    ),
    ("", e.ENOMEM): _say(
        "{command} did not start: the kernel has no memory for it, at stage '{stage}'",
        "free memory or run fewer at once: see memory.max of the cgroup, vm.overcommit_memory, RLIMIT_AS",
    ),
    ("", e.EMFILE): _no_descriptors,
    ("", e.ENFILE): _no_descriptors,
    ("user", e.EPERM): _say(_DENIED, "only root (CAP_SETUID) may change the user: leave user= out"),
    ("group", e.EPERM): _say(_DENIED, "only root (CAP_SETGID) may change the group: leave group= out"),
    ("extra_groups", e.EPERM): _say(_DENIED, "only root (CAP_SETGID) may set them: leave extra_groups= out"),
    ("user", e.EINVAL): _say(_DENIED, "this user namespace has no such id: see /proc/self/uid_map"),
    ("group", e.EINVAL): _say(_DENIED, "this user namespace has no such id: see /proc/self/gid_map"),
    ("nice", e.EPERM): _say(_DENIED, "a higher priority needs CAP_SYS_NICE or RLIMIT_NICE"),
    ("nice", e.EACCES): _say(_DENIED, "a higher priority needs CAP_SYS_NICE or RLIMIT_NICE"),
    ("rlimits", e.EPERM): _say(_DENIED, "without CAP_SYS_RESOURCE a hard limit may only be lowered"),
    ("rlimits", e.EINVAL): _say(_DENIED, "a soft limit may not be above its hard limit"),
    ("affinity", e.EINVAL): _say(_DENIED, "none of these CPUs is allowed here: see os.sched_getaffinity(0)"),
    ("session", e.EPERM): _say(_DENIED, "a group leader cannot start a session: leave process_group= out"),
}


def spawn_error(
    errno: int,
    filename: str | bytes | None,
    *,
    stage: str,
    argv: Sequence[Argument] = (),
    cwd: str | bytes | None = None,
    path: str | bytes | None = None,
    known: Sequence[str] = (),
    help: str = "",
) -> errors.SpawnError:
    """
    Make the error for a command that never started: its class from *errno*, its help from the facts at hand.

    Args:
        errno: As the kernel gave it.
        filename: What subprocess would name: the program, the cwd, or None.
        stage: What failed: "exec", "cwd", "fork", "pipe", "fds", "user", "rlimits", ...
        argv: The command.
        cwd: Where a relative *filename* was looked up; None for the application's directory.
        path: The PATH that was searched; None for the application's.
        known: Facts of the caller, shown after those found here.
        help: Replaces the advice found here.

    Returns:
        The error, to be raised: an instance also of the class that `OSError(errno, ...)` would have.

    Runs in: application, any thread. Reads the head of the program's file.
    """
    # The interpreter itself is asked which class belongs to this errno, so the two cannot differ.
    cls = _SPAWN_CLASS.get(type(OSError(errno, "")), errors.SpawnError)
    if stage == "exec":
        cls = _EXEC_CLASS.get(cls, cls)
    failure = _Failure(
        errno=errno,
        filename=None if filename is None else os.fsdecode(filename),
        stage=stage,
        argv=argv,
        cwd="" if cwd is None else os.fsdecode(cwd),
        path=os.pathsep.join(os.get_exec_path()) if path is None else os.fsdecode(path),
    )
    explain = _EXPLAIN.get((stage, errno)) or _EXPLAIN.get(("", errno)) or _in_general
    try:
        facts, advice = explain(failure)
    except (OSError, ValueError):  # a file system that fails, a name with a NUL: then nothing more is known
        facts, advice = _in_general(failure)
    return cls(errno, None, filename, stage=stage, argv=argv, known=(*facts, *known), help=help or advice)
