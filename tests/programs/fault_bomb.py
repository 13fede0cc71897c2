"""
A child that forks a child that forks a child, DEPTH times: `fault_bomb.py DEPTH FD`.

Each generation ignores what asks it to end, every third leads a session of its own, and all go on forking children
that end at once. The last one says "deepest" on the descriptor, which all of them hold.
"""

import os
import signal
import sys
import time

depth, fd = int(sys.argv[1]), int(sys.argv[2])
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
while depth and os.fork() == 0:
    depth -= 1
    if depth % 3 == 0:
        os.setsid()
if depth == 0:
    os.write(fd, b"deepest\n")
while True:
    if os.fork() == 0:
        if os.fork() == 0:  # an orphan at once
            time.sleep(0.05)  # the load itself: lives for a moment
        os._exit(0)
    os.wait()
    time.sleep(0.01)  # the load itself: a hundred forks a second in each generation
