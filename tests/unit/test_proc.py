"""What /proc says of processes: of this one, and of files that the test writes in its place."""

import io
import os
import socket

import pytest

from safespawn._core import procfs

GONE = 2**22  # above every pid
STAT = [b"S", b"1", *[b"0"] * 17, b"4242", *[b"0"] * 29, b"9"]  # state, parent ..., born at 4242 ..., exit code 9


def test_a_process_and_one_that_is_gone():
    """The fields begin with the state; who is gone has none, and was born at 0."""
    fields = procfs.stat_fields(os.getpid())
    assert fields[0] == b"R"
    assert int(fields[1]) == os.getppid()
    assert procfs.birth(os.getpid()) == int(fields[19]) > 0
    assert procfs.stat_fields(GONE) == []
    assert procfs.birth(GONE) == 0


def test_a_name_with_parentheses_is_passed_over(monkeypatch):
    """The fields begin behind the last parenthesis: a program may be called anything."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"7 (a) R 5 (b)) S 1 2")
    os.close(write_fd)
    monkeypatch.setattr(procfs.os, "open", lambda _path, flags: read_fd if flags == os.O_CLOEXEC else None)
    assert procfs.stat_fields(7) == [b"S", b"1", b"2"]


@pytest.mark.parametrize(
    ("state", "born", "expected"),
    [(b"Z", 4242, 9), (b"X", 4242, 9), (b"S", 4242, None), (b"Z", 4241, None), (None, 4242, None)],
)
def test_the_status_of_a_zombie(monkeypatch, state, born, expected):
    """It is told while the zombie is there, and not of another process with its number."""
    monkeypatch.setattr(procfs, "stat_fields", lambda pid: [state, *STAT[1:]] if state and pid == 7 else [])
    assert procfs.zombie_status(7, born) == expected


@pytest.fixture
def files(monkeypatch):
    """The files that exist."""
    found = {}

    def pretend(path, mode="r", **_):
        if path not in found:
            raise FileNotFoundError(path)
        return io.BytesIO(found[path].encode()) if "b" in mode else io.StringIO(found[path])

    monkeypatch.setattr(procfs, "open", pretend, raising=False)
    return found


def test_who_was_stopped_before_its_exec(files, monkeypatch):
    """Of the children: those that are stopped, or traced, and still are the program of who forked them."""
    files["/proc/7/task/7/children"] = "8 9 10 11 12 "
    states = {8: b"T", 9: b"S", 10: b"t", 11: b"T", 12: b"T"}
    files.update({f"/proc/{pid}/cmdline": "python\0zygote\0" for pid in (7, 8, 9, 10)})
    files["/proc/11/cmdline"] = "another\0"
    monkeypatch.setattr(procfs, "stat_fields", lambda pid: [states[pid], b"7"] if pid in states else [])
    assert procfs.stopped_before_exec(7) == [8, 10]
    assert procfs.stopped_before_exec(8) == []
    assert (procfs.command(11), procfs.command(12)) == (b"another\0", None)


EVENTS = "low 0\noom 3\noom_kill 2\noom_group_kill 7\n"


@pytest.mark.parametrize(
    ("own", "path", "events", "expected"),
    [
        ("4:cpu:/x\n0::/a b\n", "/sys/fs/cgroup/a b/memory.events", EVENTS, 2),
        ("0::/\n", "/sys/fs/cgroup//memory.events", EVENTS, 2),
        ("0::/a::b\n", "/sys/fs/cgroup/a::b/memory.events", EVENTS, 2),
        ("0::/a\n", "/sys/fs/cgroup/a/memory.events", "oom 3\n", None),
        ("0::/a\n", "elsewhere", EVENTS, None),
        ("4:memory:/a\n", "/sys/fs/cgroup/a/memory.events", EVENTS, None),
        (None, "/sys/fs/cgroup/memory.events", EVENTS, None),
    ],
)
def test_who_was_killed_for_want_of_memory(files, own, path, events, expected):
    """It is counted for the own control group; None, never 0, where nobody says."""
    files[path] = events
    if own is not None:
        files["/proc/self/cgroup"] = own
    assert procfs.oom_kills() == expected


@pytest.mark.parametrize(
    ("fields", "wchan", "expected"),
    [
        (STAT, "do_wait", ("S", "do_wait")),
        (STAT, "0", ("S", None)),
        (STAT, "", ("S", None)),
        (STAT, None, ("S", None)),
        ([], "pipe_read", (None, "pipe_read")),
    ],
)
def test_what_a_process_does(files, monkeypatch, fields, wchan, expected):
    """State and kernel function, each None where it is not told; a function called 0 is none."""
    monkeypatch.setattr(procfs, "stat_fields", lambda pid: fields if pid == 7 else [])
    if wchan is not None:
        files["/proc/7/wchan"] = wchan
    assert procfs.looks(7) == expected


@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["ipv4", "ipv6"]
)
def test_who_listens(monkeypatch, family, address):
    """A socket that listens is found in its process and in the parent's tree; another port, and a bound one, is not."""
    with socket.socket(family, socket.SOCK_STREAM) as bound, socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.bind((address, 0))
        except OSError:
            pytest.skip("this machine has no such address")
        bound.bind((address, 0))
        server.listen()
        port, other = server.getsockname()[1], bound.getsockname()[1]
        assert procfs.listens(os.getpid(), port)
        assert procfs.listens(os.getppid(), port)
        assert not procfs.listens(os.getpid(), other)
        assert not procfs.listens(GONE, port)
        monkeypatch.setattr(procfs, "descendants", lambda _: [GONE])
        assert not procfs.listens(os.getpid(), port)  # somebody listens there, and it is somebody else
        monkeypatch.undo()
    assert not procfs.listens(os.getpid(), port)


def test_a_machine_with_one_of_two_protocols(files, monkeypatch):
    """The other one's list is looked at all the same."""
    row = "  0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 777 1"
    files["/proc/7/net/tcp6"] = f"  sl  local_address\n{row}\n"
    monkeypatch.setattr(procfs, "descendants", lambda pid: [pid])
    monkeypatch.setattr(procfs, "_holds", lambda name, wanted: (name, wanted) == ("7", {"socket:[777]"}))
    assert procfs.listens(7, 8080)
    assert not procfs.listens(7, 8081)


def test_a_tree(monkeypatch):
    """Who was started by whom, over all generations; itself first, and nobody else."""
    parents = {1: 0, 5: 1, 6: 5, 7: 6, 8: 1, 9: 5}
    monkeypatch.setattr(procfs.os, "listdir", lambda _: ["self", *map(str, parents), "10"])
    monkeypatch.setattr(procfs, "stat_fields", lambda pid: [b"S", b"%d" % parents[pid]] if pid in parents else [])
    assert procfs.descendants(5)[0] == 5
    assert sorted(procfs.descendants(5)) == [5, 6, 7, 9]
    assert procfs.descendants(8) == [8]
    assert procfs.descendants(99) == [99]


def test_a_tree_without_proc(monkeypatch):
    """Where nothing can be listed, the process itself is all that is known."""

    def refuse(_path):
        raise PermissionError

    monkeypatch.setattr(procfs.os, "listdir", refuse)
    assert procfs.descendants(5) == [5]


def test_who_holds_a_pipe(monkeypatch):
    """The others with an end of it, in order and no more than are wanted; not this process, nor who may not be read."""
    links = {"/proc/self/fd/3": "pipe:[1]", "/proc/50/fd/0": "pipe:[2]", "/proc/50/fd/1": "pipe:[1]",
             "/proc/40/fd/9": "pipe:[1]", "/proc/30/fd/1": "pipe:[3]", "/proc/60/fd/1": "pipe:[1]"}  # fmt: skip
    listed = {"/proc": ["self", "50", "40", "30", "20", "60", str(os.getpid())], "/proc/50/fd": ["7", "0", "1"],
              "/proc/40/fd": ["9"], "/proc/30/fd": ["1"], "/proc/60/fd": ["1"]}  # fmt: skip
    links[f"/proc/{os.getpid()}/fd/3"] = "pipe:[1]"
    listed[f"/proc/{os.getpid()}/fd"] = ["3"]

    def find(table):
        def look(path):
            if path not in table:
                raise OSError(path)
            return table[path]

        return look

    monkeypatch.setattr(procfs.os, "readlink", find(links))
    monkeypatch.setattr(procfs.os, "listdir", find(listed))
    assert procfs.holders([3]) == (40, 50, 60)
    assert procfs.holders((99, 3)) == (40, 50, 60)
    assert procfs.holders([3], limit=2) == (40, 50)
    assert procfs.holders([99]) == ()
    assert procfs.holders([]) == ()
    many = [str(10**6 + number) for number in range(20)]
    listed["/proc"] = many
    listed.update({f"/proc/{name}/fd": ["1"] for name in many})
    links.update({f"/proc/{name}/fd/1": "pipe:[1]" for name in many})
    assert len(procfs.holders([3])) == 16
