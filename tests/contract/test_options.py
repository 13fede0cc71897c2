"""
The options that say where a command runs and what it is: each is read back from the child itself.
"""

# ruff: noqa: ASYNC221, ASYNC230, ASYNC240 - subprocess is asked the same beside it; local files do not block

import contextlib
import fcntl
import os
import resource
import signal
import subprocess
from pathlib import Path

import pytest

import safespawn
from safespawn import DEVNULL, PIPE
from safespawn._core.options import build_spec
from safespawn._zygote import wire
from support.children import ENV, PYTHON, STATUS, alive, both, fields, program, reap_orphans, signals, survivors

root_only = pytest.mark.skipif(os.getuid() != 0, reason="needs the right to become somebody else")
STAT = ["sh", "-c", "cat /proc/$$/stat"]  # pid (name) state parent group session ...
OPEN_FDS = [
    *PYTHON,
    "-c",
    "import os; f = '/proc/self/fd/'; print(sorted(int(n) for n in os.listdir(f) if os.path.exists(f + n)))",
]


def ids(text):
    """
    Parent, process group, session of a line of /proc/PID/stat; and the pid.
    """
    words = text.rpartition(b")")[2].split()
    return int(words[1]), int(words[2]), int(words[3]), int(text.split()[0])


# --- directory and environment ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("form", [str, os.fsencode, lambda path: path], ids=["str", "bytes", "Path"])
async def test_cwd(face, tmp_path, form):
    """`cwd` as str, bytes or Path is where the child runs, for plain and forked starts alike."""
    for options in ({}, {"nice": 1}):
        result = await face.run(["pwd", "-P"], cwd=form(tmp_path), stdout=PIPE, **options)
        assert result.stdout == os.fsencode(tmp_path.resolve()) + b"\n"


async def test_a_relative_cwd_counts_from_the_applications(face, tmp_path, monkeypatch):
    """A relative cwd starts where the application is now, and the program's relative path in it."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "tool").write_text("#!/bin/sh\npwd -P\n")
    (tmp_path / "below" / "tool").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    theirs, ours = await both(face, ["./tool"], cwd="below", stdout=PIPE)
    assert ours == theirs == (0, os.fsencode((tmp_path / "below").resolve()) + b"\n", None)


async def test_an_odd_cwd(face, tmp_path):
    """A directory whose name is no text, and one behind a symbolic link, serve as cwd."""
    odd = os.path.join(os.fsencode(tmp_path), b"\xff \n")
    os.mkdir(odd)
    os.symlink(odd, tmp_path / "link")
    for path in (odd, os.fsdecode(odd), tmp_path / "link"):
        assert (await face.run(["pwd", "-P"], cwd=path, stdout=PIPE)).stdout == odd + b"\n"


async def test_env_is_the_whole_environment(face):
    """env= replaces the environment: nothing else is in it, values may be empty, names and values any bytes."""
    for env in (
        {},
        {"A": ""},
        {"A": "1", "B": "x=y"},
        {b"K": b"\xff\xfe"},
        {"\udcff": "\udcfe"},
        {"PATH": "/bin", "ü": "ß"},
    ):
        theirs, ours = await both(face, ["/usr/bin/env", "-0"], env=env, stdout=PIPE)
        assert ours == theirs


async def test_umask(face, tmp_path):
    """umask= is the child's, and the application's stays."""
    before = os.umask(0o022)
    os.umask(before)
    for umask in (0, 0o027, 0o777):
        assert (await face.run(["sh", "-c", "umask"], umask=umask, stdout=PIPE)).stdout == b"%04o\n" % umask
    assert os.umask(before) == before


# --- rights and limits ------------------------------------------------------------------------------------------------
async def test_rlimits(face):
    """A limit is a number (soft) or a pair; the others stay as they are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    read = ["sh", "-c", "ulimit -Sn; ulimit -Hn; ulimit -Sf; ulimit -Hf"]
    untouched = (await face.run(read, stdout=PIPE)).stdout.split()
    assert untouched[:2] == [b"%d" % soft, b"%d" % hard]
    result = await face.run(read, rlimits={resource.RLIMIT_NOFILE: 40}, stdout=PIPE)
    assert result.stdout.split() == [b"40", b"%d" % hard, *untouched[2:]]
    result = await face.run(
        read, rlimits={resource.RLIMIT_NOFILE: (30, 50), resource.RLIMIT_FSIZE: (512 * 8, 512 * 16)}, stdout=PIPE
    )
    assert result.stdout.split()[:2] == [b"30", b"50"]
    assert result.stdout.split()[2:] != untouched[2:]


async def test_a_limit_of_descriptors_below_what_the_zygote_has_open(face):
    """A child may have fewer descriptors than the zygote has at that moment, even fewer than its own streams are."""
    with contextlib.ExitStack() as stack:
        for _ in range(12):  # a connection, a pidfd each
            stack.enter_context(safespawn.Popen(["cat"], stdin=PIPE, stdout=DEVNULL))
        for limit in (4, 16):
            limits = {resource.RLIMIT_NOFILE: limit}
            result = await face.run(["grep", "files", "/proc/self/limits"], rlimits=limits, stdout=PIPE)
            assert int(result.stdout.split()[3]) == limit
        with pytest.raises(FileNotFoundError):  # the streams are in place: it is the program that is missing
            await face.run(["/nonexistent/program"], rlimits={resource.RLIMIT_NOFILE: 2}, stdout=PIPE)


async def test_a_descriptor_above_the_limit(face):
    """One whose number is not below the child's limit of descriptors is there all the same, as after any fork."""
    fd = os.open("/dev/null", os.O_RDONLY)
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 60)
    try:
        result = await face.run(
            ["sh", "-c", f"ulimit -n; readlink /proc/self/fd/{high}"],
            rlimits={resource.RLIMIT_NOFILE: (40, 50)}, pass_fds=[high], stdout=PIPE,
        )  # fmt: skip
    finally:
        os.close(fd)
        os.close(high)
    assert result.stdout == b"40\n/dev/null\n"


async def test_a_limit_that_is_refused(face):
    """A soft limit above the hard one is an error with the kernel's errno and the stage."""
    with pytest.raises(OSError, match="rlimits") as failure:
        await face.run(["true"], rlimits={resource.RLIMIT_NOFILE: (100, 50)})
    assert failure.value.stage == "rlimits"


async def test_a_limit_that_ends_the_child(face, tmp_path):
    """A child that goes over its file size is ended by the kernel, and the status says so."""
    limits = {resource.RLIMIT_FSIZE: 1000, resource.RLIMIT_CORE: 0}
    result = await face.run(["sh", "-c", "exec head -c 2000 /dev/zero >file"], rlimits=limits, cwd=tmp_path)
    assert result.returncode == -signal.SIGXFSZ
    assert (tmp_path / "file").stat().st_size == 1000


async def test_nice(face):
    """nice= adds to the application's value."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    result = await face.run(["nice"], nice=5, stdout=PIPE)
    assert int(result.stdout) == min(19, before + 5)
    assert int((await face.run(["nice"], stdout=PIPE)).stdout) == before


async def test_affinity(face):
    """affinity= is the child's CPU set."""
    cpus = os.sched_getaffinity(0)
    one = max(cpus)
    result = await face.run(STATUS, affinity={one}, stdout=PIPE)
    assert fields(result.stdout)["Cpus_allowed_list"] == str(one)
    result = await face.run(STATUS, affinity=sorted(cpus), stdout=PIPE)
    assert (
        fields(result.stdout)["Cpus_allowed_list"] == fields(Path("/proc/self/status").read_text())["Cpus_allowed_list"]
    )
    with pytest.raises(OSError, match="affinity") as failure:
        await face.run(["true"], affinity={60_000})
    assert failure.value.stage == "affinity"


@root_only
async def test_user_and_groups(face):
    """user, group and extra_groups, by number or name, are the child's real, effective and saved ids."""
    facts = fields((await face.run(STATUS, user=12345, group=54321, extra_groups=[7, 8], stdout=PIPE)).stdout)
    assert facts["Uid"].split() == ["12345"] * 4
    assert facts["Gid"].split() == ["54321"] * 4
    assert facts["Groups"].split() == ["7", "8"]
    facts = fields((await face.run(STATUS, user="daemon", group="daemon", extra_groups=[], stdout=PIPE)).stdout)
    assert facts["Uid"].split() == facts["Gid"].split() == ["1"] * 4
    assert facts["Groups"] == ""
    assert facts["CapEff"].strip("0") == ""


@root_only
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group": 54321, "extra_groups": [7, 8]},
        {"start_new_session": True, "umask": 0o77},
        {"rlimits": {resource.RLIMIT_NOFILE: 99}, "ignore_signals": [signal.SIGPIPE, signal.SIGUSR1]},
        {"process_group": 0, "affinity": [0], "stderr": DEVNULL},
    ],
    ids="-".join,
)
async def test_each_way_to_another_user_is_the_same(face, options):
    """What C sets up for another user is what Python does, as nice= makes it; and the zygote stays root."""
    names = ("Uid", "Gid", "Groups", "Umask", "SigIgn", "SigBlk", "SigCgt", "CapInh", "CapPrm", "CapEff", "CapAmb")
    script = "cat /proc/self/status /proc/self/limits; pwd"
    seen = []
    for more in ({}, {"nice": 0}):
        result = await face.run(["sh", "-c", script], user=12345, stdout=PIPE, **options, **more)
        text = result.stdout.decode()
        facts = fields(result.stdout)
        assert result.returncode == 0
        seen.append(([facts[name] for name in names], text[text.index("Limit  ") :]))
    assert seen[0] == seen[1]
    assert seen[0][0][0].split() == ["12345"] * 4
    plain = fields((await face.run(STATUS, stdout=PIPE)).stdout)
    assert plain["Uid"].split() == ["0"] * 4
    with open("/proc/self/status", "rb") as file:
        own = fields(file.read())
    assert [plain[name] for name in ("Gid", "Groups", "CapEff", "CapPrm")] == [
        own[name] for name in ("Gid", "Groups", "CapEff", "CapPrm")
    ]


@root_only
async def test_another_user_is_treated_as_subprocess_does(face, tmp_path):
    """A program that the user may not execute, and a cwd that he may not enter, are errors."""
    tmp_path.chmod(0o700)
    (tmp_path / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "tool").chmod(0o755)
    for _ in range(25):  # what the child says of its failure comes in pieces
        theirs, ours = await both(face, [str(tmp_path / "tool")], user=12345)
        assert ours == theirs
        assert isinstance(theirs["errno"], int)
    with pytest.raises(PermissionError) as failure:
        await face.run(["true"], user=12345, cwd=tmp_path)
    assert failure.value.filename == str(tmp_path)


@root_only
@pytest.mark.parametrize("cwd", [None, "/", "open"])
async def test_another_user_may_start_where_he_may_not_go(face, tmp_path, monkeypatch, cwd):
    """The program's own directory may be closed to the user; only a cwd that is asked for, from there, may not."""
    (tmp_path / "open").mkdir()
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    argv = ["readlink", "/proc/self/cwd"]
    if cwd == "open":
        with pytest.raises(PermissionError):
            await face.run(argv, user=12345, cwd=cwd)
    else:
        done = await face.run(argv, user=12345, cwd=cwd, stdout=PIPE)
        assert done.stdout.decode().strip() == str(cwd or tmp_path)
        assert subprocess.run(argv, user=12345, cwd=cwd, stdout=PIPE, check=True).stdout == done.stdout


@root_only
def test_a_program_that_may_not_change_its_user():
    """Without the right to change the user the start fails with PermissionError and says at which stage."""
    code = (
        "import ctypes, os; ctypes.CDLL(None).prctl(24, 7, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_SETUID\n"
        "import safespawn\n"
        "try: safespawn.run(['true'], user=12345)\n"
        "except PermissionError as error: print(error.stage)"
    )
    result = subprocess.run([*PYTHON, "-c", code], env=ENV, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("user\n", "")


async def test_no_new_privs(face):
    """no_new_privs=True shows in the child's status; otherwise it is not set."""
    assert fields((await face.run(STATUS, no_new_privs=True, stdout=PIPE)).stdout)["NoNewPrivs"] == "1"
    assert fields((await face.run(STATUS, stdout=PIPE)).stdout)["NoNewPrivs"] == "0"


# --- groups, sessions, signals ----------------------------------------------------------------------------------------
async def test_sessions_and_groups(face):
    """By default a group of its own in the application's session; another session or group when that is asked."""
    session = os.getsid(0)
    _, group, sid, pid = ids((await face.run(STAT, stdout=PIPE)).stdout)
    assert (group, sid) == (pid, session)
    _, group, sid, pid = ids((await face.run(STAT, start_new_session=True, stdout=PIPE)).stdout)
    assert (group, sid) == (pid, pid)
    _, group, sid, pid = ids((await face.run(STAT, process_group=0, stdout=PIPE)).stdout)
    assert (group, sid) == (pid, session)
    _, group, sid, pid = ids((await face.run(STAT, process_group=os.getpgrp(), stdout=PIPE)).stdout)
    assert (group, sid) == (os.getpgrp(), session)
    _, group, sid, pid = ids((await face.run(STAT, process_group=os.getpgrp(), nice=0, stdout=PIPE)).stdout)
    assert (group, sid) == (os.getpgrp(), session)


async def test_a_group_that_cannot_be_joined(face):
    """A group that does not exist, or of another session, is PermissionError, as in subprocess."""
    with pytest.raises(PermissionError):
        subprocess.run(["true"], process_group=2**22 - 1, check=False)
    with pytest.raises(PermissionError) as failure:
        await face.run(["true"], process_group=2**22 - 1)
    assert failure.value.stage == "process_group"


async def test_a_child_starts_with_clean_signals(face):
    """No signal is blocked, caught or ignored in a child, started plainly or by a fork; SIGPIPE neither."""
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})
    try:
        for options in ({}, {"nice": 0}, {"start_new_session": True}):
            facts = fields((await face.run(STATUS, stdout=PIPE, **options)).stdout)
            assert signals(facts["SigBlk"]) == set()
            assert signals(facts["SigCgt"]) == set()
            assert signals(facts["SigIgn"]) - {32, 33} == set()  # those two are the C library's own affair
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


async def test_ignore_signals(face):
    """ignore_signals= are ignored in the child, beside those that the application ignores now."""
    before = signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        for options in ({}, {"nice": 0}):
            facts = fields((await face.run(STATUS, ignore_signals=[signal.SIGINT, 15], stdout=PIPE, **options)).stdout)
            assert signals(facts["SigIgn"]) - {32, 33} == {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2}
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert signals(fields((await face.run(STATUS, stdout=PIPE)).stdout)["SigIgn"]) - {32, 33} == set()


async def test_pdeathsig(face):
    """A child with pdeathsig= gets that signal when the zygote dies, as it would from its parent's death."""
    async with face.supervisor() as inner:
        script = "trap 'echo got it; exit' USR1; echo ready; while :; do sleep 0.01; done"
        read_fd, write_fd = os.pipe()
        try:
            process = await inner.open(["sh", "-c", script], pdeathsig=signal.SIGUSR1, stdout=write_fd)
            os.close(write_fd)
            with open(read_fd, "rb", buffering=0) as output:
                assert output.read(6) == b"ready\n"
                os.kill(inner.runner.statistics()["zygotes"][0], signal.SIGKILL)
                assert output.read(7) in (b"got it\n", b"")  # the warden kills what is left, and may be faster
        finally:
            with contextlib.suppress(safespawn.SpawnLost):  # the same goes for the exit code
                assert await process.wait() == 0
        assert survivors([process.pid]) == []


async def test_pdeathsig_is_told_to_the_kernel(face):
    """The child itself reads back the signal that was asked for."""
    code = "import ctypes; n = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(n), 0, 0, 0); print(n.value)"
    for options in ({}, {"user": 0} if os.getuid() == 0 else {"nice": 0}):
        result = await face.run([*PYTHON, "-c", code], pdeathsig=signal.SIGUSR2, stdout=PIPE, **options)
        assert int(result.stdout) == signal.SIGUSR2
    assert int((await face.run([*PYTHON, "-c", code], stdout=PIPE)).stdout) == 0


# --- descriptors ------------------------------------------------------------------------------------------------------
async def test_a_child_has_the_three_standard_descriptors_only(face):
    """Whatever the application has open, inheritable or not, the child has 0, 1 and 2."""
    read_fd, write_fd = os.pipe()
    os.set_inheritable(read_fd, True)
    try:
        for options in ({}, {"nice": 0}, {"stdin": PIPE}, {"input": b"x" * 100_000, "stderr": PIPE}):
            result = await face.run(OPEN_FDS, stdout=PIPE, **options)
            assert result.stdout == b"[0, 1, 2]\n"
    finally:
        os.close(read_fd)
        os.close(write_fd)


@pytest.mark.parametrize("numbers", [[3], [10], [4, 3], list(range(3, 13)), [50, 3, 12, 7], [200]], ids=repr)
@pytest.mark.parametrize("name", ["blocking", "trio"])
def test_pass_fds(name, numbers):
    """Descriptors have in the child the number that they have here, whatever numbers the zygote uses itself."""
    result = subprocess.run(
        program("pass_fds.py", name, *numbers), env=ENV, capture_output=True, text=True, check=False
    )
    assert (result.stdout, result.stderr) == ("right\n", "")


async def test_a_passed_descriptor_carries_data(face):
    """What the child writes to a passed pipe arrives here, and its end with the child's."""
    read_fd, write_fd = os.pipe()
    try:
        await face.run(["bash", "-c", f"echo data >&{write_fd}"], pass_fds=[write_fd])
        os.close(write_fd)
        write_fd = -1
        assert os.read(read_fd, 100) == b"data\n"
        assert os.read(read_fd, 100) == b""
    finally:
        os.close(read_fd)
        if write_fd >= 0:
            os.close(write_fd)


async def test_a_stream_may_be_passed_as_well(face):
    """One descriptor serves as stdout and in pass_fds at once."""
    read_fd, write_fd = os.pipe()
    with open(read_fd, "rb", buffering=0) as output:
        await face.run(["bash", "-c", f"echo one; echo two >&{write_fd}"], stdout=write_fd, pass_fds=[write_fd])
        os.close(write_fd)
        assert output.readall() == b"one\ntwo\n"


async def test_as_many_descriptors_as_a_message_carries(face):
    """Two hundred and more descriptors are passed in one start."""
    ends = [os.dup(0) for _ in range(240)]
    try:
        result = await face.run(["sh", "-c", "ls /proc/self/fd | wc -l"], pass_fds=ends, stdout=PIPE)
        assert int(result.stdout) == 240 + 4  # and the one with which ls lists them
    finally:
        for fd in ends:
            os.close(fd)


async def test_all_options_at_once(face, tmp_path):
    """Everything that can be asked of one start is done."""
    options = {
        "cwd": tmp_path, "env": {"A": "b", "PATH": "/usr/bin:/bin"}, "umask": 0o017, "nice": 3,
        "rlimits": {resource.RLIMIT_NOFILE: 64}, "affinity": os.sched_getaffinity(0), "start_new_session": True,
        "no_new_privs": True, "pdeathsig": signal.SIGKILL, "ignore_signals": [signal.SIGUSR1],
    }  # fmt: skip
    if os.getuid() == 0:
        tmp_path.chmod(0o755)
        for parent in list(tmp_path.parents)[:-2]:
            parent.chmod(parent.stat().st_mode | 0o011)
        options |= {"user": 12345, "group": 54321, "extra_groups": [7]}
    script = "pwd -P; env; umask; nice; ulimit -n; cat /proc/self/status; cat; exit 3"
    result = await face.run(["sh", "-c", script], input=b"the input", capture_output=True, timeout=30, **options)
    text = result.stdout.decode()
    facts = fields(result.stdout)
    assert result.returncode == 3, result.stderr
    assert text.startswith(f"{tmp_path.resolve()}\n")
    assert "\nA=b\n" in text
    assert text.endswith("the input")
    assert "\n0017\n3\n64\n" in text
    assert facts["NoNewPrivs"] == "1"
    assert signals(facts["SigIgn"]) - {32, 33} == {signal.SIGUSR1}
    if os.getuid() == 0:
        assert facts["Uid"].split()[0] == "12345"


# --- detach -----------------------------------------------------------------------------------------------------------
def test_a_detached_command_with_pipes_is_announced_at_once():
    """The zygote keeps no pipe end of what is to outlive the application, not for a moment."""
    for detach, quiet in ((True, 0), (False, wire.QUIET)):
        spec = build_spec(["true"], {"detach": detach, "stdout": PIPE}, hold=False, watched=False)
        assert spec.flags & wire.QUIET == quiet


def test_a_detached_command_outlives_the_application():
    """A program starts one with detach=True and exits; the command runs on in a session of its own."""
    result = subprocess.run(program("detach.py"), stdout=PIPE, env=ENV, check=True)
    kept, ended = map(int, result.stdout.split())
    try:
        assert alive(kept)
        assert os.getsid(kept) == kept
        assert survivors([ended]) == []
    finally:
        os.kill(kept, signal.SIGTERM)
        assert os.waitpid(kept, 0)[1] == signal.SIGTERM  # it had come to this process, the subreaper
        reap_orphans()


async def test_a_detached_command_can_be_waited_for(face):
    """As long as the application lives, a detached process is one like any other."""
    async with face.open(["sh", "-c", "read x; exit $x"], stdin=PIPE, detach=True) as process:
        assert os.getsid(process.pid) == process.pid
        await process.write(b"7\n")
        assert await process.wait() == 7
