"""
`safespawn check PATH...`: finds in source code what makes programs hang that have threads and start processes.

It reads, and nothing else: the code that it checks is never imported or executed. Where it cannot tell what a name
means it is silent, so a hit is worth a look. `docs/check/index.md` is for users; the parts, from below:

    names, source        what an expression may be; the files
    summary              what one file says; expressions and walk find it out
    known, meaning       what the standard library does; what a name means
    graph, reach         what all files together do; which of them are read for that
    threads              where threads are started, and what tells that one may be there
    rules                the codes; imports, forks, order, hooks and pipes say who hits which
    config, run, report  from a command line to a text

Runs in: an application of its own, main thread.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import safespawn

FORMATS = ("text", "json", "sarif")
USAGE_ERROR = 2


def add_command(commands: Any) -> None:
    """
    Add `check` to the command line's grammar.

    Args:
        commands: What `add_subparsers` returned.
    """
    parser: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="find unsafe forks, early threads and import-time starts in source code",
        description="Find in source code what makes programs hang that have threads and start processes. Nothing is "
        "imported or executed. Exit code 0: nothing found; 1: something; 2: usage, or a file that cannot be checked.",
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a file, or a folder with all that is in it")
    parser.add_argument("--select", metavar="CODES", help="report only these: SPN203, or SPN1 for all that begin so")
    parser.add_argument("--ignore", metavar="CODES", help="do not report these")
    parser.add_argument("--exclude", metavar="GLOB", action="append", default=[], help="do not check these files")
    parser.add_argument("--format", choices=FORMATS, default="text", help="how to write it (default: %(default)s)")
    parser.add_argument("--statistics", action="store_true", help="count the hits of each rule")
    parser.add_argument(
        "--run",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="instead of reading files: run this program (a script, or -m module, with its arguments) and find what it "
        "really does; what it prints goes to stderr",
    )
    parser.add_argument("--timeout", type=float, metavar="SECONDS", help="with --run: end the program after so long")
    parser.set_defaults(action=show_check)


def show_check(options: argparse.Namespace) -> int:
    """
    Check, and print what was found.

    Returns:
        The exit code.
    """
    from safespawn.check import config, report, run

    problem = _what_is_wrong(options)
    if problem:
        print(f"safespawn check: {problem}", file=sys.stderr)
        return USAGE_ERROR
    try:
        wanted = config.load(
            options.paths or ["."],
            select=_words(options.select),
            ignore=_words(options.ignore),
            exclude=options.exclude,
        )
    except config.ConfigError as error:
        print(f"safespawn check: {error}", file=sys.stderr)
        return USAGE_ERROR
    if options.run is None:
        result = run.check(options.paths, wanted)
    else:
        from safespawn.check import live

        result, returncode = live.run(options.run, wanted, options.timeout)
        if returncode is None:
            print(f"safespawn check: the program was ended after {options.timeout:g} s", file=sys.stderr)
        elif returncode:
            print(f"safespawn check: the program ended with exit code {returncode}", file=sys.stderr)
    write = report.WRITERS[options.format]
    text = write(result, statistics=options.statistics, version=safespawn.__version__)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))  # a file's name may be any bytes
    return result.exit_code


def _what_is_wrong(options: argparse.Namespace) -> str:
    """
    What does not fit together on the command line, in a sentence; empty if it is well.
    """
    if options.run is None:
        if options.timeout is not None:
            return "--timeout goes with --run"
        return "" if options.paths else "a PATH is wanted, or --run with a program"
    if options.paths:
        return "PATH and --run exclude each other"
    from safespawn.installed import program

    try:
        program.parse(options.run)
    except program.UsageError as error:
        return f"--run: {error}"
    return ""


def _words(text: str | None) -> list[str] | None:
    return None if text is None else text.replace(",", " ").split()
