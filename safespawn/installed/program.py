"""
`safespawn exec`: run an unmodified program as `python` does, with `install` and `init` done first.

The program is `__main__`, with the arguments, the path, the exit code and the tracebacks that it has under `python`.

Runs in: an application of its own, main thread.
"""

# ruff: noqa: T201 - printing is the job

import builtins
import io
import os
import sys
import types
from collections.abc import Callable
from importlib.machinery import BuiltinImporter, SourceFileLoader, SourcelessFileLoader
from typing import Any

import attrs

GUARDS = ("error", "warn", "off")
USAGE = """\
usage: safespawn exec [--guard {error,warn,off}] (SCRIPT | -m MODULE | -c CODE | -) [ARGUMENT ...]

Run a Python program as `python` does, unmodified: its subprocess, os.system, asyncio subprocesses, multiprocessing and
ProcessPoolExecutor are safespawn's, which no thread and no fork can hang.

  SCRIPT       a file, or a directory or zip file with a __main__.py
  -m MODULE    a module, by its name
  -c CODE      the code itself
  -            what comes from stdin
  --guard      what to do about bare forks of the program: error, warn (default), off
"""


@attrs.frozen
class Command:
    """
    What is to be run.

    Attributes:
        kind: "script", "module", "code", "stdin".
        what: The file, the module or the code.
        arguments: The program's.
        guard: For `safespawn.init`.
    """

    kind: str
    what: str
    arguments: tuple[str, ...]
    guard: str = "warn"


class UsageError(Exception):
    """
    The command line cannot be understood.
    """


def parse(words: list[str]) -> Command | None:
    """
    Read the command line behind ``exec``; None if help is wanted.

    Raises:
        UsageError: What is wrong, in a sentence.
    """
    rest, guard = list(words), "warn"
    while rest:
        word = rest.pop(0)
        name, equals, value = word.partition("=")
        if word in ("-h", "--help"):
            return None
        if name == "--guard":
            if not equals:
                value = rest.pop(0) if rest else ""
            if value not in GUARDS:
                raise UsageError(f"--guard is one of {', '.join(GUARDS)}")
            guard = value
        elif word[:2] in ("-m", "-c"):
            if len(word) == 2 and not rest:
                raise UsageError(f"argument expected for the {word} option")
            what = word[2:] or rest.pop(0)
            return Command("module" if word[1] == "m" else "code", what, tuple(rest), guard)
        elif word == "-":
            return Command("stdin", word, tuple(rest), guard)
        elif word == "--" and rest:
            return Command("script", rest[0], tuple(rest[1:]), guard)
        elif word.startswith("-"):
            raise UsageError(f"unknown option {word}")
        else:
            return Command("script", word, tuple(rest), guard)
    raise UsageError("a program is wanted: SCRIPT, -m MODULE, -c CODE or -")


def main(words: list[str]) -> int:
    """
    Do what the command line says; returns the exit code, or raises what ends the interpreter as the program wants.
    """
    from safespawn.errors import SafespawnError

    try:
        command = parse(words)
        if command is not None:
            _prepare(command.guard)
    except UsageError as error:
        print(f"{USAGE.partition(chr(10))[0]}\nsafespawn exec: {error}", file=sys.stderr)
        return 2
    except (OSError, SafespawnError) as error:
        print(f"safespawn: {error}", file=sys.stderr)
        return 1
    if command is None:
        print(USAGE, end="")
        return 0
    return execute(command)


def _prepare(guard: Any) -> None:
    from safespawn.installed import install
    from safespawn.supervisor import init

    install()
    init(guard)


# --- the program ------------------------------------------------------------------------------------------------------
_kept: list[Any] = []  # the module that was __main__ before: what runs in it still needs its names


def execute(command: Command) -> int:
    """
    Run the program; returns its exit code when it comes to its end or raises.

    Raises:
        SystemExit: The program's own.
        KeyboardInterrupt: Ctrl-C has ended it; it has been shown.
    """
    from safespawn.installed import again

    file = os.path.abspath(command.what) if command.kind == "script" else ""
    module = command.what if command.kind == "module" else ""
    again.running[:] = [again.Program(file, module, command.arguments, command.guard)]
    _kept.append(sys.modules["__main__"])
    main_module = types.ModuleType("__main__")
    main_module.__dict__.update(__builtins__=builtins, __annotations__={}, __loader__=BuiltinImporter)
    sys.modules["__main__"] = main_module
    try:
        run = _RUNNERS[command.kind](command, main_module)
    except OSError as error:
        print(f"{sys.executable}: {error.args[-1]}", file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001 - the code does not compile; Python shows that, and ends with 1
        return _show(error)
    try:
        run()
    except SystemExit:
        raise
    except BaseException as error:  # noqa: BLE001 - shown, as the interpreter does
        return _show(error)
    return 0


def _show(error: BaseException) -> int:
    """
    Show what the program has not caught, without the lines of this library.
    """
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    error.__traceback__ = trace
    if sys.excepthook is sys.__excepthook__:
        sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    sys.excepthook(type(error), error, trace)
    if isinstance(error, KeyboardInterrupt):
        sys.excepthook = _shown
        raise KeyboardInterrupt from None  # the interpreter ends by SIGINT, having done all that is done at an exit
    return 1


def _shown(kind: Any, error: Any, trace: Any) -> None:
    del kind, error, trace


def _set_path(first: str) -> None:
    """
    What a program finds as the first entry of sys.path, where ours has its own directory.
    """
    if not sys.flags.safe_path:
        sys.path[0:1] = [first]


def _runner(code: Any, names: dict[str, Any]) -> Callable[[], None]:
    def run() -> None:
        exec(code, names)  # noqa: S102 - that is what is asked for

    return run


def _script(command: Command, main_module: Any) -> Callable[[], None]:
    sys.argv[:] = [command.what, *command.arguments]
    path = os.path.abspath(command.what)
    if os.path.isdir(path) or _is_archive(path):
        return _holder(command.what)
    try:
        with io.open_code(path) as file:
            source = file.read()
    except OSError as error:
        raise OSError(f"can't open file {path!r}: [Errno {error.errno}] {error.strerror}") from None
    _set_path(os.path.dirname(os.path.realpath(path)))
    compiled = path.endswith(".pyc")
    loader: Any = (SourcelessFileLoader if compiled else SourceFileLoader)("__main__", path)
    main_module.__dict__.update(__file__=path, __cached__=None, __loader__=loader)
    code = loader.get_code("__main__") if compiled else compile(source, path, "exec", dont_inherit=True)
    return _runner(code, main_module.__dict__)


def _is_archive(path: str) -> bool:
    import pkgutil

    return os.path.isfile(path) and not path.endswith((".py", ".pyc")) and pkgutil.get_importer(path) is not None


def _holder(path: str) -> Callable[[], None]:
    """
    A directory or a zip file with a __main__.py, which is found by the first entry of sys.path.
    """
    import runpy

    sys.path[0:1] = [path]
    run: Any = runpy._run_module_as_main  # type: ignore[attr-defined]  # noqa: SLF001 - what `python` itself calls
    return lambda: run("__main__", alter_argv=False)


def _module(command: Command, main_module: Any) -> Callable[[], None]:
    import runpy

    del main_module
    sys.argv[:] = ["-m", *command.arguments]
    _set_path(os.getcwd())
    run: Any = runpy._run_module_as_main  # type: ignore[attr-defined]  # noqa: SLF001
    return lambda: run(command.what)


def _code(command: Command, main_module: Any) -> Callable[[], None]:
    sys.argv[:] = ["-c", *command.arguments]
    _set_path("")
    if sys.version_info >= (3, 13):  # whose tracebacks show its lines
        import linecache

        linecache.cache["<string>"] = (len(command.what), None, command.what.splitlines(keepends=True), "<string>")
    return _runner(compile(command.what, "<string>", "exec", dont_inherit=True), main_module.__dict__)


def _stdin(command: Command, main_module: Any) -> Callable[[], None]:
    sys.argv[:] = ["-", *command.arguments]
    _set_path("")
    loader = SourceFileLoader("__main__", "<stdin>")
    main_module.__dict__.update(__file__="<stdin>", __cached__=None, __loader__=loader)
    return _runner(compile(sys.stdin.buffer.read(), "<stdin>", "exec", dont_inherit=True), main_module.__dict__)


_RUNNERS: dict[str, Callable[[Command, Any], Callable[[], None]]] = {
    "script": _script,
    "module": _module,
    "code": _code,
    "stdin": _stdin,
}
