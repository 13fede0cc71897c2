"""
Options that only the child itself can carry out, in an application with much memory.

The standard library forks the application, page tables and all; safespawn forks its small zygote.
"""

import mmap
import os
import resource
import subprocess

import safespawn
from bench.harness import Figure, in_turns, median_call, milliseconds

TITLE = "options that need a fork, in an application with much memory"


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    me = 65534 if os.getuid() == 0 else os.getuid()  # root becomes somebody else, as nobody else may
    limits = (0, resource.getrlimit(resource.RLIMIT_CORE)[1])
    subjects = [
        (
            "rlimits= / preexec_fn=setrlimit",
            {"rlimits": {resource.RLIMIT_CORE: limits}},
            {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_CORE, limits)},
        ),
        ("user= / preexec_fn=setuid", {"user": me}, {"preexec_fn": lambda: os.setuid(me)}),
        ("user= / subprocess's user=", {"user": me}, {"user": me}),
    ]
    figures = []
    with safespawn.Supervisor("bench", guard="off") as supervisor:
        memory = touched(resident_mib)
        for name, ours, theirs in subjects:
            pairs = in_turns(
                median_call(lambda o=ours: supervisor.run(["true"], **o), 5),
                median_call(lambda o=theirs: subprocess.run(["true"], **o, check=False), 3),
                3 if quick else 9,
            )
            times = 1 / pairs.ratio
            detail = f"{resident_mib} MiB resident, huge pages {huge_pages()}: {pairs.both(milliseconds)}"
            target = ">= 50" if resident_mib >= 2048 else ""
            figures.append(Figure(name, times, "times faster", target, detail))
        memory.close()
    return figures


def huge_pages() -> str:
    """
    When anonymous memory gets huge pages here: a fork copies an entry for each page, so "always" makes it cheap.
    """
    try:
        with open("/sys/kernel/mm/transparent_hugepage/enabled", encoding="ascii") as file:
            return file.read().partition("[")[2].partition("]")[0]
    except OSError:
        return "unknown"


def touched(mebibytes: int) -> mmap.mmap:
    """
    Anonymous memory, each page written once. Huge pages stay as the machine has them.
    """
    memory = mmap.mmap(-1, mebibytes * 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for offset in range(0, len(memory), mmap.PAGESIZE):
        memory[offset] = 1
    return memory
