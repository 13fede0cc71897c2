"""
An application at a terminal, whose command Ctrl-C interrupts; with "alone" it has none, and only it is interrupted.
"""

import fcntl
import os
import sys
import termios

import safespawn
from safespawn import supervisor

COMMAND = "trap '' TERM; trap 'echo child heard it; exit 3' INT; echo child runs; sleep 1000"


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
        safespawn.run(["sh", "-c", COMMAND])
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("no KeyboardInterrupt")
    assert safespawn.run(["sh", "-c", "exit 4"]).returncode == 4
    assert supervisor.default_supervisor()._engine._current[False].pid == zygote
    print("fine", flush=True)


main()
