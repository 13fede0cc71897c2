"""
An application at a terminal, whose command Ctrl-C interrupts; with "alone" it has none, and only it is interrupted.
"""

import fcntl
import os
import sys
import termios

import safespawn
from safespawn import supervisor

COMMAND = [sys.executable, "-I", "-S", os.path.join(os.path.dirname(os.path.abspath(__file__)), "race_listener.py")]


def main():
    """Run, be interrupted, run again."""
    alone = sys.argv[1:] == ["alone"]
    if not alone:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    safespawn.run(["true"])
    zygote = supervisor.default_supervisor()._engine._current[False].pid
    assert os.getpgid(zygote) != os.getpgrp()
    assert os.getsid(zygote) == os.getsid(0)
    try:
        safespawn.run(COMMAND)
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("no KeyboardInterrupt")
    assert safespawn.run(["sh", "-c", "exit 4"]).returncode == 4
    assert supervisor.default_supervisor()._engine._current[False].pid == zygote
    print("fine", flush=True)


main()
