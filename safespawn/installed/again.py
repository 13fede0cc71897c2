"""
A program that starts itself again, as reloaders do, is under `safespawn exec` again.

What counts as that: this interpreter, the same program and the very same arguments. A program that runs its own file as
a command with other arguments, as a worker, pays nothing for it, and is a plain python as every other command.

Runs in: application, any thread. Starts nothing.
"""

import os
import sys
from collections.abc import Mapping
from typing import Any

import attrs

_WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs")
_ALONE = frozenset("bBdOqsuvx")  # flags; -E, -I, -P and -S would keep the new interpreter from finding us


@attrs.frozen
class Program:
    """
    What runs under `safespawn exec`.

    Attributes:
        file: Its file, absolute; "" if it has none that python could be given.
        module: The name behind ``-m``, else "".
        arguments: Its own.
        guard: The policy that exec was given.
    """

    file: str
    module: str
    arguments: tuple[str, ...]
    guard: str


running: list[Program] = []  # one, under `safespawn exec`


def command(words: list[Any], cwd: Any, env: Mapping[Any, Any] | None) -> list[Any]:
    """
    What is started in place of this command: the same, but for one that starts the running program again.

    Args:
        words: The command.
        cwd: Where it runs; None is here.
        env: What it gets; None is ours.
    """
    if not running or len(words) < 2:
        return words
    try:
        texts = [os.fsdecode(word) for word in words]
        place = _program_of(texts)
        if place is None or not _is_executable(texts[0]) or not _finds_us(env):
            return words
        if not _is_same(running[0], texts[place:], "" if cwd is None else os.fsdecode(cwd)):
            return words
    except (TypeError, ValueError, OSError):
        return words  # it is no command that could be started; who starts it says why
    return [*words[:place], "-m", "safespawn", "exec", "--guard", running[0].guard, *words[place:]]


def _program_of(texts: list[str]) -> int | None:
    """
    Where the options of the interpreter end, and the program begins.
    """
    place = 1
    while place < len(texts):
        word = texts[place]
        if not word.startswith("-") or word in ("-m", "-"):
            return place
        if word in _WITH_VALUE:
            place += 2
        elif word.startswith(("-W", "-X")) or _ALONE.issuperset(word[1:]):
            place += 1
        else:
            return None
    return None


def _is_executable(text: str) -> bool:
    return text == sys.executable or (os.path.isabs(text) and os.path.samefile(text, sys.executable))


def _finds_us(env: Mapping[Any, Any] | None) -> bool:
    """
    Whether a new interpreter looks for modules where this one does.
    """
    if env is None:
        return True
    given = {os.fsdecode(name): os.fsdecode(value) for name, value in env.items()}
    return all(given.get(name) == os.environ.get(name) for name in ("PYTHONPATH", "PYTHONHOME"))


def _is_same(program: Program, texts: list[str], cwd: str) -> bool:
    if texts[0] == "-m":
        return bool(program.module) and texts[1:] == [program.module, *program.arguments]
    if not program.file or texts[1:] != list(program.arguments):
        return False
    return os.path.samefile(os.path.join(cwd, texts[0]), program.file)
