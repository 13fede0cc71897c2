"""
The files to check: which they are, what they are called as modules, their text, and the remarks that silence a rule.

Runs in: the checker, any thread. Reads files, and nothing but files; never imports or executes them.
"""

from __future__ import annotations

import ast
import fnmatch
import os
import re
import stat
import warnings
from typing import TYPE_CHECKING

import attrs

from safespawn.check.outline import outline, parse_function, words_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from collections.abc import Set as AbstractSet

SKIPPED_FOLDERS = frozenset(
    {".git", ".hg", ".svn", ".tox", ".nox", ".venv", "node_modules", "__pycache__", "build", "dist"}
)

# A file with none of these words can do nothing of what the rules are about, unless it calls one that has.
_TRIGGERS = tuple(
    word.encode()
    for word in (
        "threading", "_thread", "subprocess", "multiprocess", "billiard", "concurrent", "fork", "Popen", "popen",
        "os.system", "import system", "posix_spawn", "os.spawn", "import spawn", "import pty", "from pty",
        "QueueListener",
        "preexec_fn", "set_inheritable", "signal.signal", "from signal", "import signal", "__del__", "safespawn",
        "open_process", "run_process", "apscheduler", "watchdog", "prometheus_client",
    )
)  # fmt: skip
_LOGS_OR_LOCKS = re.compile(rb"logging|Lock|Semaphore|Condition")
_IMPORTS = re.compile(
    rb"^[ \t]*(?:from[ \t]+([\w.]+)[ \t]+import[ \t]*(\([^)]*\)|[^\n]*)|import[ \t]+([^\n]*))", re.MULTILINE
)
_NAME = re.compile(r"\w+")
_NOQA = re.compile(r"#\s*noqa(?P<codes>\s*:\s*[A-Za-z][A-Za-z0-9]*(?:[,\s]+[A-Z][A-Z]*[0-9]+)*)?", re.IGNORECASE)
_CODE = re.compile(r"[A-Za-z]+[0-9]+")


@attrs.define(eq=False)
class Source:
    """
    One file.

    Args:
        path: As it is shown.
        module: Its dotted name; of a package, the package's.
        root: The folder from which it would be imported under that name.
        is_package: Whether it is an `__init__.py`.
        data: Its bytes.
        other_name: Its dotted name from the folder that was given, where that is another.
    """

    path: str
    module: str
    root: str
    is_package: bool
    data: bytes = attrs.field(repr=False)
    other_name: str = ""
    _noqa: dict[int, frozenset[str] | None] | None = attrs.field(default=None, init=False, repr=False)
    _imports: frozenset[str] | None = attrs.field(default=None, init=False, repr=False)
    _words: frozenset[bytes] | None = attrs.field(default=None, init=False, repr=False)
    cut: dict[int, bytes] = attrs.field(factory=dict, init=False, repr=False)
    _lines: list[bytes] | None = attrs.field(default=None, init=False, repr=False)

    @property
    def is_relevant(self) -> bool:
        """
        Whether it has to be parsed whatever the others hold.
        """
        return any(word in self.data for word in _TRIGGERS)

    @property
    def may_log_or_lock(self) -> bool:
        """
        Whether it can matter to what runs in a signal handler.
        """
        return _LOGS_OR_LOCKS.search(self.data) is not None

    @property
    def is_script(self) -> bool:
        """
        Whether it says of itself that it is run and not imported.
        """
        return self.data.startswith(b"#!") or os.path.basename(self.path) == "setup.py"

    @property
    def imports(self) -> frozenset[str]:
        """
        The absolute names in its import statements, at any depth, by their text: modules, what is in them, `module.*`.
        """
        if self._imports is None:
            found: set[str] = set()
            for where, names, plain in _IMPORTS.findall(self.data):
                for part in plain.decode("ascii", "replace").split(","):
                    words = part.split()
                    found.update(words[:1])
                if where:
                    base = self.absolute(where.decode("ascii", "replace"))
                    found.add(base)
                    found.update(f"{base}.{name}" for name in _NAME.findall(names.decode("ascii", "replace")))
                    if names.strip() == b"*":
                        found.add(f"{base}.*")
            self._imports = frozenset(found)
        return self._imports

    @property
    def words(self) -> frozenset[bytes]:
        """
        All words of its text.
        """
        if self._words is None:
            self._words = words_of(self.data)
        return self._words

    @property
    def lines(self) -> list[bytes]:
        """
        Its lines, as the parser counts them, each with its end.
        """
        if self._lines is None:
            self._lines = self.data.splitlines(keepends=True)
        return self._lines

    def absolute(self, name: str) -> str:
        """
        The absolute name of what an import statement names, perhaps with leading dots.
        """
        rest = name.lstrip(".")
        level = len(name) - len(rest)
        if not level:
            return name
        parts = self.module.split(".")
        up = level - self.is_package
        parts = parts[: len(parts) - up] if up <= len(parts) else []
        return ".".join([*parts, *([rest] if rest else [])])

    def parse(self, wanted: AbstractSet[bytes]) -> ast.Module:
        """
        Its syntax tree, but for the bodies of functions that have none of the wanted words: `body_of` has those.

        Raises:
            SyntaxError: It is not Python, or not of a version that this interpreter knows.
            ValueError: It holds what no source may hold.
            RecursionError, MemoryError: It is nested too deeply.
        """
        text, self.cut = outline(self.data, wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an odd escape sequence is another tool's affair
            if self.cut:
                try:
                    return ast.parse(text, self.path)
                except SyntaxError:
                    self.cut = {}
            return ast.parse(self.data, self.path)

    def body_of(self, line: int) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
        """
        The syntax tree of the function that `parse` has cut at this line; None if it has not.

        Raises:
            SyntaxError, ValueError, RecursionError, MemoryError: As `parse`.
        """
        text = self.cut.pop(line, None)
        if text is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return parse_function(text, line, self.path)
            except SyntaxError:
                whole = ast.parse(self.data, self.path)
        functions = (each for each in ast.walk(whole) if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
        return next((each for each in functions if each.lineno == line), None)

    def is_silenced(self, code: str, lines: Iterable[int]) -> bool:
        """
        Whether one of *lines* has a remark, `# noqa` or `# noqa: SPN203`, for *code*.
        """
        if self._noqa is None:
            self._noqa = _find_noqa(self.data)
        for line in lines:
            if line in self._noqa:
                codes = self._noqa[line]
                if codes is None or code in codes:
                    return True
        return False

    def column(self, line: int, offset: int) -> int:
        """
        The column, from 1 and in characters, of a byte offset as `ast` gives it.
        """
        lines = self.lines
        if not 0 < line <= len(lines):
            return offset + 1
        return len(lines[line - 1][:offset].decode("utf-8", "replace")) + 1


def _find_noqa(data: bytes) -> dict[int, frozenset[str] | None]:
    found: dict[int, frozenset[str] | None] = {}
    if b"noqa" not in data.lower():
        return found
    for number, line in enumerate(data.splitlines(), 1):
        match = _NOQA.search(line.decode("utf-8", "replace")) if b"noqa" in line.lower() else None
        if match is not None:
            codes = match["codes"]
            found[number] = None if codes is None else frozenset(map(str.upper, _CODE.findall(codes)))
    return found


# --- which files ------------------------------------------------------------------------------------------------------
def find_files(paths: Iterable[str], excluded: Iterable[str]) -> Iterator[tuple[str, str, OSError | None]]:
    """
    The files to check, sorted within each folder, each once.

    Args:
        paths: Files and folders, as the user named them.
        excluded: Patterns, matched to the whole path, its part below the given folder, and each name in it.

    Yields:
        The path, the folder it was found from, and what went wrong, if anything.
    """
    patterns = [pattern.rstrip("/") for pattern in excluded]
    seen: set[str] = set()
    for given in paths:
        try:
            mode = os.stat(given).st_mode
        except OSError as error:
            yield given, os.path.dirname(given), error
            continue
        if not stat.S_ISDIR(mode):
            candidates: Iterable[tuple[str, OSError | None]] = [(given, None)]
        else:
            candidates = _walk(given, patterns)
        for path, problem in candidates:
            real = os.path.realpath(path)
            if real not in seen and not is_matched(path, patterns):
                seen.add(real)
                yield path, given if stat.S_ISDIR(mode) else os.path.dirname(given), problem


def _walk(folder: str, patterns: list[str]) -> Iterator[tuple[str, OSError | None]]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield folder, error
        return
    for entry in found:
        path = os.path.normpath(entry.path)
        if entry.is_dir(follow_symlinks=False):
            skipped = entry.name in SKIPPED_FOLDERS or os.path.exists(os.path.join(path, "pyvenv.cfg"))
            if not skipped and not is_matched(path, patterns):
                yield from _walk(path, patterns)
        elif entry.name.endswith(".py") and entry.is_file():
            yield path, None


def is_matched(path: str, patterns: Iterable[str]) -> bool:
    """
    Whether a path, an end of it that begins at a folder, or a name in it matches one of the patterns.
    """
    parts = os.path.normpath(path).split(os.sep)
    ends = ["/".join(parts[start:]) for start in range(len(parts))]
    return any(fnmatch.fnmatchcase(text, pattern) for pattern in patterns for text in (*ends, *parts))


def read_source(path: str, given: str) -> Source:
    """
    Read one file.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb") as file:
        data = file.read()
    module, root = module_name(path)
    other = os.path.relpath(path, given or ".")
    name = other.removesuffix(".py").replace(os.sep, ".").removesuffix(".__init__")
    usable = name != module and all(part.isidentifier() for part in name.split("."))
    return Source(path, module, root, os.path.basename(path) == "__init__.py", data, name if usable else "")


def module_name(path: str) -> tuple[str, str]:
    """
    The name under which a file is imported, judged by the `__init__.py` beside and above it, and from which folder.
    """
    folder, file = os.path.split(os.path.abspath(path))
    names = [] if file == "__init__.py" else [file.removesuffix(".py")]
    while os.path.isfile(os.path.join(folder, "__init__.py")):
        folder, name = os.path.split(folder)
        names.insert(0, name)
        if not name:
            break
    return ".".join(names) or "__init__", folder
