"""
`subprocess.run` and the others that run a command to its end.

They are the standard ones but for their ends: a timeout, a Ctrl-C or any other exception ends the command with all that
it has started, so that nobody is left who holds a pipe and makes the caller wait.

Runs in: application, any thread.
"""

# ruff: noqa: S604 - they have the standard ones' documentation, and start a shell when that is asked for

import contextlib
import functools
import subprocess as _standard
import sys
from collections.abc import Callable, Generator
from subprocess import PIPE, STDOUT, CalledProcessError, CompletedProcess
from typing import Any, TypeVar

from safespawn import _popen

_F = TypeVar("_F", bound=Callable[..., Any])


def _as(standard: Callable[..., Any]) -> Callable[[_F], _F]:
    """
    Known by the signature of the function that it stands for; pickled as what it is.
    """
    return functools.partial(functools.update_wrapper, wrapped=standard, assigned=("__doc__",))  # type: ignore[return-value]


def popen_class() -> Any:
    """
    What the functions start processes with: `_popen.Popen`, or what somebody has put in its place in
    `safespawn.subprocess`, a test's double say; or in the standard module, if these functions stand there as well.
    """
    behind: Any = _standard
    if behind.run is run and behind.Popen is not _popen.Standard:
        return behind.Popen
    face = sys.modules.get("safespawn.subprocess")
    return _popen.Popen if face is None else face.Popen


@contextlib.contextmanager
def _running(popenargs: tuple[Any, ...], options: dict[str, Any]) -> Generator[Any, None, None]:
    """
    The process; ended with its whole tree if the block is left by an exception.
    """
    with popen_class()(*popenargs, **options) as process:
        try:
            yield process
        except BaseException:
            _popen.end_tree(process)
            raise


@_as(_standard.run)
def run(
    *popenargs: Any, input: Any = None, capture_output: bool = False, timeout: float | None = None,
    check: bool = False, **options: Any,
) -> "CompletedProcess[Any]":  # fmt: skip
    if input is not None:
        if options.get("stdin") is not None:
            raise ValueError("stdin and input arguments may not both be used.")
        options["stdin"] = PIPE
    if capture_output:
        if options.get("stdout") is not None or options.get("stderr") is not None:
            raise ValueError("stdout and stderr arguments may not be used with capture_output.")
        options.update(stdout=PIPE, stderr=PIPE)
    with _running(popenargs, options) as process:
        stdout, stderr = process.communicate(input, timeout=timeout)
    done = CompletedProcess(process.args, process.poll(), stdout, stderr)
    if check:
        done.check_returncode()
    return done


@_as(_standard.call)
def call(*popenargs: Any, timeout: float | None = None, **options: Any) -> int:
    with _running(popenargs, options) as process:
        code: int = process.wait(timeout=timeout)
    return code


@_as(_standard.check_call)
def check_call(*popenargs: Any, **options: Any) -> int:
    code = call(*popenargs, **options)
    if code:
        raise CalledProcessError(code, options["args"] if "args" in options else popenargs[0])
    return 0


@_as(_standard.check_output)
def check_output(*popenargs: Any, timeout: float | None = None, **options: Any) -> Any:
    for name in ("stdout", "check"):
        if name in options:
            raise ValueError(f"{name} argument not allowed, it will be overridden.")
    if "input" in options and options["input"] is None:
        is_text = any(options.get(name) for name in ("text", "universal_newlines", "encoding", "errors"))
        options["input"] = "" if is_text else b""
    return run(*popenargs, stdout=PIPE, timeout=timeout, check=True, **options).stdout


@_as(_standard.getstatusoutput)
def getstatusoutput(cmd: Any, *, encoding: str | None = None, errors: str | None = None) -> tuple[int, str]:
    done = run(cmd, shell=True, text=True, encoding=encoding, errors=errors, stdout=PIPE, stderr=STDOUT)
    output: str = done.stdout
    return done.returncode, output.removesuffix("\n")


@_as(_standard.getoutput)
def getoutput(cmd: Any, *, encoding: str | None = None, errors: str | None = None) -> str:
    return getstatusoutput(cmd, encoding=encoding, errors=errors)[1]
