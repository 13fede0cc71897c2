"""The outline of a file: what may be left out before it is parsed, and what is found when it is asked for."""

import ast
from pathlib import Path

import pytest

from safespawn.check import config, run
from safespawn.check.outline import is_plain, outline, parse_function

LONG = "".join(f"    x = {number}\n" for number in range(60))
WANTED = frozenset({b"fork"})


def whole(source: str) -> tuple[str, set[int]]:
    """The tree of the outline of a source, with what was cut put back, as text; and the lines of what was cut."""
    text, cut = outline(source.encode(), WANTED)
    tree = ast.parse(text)
    for node in ast.walk(tree):
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                parts = [
                    parse_function(cut[each.lineno], each.lineno, "app.py")
                    if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.lineno in cut
                    else each
                    for each in value
                ]
                setattr(node, name, parts)
    return ast.dump(tree, include_attributes=True), set(cut)


SOURCES = {
    "plain": (f"def f():\n{LONG}\n\nimport os\n", {1}),
    "method": (f"class A:\n    def f(self):\n{LONG.replace('    ', '        ')}\n    y = 1\n", {2}),
    "head over lines": (f"async def f(\n    a,\n    b=(1, 2),\n) -> int:  # a remark\n{LONG}z = 1\n", {1}),
    "a word of interest": (f"def f():\n{LONG}    os.fork()\n", set()),
    "short": ("def f():\n    return 1\n", set()),
    "on one line": (f"def f(): return 1\nclass A:\n{LONG}", set()),
    "the next on one line": (f"def f(): return 1\ndef g():\n{LONG}", {2}),
    "nested": (f"def f():\n    def g():\n        pass\n{LONG}def h():\n{LONG}", {1, 64}),
    "text to the left": (f'def f():\n{LONG}    y = """\nimport os\nos.abort()\n"""\n', set()),
    "remark to the left": (f"def f():\n{LONG}# here\n    return x\ny = 2\n", {1}),
    "at the end": (f"def f():\n{LONG.rstrip()}", {1}),
}


@pytest.mark.parametrize(("source", "cut"), SOURCES.values(), ids=SOURCES)
def test_an_outline_and_its_parts_are_the_file(source: str, cut: set[int]) -> None:
    """Put together they are the tree of the whole file, with the same lines and columns."""
    assert whole(source)[1] == cut
    assert _bare(whole(source)[0]) == _bare(ast.dump(ast.parse(source), include_attributes=True))


def _bare(dump: str) -> str:
    return "".join(part.partition(", end_lineno")[0] for part in dump.split("lineno="))


def test_what_stands_in_a_text_does_no_harm(tmp_path: Path) -> None:
    """A function in a docstring may be cut; what comes after it is found where it is."""
    path = tmp_path / "app.py"
    path.write_text(f'"""\ndef f():\n{LONG}"""\nimport os\nos.system("true")\n')
    ((found, _),) = run.check([str(path)], config.Config()).findings
    assert (found.code, found.line) == ("SPN102", 65)


def test_another_encoding_is_not_cut() -> None:
    """A part of such a file would mean something else alone."""
    assert is_plain(b"# coding: utf-8\nx = 1\n")
    for data in (b"#!/bin/python\n# -*- coding: latin-1 -*-\n", b"x = 1\r\n", b"\xef\xbb\xbfx = 1\n"):
        assert not is_plain(data)


def test_what_looks_like_a_function_and_is_none_is_parsed_whole(tmp_path: Path) -> None:
    """Where the outline is not Python, the file is parsed as it is, and nothing is reported of it but the hits."""
    path = tmp_path / "app.py"
    path.write_text(f"import os\nx = [\n1]\ndef f():\n{LONG}    y = [\n1,\n]\nos.system('true')\n")
    result = run.check([str(path)], config.Config())
    assert [(found.code, found.line) for found, _ in result.findings] == [("SPN102", 68)]
    assert not result.failures


def test_a_function_that_is_asked_for_and_is_no_python_is_said(tmp_path: Path) -> None:
    """A mistake in a body that was left out is reported when the body matters."""
    path = tmp_path / "app.py"
    path.write_text(f"import threading\ndef g():\n{LONG}    return = 1\n\nx = g()\nx.start()\n")
    result = run.check([str(path)], config.Config())
    assert [failure.line for failure in result.failures] == [63]
