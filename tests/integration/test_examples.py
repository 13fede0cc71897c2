"""The library inside others: examples/integrations, run as their users would run them."""

import contextlib
import http.client
import importlib.util
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.applications import Census
from support.children import complaints

pytestmark = pytest.mark.integration

EXAMPLES = Path(__file__).parents[2] / "examples" / "integrations"
GONE_SECONDS = 10.0
READY_SECONDS = 60.0  # for a server to say where it listens, on a busy machine

# What each prints among other things, in this order.
SAYS = {
    ("joblib_sklearn.py",): ["[0, 1, 4, 9, 16]", "as without workers"],
    ("tracing.py",): ["order is ", "a command has 00-", "one in Python has ", "resize a: ", "['A', 'B']", "order: "],
    ("django_command.py", "thumbnails", "A b.jpg", "c.jpg"): ["A b.jpg -> a-b.png", "c.jpg -> c.png"],
    ("torch_loader.py",): ["sum: 10416"] * 4,
}
SERVERS = {"fastapi_app.py", "gunicorn_conf.py", "gunicorn_app.py", "celery_tasks.py"}  # below


def test_every_example_is_run_here() -> None:
    """No example is without a test."""
    assert {name for name, *_ in SAYS} | SERVERS == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("command", SAYS, ids=lambda command: command[0])
def test_example(command, tmp_path) -> None:
    """The example ends with exit code 0, says what it shall, without a warning, and leaves nobody."""
    if command[0] == "torch_loader.py" and importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is too large to be installed unasked: pip install torch")
    name, *arguments = command
    census = Census()
    argv = [sys.executable, "-X", "dev", EXAMPLES / name, *arguments]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not complaints(done.stderr)
    assert census.gone(GONE_SECONDS) == {}
    rest = done.stdout
    for words in SAYS[command]:
        _, found, rest = rest.partition(words)
        assert found, f"{words!r} is missing, or comes too early, in:\n{done.stdout}"


def test_one_trace(tmp_path) -> None:
    """A command, a program in Python and the spans of workers are of the program's trace, and below its span."""
    argv = [sys.executable, EXAMPLES / "tracing.py"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    span, trace = re.search(r"order is (\w+) of trace (\w+)", done.stdout).groups()
    assert f"a command has 00-{trace}-{span}-" in done.stdout
    assert f"one in Python has {trace}\n" in done.stdout
    assert f"resize a: trace {trace}, parent {span}\n" in done.stdout
    assert f"resize b: trace {trace}, parent {span}\n" in done.stdout


# --- servers ----------------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def server(*argv, ready, code=0, env=None):
    """A server, up to the line in which *ready*, a pattern, is found. It ends in order, with *code*, after SIGTERM."""
    process = subprocess.Popen(
        [sys.executable, "-m", *argv], cwd=EXAMPLES, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
    )  # fmt: skip
    text = b""
    try:
        deadline = time.monotonic() + READY_SECONDS
        while (found := re.search(ready, text.decode(errors="replace"))) is None:
            assert select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0], text.decode()
            chunk = os.read(process.stdout.fileno(), 65536)
            assert chunk, text.decode()
            text += chunk
        yield process, found
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=GONE_SECONDS)
        assert process.returncode == code, (text + rest).decode()
        assert b"Traceback" not in text + rest, (text + rest).decode()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def ask(port, path):
    """The body of one answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        answer = connection.getresponse()
        body = answer.read().decode()
        assert answer.status == 200, body
    finally:
        connection.close()
    return body


def test_fastapi() -> None:
    """A pool on `app.state` answers requests, commands run in the loop, and SIGTERM ends all in order."""
    census = Census()
    with server(
        "uvicorn", "fastapi_app:app", "--port", "0", ready=r"running on http://127.0.0.1:(\d+)", code=-signal.SIGTERM
    ) as (process, found):
        port = int(found[1])
        answers = [json.loads(ask(port, f"/squares/{number}")) for number in range(5)]
        assert [answer["square"] for answer in answers] == [0, 1, 4, 9, 16]
        assert process.pid not in {answer["worker"] for answer in answers}
        assert json.loads(ask(port, "/uptime"))["seconds"] > 0
    assert census.gone(GONE_SECONDS) == {}


def test_gunicorn() -> None:
    """Each of two workers has a zygote and a pool; one that is killed takes its own along; SIGTERM ends all."""
    census = Census()
    with server(
        "gunicorn", "-c", "gunicorn_conf.py", "-b", "127.0.0.1:0", "--no-control-socket", "gunicorn_app:application",
        ready=r"Listening at: http://127.0.0.1:(\d+)",
    ) as (_, found):  # fmt: skip
        port = int(found[1])

        def workers(until):
            """Who answers, until that many have, or a minute has passed."""
            seen = set()
            deadline = time.monotonic() + READY_SECONDS
            while len(seen) < until and time.monotonic() < deadline:
                pid, *rest = ask(port, "/7").split()
                assert rest == ["hello", "49"]
                seen.add(int(pid))
            return seen

        first = workers(2)
        assert len(first) == 2
        os.kill(min(first), signal.SIGKILL)
        assert len(workers(1) | workers(2) | first) == 3
    assert census.gone(GONE_SECONDS) == {}


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_celery(pool, tmp_path) -> None:
    """A task runs commands and has a pool of its own, in each kind of worker; SIGTERM ends all."""
    census = Census()
    ask_for = (
        "import celery_tasks as tasks\n"
        "print('bin' in tasks.listing.delay('/').get(timeout=60), tasks.squares.delay([1, 2, 3]).get(timeout=60))"
    )
    env = {**os.environ, "CELERY_FOLDER": str(tmp_path), "C_FORCE_ROOT": "1"}
    with server(
        "celery", "-A", "celery_tasks", "worker", "--pool", pool, "--concurrency", "2", "--loglevel", "info",
        ready=r"celery@\S+ ready", env=env,
    ):  # fmt: skip
        argv = [sys.executable, "-c", ask_for]
        done = subprocess.run(argv, cwd=EXAMPLES, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout == "True [1, 4, 9]\n", done.stderr
    assert census.gone(GONE_SECONDS) == {}
