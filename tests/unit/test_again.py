"""Which commands start the running program again, and what is started in their place."""

import os
import sys

import pytest

from safespawn.installed import again

EXEC = ["-m", "safespawn", "exec", "--guard", "warn"]


@pytest.fixture
def app(tmp_path, monkeypatch):
    """A program that runs under exec as `app.py --port 80`; its path."""
    path = tmp_path / "app.py"
    path.touch()
    monkeypatch.setattr(again, "running", [again.Program(str(path), "", ("--port", "80"), "warn")])
    return str(path)


@pytest.mark.parametrize(
    "options", [[], ["-W", "error"], ["-Wd", "-X", "dev", "-Xutf8"], ["-uB"], ["--check-hash-based-pycs", "never"]]
)
def test_the_same_program_is_under_exec_again(app, options):
    """Whatever options of the interpreter stand before it, they stay there."""
    words = [sys.executable, *options, app, "--port", "80"]
    assert again.command(words, None, None) == [sys.executable, *options, *EXEC, app, "--port", "80"]


def test_a_path_is_tried_where_the_command_runs(app):
    """A relative path means what it means in the command's directory; bytes and paths are as good as text."""
    folder = os.path.dirname(app)
    words = [sys.executable, b"app.py", "--port", "80"]
    assert again.command(words, folder, os.environ) == [sys.executable, *EXEC, *words[1:]]
    assert again.command(words, None, None) == words


def test_a_module_is_known_by_its_name(app, monkeypatch):
    """`-m name` with the same arguments is the program; its file is not looked at."""
    monkeypatch.setattr(again, "running", [again.Program("", "flask", ("run",), "warn")])
    assert again.command([sys.executable, "-m", "flask", "run"], None, None)[1:6] == EXEC
    for rest in (["-m", "flask"], ["-m", "django", "run"], [app, "run"], ["-mflask", "run"]):
        assert again.command([sys.executable, *rest], None, None) == [sys.executable, *rest]


@pytest.mark.parametrize(
    "words",
    [
        [],
        [sys.executable],
        [sys.executable, "-W"],
        [sys.executable, "APP"],
        [sys.executable, "APP", "--port", "81"],
        [sys.executable, "-c", "APP", "--port", "80"],
        [sys.executable, "-I", "APP", "--port", "80"],
        [sys.executable, "nowhere.py", "--port", "80"],
        ["/bin/sh", "APP", "--port", "80"],
        ["sh", "APP", "--port", "80"],
        [sys.executable, "APP", "--port", 80],
        [sys.executable, "-m", "safespawn", "exec", "APP", "--port", "80"],
    ],
    ids=str,
)
def test_any_other_command_is_left_alone(app, words):
    """Other arguments, another program or interpreter, an isolated one, or no command at all."""
    words = [app if word == "APP" else word for word in words]
    assert again.command(words, None, None) == words


def test_an_interpreter_that_would_not_find_us_is_left_alone(app, monkeypatch):
    """Where modules are looked for elsewhere, or nothing runs under exec, the command is as it was."""
    words = [sys.executable, app, "--port", "80"]
    assert again.command(words, None, {**os.environ, "PYTHONPATH": "/elsewhere"}) == words
    monkeypatch.setattr(again, "running", [])
    assert again.command(words, None, None) == words
