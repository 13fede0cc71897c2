"""
One run of the checker: find the files, read them, apply the rules, and leave out what is not wanted.

Runs in: the checker, any thread. Reads files; never imports or executes them.
"""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

import attrs

from safespawn.check import forks, hooks, imports, order, pipes, reach
from safespawn.check.graph import Project
from safespawn.check.source import find_files, read_source
from safespawn.check.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from safespawn.check.config import Config
    from safespawn.check.rules import Finding
    from safespawn.check.source import Source


@attrs.frozen
class Failure:
    """
    A file that could not be checked.

    Args:
        path: The file.
        line: Where it stops to make sense; 1 if that is not known.
        column: The same, from 1.
        reason: Why, in a few words.
    """

    path: str
    line: int
    column: int
    reason: str


@attrs.frozen
class Result:
    """
    What a run has found.

    Args:
        findings: The hits, with the column of each in characters, by path and line.
        failures: The files that could not be checked.
        files: How many files were looked at.
        parsed: How many of them had to be parsed.
        seconds: How long it took.
    """

    findings: tuple[tuple[Finding, int], ...]
    failures: tuple[Failure, ...]
    files: int
    parsed: int
    seconds: float

    @property
    def exit_code(self) -> int:
        """
        2 if a file could not be checked, else 1 if there is a hit, else 0.
        """
        return 2 if self.failures else 1 if self.findings else 0

    def count(self) -> dict[str, int]:
        """
        How many hits each code has, in order of the codes.
        """
        codes = sorted(each.code for each, _ in self.findings)
        return {code: codes.count(code) for code in dict.fromkeys(codes)}


def check(paths: Sequence[str], config: Config) -> Result:
    """
    Check files and folders.

    Args:
        paths: What to check; all of it together is one project.
        config: What to report.
    """
    collects = gc.isenabled()
    gc.disable()  # syntax trees are millions of objects and no garbage: looking through them costs more than all else
    try:
        return _check(paths, config)
    finally:
        if collects:
            gc.enable()


def _check(paths: Sequence[str], config: Config) -> Result:
    began = time.monotonic()
    sources: list[Source] = []
    failures: list[Failure] = []
    for path, given, error in find_files(paths, config.exclude):
        try:
            if error is not None:
                raise error
            sources.append(read_source(path, given))
        except OSError as problem:
            failures.append(Failure(path, 1, 1, f"cannot be read: {problem.strerror or problem}"))
    project = Project(sources)
    reach.read(project)
    hooks.read_more(project)
    by_path = {source.path: source for source in sources}
    findings: list[tuple[Finding, int]] = []
    for each in sorted(set(_findings(project)), key=lambda found: (found.path, found.line, found.code, found.offset)):
        source = by_path[each.path]
        if config.wants(each.code, each.path) and not source.is_silenced(each.code, each.lines):
            findings.append((each, source.column(each.line, each.offset)))
    failures += [_failure(source.path, problem) for source, problem in project.failures]
    failures.sort(key=lambda failure: failure.path)
    seconds = time.monotonic() - began
    return Result(tuple(findings), tuple(failures), len(sources), len(project.modules), seconds)


def _findings(project: Project) -> Iterator[Finding]:
    threads = Threads(project)
    for module in project.modules.values():
        yield from imports.check(project, module)
    for function in project.facts:
        yield from forks.check(project, function, threads)
        yield from order.check(project, function)
        yield from pipes.check(project, function)
    yield from hooks.check(project)


def _failure(path: str, problem: Exception) -> Failure:
    if isinstance(problem, SyntaxError):
        return Failure(path, problem.lineno or 1, max(problem.offset or 1, 1), f"cannot be parsed: {problem.msg}")
    if isinstance(problem, RecursionError | MemoryError):
        return Failure(path, 1, 1, "cannot be parsed: it is nested too deeply")
    return Failure(path, 1, 1, f"cannot be parsed: {problem}")
