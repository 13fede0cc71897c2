"""How many CPUs may be used: what control groups grant, read from files that the test writes."""

import pytest

from safespawn._core import cpus


@pytest.fixture
def quota(tmp_path):
    """Writes the files and asks."""

    def ask(own, files):
        for path, text in files.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / path).write_bytes(text if isinstance(text, bytes) else text.encode())
        (tmp_path / "own").write_text(own)
        return cpus.cgroup_quota(str(tmp_path), str(tmp_path / "own"))

    return ask


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "200000 100000\n"}, 2.0),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, 0.5),
        ("0::/a/b\n", {"a/b/cpu.max": "300000 100000", "a/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "150000 100000"}, 1.0),
        ("0::/\n", {"cpu.max": "100000 50000"}, 2.0),  # in a container its own group is the root
        ("0::/a\n", {"cpu.max": "100000 50000"}, 2.0),
        ("0::/a\n", {"a/cpu.max": "0 100000"}, None),
        ("0::/a\n", {"a/cpu.max": "100000 0"}, None),
        ("0::/a\n", {"a/cpu.max": "100000"}, None),
        ("0::/a\n", {"a/cpu.max": ""}, None),
        ("0::/a\n", {"a/cpu.max": b"\xff 1"}, None),
        ("0::/gone\n", {}, None),
        ("0::/aX\n", {"aX/cpu.max": "2 1"}, 2.0),
        ("0::/a:b:c\n", {"a:b:c/cpu.max": "2 1"}, 2.0),
        ("", {}, None),
        ("\nnonsense\n5:memory\n", {"cpu.max": "max 1"}, None),
        ("4:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "150000\n",
                                "cpu,cpuacct/x/cpu.cfs_period_us": "100000\n"}, 1.5),
        ("4:cpu:/x\n", {"cpu/x/cpu.cfs_quota_us": "-1\n", "cpu/x/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpuset:/x\n", {"cpuset/x/cpu.cfs_quota_us": "1\n", "cpuset/x/cpu.cfs_period_us": "1\n"}, None),
        ("5:memory:/x\n4:cpu:/x\n0::/y\n", {"cpu/x/cpu.cfs_quota_us": "4", "cpu/x/cpu.cfs_period_us": "1",
                                            "y/cpu.max": "3 1"}, 3.0),
    ],
)  # fmt: skip
def test_the_smallest_quota_up_to_the_root_counts(quota, own, files, expected):
    """Of both kinds of control groups; what cannot be read, or grants nothing, is no limit."""
    assert quota(own, files) == expected


def test_where_the_kernel_says_it(monkeypatch):
    """The files are those of the running system."""
    asked = []

    def read(path):
        asked.append(path)
        return {"/proc/self/cgroup": "0::/a\n"}.get(path, "")

    monkeypatch.setattr(cpus, "_read", read)
    assert cpus.cgroup_quota() is None
    assert asked == ["/proc/self/cgroup", "/sys/fs/cgroup/a/cpu.max", "/sys/fs/cgroup/cpu.max"]


@pytest.mark.parametrize(
    ("affinity", "granted", "expected"),
    [(8, None, 8), (8, 2.0, 2), (8, 2.1, 3), (2, 7.5, 2), (8, 0.1, 1), (None, None, 5), (None, 1.0, 1)],
)
def test_the_number_of_workers(monkeypatch, affinity, granted, expected):
    """The affinity, or the machine where that is not told, and the quota rounded up; one at least."""

    def ask(pid):
        if affinity is None or pid != 0:
            raise OSError
        return set(range(affinity))

    monkeypatch.setattr(cpus.os, "sched_getaffinity", ask)
    monkeypatch.setattr(cpus.os, "cpu_count", lambda: 5)
    monkeypatch.setattr(cpus, "_known", [])
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: granted)
    assert cpus.usable_cpus() == expected


def test_a_machine_that_does_not_say_has_one(monkeypatch):
    """Where nothing is told there is one CPU, on which this runs."""

    def refuse(_pid):
        raise OSError

    monkeypatch.setattr(cpus.os, "sched_getaffinity", refuse)
    monkeypatch.setattr(cpus.os, "cpu_count", lambda: None)
    monkeypatch.setattr(cpus, "_known", [])
    monkeypatch.setattr(cpus, "cgroup_quota", lambda: None)
    assert cpus.usable_cpus() == 1


def test_a_quota_is_read_once_a_second(monkeypatch):
    """It takes five files to find out; a change counts after that second."""
    now, read = [100.0], []

    def quota():
        read.append(now[0])
        return float(len(read))

    monkeypatch.setattr(cpus, "_known", [])
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(cpus, "cgroup_quota", quota)
    monkeypatch.setattr(cpus.time, "monotonic", lambda: now[0])
    for now[0], expected in ((100.0, 1), (100.5, 1), (101.0, 1), (101.125, 2), (102.125, 2), (103.5, 3)):
        assert cpus.usable_cpus() == expected
    assert read == [100.0, 101.125, 103.5]
