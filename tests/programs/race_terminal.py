"""
An application at a terminal, whose command Ctrl-C interrupts; with "alone" it has none, and only it is interrupted.
"""

import fcntl
import os
import sys
import termios

import safespawn
from safespawn import supervisor

COMMAND = """
import os, signal
def heard(*_):
    os.write(1, b"child heard it\n")
    os._exit(3)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, heard)
os.write(1, b"child runs\n")
while True:
    signal.pause()
"""


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
        safespawn.run([sys.executable, "-I", "-S", "-c", COMMAND])
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("no KeyboardInterrupt")
    assert safespawn.run(["sh", "-c", "exit 4"]).returncode == 4
    assert supervisor.default_supervisor()._engine._current[False].pid == zygote
    print("fine", flush=True)


main()
