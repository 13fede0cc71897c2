"""
What to check and what to report: `[tool.safespawn.check]` in pyproject.toml, and the command line, which wins.

Runs in: the checker, any thread. Reads one file.
"""

from __future__ import annotations

import os
import tomllib
from typing import TYPE_CHECKING, Any

import attrs

from safespawn.check.rules import RULES
from safespawn.check.source import is_matched

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DEFAULT = frozenset(code for code, rule in RULES.items() if rule.default)
KEYS = ("select", "ignore", "exclude", "per-file-ignores")


class ConfigError(ValueError):
    """
    The command line or the configuration file asks for what there is not; the text is for the user.
    """


@attrs.frozen(kw_only=True)
class Config:
    """
    What to report.

    Args:
        select: The codes to report.
        exclude: Patterns of files not to check.
        per_file: Patterns, and the codes not to report in files that match.
        root: The folder of the configuration file; patterns are tried on paths from there, too.
    """

    select: frozenset[str] = DEFAULT
    exclude: tuple[str, ...] = ()
    per_file: tuple[tuple[str, frozenset[str]], ...] = ()
    root: str = ""

    def wants(self, code: str, path: str) -> bool:
        """
        Whether a hit is to be reported.
        """
        if code not in self.select:
            return False
        shown = os.path.relpath(path, self.root or ".")
        return not any(code in codes and is_matched(shown, [pattern]) for pattern, codes in self.per_file)


def codes_of(words: Iterable[str], where: str) -> frozenset[str]:
    """
    The codes that words mean: each a code, or the beginning of some that are on by default.

    Raises:
        ConfigError: One is neither; *where* says whose fault that is.
    """
    found: set[str] = set()
    words = list(words)
    if not words and where.startswith("--"):
        raise ConfigError(f"{where}: no rule is named")
    for word in words:
        wanted = word.upper()
        codes = {code for code in RULES if code == wanted or (code in DEFAULT and wanted and code.startswith(wanted))}
        if not codes:
            raise ConfigError(f"{where}: there is no rule {word!r}; the rules are {', '.join(RULES)}")
        found |= codes
    return frozenset(found)


def load(
    paths: Sequence[str],
    *,
    select: Sequence[str] | None = None,
    ignore: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
) -> Config:
    """
    Put configuration file and command line together.

    Args:
        paths: What is checked; the file is looked for from the first one upwards.
        select: As the command line says; None if it does not.
        ignore: The same.
        exclude: Patterns from the command line, beside those of the file.

    Raises:
        ConfigError: Either asks for what there is not.
    """
    file = find_file(paths[0]) if paths else None
    table = read_table(file) if file is not None else {}
    name = file or "pyproject.toml"
    chosen, left_out = table.get("select"), table.get("ignore", [])
    codes = DEFAULT if chosen is None else codes_of(chosen, f"{name}: tool.safespawn.check.select")
    codes -= codes_of(left_out, f"{name}: tool.safespawn.check.ignore")
    if select is not None:
        codes = codes_of(select, "--select")
    if ignore is not None:
        codes -= codes_of(ignore, "--ignore")
    per_file = [
        (pattern, codes_of(words, f"{name}: tool.safespawn.check.per-file-ignores"))
        for pattern, words in table.get("per-file-ignores", {}).items()
    ]
    return Config(
        select=codes,
        exclude=(*table.get("exclude", []), *exclude),
        per_file=tuple(per_file),
        root=os.path.dirname(file) if file is not None else "",
    )


def find_file(path: str) -> str | None:
    """
    The nearest pyproject.toml with a table for the checker, from a path upwards; one without is passed over.

    Raises:
        ConfigError: One on the way is not TOML.
    """
    folder = os.path.abspath(path)
    while True:
        file = os.path.join(folder, "pyproject.toml")
        if os.path.isfile(file) and "check" in _section(file):
            return file
        above = os.path.dirname(folder)
        if above == folder:
            return None
        folder = above


def _section(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:
            content = tomllib.load(opened)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file}: {error}") from None
    section: dict[str, Any] = content
    for word in ("tool", "safespawn"):
        section = section.get(word, {})
        if not isinstance(section, dict):
            raise ConfigError(f"{file}: tool.safespawn: a table is wanted")
    return section


def read_table(file: str) -> dict[str, Any]:
    """
    The table of a file, with every key and type checked.

    Raises:
        ConfigError: A key that there is not, or a value of another type; the text names the file and the key.
    """
    table: Any = _section(file)["check"]
    if not isinstance(table, dict):
        raise ConfigError(f"{file}: tool.safespawn.check: a table is wanted")
    for key, value in table.items():
        name = f"{file}: tool.safespawn.check.{key}"
        if key not in KEYS:
            raise ConfigError(f"{name}: there is no such key; the keys are {', '.join(KEYS)}")
        if key != "per-file-ignores":
            _demand_words(name, value)
        elif not isinstance(value, dict):
            raise ConfigError(f"{name}: a table is wanted, of patterns and lists of codes")
        else:
            for pattern, words in value.items():
                _demand_words(f"{name}.{pattern}", words)
    return dict(table)


def _demand_words(name: str, value: object) -> None:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise ConfigError(f"{name}: a list of texts is wanted, not {value!r}")
