"""The command `safespawn check`: its options, configuration, formats, exit codes, and files that are no good."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safespawn import cli
from safespawn.check import config, run, source
from safespawn.check.rules import RULES

BAD = (
    "import subprocess, os\ndef f():\n    subprocess.run('x', preexec_fn=os.setsid)\n    os.set_inheritable(3, True)\n"
)
CODES = ["SPN204", "SPN205"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one file, which has two hits, and a pyproject.toml without our table."""
    (tmp_path / "app.py").write_text(BAD)
    (tmp_path / "pyproject.toml").write_text("[tool.other]\n")
    return tmp_path


@pytest.fixture
def check(capsys: pytest.CaptureFixture[str]):
    """Run the command; returns its exit code, what it printed, and what it complained of."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["check", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


def codes_in(text: str) -> list[str]:
    """The codes in a printed report, in order."""
    return [line.split()[1] for line in text.splitlines() if not line.startswith(" ") and "SPN" in line]


def configure(folder: Path, text: str) -> None:
    """Write our table."""
    (folder / "pyproject.toml").write_text(f"[tool.safespawn.check]\n{text}\n")


def test_a_hit_is_two_lines_and_exit_code_1(folder: Path, check) -> None:
    """Path, line, column, code and severity, then the help; the exit code is 1."""
    code, printed, complained = check(folder)
    first, second, *_ = printed.splitlines()
    assert (code, complained) == (1, "")
    assert first.startswith(f"{folder}/app.py:3:5: SPN204 error: preexec_fn")
    assert second.startswith("  help: ")
    assert codes_in(printed) == CODES


def test_nothing_found_is_exit_code_0(folder: Path, check) -> None:
    """A file without a hit prints nothing."""
    (folder / "app.py").write_text("import subprocess\n")
    assert check(folder / "app.py") == (0, "", "")


@pytest.mark.parametrize(
    ("remark", "left"),
    [
        ("# noqa", []),
        ("# NOQA : SPN204", []),
        ("# noqa: E501, SPN204 - we know", []),
        ("# type: ignore # noqa:SPN203,SPN204", []),
        ("# noqa: SPN203", ["SPN204"]),
        ("# noqa:SPN2", ["SPN204"]),
        ("# no qa", ["SPN204"]),
    ],
)
@pytest.mark.parametrize("on_last_line", [False, True])
def test_a_remark_silences(folder: Path, check, remark: str, left: list[str], *, on_last_line: bool) -> None:
    """A remark on the first or the last line of the statement silences the codes that it names, or all."""
    first, last = ("", remark) if on_last_line else (remark, "")
    (folder / "app.py").write_text(
        f"import subprocess\ndef f():\n    g(  {first}\n        preexec_fn=f,\n    )  {last}\n"
    )
    assert codes_in(check(folder)[1]) == left


def test_a_remark_on_the_head_of_a_block_silences_only_that(folder: Path, check) -> None:
    """The head of a `with` is a statement of its own here; a remark in the body does not reach it."""
    text = "import multiprocessing\ndef f():\n    with multiprocessing.Pool() as p:{0}\n        p.map(f, []){1}\n"
    for first, second, left in (("  # noqa", "", []), ("", "  # noqa", ["SPN203"])):
        (folder / "app.py").write_text(text.format(first, second))
        assert codes_in(check(folder)[1]) == left


@pytest.mark.parametrize(
    ("options", "left"),
    [
        (["--select", "SPN204"], ["SPN204"]),
        (["--select", "spn2,SPN301"], CODES),
        (["--ignore", "SPN204"], ["SPN205"]),
        (["--ignore", "SPN"], []),
        (["--select", "SPN2", "--ignore", "SPN205"], ["SPN204"]),
    ],
)
def test_rules_are_chosen_on_the_command_line(folder: Path, check, options: list[str], left: list[str]) -> None:
    """--select and --ignore take codes and beginnings of codes."""
    code, printed, _ = check(folder, *options)
    assert codes_in(printed) == left
    assert code == bool(left)


@pytest.mark.parametrize("option", ["--select", "--ignore"])
@pytest.mark.parametrize("value", ["SPN999", "E501", ",", "SPN204,X"])
def test_an_unknown_rule_is_a_usage_error(folder: Path, check, option: str, value: str) -> None:
    """The text names the option; the exit code is 2 and nothing is checked."""
    code, printed, complained = check(folder, option, value)
    assert (code, printed) == (2, "")
    assert complained.startswith(f"safespawn check: {option}: ")


def test_the_configuration_is_found_above_and_obeyed(folder: Path, check) -> None:
    """The table of a pyproject.toml further up counts, also if one without our table stands between."""
    inner = folder / "src" / "inner"
    inner.mkdir(parents=True)
    (inner / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    (folder / "app.py").rename(inner / "app.py")
    configure(folder, 'ignore = ["SPN204"]')
    assert codes_in(check(inner)[1]) == ["SPN205"]
    configure(folder, 'select = ["SPN204"]')
    assert codes_in(check(inner / "app.py")[1]) == ["SPN204"]
    configure(folder, 'exclude = ["src/*/app.py"]')
    assert check(inner)[0] == 0
    configure(folder, 'per-file-ignores = { "src/**" = ["SPN2"] }')
    assert check(inner)[0] == 0
    configure(folder, 'per-file-ignores = { "app.py" = ["SPN205"], "tests/*" = ["SPN"] }')
    assert codes_in(check(inner)[1]) == ["SPN204"]


def test_the_command_line_wins(folder: Path, check) -> None:
    """--select replaces the file's choice; --ignore is taken from what is left."""
    configure(folder, 'select = ["SPN1"]\nignore = ["SPN205"]')
    assert codes_in(check(folder)[1]) == []
    assert codes_in(check(folder, "--select", "SPN2")[1]) == CODES


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("selects = []", "tool.safespawn.check.selects"),
        ('select = "SPN1"', "tool.safespawn.check.select"),
        ('select = ["SPN9"]', "tool.safespawn.check.select"),
        ('ignore = ["W"]', "tool.safespawn.check.ignore"),
        ("exclude = [1]", "tool.safespawn.check.exclude"),
        ("per-file-ignores = []", "tool.safespawn.check.per-file-ignores"),
        ("per-file-ignores = { 'x' = 'SPN1' }", "tool.safespawn.check.per-file-ignores.x"),
        ("per-file-ignores = { 'x' = ['Q'] }", "tool.safespawn.check.per-file-ignores"),
        ("select = [", "pyproject.toml"),
    ],
)
def test_a_wrong_configuration_is_named(folder: Path, check, text: str, key: str) -> None:
    """A wrong key, type or code in the file is told with the file and the key; the exit code is 2."""
    configure(folder, text)
    code, printed, complained = check(folder)
    assert (code, printed) == (2, "")
    assert str(folder / "pyproject.toml") in complained
    assert key in complained


def test_folders_are_walked_in_order_and_without_what_is_not_ours(folder: Path, check) -> None:
    """Sorted by name; environments, caches and build products are left out, and so is what --exclude names."""
    for name in ("b", "a", "build", ".git", "node_modules", "env", "skipped"):
        (folder / name).mkdir()
        (folder / name / "x.py").write_text(BAD)
    (folder / "env" / "pyvenv.cfg").write_text("")
    (folder / "a" / "no.txt").write_text(BAD)
    _, printed, _ = check(folder, folder / "a", "--select", "SPN204", "--exclude", "skipped")
    hits = [line.split(":")[0] for line in printed.splitlines() if "SPN204" in line]
    assert hits == [str(folder / name) for name in ("a/x.py", "app.py", "b/x.py")]


def test_json_has_every_fact(folder: Path, check) -> None:
    """The JSON form has the hits and the files that could not be checked, with statistics if wanted."""
    (folder / "broken.py").write_text("import threading\ndef (:\n")
    code, printed, _ = check(folder, "--format", "json", "--statistics")
    report = json.loads(printed)
    assert code == 2
    assert [(each["code"], each["line"], each["column"]) for each in report["findings"]] == [
        ("SPN204", 3, 5),
        ("SPN205", 4, 5),
    ]
    assert report["failures"][0]["path"] == str(folder / "broken.py")
    assert report["failures"][0]["line"] == 2
    assert report["statistics"]["files"] == 2
    assert report["statistics"]["by_code"] == {"SPN204": 1, "SPN205": 1}


def test_sarif_has_the_required_shape(folder: Path, check, monkeypatch: pytest.MonkeyPatch) -> None:
    """Version, tool, rules; each result has rule, level, text, a relative address and a region that counts from 1."""
    monkeypatch.chdir(folder)
    Path("with space.py").write_text("import threading\n'é'; f(preexec_fn=f)\n")
    Path("broken.py").write_text("import threading\n(\n")
    report = json.loads(check(".", "--format", "sarif")[1])
    (only,) = report["runs"]
    rules = only["tool"]["driver"]["rules"]
    assert report["version"] == "2.1.0"
    assert report["$schema"].endswith("sarif-2.1.0.json")
    assert [rule["id"] for rule in rules] == list(RULES)
    for result in only["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        assert result["message"]["text"]
    places = [result["locations"][0]["physicalLocation"] for result in only["results"]]
    assert [place["artifactLocation"]["uri"] for place in places] == ["app.py", "app.py", "with%20space.py"]
    assert places[-1]["region"] == {"startLine": 2, "startColumn": 6}
    (invocation,) = only["invocations"]
    assert invocation["executionSuccessful"] is False
    assert invocation["toolExecutionNotifications"][0]["level"] == "error"


def test_statistics_count_each_rule(folder: Path, check) -> None:
    """--statistics adds a line for each code, and one for all."""
    lines = check(folder, "--statistics")[1].splitlines()
    assert [line.split()[:2] for line in lines[-3:-1]] == [["1", "SPN204"], ["1", "SPN205"]]
    assert lines[-1].startswith("1 files looked at, 1 parsed")


def test_what_cannot_be_checked_is_told_and_the_rest_is_checked(folder: Path, check) -> None:
    """A file that is missing, unreadable, not Python, or nested without end is a line; the exit code is 2."""
    (folder / "a.py").write_bytes(b"import threading\nx = '\x00'\n")
    (folder / "b.py").write_bytes(b"# coding: nonsense\nimport threading\n")
    (folder / "c.py").write_bytes(b"import threading\nx = '\xff'\n")
    (folder / "d.py").write_text("import threading\nx = " + "(" * 5000 + ")" * 5000 + "\n")
    (folder / "e.py").write_text("import threading\nx = " + "-" * 50000 + "1\n")
    (folder / "f.py").write_text("import threading\nprint 'old'\n")
    code, printed, _ = check(folder, folder / "missing.py")
    told = [line for line in printed.splitlines() if " unchecked error: " in line]
    assert code == 2
    assert [Path(line.split(":")[0]).name for line in told] == [*(f"{name}.py" for name in "abcdef"), "missing.py"]
    assert codes_in(printed) == CODES


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_told(folder: Path, check) -> None:
    """Without permission there is a line and exit code 2."""
    (folder / "app.py").chmod(0)
    code, printed, _ = check(folder)
    assert (code, "cannot be read" in printed) == (2, True)


@pytest.mark.parametrize(
    "data",
    [
        b"\xef\xbb\xbf" + BAD.encode(),
        BAD.replace("\n", "\r\n").encode(),
        BAD.replace("\n", "\r").encode(),
        b"# -*- coding: latin-1 -*-\n#" + b"\xe9\n" + BAD.encode(),
        b"#!/usr/bin/python\n# coding: utf-8\n" + BAD.encode(),
        ("x = '\f\v\x1c\u2028'\n" + BAD).encode(),
        ("x = " + " + ".join(["1"] * 900) + "\n" + BAD).encode(),
        ("if x:\n    pass\n" + "elif y:\n    pass\n" * 150 + BAD).encode(),
    ],
    ids=["bom", "crlf", "cr", "latin-1", "cookie", "odd line ends", "long sum", "many branches"],
)
def test_odd_files_are_checked(tmp_path: Path, data: bytes) -> None:
    """Encodings, line ends and long texts change nothing."""
    (tmp_path / "app.py").write_bytes(data)
    result = run.check([str(tmp_path)], config.Config())
    assert not result.failures
    assert [found.code for found, _ in result.findings] == CODES


def test_an_empty_file_is_nothing(tmp_path: Path) -> None:
    """Empty files, and folders without files, have no hits."""
    (tmp_path / "app.py").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    assert run.check([str(tmp_path)], config.Config()).exit_code == 0


def test_a_file_of_no_interest_is_not_parsed(tmp_path: Path) -> None:
    """Only files that have a word of interest, or call one that does something, are parsed."""
    (tmp_path / "plain.py").write_text("def f():\n    return 1\n")
    (tmp_path / "does.py").write_text("import threading\ndef go():\n    threading.Timer(1, print).start()\n")
    (tmp_path / "calls.py").write_text("import does\ndef f():\n    does.go()\n")
    (tmp_path / "names.py").write_text("import does\nprint(does)\n")
    assert run.check([str(tmp_path)], config.Config()).parsed == 2


def test_nothing_is_executed(tmp_path: Path) -> None:
    """Checking a file neither runs nor imports it, nor writes beside it."""
    mark = tmp_path / "mark"
    (tmp_path / "app.py").write_text(f"import threading\nopen({str(mark)!r}, 'w')\n" + BAD)
    program = [sys.executable, "-m", "safespawn", "check", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert os.listdir(tmp_path) == ["app.py"]


FRAGMENTS = st.sampled_from(
    """
    import threading as t|from os import fork|t.Thread(target=f).start()|def f(x, *a, **k):|class C(t.Thread, C):|if x:
    else:|try:|except E as e:|finally:|with f() as (x, y):|for x, *y in f(x):|x = y = f|return x|yield x|await f()
    global x|super().f()|self.x = self|@f|lambda: f()|x.append(f)|async def f(): return await f()|match x:|del x
    case {'a': x}:|os.register_at_fork(before=f)|signal.signal(1, f)|def __del__(self): f()|x: t = f()|(x := f())
    pass|from . import f|from .. import *|while x:|f(*x, **y)|[x for x in x]|x += f
    """.strip()
    .replace("\n    ", "|")
    .split("|")
)
LINES = st.lists(st.tuples(st.integers(0, 3), FRAGMENTS), max_size=25)


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples."""
    return tmp_path_factory.mktemp("playground")


def outcome(folder: Path, data: bytes) -> run.Result:
    """Check one file of these bytes."""
    (folder / "app.py").write_bytes(b"import threading\n" + data)
    return run.check([str(folder)], config.Config())


@settings(max_examples=150, deadline=None)
@given(text=st.text() | st.binary().map(lambda data: data.decode("latin-1")))
def test_any_text_is_a_hit_a_failure_or_nothing(playground: Path, text: str) -> None:
    """Whatever a file holds, the checker raises nothing."""
    assert outcome(playground, text.encode("utf-8", "surrogatepass")).files == 1


@settings(max_examples=300, deadline=None)
@given(lines=LINES)
def test_any_program_is_checked(playground: Path, lines: list[tuple[int, str]]) -> None:
    """Programs put together at random, with endless recursions and loops of inheritance among them, raise nothing."""
    text, depth = "", 0
    for indent, line in lines:
        depth = min(indent, depth)
        text += "    " * depth + line + "\n"
        if line.endswith(":"):
            depth += 1
            text += "    " * depth + "pass\n"
    assert outcome(playground, text.encode()).files == 1


@given(text=st.text(alphabet="#noqa :,SPN203E501 \n", max_size=40))
def test_remarks_of_any_form_are_read(text: str) -> None:
    """Reading remarks never fails, and what is no remark silences nothing."""
    file = source.Source("app.py", "app", "", is_package=False, data=text.encode())
    silenced = file.is_silenced("SPN203", range(1, 50))
    assert not silenced or "noqa" in text.lower()
