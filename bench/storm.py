"""
Foreign forks: threads call while another thread forks every 10 ms and the copies live 2 s without exec.
"""

from bench.harness import Figure
from safespawn import _demo

TITLE = "blocked calls under a storm of foreign forks"
COMMAND = ["true"]


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    calls = 1000 if quick else 10_000
    theirs = _demo.ask("subprocess", "threads", calls, 5 if quick else 15, COMMAND)
    ours = _demo.ask("safespawn", "threads", calls, 300, COMMAND)
    detail = (
        f"of {ours.calls}, slowest {ours.slowest * 1000:.0f} ms, {ours.copies} copies; subprocess: {theirs.blocked} of "
        f"{theirs.calls} ({theirs.blocked / max(1, theirs.calls):.0%}), slowest {theirs.slowest:.2f} s {theirs.error}"
    )
    trouble = ours.trouble or ours.error or "all statuses right"
    left = f"{ours.processes} processes, {ours.fds} descriptors left over; {trouble}"
    short = 0 if ours.calls == calls else calls - ours.calls
    return [
        Figure("safespawn's calls over 1 s", ours.blocked, "calls", "<= 0", detail),
        Figure("its lost, wrong or left over", ours.wrong + ours.processes + ours.fds + short, "", "<= 0", left),
    ]
