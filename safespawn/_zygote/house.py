"""
How a process that serves the application settles in: no stranger's descriptors, no signal that ends it, a name.

Runs in: zygote, warden, template.
"""

import os
import resource
import signal

_REAL_CRASHES = (
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
)


def close_strangers(control_fd: int) -> None:
    """
    Close every descriptor that this process did not ask for, and let none of its own pass an exec.
    """
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd != control_fd:
            try:
                os.close(fd)
            except OSError:
                continue  # the one that listed the others
    for fd in (0, 1, 2, control_fd):
        os.set_inheritable(fd, False)


def take_no_signals() -> None:
    """
    Survive what is sent to everybody (Ctrl-C, hang-up, a container's SIGTERM): our end is the application's.

    Handlers that do nothing, not SIG_IGN: exec gives the children back the default action. What the application
    ignores is told with each request; at the start nothing is.
    """
    for number in range(1, signal.SIGRTMIN):
        if (
            number in (signal.SIGKILL, signal.SIGSTOP)
            or number in _REAL_CRASHES
            or number not in signal.valid_signals()
        ):
            continue
        ends_us = number not in (signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH)
        signal.signal(number, do_nothing if ends_us else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def do_nothing(_number: int, _frame: object) -> None:
    """
    The handler of every signal that shall not end us.
    """


def raise_descriptor_limit() -> None:
    """
    Two descriptors a running child: take all that the hard limit gives; each child gets the application's own limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def name_this(name: str) -> None:
    """
    The name that ps and top show; source: proc_pid_comm(5).
    """
    try:
        fd = os.open("/proc/self/comm", os.O_WRONLY | os.O_CLOEXEC)
    except OSError:  # a /proc mounted read-only
        return
    try:
        os.write(fd, name.encode())
    finally:
        os.close(fd)
