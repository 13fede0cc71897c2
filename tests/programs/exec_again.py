"""
A program that starts itself again, as reloaders do: `exec_again.py HOW`. It knows nothing of safespawn.
"""

import os
import subprocess
import sys

if __name__ == "__main__":
    print(subprocess.Popen.__module__.partition(".")[0], sys.argv[1:], flush=True)
    if "AGAIN" not in os.environ:
        program = ["-m", "exec_again"] if sys.argv[1] == "module" else [sys.argv[0]]
        arguments = ["other"] if sys.argv[1] == "worker" else sys.argv[1:]
        options = ["-W", "ignore", "-Xutf8", "-u"]
        environ = {**os.environ, "AGAIN": "1"}
        sys.exit(subprocess.call([sys.executable, *options, *program, *arguments], env=environ))
    sys.exit(3)
