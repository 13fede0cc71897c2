"""
The command faces: `run`, `arun`, `check_output`, `call`, `check_call` and their async twins.

Each is a few lines around one flow. Which supervisor's zygote starts the command is the current default's, or the
supervisor's whose method was called.

Runs in: application, any thread; the async ones in a task of asyncio, uvloop or trio.
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Unpack

from safespawn._core.command import CommandOptions, command_flow
from safespawn._core.options import (
    SHELL,
    SpawnOptions,
    Text,
    build_spec,
    deadline_after,
    input_bytes,
    text_mode,
)
from safespawn._core.spec import SpawnSpec
from safespawn._core.status import CompletedProcess, Outcome
from safespawn._drive.blocking import drive
from safespawn._drive.engine import Engine
from safespawn.errors import BadArgument, BadArgumentType, CalledProcessError, OutputLimitExceeded, TimeoutExpired

SHORT_SECONDS = 0.1  # a timeout within which what was printed so far must not come late; arbitrary


def prepare(
    args: Any,
    *,
    patient: bool = False,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    universal_newlines: bool | None = None,
    timeout: float | None = None,
    check: bool = False,
    on_line: Any = None,
    input: Any = None,
    capture_output: bool = False,
    max_output_bytes: int | None = None,
    wait_eof: bool = False,
    **options: Any,
) -> tuple[SpawnSpec, CommandOptions, Text | None, bool]:
    """
    Check everything that `run` takes: the spec, the command's options, the text mode, and whether to check the status.
    """
    decoder = None
    if text is not None or encoding is not None or errors is not None or universal_newlines is not None:
        decoder = text_mode(text, encoding, errors, universal_newlines)
    deadline = None if timeout is None else deadline_after(timeout, time.monotonic())
    given = None if input is None else input_bytes(input, decoder)
    if capture_output:
        if options.get("stdout") is not None or options.get("stderr") is not None:
            raise BadArgument(
                "stdout and stderr arguments may not be used with capture_output.",
                parameter="capture_output",
                value=True,
                help="give stdout=PIPE, stderr=PIPE for what you want",
            )
        options["stdout"] = options["stderr"] = subprocess.PIPE
    keep_stdout = "stdout" in options and options["stdout"] is not None
    if on_line is not None:
        keep_stdout = _line_stream(on_line, options, patient=patient)
    if options and options.get("stdin") == subprocess.PIPE:
        del options["stdin"]
        given = b"" if given is None else given  # nobody could write to it: the child reads the end at once
    given_limit: Any = max_output_bytes  # not every caller's code has been checked for types
    if given_limit is not None and not (isinstance(given_limit, int) and given_limit >= 0):
        raise BadArgument(
            "max_output_bytes is a number from 0 up", parameter="max_output_bytes", value=max_output_bytes
        )
    command = CommandOptions(
        args,
        timeout=timeout,
        deadline=deadline,
        input=given,
        wait_eof=wait_eof,
        max_output_bytes=max_output_bytes,
        on_line=on_line,
        codec=None if decoder is None else (decoder.encoding, decoder.errors),
        keep_stdout=keep_stdout,
        kill_tree=options.get("kill_tree", True),
        patient=patient,
    )
    watched = on_line is not None or max_output_bytes is not None or (timeout is not None and timeout < SHORT_SECONDS)
    spec = build_spec(args, options, input=given, hold=False, watched=watched)
    audit(args, options)
    return spec, command, decoder, check


def _line_stream(on_line: Any, options: dict[str, Any], *, patient: bool) -> bool:
    """
    Make stdout a pipe for *on_line*; says whether its bytes are wanted at the end as well.
    """
    import inspect

    if not callable(on_line) or (patient and inspect.iscoroutinefunction(on_line)):
        raise BadArgumentType(
            "on_line is called with each line, and is not awaited",
            parameter="on_line",
            value=on_line,
            help="give a plain function; to await per line, use `async for line in proc.stdout` of aopen_process",
        )
    if options.get("stdout") is None:
        options["stdout"] = subprocess.PIPE
        return False
    if options["stdout"] != subprocess.PIPE:
        raise BadArgument("on_line needs stdout", parameter="stdout", value=options["stdout"], help="leave stdout away")
    return True


def audit(args: Any, options: Mapping[str, Any]) -> None:
    """
    Tell the audit hooks of this start, as subprocess does: with the command as the user wrote it.
    """
    if not options and type(args) is list:
        sys.audit("subprocess.Popen", args[0], args, None, None)
        return
    get = options.get
    if get("shell"):
        args = [SHELL, "-c", args] if isinstance(args, (str, bytes)) else [SHELL, "-c", *args]
    elif not isinstance(args, (list, tuple)):
        args = [args]
    sys.audit("subprocess.Popen", get("executable") or args[0], args, get("cwd"), get("env"))


def finish(args: Any, ended: Outcome, command: CommandOptions, text: Text | None, *, check: bool) -> CompletedProcess:
    """
    The result that the user sees.
    """
    stdout = ended.stdout if command.keep_stdout else None
    result = CompletedProcess(
        args,
        ended.returncode,
        stdout if text is None else text.decode(stdout),
        ended.stderr if text is None else text.decode(ended.stderr),
        pid=ended.pid,
        duration=ended.duration,
        usage=ended.usage,
        held_by=ended.held_by,
    )
    if check and ended.returncode:
        raise CalledProcessError(
            ended.returncode, args, result.stdout, result.stderr,
            pid=ended.pid, duration=ended.duration, rusage=result.rusage,
        )  # fmt: skip
    return result


def decoded(error: TimeoutExpired | OutputLimitExceeded, text: Text | None) -> None:
    """
    Make the partial output of an error text, as far as it can be.
    """
    if text is not None:
        lenient = Text(text.encoding, "replace")
        if isinstance(error.stdout, bytes):
            error.stdout = lenient.decode(error.stdout)  # pyright: ignore[reportAttributeAccessIssue] - as subprocess
        if isinstance(error.stderr, bytes):
            error.stderr = lenient.decode(error.stderr)  # pyright: ignore[reportAttributeAccessIssue]


def run_on(engine: Engine, args: Any, options: Mapping[str, Any]) -> CompletedProcess:
    """
    `run` on *engine*.
    """
    spec, command, text, check = prepare(args, **options)
    try:
        ended = drive(command_flow(engine, spec, command))
    except (TimeoutExpired, OutputLimitExceeded) as error:
        decoded(error, text)
        raise
    return finish(args, ended, command, text, check=check)


async def arun_on(engine: Engine, args: Any, options: Mapping[str, Any]) -> CompletedProcess:
    """
    `arun` on *engine*.
    """
    from safespawn._drive.async_driver import adrive

    spec, command, text, check = prepare(args, patient=True, **options)
    try:
        ended = await adrive(command_flow(engine, spec, command))
    except (TimeoutExpired, OutputLimitExceeded) as error:
        decoded(error, text)
        raise
    return finish(args, ended, command, text, check=check)


class RunOptions(SpawnOptions, total=False):
    """
    The keyword options of `run` and `arun`.
    """

    input: Any
    capture_output: bool
    timeout: float | None
    check: bool
    text: bool | None
    encoding: str | None
    errors: str | None
    universal_newlines: bool | None
    wait_eof: bool
    max_output_bytes: int | None
    on_line: Callable[[Any], object] | None


def check_output_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """
    `run`'s options for `check_output`.
    """
    for name in ("stdout", "check", "capture_output"):
        if name in options:
            raise BadArgument(
                f"{name} argument not allowed, it will be overridden.", parameter=name, value=options[name]
            )
    changed = {**options, "stdout": subprocess.PIPE, "check": True}
    if "input" in options and options["input"] is None:  # as subprocess: the empty input
        changed["input"] = "" if options.get("text") or options.get("encoding") or options.get("errors") else b""
    return changed


class Runner:
    """
    The command functions as methods, over one engine; `Supervisor` inherits them.
    """

    _engine: Engine

    def run(self, args: Any, **options: Unpack[RunOptions]) -> CompletedProcess:
        """
        Run a command to its end.

        Args:
            args: The program and its arguments; with ``shell=True`` one string.
            **options: As in `RunOptions`; docs/commands.md tells each.

        Returns:
            How it ended, what it printed where that was captured, what it used.

        Raises:
            SpawnError: It did not start; also the class that `OSError` has for the errno, with subprocess's filename.
            TimeoutExpired: It did not end in time, and was ended with its whole tree.
            CalledProcessError: With ``check=True``: its exit code is not zero.
            OutputLimitExceeded: It printed more than ``max_output_bytes``, and was ended.
            SpawnLost: The zygote was lost with this command on it; says what is known.
            BadArgument, BadArgumentType, UnsupportedOption: Nothing was started.

        Runs in: application, any thread; blocks.
        """
        return run_on(self._engine, args, options)

    def call(self, args: Any, **options: Unpack[RunOptions]) -> int:
        """
        Run a command to its end; returns its exit code, -N when signal N ended it. Arguments and errors as `run`.
        """
        return run_on(self._engine, args, options).returncode

    def check_call(self, args: Any, **options: Unpack[RunOptions]) -> int:
        """
        As `call`, but an exit code other than zero raises `CalledProcessError`.
        """
        return run_on(self._engine, args, {**options, "check": True}).returncode

    def check_output(self, args: Any, **options: Unpack[RunOptions]) -> Any:
        """
        Run a command to its end; returns its stdout, bytes or str. Arguments and errors as ``run(check=True)``.
        """
        return run_on(self._engine, args, check_output_options(options)).stdout

    async def arun(self, args: Any, **options: Unpack[RunOptions]) -> CompletedProcess:
        """
        `run` for an event loop: asyncio, uvloop or trio. Cancelling it ends the command, with its whole tree.

        Arguments, result and errors as `run`.

        Runs in: application, a task; starts no thread.
        """
        return await arun_on(self._engine, args, options)

    async def acheck_output(self, args: Any, **options: Unpack[RunOptions]) -> Any:
        """
        `check_output` for an event loop.
        """
        return (await arun_on(self._engine, args, check_output_options(options))).stdout
