"""
A command that hears Ctrl-C, and does not mind SIGTERM.
"""

import os
import signal


def heard(*_):
    """Say so, and end."""
    os.write(1, b"child heard it\n")
    os._exit(3)


signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, heard)
os.write(1, b"child runs\n")
while True:
    signal.pause()
