"""
The outline of a file: its source with the bodies of those functions left out that have no word of interest.

To parse is most of the checker's work, and most functions are never looked at. What is left out keeps its place, as
empty lines, and is parsed by itself when somebody asks for it. Where a function ends is told from the indentation,
which is not always true (texts over several lines, brackets); so a body is left out only if its quotes are in pairs,
and if the outline cannot be parsed the whole file is.

Runs in: the checker, any thread. Pure.
"""

from __future__ import annotations

import ast
import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

_WORD = re.compile(rb"[A-Za-z_\x80-\xff][\w\x80-\xff]*")
_DEF = re.compile(rb"^([ \t]*)(?:async[ \t]+)?def[ \t]+\w", re.MULTILINE)
_HEAD_END = re.compile(rb":[ \t]*(?:#.*)?$")
_NO_HEAD = re.compile(rb"[ \t]*(?:@|(?:async[ \t]+def|def|class)\b)")
_LONGEST = 80  # lines of a head: arbitrary
_CODING = re.compile(rb"^[ \t\f]*#.*?coding[:=][ \t]*([-\w.]+)")
_SHORT = 200  # bytes of a body that it is not worth while to leave out: arbitrary


@functools.cache
def _dedent_to(width: int) -> re.Pattern[bytes]:
    return re.compile(rb"^[ \t]{0,%d}[^\s#]" % width, re.MULTILINE)


def words_of(text: bytes) -> frozenset[bytes]:
    """
    All words of a text.
    """
    return frozenset(_WORD.findall(text))


def is_plain(data: bytes) -> bool:
    """
    Whether a part of this text means the same alone: it is UTF-8, with lines that end in the usual way.
    """
    if b"\r" in data or data.startswith(b"\xef\xbb\xbf"):
        return False
    for line in data.split(b"\n", 2)[:2]:
        match = _CODING.match(line)
        if match is not None and match[1].lower() not in (b"utf-8", b"utf8", b"ascii", b"us-ascii"):
            return False
    return True


def outline(data: bytes, wanted: AbstractSet[bytes]) -> tuple[bytes, dict[int, bytes]]:
    """
    Leave out what has none of the wanted words.

    Returns:
        The outline, and by the line of its `def` the source of each function that was cut.
    """
    if not is_plain(data):
        return data, {}
    parts: list[bytes] = []
    cut: dict[int, bytes] = {}
    done, line, counted = 0, 1, 0
    for start, head, end in _functions(data):
        line += data.count(b"\n", counted, start)
        counted = start
        body = data[head:end]
        if len(body) < _SHORT or body.count(b'"""') % 2 or body.count(b"'''") % 2:
            continue
        text = data[start:end]
        if not wanted.isdisjoint(words_of(text)):
            continue
        first = body.lstrip(b"\n")
        indent = first[: len(first) - len(first.lstrip(b" \t"))]
        parts += (data[done:head], indent, b"pass", b"\n" * body.count(b"\n"))
        done = end
        cut[line] = text
    parts.append(data[done:])
    return b"".join(parts), cut


def _functions(data: bytes) -> Iterator[tuple[int, int, int]]:
    """
    Where the functions begin that are in no other function, where their bodies begin, and where they end.
    """
    position = 0
    while True:
        found = _DEF.search(data, position)
        if found is None:
            return
        head = _end_of_head(data, found.start())
        if head < 0:
            position = found.end()
            continue
        beyond = _dedent_to(len(found[1])).search(data, head)
        position = beyond.start() if beyond is not None else len(data)
        yield found.start(), head, position


def _end_of_head(data: bytes, start: int) -> int:
    """
    Where the line ends that ends the head of a function; -1 if its body stands on the same line, or that is not clear.
    """
    depth = 0
    position = start
    for number in range(_LONGEST):
        end = data.find(b"\n", position)
        if end < 0:
            return -1
        line = data[position:end]
        if number and _NO_HEAD.match(line):
            return -1
        opened = sum(map(line.count, (b"(", b"[", b"{")))
        depth += opened - sum(map(line.count, (b")", b"]", b"}")))
        position = end + 1
        if depth <= 0:
            return position if _HEAD_END.search(line) else -1
    return -1


def parse_function(text: bytes, line: int, path: str) -> ast.FunctionDef | ast.AsyncFunctionDef:
    """
    Parse a function that was cut.

    Args:
        text: Its source, with the indentation that it has.
        line: Where it stands.
        path: Its file.

    Raises:
        SyntaxError, ValueError, RecursionError, MemoryError: As `ast.parse`.
    """
    is_indented = text[:1] in (b" ", b"\t")
    opening = b"\n" * (line - 2) + b"if 1:\n" if is_indented else b"\n" * (line - 1)
    node: ast.stmt = ast.parse(opening + text, path).body[0]
    if isinstance(node, ast.If):
        node = node.body[0]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return node
    raise SyntaxError("a function was expected", (path, line, 1, None))
