"""
A child sees the application as it is now: what changed after the zygote had started counts.
"""

import os
import resource
import signal
import subprocess

import pytest

import safespawn
from safespawn import PIPE
from support.children import ENV, PYTHON, STATUS, both, fields, program, reap_orphans, signals


@pytest.fixture(autouse=True)
def _zygote_first():
    """
    The zygote is there before anything changes.
    """
    safespawn.init(guard="off")


async def test_the_current_directory(face, tmp_path, monkeypatch):
    """A child runs in the directory that the application has changed to."""
    monkeypatch.chdir(tmp_path)
    theirs, ours = await both(face, ["pwd", "-P"], stdout=PIPE)
    assert ours == theirs == (0, os.fsencode(tmp_path.resolve()) + b"\n", None)


async def test_a_deleted_current_directory(face, tmp_path, monkeypatch):
    """A child of an application whose directory is deleted runs in that same directory, as with subprocess."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    try:
        theirs, ours = await both(face, ["readlink", "/proc/self/cwd"], stdout=PIPE)
        assert ours == theirs
        assert ours[1].endswith(b"gone (deleted)\n")
    finally:
        os.chdir(tmp_path)


async def test_the_current_environment(face, monkeypatch):
    """Variables that were set, changed and deleted are so in the child, byte for byte."""
    monkeypatch.setenv("SET_LATER", "one")
    assert (await face.run(["sh", "-c", 'echo "$SET_LATER"'], stdout=PIPE)).stdout == b"one\n"
    monkeypatch.setenv("SET_LATER", "zw\udcffei")
    assert (await face.run(["sh", "-c", 'echo "$SET_LATER"'], stdout=PIPE)).stdout == b"zw\xffei\n"
    monkeypatch.delenv("SET_LATER")
    result = await face.run(["/usr/bin/env", "-0"], stdout=PIPE)
    assert sorted(result.stdout.split(b"\0")[:-1]) == sorted(b"%b=%b" % item for item in os.environb.items())
    assert b"SET_LATER" not in result.stdout


async def test_the_current_path(face, tmp_path, monkeypatch):
    """A program is looked up in the application's present PATH."""
    (tmp_path / "tool-of-this-test").write_text("#!/bin/sh\necho found\n")
    (tmp_path / "tool-of-this-test").chmod(0o755)
    with pytest.raises(FileNotFoundError):
        await face.run(["tool-of-this-test"])
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert (await face.run(["tool-of-this-test"], stdout=PIPE)).stdout == b"found\n"


async def test_the_current_umask(face):
    """A child has the application's umask of the moment."""
    before = os.umask(0o013)
    try:
        assert (await face.run(["sh", "-c", "umask"], stdout=PIPE)).stdout == b"0013\n"
        os.umask(0o031)
        assert (await face.run(["sh", "-c", "umask"], stdout=PIPE)).stdout == b"0031\n"
    finally:
        os.umask(before)


@pytest.mark.parametrize("name", ["RLIMIT_NOFILE", "RLIMIT_CORE", "RLIMIT_STACK", "RLIMIT_CPU"])
async def test_the_current_soft_limits(face, name):
    """A child has the application's present limits, soft and hard."""
    number = getattr(resource, name)
    soft, hard = resource.getrlimit(number)
    changed = {"RLIMIT_NOFILE": 777, "RLIMIT_CORE": 0, "RLIMIT_STACK": 6 << 20, "RLIMIT_CPU": 7200}[name]
    row = {"RLIMIT_NOFILE": "files", "RLIMIT_CORE": "core", "RLIMIT_STACK": "stack", "RLIMIT_CPU": "cpu time"}[name]
    resource.setrlimit(number, (changed, hard))
    try:
        theirs, ours = await both(face, ["grep", row, "/proc/self/limits"], stdout=PIPE)
    finally:
        resource.setrlimit(number, (soft, hard))
    assert ours == theirs
    assert str(changed).encode() in ours[1]
    theirs, ours = await both(face, ["cat", "/proc/self/limits"], stdout=PIPE)
    assert ours[1].replace(b"\n", b"") == theirs[1].replace(b"\n", b"")


async def test_the_current_cpus(face):
    """A child runs on the CPUs that the calling thread is bound to now."""
    before = os.sched_getaffinity(0)
    one = min(before)
    os.sched_setaffinity(0, {one})
    try:
        theirs, ours = await both(face, ["sh", "-c", "grep Cpus_allowed_list /proc/self/status"], stdout=PIPE)
    finally:
        os.sched_setaffinity(0, before)
    assert ours == theirs == (0, b"Cpus_allowed_list:\t%d\n" % one, None)


async def test_the_currently_ignored_signals(face):
    """A signal that the application ignores is ignored in the child, one with a handler is not."""
    before = [signal.signal(signal.SIGUSR1, signal.SIG_IGN), signal.signal(signal.SIGUSR2, lambda *_: None)]
    try:
        facts = fields((await face.run(STATUS, stdout=PIPE)).stdout)
        assert signals(facts["SigIgn"]) - {32, 33} == {signal.SIGUSR1}
        assert signals(facts["SigCgt"]) == set()
    finally:
        signal.signal(signal.SIGUSR1, before[0])
        signal.signal(signal.SIGUSR2, before[1])


@pytest.mark.parametrize("number", [0, 1, 2])
async def test_the_current_streams(face, tmp_path, number):
    """A stream that was replaced with dup2 is what the child gets."""
    (tmp_path / "file").write_text("the content\n")
    saved = os.dup(number)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_APPEND)
    os.dup2(fd, number)
    os.close(fd)
    try:
        await face.run(
            ["cat"] if number == 0 else ["sh", "-c", f"echo written >&{number}"], stdout=PIPE if number == 0 else None
        )
        if number == 0:
            os.lseek(0, 0, os.SEEK_SET)
            assert (await face.run(["cat"], stdout=PIPE)).stdout == b"the content\n"
    finally:
        os.dup2(saved, number)
        os.close(saved)
    assert (tmp_path / "file").read_text() == "the content\n" + "written\n" * (number > 0)


@pytest.mark.parametrize("name", ["blocking", "asyncio"])
@pytest.mark.parametrize("closed", ["0", "1", "2", "01", "02", "12", "012"])
def test_closed_streams(name, closed, tmp_path):
    """An application whose streams 0 to 2 are closed runs commands; for the closed ones those have /dev/null."""
    report = tmp_path / "report"
    redirections = " ".join(f"{number}>&-" for number in closed)
    command = " ".join(program("closed_streams.py", name, report))
    result = subprocess.run(
        ["sh", "-c", f"exec {command} {redirections}"], env=ENV, capture_output=True, input=b"in", check=False
    )
    assert result.returncode == 0, result.stderr
    expected = {number: "/dev/null" if number in closed else "pipe" for number in "012"}
    plain, forked, captured = (
        dict(item.split("=") for item in line.split()) for line in report.read_text().splitlines()
    )
    assert plain == forked == expected
    assert captured == {**expected, "1": "pipe", "2": "pipe"}


def test_an_application_that_was_itself_started_so():
    """A program that posix_spawn started, safespawn's own child above all, runs commands and has nothing ignored."""
    code = (
        "import os, sys, safespawn\n"
        "sys.exit(safespawn.run([sys.executable, '-I', '-S', '-c', 'raise SystemExit(42)']).returncode)"
    )
    assert safespawn.run([*PYTHON, "-c", code], env=ENV).returncode == 42


def test_the_statuses_are_right_when_others_reap():
    """With SIGCHLD ignored, or a thread that reaps whatever it finds, exit codes are right all the same."""
    result = subprocess.run(program("reaped.py"), env=ENV, capture_output=True, text=True, timeout=60, check=False)
    assert result.stderr == ""
    assert (result.stdout, result.stderr) == ("ignored [7, 7, 7, 7, 7]\nreaper [7, 7, 7, 7, 7]\nsignal -9\n", "")


def test_a_forked_copy_has_a_zygote_of_its_own():
    """A forked copy of the application runs commands without disturbing the original's."""
    result = subprocess.run(program("copies.py"), env=ENV, capture_output=True, text=True, timeout=60, check=False)
    reap_orphans()  # the copy's warden
    assert result.stderr == ""
    assert result.stdout.splitlines() == [
        "copy: own zygote",
        "copy: ForeignCopy",
        "copy: ran 5",
        "original: ran 6",
        "original: kept 3",
    ]
