"""
How many CPUs this process may use: its affinity, and the quota of its control groups.

Runs in: application.
Source: sched_getaffinity(2); cgroup-v2 cpu.max; cgroup-v1 cpu.cfs_quota_us.
"""

import math
import os
import time

KEEP_SECONDS = 1.0  # for which a quota counts as known; it takes five files to find out
_known: list[tuple[float, float | None]] = []  # when it was read, and what it was


def usable_cpus() -> int:
    """
    The number of workers that can run at once: at least 1.
    """
    try:
        count = len(os.sched_getaffinity(0))
    except OSError:
        count = os.cpu_count() or 1
    now = time.monotonic()
    if not _known or now - _known[0][0] > KEEP_SECONDS:
        _known[:] = [(now, cgroup_quota())]
    quota = _known[0][1]
    return max(1, count if quota is None else min(count, math.ceil(quota)))


def cgroup_quota(root: str = "/sys/fs/cgroup", cgroups: str = "/proc/self/cgroup") -> float | None:
    """
    CPUs that the control groups of this process grant, the smallest from its own up to the root; None for no limit.
    """
    found: list[float] = []
    for line in _read(cgroups).splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            base, read = root, _v2_quota
        elif "cpu" in controllers.split(","):
            base, read = os.path.join(root, controllers), _v1_quota
        else:
            continue
        path = path.strip("/")
        while True:
            quota = read(os.path.join(base, path))
            if quota is not None:
                found.append(quota)
            if not path:
                break
            path = os.path.dirname(path)
    return min(found) if found else None


def _v2_quota(directory: str) -> float | None:
    quota, period = [*_read(os.path.join(directory, "cpu.max")).split(), "max", ""][:2]
    return _ratio(quota, period)


def _v1_quota(directory: str) -> float | None:
    return _ratio(
        _read(os.path.join(directory, "cpu.cfs_quota_us")).strip(),
        _read(os.path.join(directory, "cpu.cfs_period_us")).strip(),
    )


def _ratio(quota: str, period: str) -> float | None:
    if not quota.isdigit() or not period.isdigit() or int(period) == 0 or int(quota) == 0:
        return None
    return int(quota) / int(period)


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:  # a group has any name
            return file.read()
    except OSError:
        return ""
