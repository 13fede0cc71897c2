"""`safespawn exec`: programs that know nothing of the library run as under `python`, and do not hang."""

import os
import select
import signal
import subprocess
import sys
import zipfile

import pytest

from safespawn import cli
from safespawn.installed import program
from support.applications import Census
from support.children import ENV, PROGRAMS, reap_orphans

EXEC = ("-m", "safespawn", "exec", "--guard", "off")
FACTS = os.path.join(PROGRAMS, "exec_facts.py")


@pytest.fixture(autouse=True)
def _wardens():
    """What a program leaves to this process, the subreaper, are its zygotes' wardens, which have ended."""
    yield
    reap_orphans()


def outcome(*arguments, input="the input", **options):
    """How an interpreter with these arguments ends, and what it says."""
    argv = [sys.executable, *arguments]
    done = subprocess.run(
        argv, input=input, capture_output=True, text=True, timeout=60, check=False, env=ENV, **options
    )
    return done.returncode, done.stdout, done.stderr


def same(*arguments, **options):
    """The outcome under `python`, after it was the same under `safespawn exec`."""
    plain = outcome(*arguments, **options)
    assert outcome(*EXEC, *arguments, **options) == plain
    return plain


ENDS = {"end": 0, "exit 3": 3, "message": 1, "error": 1, "interrupt": -signal.SIGINT, "hook": 1}


@pytest.mark.parametrize("end", ENDS)
def test_a_script_ends_as_under_python(end):
    """Facts of the start, exit code, message, traceback, exit functions, threads: all are the same."""
    code, out, err = same(FACTS, *end.split(), "--guard", "x")
    assert code == ENDS[end]
    assert '"input": "the input"' in out
    assert "a thread has ended" in out
    assert "an exit function was called" in out
    assert ("ZeroDivisionError" in err) == (end == "error")


def test_a_script_by_a_relative_path_and_a_link(tmp_path):
    """`sys.path[0]` is the directory of the file, not of the link to it."""
    (tmp_path / "link.py").symlink_to(FACTS)
    code, out, _ = same("link.py", "end", cwd=tmp_path)
    assert code == 0
    assert f'"path": "{PROGRAMS}"' in out
    assert '"argv": ["link.py", "end"]' in out


def test_a_module_ends_as_under_python():
    """`-m` finds it in the current directory, and knows its spec."""
    code, out, _ = same("-m", "exec_facts", "exit", "4", cwd=PROGRAMS)
    assert code == 4
    assert '"spec": "exec_facts"' in out
    assert same("-mexec_facts", "end", cwd=PROGRAMS)[0] == 0
    assert same("-m", "exec_facts", "error", cwd=PROGRAMS)[0] == 1


def test_code_ends_as_under_python():
    """`-c` and a program on stdin have the names, arguments and tracebacks that they have."""
    code = "import sys; print(sys.argv, sys.path[0], __name__, sorted(globals())); sys.exit(int(sys.argv[1]))"
    assert same("-c", code, "5", "-m")[0] == 5
    assert same("-c", "def f(): return 1 // 0\nf()")[0] == 1
    assert same("-c", "def f(")[0] == 1
    assert same("-", "6", input=code)[0] == 6


def test_directories_and_archives(tmp_path):
    """A directory or a zip file with a `__main__.py` is a program."""
    code = "import sys, other\nprint(sys.argv, sys.path[0], __name__, __spec__.name, other.__name__)"
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__main__.py").write_text(code)
    (tmp_path / "app" / "other.py").touch()
    with zipfile.ZipFile(tmp_path / "app.zip", "w") as archive:
        archive.writestr("__main__.py", code)
        archive.writestr("other.py", "")
    assert same(str(tmp_path / "app"), "x")[0] == 0
    assert same(str(tmp_path / "app.zip"), "x")[0] == 0


def test_what_is_not_there(tmp_path):
    """A file or a module that does not exist, and one that does not compile, are told in Python's words."""
    assert same(str(tmp_path / "none.py"))[0] == 2
    assert same("-m", "no_such_module")[0] == 1
    (tmp_path / "broken.py").write_text("def f(:\n")
    assert same(str(tmp_path / "broken.py"))[0] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "a program is wanted"),
        (["--guard"], "--guard is one of"),
        (["--guard=maybe", "x.py"], "--guard is one of"),
        (["-m"], "argument expected for the -m option"),
        (["-c"], "argument expected for the -c option"),
        (["--fast", "x.py"], "unknown option --fast"),
    ],
)
def test_usage_errors(words, says, capsys):
    """They are told in a sentence, with exit code 2."""
    assert cli.main(["exec", *words]) == 2
    assert says in capsys.readouterr().err


def test_help(capsys):
    """It is told on stdout, and the command's is listed by the command line's own help."""
    assert cli.main(["exec", "--help"]) == 0
    assert "usage: safespawn exec" in capsys.readouterr().out
    assert "exec" in cli.make_parser().format_help()


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["a.py", "--guard", "off"], program.Command("script", "a.py", ("--guard", "off"))),
        (["--guard", "error", "-m", "a.b", "-m"], program.Command("module", "a.b", ("-m",), "error")),
        (["--guard=off", "-cpass"], program.Command("code", "pass", (), "off")),
        (["--", "-odd.py", "x"], program.Command("script", "-odd.py", ("x",))),
    ],
)
def test_what_follows_the_program_is_its_own(words, command):
    """Options of `exec` come before the program."""
    assert program.parse(words) == command


def test_ctrl_c():
    """SIGINT ends the program by SIGINT, its `finally` done, with a traceback that shows the program's line only."""
    argv = [sys.executable, *EXEC, os.path.join(PROGRAMS, "exec_waits.py")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENV) as process:
        assert process.stdout.readline() == b"ready\n"
        while not children_of(process.pid):
            select.select([process.stdout], [], [], 0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT
    assert out == b"the end\n"
    assert err.rstrip().endswith(b"KeyboardInterrupt")
    assert b"program.py" not in err
    assert b"exec_waits.py" in err


def children_of(pid):
    """The commands that the zygotes of *pid* run."""
    found = subprocess.run(["pgrep", "-x", "sleep"], capture_output=True, text=True, check=False).stdout.split()
    return [each for each in found if below(int(each), pid)]


def below(child, pid):
    """Whether *child* descends from *pid*."""
    while child > 1 and child != pid:
        try:
            with open(f"/proc/{child}/stat") as file:
                child = int(file.read().rpartition(")")[2].split()[1])
        except OSError:
            return False
    return child == pid


def test_an_unmodified_program_in_the_shape_of_the_incidents():
    """Threads log, threads run commands, something forks, pools and processes log: all rounds end, nothing is left."""
    census = Census()
    code, out, err = outcome(*EXEC, os.path.join(PROGRAMS, "exec_incident.py"), "10")
    assert code == 0, err
    assert out.splitlines() == [f"round {number}: 285 0 28 popen" for number in range(10)]
    assert err == ""
    assert census.gone(5.0) == {}


def test_the_guard_tells_of_a_bare_fork():
    """With `--guard error` the program's own fork raises, with its place; with "warn" it is told."""
    code = "import os\npid = os.fork()\nif not pid: os._exit(0)\nos.waitpid(pid, 0)"
    status, _, err = outcome("-m", "safespawn", "exec", "--guard", "error", "-c", code)
    assert status == 1
    assert "UnsafeStart: os.fork()" in err
    status, _, err = outcome("-m", "safespawn", "exec", "-c", code)
    assert status == 0
    assert "UnsafeStartWarning: os.fork()" in err


def test_a_daemon_thread_that_runs_commands_when_the_program_ends(tmp_path):
    """It is told nothing of the end, and says nothing."""
    code = "import subprocess, threading\ndone = threading.Event()\ndef run():\n    while True:\n"
    code += "        subprocess.run(['true'], check=True)\n        done.set()\n"
    code += "threading.Thread(target=run, daemon=True).start()\ndone.wait()\n"
    (tmp_path / "daemon.py").write_text(code)
    for _ in range(5):
        assert outcome(*EXEC, str(tmp_path / "daemon.py")) == (0, "", "")


def test_a_loader_of_batches_works():
    """Workers with queues, a thread that takes batches out, one that logs: all in order, and every worker ends."""
    census = Census()
    code, out, err = outcome(
        "-m", "safespawn", "exec", "--guard", "error", os.path.join(PROGRAMS, "exec_loader.py"), "4"
    )
    assert (code, out) == (0, "[0, 0, 0]\n85344\n" * 2)
    assert set(err.splitlines()) == {"chatter", *(f"batch {number}" for number in range(16))}
    assert census.gone(5.0) == {}


@pytest.mark.parametrize(
    ("how", "second"), [("script", "safespawn"), ("module", "safespawn"), ("worker", "subprocess")]
)
def test_a_program_that_starts_itself_again(how, second):
    """A reloader's copy of the program, with the same arguments, is under exec as well; with others it is a command."""
    program = ["-m", "exec_again"] if how == "module" else ["exec_again.py"]
    code, out, err = outcome(*EXEC, *program, how, cwd=PROGRAMS)
    assert (code, err) == (3, "")
    arguments = ["other"] if how == "worker" else [how]
    assert out == f"safespawn {[how]}\n{second} {arguments}\n"
