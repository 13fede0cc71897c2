"""
The boot of the zygote: a process that was exec'ed clean becomes the warden, and its only fork the zygote.

    application ── posix_spawn ──> warden ── fork ──> zygote ── vfork, fork ──> children

The warden does nothing but wait. When the zygote dies, whatever killed it and however far it had got, the kernel hands
every process below it to the warden, the nearest subreaper, which kills them all: there is no moment at which the
death of the zygote can leave a child behind, not even between the start of a child and the first word about it. When
the application dies while the zygote is stopped or stuck, the warden ends the zygote.

With "keep" as the third argument there is neither warden nor subreaper: the children of such a zygote are those that
were started with detach=True, and outlive everybody.

Arguments: the number of the control socket's descriptor, the application's pid, "own" or "keep".

Runs in: a process of its own, `python -I -S <this directory> 3 PID own`.
Never: imports anything but C modules and its siblings; keeps a descriptor that it did not ask for.
"""

import _socket
import gc
import os
import select
import signal
import sys
import time

import channel
import server
import system
import wire
from house import close_strangers, name_this, raise_descriptor_limit, take_no_signals

END_SECONDS = 10.0  # how long the zygote may take to end everything once the application is dead
CONNECTIONS = 2  # made before the first request, so that the first command finds one


def main(arguments: list[str]) -> int:
    """
    Become the warden and the zygote, or with "keep" the zygote alone; returns the exit code.
    """
    control_fd, application_pid, mode = int(arguments[0]), int(arguments[1]), arguments[2]
    close_strangers(control_fd)
    os.setpgid(0, 0)
    os.chdir("/")
    take_no_signals()
    application_fd = os.pidfd_open(application_pid)
    if os.getppid() != application_pid:
        return 0  # it died before the line above
    system.arm_failpoints(os.environ.get("SAFESPAWN_FAILPOINTS", ""))
    keeps = mode == "keep"
    warden_pid = 0
    warden_fd = -1
    if not keeps:
        settle_in_the_tree()
        warden_pid = os.getpid()
        warden_fd = os.pidfd_open(warden_pid)
        zygote_pid = os.fork()
        if zygote_pid:
            os.close(control_fd)
            os.close(warden_fd)
            return guard(zygote_pid, application_fd)
        os.setpgid(0, 0)
        settle_in_the_tree()
        if os.getppid() != warden_pid:
            return 0
    name_this("safespawn")
    raise_descriptor_limit()
    control = _socket.socket(fileno=control_fd)
    channel.prepare(control)
    zygote = server.Server(control, application_pid, application_fd, warden_fd, keeps=keeps)
    gc.freeze()
    gc.disable()  # the loop makes no cycles, and a collection in a forked child would copy the whole heap
    hello(zygote, warden_pid)
    system.failpoint("zygote.booted")
    zygote.serve()
    return 0


def settle_in_the_tree() -> None:
    """
    Be who orphans come to, and be woken, if somebody has stopped us, when our parent ends: then we end all below us.

    The kernel counts the thread that started us as the parent. That one may end while the program goes on; SIGCONT
    means nothing to a process that is not stopped, and comes again with the next parent's end. Source: prctl(2).
    """
    if system.has_prctl():
        system.prctl(system.PR_SET_CHILD_SUBREAPER, 1)
        system.prctl(system.PR_SET_PDEATHSIG, signal.SIGCONT)


def hello(zygote: server.Server, warden_pid: int) -> None:
    """
    Say who we are, and hand over the zygote's pidfd and the first connections.
    """
    pairs = [channel.pair() for _ in range(CONNECTIONS)]
    own_fd = os.pidfd_open(os.getpid())
    facts = {**zygote.statistics(), "prctl": int(system.has_prctl()), "terminal": int(zygote.launcher.has_terminal)}
    words = (wire.HELLO, wire.PROTOCOL, sys.version, os.getpid(), warden_pid, CONNECTIONS, facts)
    zygote.answer(words, (own_fd, *(far for _, far in pairs)))
    os.close(own_fd)
    for near, far in pairs:
        os.close(far)
        zygote.adopt(near)


def guard(zygote_pid: int, application_fd: int) -> int:
    """
    The warden's whole life: wait for the zygote's death, then leave nobody behind.

    Returns:
        Its own exit code, which tells how the zygote ended: its exit code, or 128 + N for signal N.
    """
    name_this("safespawn-wardn")
    zygote_fd = os.pidfd_open(zygote_pid)
    ends = select.poll()
    ends.register(zygote_fd, select.POLLIN)
    ends.register(application_fd, select.POLLIN)
    if not any(fd == zygote_fd for fd, _ in ends.poll()):
        ends.unregister(application_fd)
        system.signal_quietly(zygote_pid, signal.SIGCONT)  # stopped, it would end nothing
        if not ends.poll(END_SECONDS * 1000):
            os.kill(zygote_pid, signal.SIGKILL)
            ends.poll(END_SECONDS * 1000)
    ended, status = os.waitpid(zygote_pid, os.WNOHANG)
    system.kill_all_children(os.getpid(), time.monotonic() + END_SECONDS)
    code = os.waitstatus_to_exitcode(status) if ended else 0
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout = sys.stderr = None  # nothing to flush, nobody to tell
    os._exit(code)
