"""
The command line: `safespawn demo`, `status`, `ps`, `top`; and the doors to `check` and `exec`.

What goes wrong is told in a sentence on stderr. Exit codes: 0 all well; 1 not, the text says what; 2 usage; 130 Ctrl-C.

Runs in: an application of its own, main thread.
"""

import argparse
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import safespawn
from safespawn import check
from safespawn._processes import counted, duration, find_zygotes, megabytes, one_line

SHOWN_LINES = 4
SHOWN_CHILDREN = 20


def main(arguments: list[str] | None = None) -> int:
    """
    Do what the command line says.

    Args:
        arguments: Without the program's name; None for this process's own.

    Returns:
        The exit code.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["exec"]:  # all that follows is the program's, and so is what it raises
        from safespawn.installed import program

        return program.main(words[1:])
    parser = make_parser()
    options = parser.parse_args(words)
    try:
        code: int = options.action(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # whoever read has seen enough: `safespawn status | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except (OSError, safespawn.errors.SafespawnError) as error:
        print(f"safespawn: {error}", file=sys.stderr)
        return 1
    return code


def make_parser() -> argparse.ArgumentParser:
    """
    The command line's grammar.
    """
    parser = argparse.ArgumentParser(prog="safespawn", description="Start processes from a clean helper process.")
    parser.add_argument("--version", action="version", version=f"safespawn {safespawn.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="run a real command under load, beside the standard library",
        description="Run `ss -tn` many times: one by one, from threads while foreign forks happen, in event loops; "
        "beside the standard library. Exit code 0 if safespawn's rows are clean.",
    )
    demo.add_argument("--calls", type=whole_number, default=400, help="calls in each row (default: %(default)s)")
    demo.add_argument(
        "--seconds", type=whole_number, default=4, help="no new calls after so long, in each row (default: %(default)s)"
    )
    demo.set_defaults(action=show_demo)
    status = commands.add_parser(
        "status",
        help="show the helper processes (zygotes) of this user and what they run",
        description="Show every zygote of this user (root: of everybody): whose it is, and what it runs.",
    )
    status.add_argument("--json", action="store_true", help="for programs")
    status.set_defaults(action=show_status)
    add_ps(commands)
    check.add_command(commands)
    commands.add_parser("exec", help="run an unmodified program with its processes made safe")  # `main` sees to it
    return parser


def add_ps(commands: Any) -> None:
    """
    `ps` and `top`, in the grammar.
    """
    about = "every application of this user that uses safespawn (root: of everybody), its helper processes, pools, "
    about += "workers and children: state, restarts, CPU, memory, what each does and what happened to it last"
    once = commands.add_parser("ps", help="list applications, workers and children", description=f"Show {about}.")
    once.add_argument("--json", action="store_true", help="for programs")
    once.set_defaults(action=show_ps)
    again = commands.add_parser(
        "top", help="`ps` again and again, with the CPU of the moment", description=f"Keep showing {about}."
    )
    again.add_argument(
        "--interval", type=seconds, default=1.0, metavar="SECONDS", help="between two looks (default: %(default)s)"
    )
    again.add_argument("--count", type=whole_number, help="end after so many looks")
    again.set_defaults(action=show_top)


def seconds(text: str) -> float:
    """
    An option's value: a time from 0.1 s up.
    """
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.1 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"seconds are wanted, 0.1 or more, not {text!r}")
    return value


def whole_number(text: str) -> int:
    """
    An option's value: a number from 1 up.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number from 1 up is wanted, not {text!r}")
    return int(text)


# --- demo ------------------------------------------------------------------------------------------------------------
def show_demo(options: argparse.Namespace) -> int:
    """
    Print some real output, then the table.
    """
    import importlib.util

    from safespawn import _demo

    ways = [way for way in _demo.WAYS if way != "trio" or importlib.util.find_spec("trio") is not None]
    cells: list[_demo.Cell] = []
    with connection():
        command = real_command()
        print(f"The same command again, up to {options.calls} times in each row. A call over 1 s counts as blocked.\n")
        print(demo_row(("", "", "calls", "blocked", "slowest", "left over: processes", "fds")))
        for way in ways:
            for library in _demo.LIBRARIES:
                cell = _demo.ask(library, way, options.calls, options.seconds, command)
                cells.append(cell)
                print(demo_row(cell_words(cell, _demo.WAYS[way])), flush=True)
    ours = [cell for cell in cells if cell.library == "safespawn"]
    theirs = [cell for cell in cells if cell.library != "safespawn"]
    print(
        f"\nBlocked calls: safespawn {sum(cell.blocked for cell in ours)} of {sum(cell.calls for cell in ours)}, "
        f"the others {sum(cell.blocked for cell in theirs)} of {sum(cell.calls for cell in theirs)}."
    )
    for cell in cells:
        why = cell.error or (cell.trouble and f"{cell.wrong} calls went wrong: {cell.trouble}")
        if why:
            print(f"{cell.library}, {_demo.WAYS[cell.way]}: {why}")
    if all(cell.clean for cell in ours):
        return 0
    print("safespawn's rows are NOT clean.")
    return 1


def real_command() -> list[str]:
    """
    The demo's command: `ss -tn`, or where that does not work, the file that it reads. Shows its output.
    """
    for command in (["ss", "-tn"], ["cat", "/proc/net/tcp"]):
        try:
            done = safespawn.run(command, capture_output=True, text=True, timeout=10)
        except (safespawn.errors.SpawnError, safespawn.errors.TimeoutExpired) as error:
            print(f"{' '.join(command)} does not run here: {str(error).partition(chr(10))[0]}")
            continue
        if done.returncode == 0:
            lines = done.stdout.splitlines()
            print(f"safespawn.run({command!r}, capture_output=True, text=True)")
            print(f"  pid {done.pid}, {done.duration * 1000:.1f} ms, {len(lines)} lines:")
            for line in lines[:SHOWN_LINES]:
                print(f"    {line.rstrip()}")
            print()
            return command
    raise OSError("neither `ss -tn` nor `cat /proc/net/tcp` works here")


class connection:  # noqa: N801 - a context manager, named as one reads it
    """
    One TCP connection of this process to itself, so that there is something to list.
    """

    def __enter__(self) -> None:
        import socket

        self._sockets: list[Any] = []
        try:
            listener = socket.create_server(("127.0.0.1", 0))
            self._sockets.append(listener)
            self._sockets.append(socket.create_connection(listener.getsockname()))
            self._sockets.append(listener.accept()[0])
        except OSError:
            return  # a machine without IPv4: then the list may be empty

    def __exit__(self, *_error: object) -> None:
        for each in self._sockets:
            each.close()


def demo_row(words: Iterable[str]) -> str:
    """
    One line of the table.
    """
    way, library, calls, blocked, slowest, processes, fds = words
    return f"  {way:<31}{library:<12}{calls:>6}{blocked:>9}{slowest:>11}{processes:>22}{fds:>5}"


def cell_words(cell: Any, way: str) -> tuple[str, ...]:
    """
    What stands in a cell's row.
    """
    loop = cell.way.partition("-")[0]
    library = loop if cell.library == "subprocess" and loop in ("asyncio", "trio") else cell.library
    if cell.error:
        return (way, library, "-", "-", "-", "-", "-")
    slowest = f"{cell.slowest:.2f} s" if cell.slowest >= 1 else f"{cell.slowest * 1000:.0f} ms"
    return (way, library, str(cell.calls), str(cell.blocked), slowest, str(cell.processes), str(cell.fds))


# --- ps and top ------------------------------------------------------------------------------------------------------
def show_ps(options: argparse.Namespace) -> int:
    """
    Print what runs.
    """
    from safespawn import _ps

    found = _ps.find_applications()
    if options.json:
        import json

        print(json.dumps({"applications": found}, indent=2))
    else:
        print("\n".join(_ps.lines(found, os.get_terminal_size().columns if sys.stdout.isatty() else None)))
    return 0


def show_top(options: argparse.Namespace) -> int:
    """
    Keep printing what runs.
    """
    from safespawn import _ps

    try:
        _ps.top(options.interval, options.count)
    except KeyboardInterrupt:
        print()  # that is how one ends it
    return 0


# --- status ----------------------------------------------------------------------------------------------------------
def show_status(options: argparse.Namespace) -> int:
    """
    Print what there is.
    """
    zygotes = find_zygotes()
    if options.json:
        import json

        print(json.dumps({"zygotes": zygotes}, indent=2))
    elif not zygotes:
        print("No safespawn zygote runs here" + ("." if os.geteuid() == 0 else " as this user."))
    for zygote in [] if options.json else zygotes:
        print("\n".join(status_lines(zygote)))
    return 0


def status_lines(zygote: dict[str, Any]) -> Iterator[str]:
    """
    One zygote, for reading.
    """
    application, warden = zygote["application"], zygote["warden"]
    yield f"application {application['pid']}: {one_line(application['command'] or 'has ended')}"
    kind = "keeps its children (detach=True)" if warden is None else f"warden {warden['pid']}"
    figures = (
        f"up {duration(zygote['uptime_seconds'])}",
        counted(zygote["descriptors"], "descriptor"),
        f"{megabytes(zygote['rss_bytes'])} resident",
        f"state {zygote['state']}",
    )
    yield f"  zygote {zygote['pid']}, {kind}: {', '.join(figures)}"
    children = zygote["children"]
    yield f"  {counted(len(children), 'child', 'children')}"
    for child in children[:SHOWN_CHILDREN]:
        note = " (ended, not yet collected)" if child["state"] == "Z" else ""
        yield f"    {child['pid']:>8}  {duration(child['age_seconds']):>8}  {one_line(child['command'])}{note}"
    if len(children) > SHOWN_CHILDREN:
        yield f"    and {len(children) - SHOWN_CHILDREN} more; --json shows all"
