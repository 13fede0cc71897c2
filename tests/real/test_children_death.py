"""Supervised children and the end of their application, of their zygote, of their template, and of patience."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import safespawn
from safespawn._drive import run
from support import child_tasks, leaks
from support.applications import Application, Census
from support.child_tasks import PLAIN
from support.children import ENV, alive, becomes, fields, program, reap_orphans, signals, state, survivors

SECONDS = 15.0  # generous; what is promised is 2 s
LONG_SECONDS = 60.0  # half of what a template's imports may take
LOOPS = ("asyncio", "trio")


@pytest.fixture(autouse=True)
def _orphans():
    """What a program leaves comes to this process, and is reaped."""
    yield
    reap_orphans()


def application(*how):
    """The program, with a stdin whose end tells it to go on."""
    return Application("children_app", *how, stdin=subprocess.PIPE)


def facts(app):
    """The next line that it prints."""
    return json.loads(app.line())


def served(app):
    """Its first line, when it has come so far that it answers SIGTERM."""
    said = facts(app)
    wait_until_served(app.pid)
    return said


def wait_until_served(pid):
    """Wait until a program answers SIGTERM."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with open(f"/proc/{pid}/status") as file:
            if signal.SIGTERM in signals(fields(file.read())["SigCgt"]):
                return
        time.sleep(0.005)
    raise AssertionError("it does not serve")


def ending(app):
    """What it says of the end of its children on stderr, after it has ended."""
    text = app.process.stderr.read().decode()
    return [json.loads(line) for line in text.splitlines() if line.startswith('{"event"')], text


@pytest.mark.parametrize("how", ["kill", "exit", "exec", "crash", "raise", "term"])
def test_nothing_outlives_the_application(how):
    """Functions and commands that ignore SIGTERM, fork, setsid and daemonise are gone after it, however it ends."""
    census = Census()
    with application(how) as app:
        said = facts(app)
        assert all(map(alive, said["pids"]))
        assert len(said["pids"]) >= 9
        if how in ("kill", "term"):
            app.process.send_signal(signal.SIGKILL if how == "kill" else signal.SIGTERM)
        else:
            app.process.stdin.close()
        assert survivors([*said["pids"], *said["zygotes"]], SECONDS) == []
        app.process.wait(SECONDS)
    assert census.gone(SECONDS) == {}


@pytest.mark.parametrize("how", [("serve",), *(("loop", name) for name in LOOPS)], ids="-".join)
def test_a_clean_stop_on_sigterm(how):
    """At SIGTERM serve returns, the children are stopped in the reverse order, and the program ends well."""
    with application(*how) as app:
        said = served(app)
        app.process.send_signal(signal.SIGTERM)
        assert facts(app) == {"signal": signal.SIGTERM}
        assert facts(app) == {"left": "supervisor"}
        assert survivors(said["pids"], 0) == []
        assert app.process.wait(SECONDS) == 0
        events, _ = ending(app)
    assert [each["child"] for each in events if each["event"] == "Stopping"] == ["deaf", "tree", "polite"]
    assert [each["child"] for each in events if each["event"] == "Killed"] == ["deaf", "tree"]


def test_as_the_first_process_of_a_container():
    """With pid 1 in a namespace of its own it hears SIGTERM, and stops its children in order."""
    argv = ["unshare", "--pid", "--fork", "--mount-proc", *program("children_app.py", "serve")]
    if subprocess.run([*argv[:4], "true"], check=False, capture_output=True).returncode:
        pytest.skip("this user may make no namespace of processes")
    argv.remove("-S")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV) as outer:
        assert json.loads(outer.stdout.readline())["zygotes"]
        (first,) = leaks.children(outer.pid)
        wait_until_served(first)
        os.kill(first, signal.SIGTERM)
        out, err = outer.communicate(timeout=60)
    assert out.splitlines() == ['{"signal": 15}', '{"left": "supervisor"}'], err
    assert outer.returncode == 0


@pytest.mark.parametrize("how", ["namespace", "subreaper", "leader"])
def test_orphans_are_reaped(how):
    """What came from elsewhere is reaped; a child that has ended keeps its status for whoever asks for it later."""
    argv = program("children_orphans.py", "subreaper")
    if how == "namespace":
        namespace = ["unshare", "--pid", "--fork", "--mount-proc"]
        if subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
            pytest.skip("this user may make no namespace of processes")
        argv = [*namespace, *argv[:-1]]
    found = subprocess.run(
        argv, stdout=subprocess.PIPE, env=ENV, timeout=100, check=True, start_new_session=how == "leader"
    )
    assert json.loads(found.stdout) == {"states": ["Z"] * 4, "ends": [7, 8, 9]}


@pytest.mark.parametrize("how", [("serve",), *(("loop", name) for name in LOOPS)], ids="-".join)
def test_a_second_ctrl_c_shortens_the_end(how):
    """A child that has a thousand seconds to end does not keep a program whose user presses Ctrl-C again."""
    with application(*how, "deaf") as app:
        said = served(app)
        app.process.send_signal(signal.SIGINT)
        if how[0] == "serve":
            assert facts(app) == {"signal": signal.SIGINT}
        deadline = time.monotonic() + SECONDS
        while app.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)  # a user's pace
            app.process.send_signal(signal.SIGINT)
        assert app.process.wait(SECONDS) is not None
        assert survivors([*said["pids"], *said["zygotes"]], SECONDS) == []


def test_ctrl_c_ends_a_start():
    """A child that is never ready is ended by Ctrl-C, and start raises it; the others go on until the block is left."""
    with application("starting") as app:
        said = facts(app)
        time.sleep(0.2)
        app.process.send_signal(signal.SIGINT)
        assert facts(app) == {"left": "start"}
        assert facts(app) == {"left": "supervisor"}
        assert app.process.wait(SECONDS) == 0
        assert survivors(said["pids"], 0) == []


# --- the machinery dies ----------------------------------------------------------------------------------------------
@pytest.fixture
def supervisor():
    """A blocking supervisor that was entered."""
    with safespawn.Supervisor(guard="off") as entered:
        yield entered


def until(events, kind, child):
    """The next event of this kind and child."""
    while True:
        event = events.get(timeout=child_tasks.SECONDS)
        assert event is not None
        if (type(event).__name__, event.child) == (kind, child):
            return event


def test_the_zygote_dies(supervisor):
    """Commands die with the zygote, and are started again by the next one; nothing hangs."""
    events = supervisor.events()
    child = supervisor.start("x", PLAIN)
    before = child.pid
    (zygote,) = supervisor.statistics()["zygotes"]
    os.kill(zygote, signal.SIGKILL)
    assert until(events, "Exited", "x").pid == before
    assert until(events, "Ready", "x").pid not in (before, None)
    assert alive(child.pid)
    assert not alive(before)


def test_a_stopped_zygote_without_its_warden_is_ended():
    """A zygote that was stopped before its warden was killed stays no longer than its supervisor does."""
    with safespawn.Supervisor(guard="off") as inner:
        child = inner.start("x", PLAIN)
        (zygote,) = inner.statistics()["zygotes"]
        pids = [zygote, child.pid]
        os.kill(zygote, signal.SIGSTOP)
        os.kill(warden_of(zygote), signal.SIGKILL)
        assert survivors(pids[:1], SECONDS) == []  # at once
    assert survivors(pids, SECONDS) == []


def warden_of(zygote):
    """The parent of a zygote."""
    with open(f"/proc/{zygote}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def test_a_stopped_warden_ends_what_its_zygote_leaves(supervisor):
    """A warden that was stopped before its zygote was killed is woken by the next call, and ends the commands."""
    child = supervisor.start("x", PLAIN)
    (zygote,) = supervisor.statistics()["zygotes"]
    before = child.pid
    os.kill(warden_of(zygote), signal.SIGSTOP)
    os.kill(zygote, signal.SIGKILL)
    assert survivors([zygote], SECONDS) == []
    assert supervisor.run(["true"]).returncode == 0
    assert survivors([before], SECONDS) == []


def test_a_command_whose_zygote_and_warden_died(supervisor):
    """When nobody is left to end a command its caller does, and says that its status is lost."""
    errors, spawned = [], []

    def call():
        try:
            supervisor.run(["sh", "-c", "echo $$; exec sleep 1000"], on_line=lambda line: spawned.append(int(line)))
        except safespawn.errors.SpawnLost as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    becomes(lambda: spawned)
    (zygote,) = supervisor.statistics()["zygotes"]
    warden = warden_of(zygote)
    for pid, number in ((warden, signal.SIGSTOP), (zygote, signal.SIGKILL), (warden, signal.SIGKILL)):
        os.kill(pid, number)  # so near to one another that nobody can do anything in between
    thread.join(child_tasks.SECONDS)
    assert not thread.is_alive()
    assert [error.pid for error in errors] == spawned
    assert survivors(spawned, SECONDS) == []


def test_a_child_whose_zygote_and_warden_died(supervisor):
    """A supervised command that nobody could end with the application any more is ended, and started again."""
    events = supervisor.events()
    child = supervisor.start("x", PLAIN)
    before = child.pid
    (zygote,) = supervisor.statistics()["zygotes"]
    warden = warden_of(zygote)
    for pid, number in ((warden, signal.SIGSTOP), (zygote, signal.SIGKILL), (warden, signal.SIGKILL)):
        os.kill(pid, number)
    assert until(events, "Exited", "x").pid == before
    assert until(events, "Ready", "x").pid not in (before, None)
    assert survivors([before], SECONDS) == []


@pytest.mark.parametrize("warden_too", [signal.SIGSTOP, signal.SIGKILL], ids=["stopped", "killed"])
def test_nothing_outlives_an_application_with_a_stopped_zygote(warden_too):
    """A zygote that is stopped is woken when the application is killed, whatever has become of its warden."""
    census = Census()
    with application("kill") as app:
        said = facts(app)
        wardens = [warden_of(zygote) for zygote in said["zygotes"]]
        for zygote in said["zygotes"]:
            os.kill(zygote, signal.SIGSTOP)
        for warden in wardens:
            os.kill(warden, warden_too)
        app.process.kill()
        assert survivors([*said["pids"], *said["zygotes"]], SECONDS) == []
        app.process.wait(SECONDS)
    assert census.gone(SECONDS) == {}


@pytest.fixture
def preloaded(tmp_path, monkeypatch):
    """Makes a module that says that it is being imported by a template, and then does as it is told, once."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(action):
        path = tmp_path / "imported"
        text = f"import os, signal, time\nif not os.path.exists({str(path)!r}):\n"
        text += f"    open({str(path)!r}, 'w').close()\n    {action}\n"
        (tmp_path / "safespawn_nemesis.py").write_text(text)
        return path

    return make


def test_a_template_that_is_stopped_in_its_boot(supervisor, preloaded):
    """A stopped template is not waited for until its imports would be over; the next one does what it was to do."""
    path = preloaded("os.kill(os.getpid(), signal.SIGSTOP)")
    options = {"ready": "notify", "preload": ["safespawn_nemesis"]}
    began = time.monotonic()
    with pytest.raises(safespawn.errors.BootError, match="stopped"):
        supervisor.start("x", child_tasks.beats, 0, **options)
    assert path.exists()
    assert time.monotonic() - began < LONG_SECONDS
    assert supervisor.start("x", child_tasks.beats, 0, **options).state == "up"


def test_a_start_that_is_not_answered_does_not_hold_up_the_end(preloaded):
    """A supervisor that is left while a template imports something for ever gives that start up in a moment."""
    path = preloaded("time.sleep(1000)")
    errors = []
    with safespawn.Supervisor(guard="off") as inner:

        def start():
            try:
                inner.start("x", child_tasks.beats, 0, ready="notify", preload=["safespawn_nemesis"])
            except safespawn.SafespawnError as error:
                errors.append(error)

        thread = threading.Thread(target=start)
        thread.start()
        becomes(path.exists)
        began = time.monotonic()
    assert time.monotonic() - began < SECONDS
    thread.join(child_tasks.SECONDS)
    assert [type(error).__name__ for error in errors] == ["ClosedError"]


@pytest.mark.parametrize(
    ("how", "ends", "errors"),
    [
        ("stop", [["first", -signal.SIGTERM], ["second", -signal.SIGTERM]], []),
        ("close", [["second", None], ["first", -signal.SIGTERM]], ["ClosedError"]),
    ],
)
def test_a_template_that_imports_something_for_another_child(tmp_path, how, ends, errors):
    """It cannot tell how its children end meanwhile: they are asked and buried without it, and the start goes on."""
    path = tmp_path / "imports"
    path.touch()
    argv = program("children_busy.py", path, how)
    found = subprocess.run(argv, env=ENV, stdout=subprocess.PIPE, timeout=100, check=True)
    said = json.loads(found.stdout)
    assert (said["ends"], said["errors"]) == (ends, errors)
    assert said["seconds"] < 5.0  # such a template's word would be waited for for six, and be nothing then


def test_a_zygote_that_is_stopped_while_a_child_is_buried(supervisor, monkeypatch):
    """Whoever waits for the end of a child waits no longer for it than for one that was stopped before."""

    def stop_and_sweep(child):
        os.kill(child.connection.zygote.pid, signal.SIGSTOP)
        return sweep_flow(child)

    sweep_flow = run.sweep_flow
    monkeypatch.setattr(run, "sweep_flow", stop_and_sweep)
    child = supervisor.start("x", PLAIN)
    began = time.monotonic()
    child.stop()
    assert time.monotonic() - began < 4.0  # five for each of two answers
    assert (child.state, supervisor.recent_events()[-1].returncode) == ("done", -signal.SIGTERM)


def test_the_template_is_stopped(supervisor):
    """The end of a function whose template is stopped is known at once, and the next one comes of another template."""
    events = supervisor.events()
    child = supervisor.start("x", child_tasks.beats, 0, ready="notify")
    template = next(iter(supervisor._engine.templates))
    before = child.pid
    os.kill(template.pid, signal.SIGSTOP)
    becomes(lambda: state(template.pid) == "T")
    os.kill(before, signal.SIGKILL)
    began = time.monotonic()
    exited = until(events, "Exited", "x")
    assert (exited.pid, exited.returncode) == (before, -signal.SIGKILL)
    assert time.monotonic() - began < 4.0  # the word of a zygote that is not stopped is waited for for longer
    assert until(events, "Ready", "x").pid not in (before, None)
    assert survivors([template.pid], SECONDS) == []


def test_the_template_dies(supervisor):
    """A function lives on without its template; it is stopped, and started again, as ever."""
    events = supervisor.events()
    child = supervisor.start("x", child_tasks.beats, 0, ready="notify")
    template = next(iter(supervisor._engine.templates))
    before = child.pid
    os.kill(template.pid, signal.SIGKILL)
    assert survivors([template.pid], SECONDS) == []
    assert alive(before)
    child.restart()
    assert until(events, "Exited", "x").pid == before
    assert alive(child.pid)
    assert not alive(before)
    child.stop()
    assert child.state == "done"


def test_a_stopped_child_is_stopped(supervisor):
    """SIGSTOP does not keep a child: SIGCONT comes behind SIGTERM."""
    child = supervisor.start("x", child_tasks.beats, 0, ready="notify")
    os.kill(child.pid, signal.SIGSTOP)
    child.stop()
    assert child.state == "done"
    assert supervisor.recent_events()[-1].returncode == -signal.SIGTERM


UNLEFT = """
import asyncio, os, safespawn
async def main():
    supervisor = await safespawn.AsyncSupervisor(guard="off").__aenter__()
    child = await supervisor.start("x", ["sleep", "1000"])
    print(child.pid, flush=True)
asyncio.run(main())
"""


def test_an_event_loop_that_ends_before_its_supervisor_is_left():
    """The loop waits for the task that serves the children, which ends them, and itself."""
    found = subprocess.run(
        [sys.executable, "-c", UNLEFT], env=ENV, stdout=subprocess.PIPE, timeout=30.0, check=True, text=True
    )
    assert survivors([int(found.stdout)]) == []


def test_many_restarts(supervisor):
    """Twenty crashes of a function in a row: each is told, each answered, and nothing accumulates."""
    with safespawn.Supervisor("inner", guard="off", restarts=1000) as inner:
        events = inner.events()
        child = inner.start(
            "x", child_tasks.beats, 0, ready="notify", backoff=safespawn.Backoff(0.0)
        )  # fmt: skip
        until(events, "Ready", "x")
        fds = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            os.kill(child.pid, signal.SIGKILL)
            until(events, "Ready", "x")
        assert child.restarts == 20
        assert len(os.listdir("/proc/self/fd")) <= fds + 2
        assert inner.statistics()["events"]["exited"] == 20


def test_children_under_attack():
    """Struck at their critical moments, at times twice in a row, children are well again, and nothing accumulates."""
    census = Census()
    with Application("children_nemesis", 3, 7) as app:
        out, err = app.process.communicate(timeout=200)
        assert app.process.returncode == 0, err[-4000:].decode(errors="replace")
    said = json.loads(out)
    assert said["blows"] > 0
    assert said["whole"] is not None, err[-8000:].decode(errors="replace")
    assert (said["hung"], said["wrong"], said["left"]) == ([], [], [])
    assert said["closed"] < SECONDS
    assert said["after"][0] <= said["before"][0] + 3, err[-8000:].decode(errors="replace")
    assert census.gone(SECONDS) == {}


def test_a_forked_copy(supervisor):
    """In a forked copy of the program the children are the original's: it can neither stop nor harm them."""
    child = supervisor.start("x", PLAIN)
    pid = os.fork()
    if pid == 0:
        try:
            child.stop()
        except safespawn.errors.ForeignCopy:
            supervisor.close()
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert alive(child.pid)
    child.restart()
    assert child.state == "up"


def test_systemd_is_told(monkeypatch, tmp_path):
    """READY=1 by serve, WATCHDOG=1 as often as it is wanted, STATUS=, STOPPING=1; the children are not asked."""
    path = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as inbox:
        inbox.bind(path)
        inbox.settimeout(child_tasks.SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", path)
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        with safespawn.Supervisor(guard="off") as supervisor:
            command = ["sh", "-c", 'test -z "$NOTIFY_SOCKET$WATCHDOG_USEC" && echo none; exec sleep 1000']
            lines = []
            supervisor.start("x", command, on_line=lines.append, ready=lambda: lines)
            assert supervisor.serve(timeout=0.3) is None
        assert lines == ["none"]
        inbox.setblocking(False)
        said = []
        try:
            while True:
                said.append(inbox.recv(1000).decode())
        except BlockingIOError:
            pass
    assert said.count("WATCHDOG=1") >= 2
    assert "STATUS=1 of 1 children are up" in said
    assert said.index("READY=1") < said.index("STOPPING=1\nSTATUS=stopping")
