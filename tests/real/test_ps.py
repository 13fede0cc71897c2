"""
`safespawn ps` and `top`: what an application runs, seen from outside, whatever the application is doing.
"""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

import safespawn
from safespawn import _ps, cli
from safespawn._drive import board
from support import log_tasks
from support import pool_tasks as tasks

BOUND = 60.0


def mine():
    """This process's rows, by name."""
    (application,) = [each for each in _ps.find_applications() if each["pid"] == os.getpid()]
    return {row["name"]: row for row in application["rows"]}


def wait_until(seen):
    """The rows, once *seen* is true of them."""
    deadline = time.monotonic() + BOUND
    while not seen(rows := mine()):
        assert time.monotonic() < deadline, rows
        time.sleep(0.01)
    return rows


def test_a_pool_and_its_workers_are_shown(tmp_path):
    """The pool, its workers below it, what a busy one runs and since when; idle, busy, dead and replaced."""
    with safespawn.Pool(2, name="images") as pool:
        pool.apply(abs, (-1,))
        rows = wait_until(lambda rows: {rows.get(f"images-{number}", {}).get("state") for number in (0, 1)} == {"idle"})
        assert (rows["images"]["kind"], rows["images"]["pid"]) == ("pool", None)
        assert {"warden", "zygote", "template"} <= set(rows)
        result = pool.apply_async(tasks.wait_for, (str(tmp_path / "go"),))
        name = "support.pool_tasks.wait_for"  # while it is being unpickled it has a number only
        rows = wait_until(lambda rows: any(row["task"] == name for row in rows.values()))
        (busy,) = [row for row in rows.values() if row["task"]]
        assert busy["state"] == "busy"
        assert 0 <= busy["task_seconds"] < BOUND
        assert busy["restarts"] == 0
        assert busy["rss_bytes"] > 2**20
        assert busy["depth"] == rows["images"]["depth"] + 1
        os.kill(busy["pid"], signal.SIGKILL)
        with pytest.raises(safespawn.WorkerDied):
            result.get(BOUND)
        rows = wait_until(  # it is not there at all until its successor is
            lambda rows: {"restarts": 1, "state": "idle"}.items() <= rows.get(busy["name"], {}).items()
        )
        assert rows[busy["name"]]["event"] == f"pid {busy['pid']} died: SIGKILL"
        assert rows[busy["name"]]["pid"] != busy["pid"]
        assert rows["images"]["state"] == "running"
        assert re.match(r"worker \d (died|started)", rows["images"]["event"])
        held = pool.apply_async(tasks.wait_for, (str(tmp_path / "go"),))
        pool.close()
        assert mine()["images"]["state"] == "closing"
        (tmp_path / "go").touch()
        held.get(BOUND)
    assert "images" not in mine()


def test_what_tasks_and_commands_start_is_shown():
    """A command is below the zygote; what a worker's task has started is below the worker."""
    with safespawn.Pool(1, name="below") as pool, safespawn.Popen(["sleep", "1000"]) as command:
        pid = pool.apply(log_tasks.start_sleep)
        rows = mine()
        assert rows["sleep 1000"]["kind"] == "command"
        assert rows["sleep 1000"]["pid"] == command.pid
        assert rows["sleep 999"]["pid"] == pid
        assert rows["sleep 999"]["depth"] == rows["below-0"]["depth"] + 1
        command.kill()


def test_a_stopped_application_is_shown(tmp_path):
    """An application that is stopped, and so cannot answer, is shown with its workers and what they do."""
    program = tmp_path / "app.py"
    program.write_text(
        "import safespawn, sys, time\n"
        "if __name__ == '__main__':\n"
        "    with safespawn.Pool(1, name='frozen') as pool:\n"
        "        result = pool.apply_async(time.sleep, (1000,))\n"
        "        print('begun', flush=True)\n"
        "        sys.stdin.read()\n"
        "        pool.terminate()\n"
    )
    app = subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        app.stdout.readline()
        deadline = time.monotonic() + BOUND
        worker = None
        while worker is None or not worker["task"]:
            assert time.monotonic() < deadline
            found = [each for each in _ps.find_applications() if each["pid"] == app.pid]
            rows = {row["name"]: row for each in found for row in each["rows"]}
            worker = rows.get("frozen-0")
            time.sleep(0.01)
        os.kill(app.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, app.pid, os.WSTOPPED)
        (found,) = [each for each in _ps.find_applications() if each["pid"] == app.pid]
        rows = {row["name"]: row for row in found["rows"]}
        assert found["rows"][0]["state"] == "stopped"
        assert (rows["frozen-0"]["state"], rows["frozen-0"]["task"]) == ("busy", "time.sleep")
    finally:
        os.kill(app.pid, signal.SIGCONT)
        app.communicate(timeout=BOUND)
    assert app.returncode == 0


def test_what_an_owner_publishes_is_shown():
    """A child in backoff, without a process, and one that is stopping, with the time it has left."""
    safespawn.run(["true"])  # an application without a zygote is not ours to show
    now = time.monotonic()
    rows = [
        board.publish("supervisor", "agent", state="running"),
        board.publish("child", "reader", owner="agent", state="waiting", until=now + 100, restarts=3),
        board.publish("child", "writer", owner="agent", state="stopping", until=now + 50, task="flush", task_since=now),
    ]
    rows[1].note("exited with 1")
    try:
        seen = mine()
        assert [seen[name]["depth"] for name in ("agent", "reader", "writer")] == [1, 2, 2]
        assert (seen["reader"]["pid"], seen["reader"]["restarts"], seen["reader"]["event"]) == (
            None, 3, "exited with 1",
        )  # fmt: skip
        assert 90 < seen["reader"]["left_seconds"] <= 100
        text = "\n".join(_ps.lines(_ps.find_applications()))
        assert re.search(r"stopping, (4\d|50)\.\d s left", text)
        assert "exited with 1, 0." in text
        assert "flush for 0." in text
    finally:
        for row in rows:
            row.withdraw()


def test_an_owner_of_itself_does_not_go_round():
    """Rows that name each other, or themselves, as owners: the table ends."""
    safespawn.run(["true"])
    names = [("pool", "a", "a"), ("child", "b", "c"), ("pool", "c", "b")]
    rows = [board.publish(kind, name, owner=owner) for kind, name, owner in names]
    try:
        assert "a" in mine()
    finally:
        for row in rows:
            row.withdraw()


def test_many_readers_hold_nobody_up():
    """While four readers read the board without pause, its owner publishes, and no row is ever read as half of two."""
    safespawn.run(["true"])
    row = board.publish("child", "busy", state="0", event="0")
    stop = threading.Event()
    wrong = []

    def look():
        while not stop.is_set():
            rows, _ = board.read_board(os.getpid())
            wrong.extend(facts for facts in rows if facts.name == "busy" and facts.state != facts.event)

    threads = [threading.Thread(target=look) for _ in range(4)]
    try:
        for thread in threads:
            thread.start()
        for number in range(3000):
            row.update(state=str(number), event=str(number))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        row.withdraw()
    assert wrong == []


def test_the_command_prints_tables_and_json(capsys):
    """`ps` prints a table for each application, `--json` the same for programs, `top --count` the table again."""
    name = f"printed{os.getpid()}"  # other tests may run beside these
    with safespawn.Pool(1, name=name) as pool:
        pool.apply(abs, (-1,))
        assert cli.main(["ps", "--json"]) == 0
        (found,) = [each for each in json.loads(capsys.readouterr().out)["applications"] if each["pid"] == os.getpid()]
        assert f"{name}-0" in {row["name"] for row in found["rows"]}
        assert cli.main(["ps"]) == 0
        out = capsys.readouterr().out
        assert "KIND" in out
        assert f"    {name}-0" in out
        assert cli.main(["top", "--count", "2", "--interval", "0.1"]) == 0
        out = capsys.readouterr().out
        assert out.count(f"    {name}-0") == 2


def test_rich_draws_the_same_rows():
    """With rich, every name and pid of the rows is in the drawing."""
    console = pytest.importorskip("rich.console", reason="rich is not installed")
    with safespawn.Pool(1, name="drawn") as pool:
        pool.apply(abs, (-1,))
        found = [each for each in _ps.find_applications() if each["pid"] == os.getpid()]
        drawing = console.Console(width=200, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        with drawing.file:
            drawing.print(_ps.pretty(found))
            text = drawing.export_text()
    assert "drawn-0" in text
    assert str(os.getpid()) in text


def test_nobody_is_told_in_words():
    """With no application there is a sentence, not an empty table."""
    assert next(_ps.lines([])).startswith("No application with safespawn runs here")


@pytest.mark.parametrize("words", [["top", "--interval", "0"], ["top", "--interval", "x"], ["top", "--count", "0"]])
def test_options_that_cannot_be_are_refused(words, capsys):
    """A time or a number that cannot be is told with exit code 2."""
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert "wanted" in capsys.readouterr().err


def test_names_are_shown_and_not_obeyed(capsys):
    """What a terminal would obey, or what no encoding has, is replaced: in names, states, events, commands."""
    row = dict.fromkeys(("pid", "uptime_seconds", "restarts", "cpu_seconds", "rss_bytes", "left_seconds"))
    evil = "n\xe9e\x1b[2J\udcff"
    row |= {"name": evil, "kind": evil, "state": evil, "depth": 0, "task": evil, "task_seconds": 1.0}
    row |= {"event": evil, "event_seconds": 2.0}
    text = list(_ps.table_lines({"rows": [row], "hidden_rows": 0}, None))[1]
    assert text.isprintable()
    assert text.count("n\xe9e\ufffd[2J\ufffd") == 5
    with safespawn.Supervisor(guard="off") as supervisor:
        supervisor.start("x\x1b[2J", [b"sh", b"-c", b"sleep 1000; # \xff\x1b[2J"])
        assert cli.main(["ps"]) == 0
        assert cli.main(["status"]) == 0
    assert "\x1b" not in capsys.readouterr().out
