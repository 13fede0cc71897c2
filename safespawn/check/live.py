"""
`safespawn check --run PROGRAM`: what the program really does, under the codes of the static rules.

The program runs unmodified in a process of its own, watched by the audit hook of the guard and the recorder of thread
starts; nothing is refused. What it does is written down, a line for each event, in memory that both processes see, so
that it is there also when the program crashes, forks or is killed. It is exact for what ran, and silent about the rest.

    SPN101 SPN102 SPN103    a thread, a command, a process or pool started while a module is being imported
    SPN201 SPN301 SPN203    a bare fork with threads; multiprocessing's with threads; without
    SPN202 SPN204           the start method "fork" asked for; a preexec_fn

Runs in: the checker, which starts the program and waits for it; and, from `watch` on, in the program.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any

from safespawn.check.config import Config
from safespawn.check.rules import Finding
from safespawn.check.run import Result
from safespawn.check.source import read_source

_COMMANDS = ("the command ", "subprocess.Popen", "os.system", "os.popen")


def run(words: Sequence[str], config: Config, timeout: float | None = None) -> tuple[Result, int | None]:
    """
    Run a program, and tell what was found, and its exit code. What it prints goes to stderr.

    Args:
        words: A script, or ``-m module`` or ``-c code``, and its arguments.
        config: What to report.
        timeout: Seconds after which it is ended, with its processes; the exit code is None then.

    Raises:
        SpawnError: It cannot be started.
    """
    import safespawn

    began = time.monotonic()
    notes_fd = os.memfd_create("safespawn-check", os.MFD_CLOEXEC)
    try:
        argv = [sys.executable, "-m", __name__, str(notes_fd), *words]
        returncode = None
        with contextlib.suppress(safespawn.TimeoutExpired):
            returncode = safespawn.run(argv, stdout=2, pass_fds=(notes_fd,), timeout=timeout).returncode
        text = os.pread(notes_fd, os.fstat(notes_fd).st_size, 0).decode()
    finally:
        os.close(notes_fd)
    findings: list[tuple[Finding, int]] = []
    for row in sorted({line for line in text.splitlines() if line}):
        code, path, line, message = json.loads(row)
        shown = os.path.relpath(path) if path.startswith(os.getcwd() + os.sep) else path
        found = Finding(code, shown, line, 0, message, (line,))
        if config.wants(code, shown) and not _is_silenced(path, found):
            findings.append((found, 1))
    findings.sort(key=lambda each: (each[0].path, each[0].line, each[0].code))
    files = len({each.path for each, _ in findings})
    return Result(tuple(findings), (), files, files, time.monotonic() - began), returncode


def _is_silenced(path: str, found: Finding) -> bool:
    try:
        return read_source(path, path).is_silenced(found.code, found.lines)
    except (OSError, ValueError, SyntaxError):
        return False  # code without a file


# --- in the program ---------------------------------------------------------------------------------------------------
def code_of(kind: str, what: str, threads: int) -> str | None:
    """
    The rule that an event is a hit of; None if it is none.
    """
    if kind == "import":
        return "SPN102" if what.startswith(_COMMANDS) else "SPN103"
    if kind == "fork":
        if "multiprocessing" in what:
            return "SPN301" if threads else "SPN203"
        return "SPN201" if threads else None
    return {"preexec": "SPN204", "start-method": "SPN202"}.get(kind)


def _identity(fd: int) -> tuple[int, int] | None:
    """
    What *fd* is open on; None if it is not open.
    """
    try:
        facts = os.fstat(fd)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino


def watch(notes_fd: int) -> None:
    """
    Write down, from here on, what this process and its forked copies do.
    """
    from safespawn import _policy, _recorder, _start_method, _watch

    ours = _identity(notes_fd)

    def note(code: str | None, place: tuple[str, int], message: str) -> None:
        if code is not None and _identity(notes_fd) == ours:  # the program may have closed all that it does not know
            line = json.dumps([code, os.path.abspath(place[0]), place[1], message]) + "\n"
            os.write(notes_fd, line.encode())  # one write: copies of this process write as well

    def sink(kind: str, what: str, place: tuple[str, int], threads: int, imports: Sequence[str]) -> None:
        when = f", while {imports[0]} is being imported" if imports else ""
        alive = f", with {threads} other thread(s)" if threads and not imports else ""
        note(code_of(kind, what, threads), place, f"{what}{when}{alive}")

    def thread_starts(thread: Any, frame: Any) -> None:
        under_way = _watch.imports(frame)
        place = _recorder.user_place(frame)
        if under_way and place is not None:
            note("SPN101", place, f"thread {thread.name!r} starts, while {under_way[0]} is being imported")

    _policy.sink = sink
    _recorder.observer = thread_starts
    _watch.begin(_policy.make_layer("warn", ()))
    _start_method.watch_fork()


def main() -> int:
    """
    The program's process: ``python -m safespawn.check.live FD WORD ...``.
    """
    from safespawn.installed import program

    notes_fd = int(sys.argv[1])
    os.set_inheritable(notes_fd, False)
    try:
        command = program.parse(sys.argv[2:])
    except program.UsageError as error:
        sys.stderr.write(f"safespawn check --run: {error}\n")
        return 2
    if command is None:
        return 2
    watch(notes_fd)
    return program.execute(command)


if __name__ == "__main__":
    sys.exit(main())
