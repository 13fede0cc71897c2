"""What is read of control groups, whose names need not be ASCII, nor text at all."""

import builtins

import pytest

from safespawn._core import procfs
from safespawn._core.cpus import cgroup_quota

NAME = "\N{GREEK SMALL LETTER BETA}-\udcff"


@pytest.fixture
def groups(tmp_path):
    """A tree of control groups, and the file that says which of them is this process's."""
    (tmp_path / NAME).mkdir()
    (tmp_path / "cgroup").write_text(f"0::/{NAME}\n", encoding="utf-8", errors="surrogateescape")
    return tmp_path


def test_the_kernels_kills_are_counted(groups, monkeypatch):
    """A worker's start asks for them."""
    (groups / NAME / "memory.events").write_text("low 0\noom 2\noom_kill 3\n")

    def redirected(path, *args, **options):
        here = path.replace("/proc/self/cgroup", f"{groups}/cgroup").replace("/sys/fs/cgroup", str(groups))
        return builtins.open(here, *args, **options)

    monkeypatch.setattr(procfs, "open", redirected, raising=False)
    assert procfs.oom_kills() == 3


def test_the_quota_is_found(groups):
    """Half a core."""
    (groups / NAME / "cpu.max").write_text("50000 100000\n")
    assert cgroup_quota(str(groups), str(groups / "cgroup")) == 0.5
