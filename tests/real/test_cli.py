"""The command line, as a user meets it."""

import json
import re
import subprocess
import sys
import textwrap
import time

import pytest

import safespawn
from safespawn import _demo, _processes, cli


def command_line(*arguments):
    """`safespawn ARGUMENTS` in a process of its own."""
    argv = [sys.executable, "-m", "safespawn", *arguments]
    return subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)


def test_version() -> None:
    """`safespawn --version` says it."""
    done = command_line("--version")
    assert (done.returncode, done.stdout) == (0, f"safespawn {safespawn.__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("dance",), ("demo", "--calls", "0"), ("demo", "--seconds", "soon")])
def test_usage_error(arguments) -> None:
    """A wrong command line is told on stderr, with exit code 2."""
    done = command_line(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: safespawn" in done.stderr


def test_demo() -> None:
    """`safespawn demo` shows real output and a table whose safespawn rows are clean, and ends with 0."""
    done = command_line("demo", "--calls", "30", "--seconds", "1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^    (State|  sl) ", done.stdout, re.MULTILINE)
    assert " ESTAB " in done.stdout or " 01 " in done.stdout
    rows = re.findall(r"  safespawn +(\d+) +(\d+) +\S+ (?:ms|s) +(\d+) +(\d+)$", done.stdout, re.MULTILINE)
    assert rows == [("30", "0", "0", "0")] * len(_demo.WAYS)
    assert len(re.findall(r"  (?:subprocess|asyncio|trio|mp[.]Pool) +\d+ ", done.stdout)) == len(_demo.WAYS)


@pytest.mark.parametrize(
    "trouble",
    [
        {"blocked": 1},
        {"wrong": 1, "trouble": "exit code 1"},
        {"processes": 1},
        {"fds": 1},
        {"calls": 0, "error": "hung"},
    ],
    ids=lambda trouble: next(iter(trouble)),
)
def test_demo_is_not_content(trouble, monkeypatch, capsys) -> None:
    """One row of safespawn's that is not clean makes the exit code 1, and is told."""

    def ask(library, way, *_):
        bad = library == "safespawn" and way == "threads"
        return _demo.Cell(library, way, **{"calls": 9, **(trouble if bad else {})})

    monkeypatch.setattr(_demo, "ask", ask)
    assert cli.main(["demo"]) == 1
    printed = capsys.readouterr().out
    assert "NOT clean" in printed
    assert trouble.get("trouble", "") in printed
    assert trouble.get("error", "") in printed


def test_demo_does_not_mind_the_others(monkeypatch, capsys) -> None:
    """What goes wrong in the standard library's rows is shown, and does not change the exit code."""
    monkeypatch.setattr(
        _demo, "ask", lambda library, way, *_: _demo.Cell(library, way, calls=9, blocked=int(library != "safespawn"))
    )
    assert cli.main(["demo"]) == 0
    assert f"safespawn 0 of {9 * len(_demo.WAYS)}, the others {len(_demo.WAYS)} of" in capsys.readouterr().out


def test_a_hanging_cell_is_ended(monkeypatch) -> None:
    """A measuring process that hangs is ended, with what it started, and told."""
    for name in ("PATIENCE_SECONDS", "RELEASE_SECONDS"):
        monkeypatch.setattr(_demo, name, -2.9)
    began = time.monotonic()
    cell = _demo.ask("subprocess", "blocking", 1, 0.5, ["sleep", "60"])
    assert "no result" in cell.error
    assert not cell.clean
    assert time.monotonic() - began < 10


def test_a_failing_cell_says_why() -> None:
    """A measuring process that fails has its last words in the table."""
    cell = _demo.ask("safespawn", "blocking", 1, 1, ["/no/such/command"])
    assert "/no/such/command" in cell.error


APPLICATION = """
    import safespawn, sys
    with safespawn.Popen(["sleep", "31"]) as process, safespawn.Popen(["sleep", "32"], detach=True) as kept:
        print(process.pid, kept.pid, flush=True)
        sys.stdin.read()
        process.kill()
        kept.kill()
"""


@pytest.fixture
def application():
    """A program with two commands running, and their pids."""
    argv = [sys.executable, "-c", textwrap.dedent(APPLICATION)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.children = list(map(int, process.stdout.readline().split()))
        yield process
        process.stdin.close()


def test_status_for_programs(application) -> None:
    """`safespawn status --json` has a zygote's application, warden, children and sizes."""
    done = command_line("status", "--json")
    assert done.returncode == 0, done.stderr
    zygotes = [z for z in json.loads(done.stdout)["zygotes"] if z["application"]["pid"] == application.pid]
    by_kind = {zygote["keeps_children"]: zygote for zygote in zygotes}
    assert sorted(by_kind) == [False, True]
    for keeps, seconds, child_pid in ((False, 31, application.children[0]), (True, 32, application.children[1])):
        zygote = by_kind[keeps]
        (child,) = zygote["children"]
        assert (child["pid"], child["command"]) == (child_pid, f"sleep {seconds}")
        assert 0 <= child["age_seconds"] <= zygote["uptime_seconds"] + 0.1
        assert 1 << 20 < zygote["rss_bytes"] < 100 << 20
        assert zygote["descriptors"] > 5
        assert (zygote["warden"] is None) is keeps
        assert "import safespawn" in zygote["application"]["command"]


def test_status_for_people(application) -> None:
    """`safespawn status` tells the same in lines."""
    done = command_line("status")
    assert done.returncode == 0, done.stderr
    ours = done.stdout.split(f"application {application.pid}: ")[1:]
    assert len(ours) == 2
    assert re.search(rf"^ +{application.children[0]} +\d+\.\d s  sleep 31$", done.stdout, re.MULTILINE)
    assert re.search(
        r"zygote \d+, warden \d+: up \d+\.\d s, \d+ descriptors, \d+\.\d MiB resident, state S", done.stdout
    )
    assert "keeps its children (detach=True)" in done.stdout


def test_status_of_nothing(monkeypatch, capsys) -> None:
    """Without a zygote, `safespawn status` says so, and it is no error."""
    monkeypatch.setattr(cli, "find_zygotes", list)
    assert cli.main(["status"]) == 0
    assert capsys.readouterr().out.startswith("No safespawn zygote runs here")


def test_an_ended_application_is_said(monkeypatch, capsys) -> None:
    """A zygote whose application has just ended is shown with that."""
    facts = {"pid": 7, "application": {"pid": 6, "command": None}, "warden": None, "keeps_children": True, "state": "S"}
    sizes = {"uptime_seconds": 90_061.0, "descriptors": None, "rss_bytes": 10 << 20, "children": []}
    monkeypatch.setattr(cli, "find_zygotes", lambda: [facts | sizes])
    assert cli.main(["status"]) == 0
    printed = capsys.readouterr().out
    assert "application 6: has ended" in printed
    assert "up 1 d 1 h, descriptors unknown, 10.0 MiB resident" in printed
    assert "no children" in printed


def test_errors_are_sentences(monkeypatch, capsys) -> None:
    """An error of the system ends as one sentence and exit code 1, not as a traceback."""

    def fail():
        raise PermissionError(13, "Permission denied", "/proc/uptime")

    monkeypatch.setattr(cli, "find_zygotes", fail)
    assert cli.main(["status"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "safespawn: [Errno 13] Permission denied: '/proc/uptime'\n"


def test_a_reader_may_leave() -> None:
    """`safespawn status --json | head -c 0` ends quietly."""
    shell = f"{sys.executable} -m safespawn status --json | head -c 0"
    done = subprocess.run(["sh", "-c", shell], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "is_one"),
    [
        (["python", "-I", "-S", "/x/safespawn/_zygote", "3", "12", "own"], True),
        (["python", "-I", "-S", "-B", "/x/safespawn/_zygote/", "3", "12", "keep"], True),
        (["python", "-I", "-S", "/x/safespawn/_zygote", "3", "12", "loose"], False),
        (["vim", "/x/safespawn/_zygote", "3", "12", "own"], False),
        (["sleep", "9"], False),
        ([], False),
    ],
)
def test_a_zygote_is_known_by_its_arguments(words, is_one) -> None:
    """What only mentions the zygote's directory is not taken for one."""
    assert _processes.is_zygote(words) is is_one
