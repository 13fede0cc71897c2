"""
Runs commands while the application ignores SIGCHLD, and while one of its threads reaps every child that it finds.
"""

import os
import signal
import threading

import safespawn


def reap():
    """Reap what ends, whoever started it."""
    while True:
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            pass


signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("ignored", [safespawn.run(["sh", "-c", "exit 7"]).returncode for _ in range(5)])
signal.signal(signal.SIGCHLD, signal.SIG_DFL)
threading.Thread(target=reap, daemon=True).start()
print("reaper", [safespawn.run(["sh", "-c", "exit 7"]).returncode for _ in range(5)])
with safespawn.Popen(["sleep", "1000"]) as process:
    process.kill()
print("signal", process.returncode)
