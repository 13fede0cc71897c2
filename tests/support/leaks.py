"""
What a process holds, as one value that can be compared: taken before and after each test, the two must be equal.

    descriptors   what every entry of /proc/self/fd points at; those of the default zygote by their role
    zygote        the default zygote's own figures: descriptors, connections, children, threads
    children      of this process, zombies with them, but for the default zygote's warden
    threads       Python's and the kernel's list
    shared        the files of /dev/shm

The default supervisor's zygote may live from test to test, and may be another one after a test that ended it: it is
brought up and trimmed of its idle connections before each look, so that only what belongs to nobody differs. A template
lives on likewise, for the next pool: one that serves none is ended.
"""

import contextlib
import ctypes
import gc
import os
import signal
import threading
import time
from collections import Counter

import attrs

import safespawn
from safespawn import supervisor
from safespawn._drive import engine as engines

GRACE_SECONDS = 5.0  # for what kernel and zygote do after a test's last call, on a machine with other things to do
_PR_SET_CHILD_SUBREAPER = 36
_LEVEL = ("descriptors", "connections", "running", "ending", "held", "threads", "children")


def become_subreaper():
    """
    Have every orphan below this process come to it, so that none escapes the comparison.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def default_engine():
    """
    The engine of the module's functions outside of any Supervisor.
    """
    supervisor.default_supervisor()
    return supervisor._default[0]._engine


def settle():
    """
    Bring every engine to its resting state: no idle connection, no template that no pool uses, nothing kept of zygotes
    that have gone.
    """
    for engine in list(engines._engines):
        for key, template in list(engine._templates.items()):
            if not template.leased:
                engine.retire(key, template)
        for zygote in engine.zygotes:
            if zygote.keeps:
                zygote.retire()
            zygote.trim()
            zygote.release_if_gone()
        engine.prune()


def level_default():
    """
    The default zygote's figures, of a zygote that serves; and the roles of the descriptors that belong to it.
    """
    home = supervisor._default[0] if supervisor._default else supervisor.default_supervisor()
    figures = home.statistics()["zygote"]
    if not figures:
        home.run(["true"])  # it was ended by the test, or has never run
        settle()
        figures = home.statistics()["zygote"]
    engine = home._engine
    zygote = engine._current[False]
    roles = {
        zygote.control.fileno(): "default zygote: control",
        zygote.pidfd: "default zygote: pidfd",
        zygote.warden_fd: "default zygote: warden's pidfd",
        zygote.output_fd: "default zygote: output",
    }
    for observer in engine._observers.values():
        roles[observer._status_fd] = "default engine: status"
        roles[observer._namespaces_fd] = "default engine: namespaces"
    return {name: figures.get(name) for name in _LEVEL}, roles, zygote.warden_pid


def descriptors(roles=()):
    """
    What this process's descriptors point at, counted; those in *roles* under that name.
    """
    targets = Counter()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the one that listed the others
        targets[dict(roles).get(int(name), target)] += 1
    return targets


def children(pid="self"):
    """
    The children of *pid*, zombies included: pid and what it is.
    """
    found = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                words = file.read().split()
            for child in words:
                found[int(child)] = describe(int(child))
    return found


def strangers():
    """
    The children of this process without the default zygote's warden.
    """
    warden = level_default()[2]
    return {pid: what for pid, what in children().items() if pid != warden}


def describe(pid):
    """
    A process in words: name, state, command.
    """
    try:
        with open(f"/proc/{pid}/stat") as file:
            name, _, rest = file.read().partition("(")[2].rpartition(")")
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "gone"
    return f"{name} [{rest.split()[0]}] {command[:200]}"


@attrs.frozen
class Holdings:
    """
    One look at the process.
    """

    descriptors: Counter
    zygote: dict
    children: dict
    threads: frozenset
    tasks: frozenset
    shared: frozenset
    supervisors: tuple

    @classmethod
    def look(cls):
        """
        Everything, now.
        """
        settle()
        figures, roles, warden = level_default()
        return cls(
            descriptors(roles),
            figures,
            {pid: what for pid, what in children().items() if pid != warden},
            frozenset(f"{thread.name} ({thread.ident})" for thread in threading.enumerate()),
            frozenset(os.listdir("/proc/self/task")),
            frozenset(os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else ()),
            tuple(map(repr, supervisor._entered)),
        )

    def difference(self, before):
        """
        What is here and was not in *before*, and what was there and is not here; one line each.
        """
        lines = [
            f"descriptor left open: {what}, {count} time(s)"
            for what, count in (self.descriptors - before.descriptors).items()
        ]
        lines += [f"descriptor gone: {what}" for what in before.descriptors - self.descriptors]
        for name, value in self.zygote.items():
            if value != before.zygote[name]:
                lines.append(f"zygote: {name} is {value}, was {before.zygote[name]}")
        lines += [f"child left: {pid} {what}" for pid, what in self.children.items() if pid not in before.children]
        lines += [f"thread left: {name}" for name in self.threads - before.threads]
        lines += [f"native thread left: {task}" for task in self.tasks - before.tasks]
        lines += [f"in /dev/shm: {name}" for name in self.shared - before.shared]
        lines += [f"still entered: {name}" for name in self.supervisors if name not in before.supervisors]
        return lines


def wait_level(before, seconds=GRACE_SECONDS):
    """
    Wait until this process holds what it held in *before*; returns the lines that still differ after *seconds*.
    """
    deadline = time.monotonic() + seconds
    lines = Holdings.look().difference(before)
    if lines:
        gc.collect()
        safespawn.run(["true"])  # soon after an exit the zygote reaps the orphans that have ended too
    while lines and time.monotonic() < deadline:
        time.sleep(0.005)
        lines = Holdings.look().difference(before)
    return lines


def end_strangers(before):
    """
    After a failure: end what the test left running, so that the tests after it are judged on their own.
    """
    for sup in list(supervisor._entered):
        sup.close()
    _, _, warden = level_default()
    while left := [pid for pid in children() if pid not in before.children and pid != warden]:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
    safespawn.run(["true"])
