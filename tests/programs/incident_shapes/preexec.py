"""What many programs do beside: a function of their own between fork and exec, with threads around."""

import os
import subprocess
import threading
import time


def tick():
    """Any thread will do."""
    while True:
        time.sleep(0.01)


def main():
    """Every start runs Python in a forked copy."""
    threading.Thread(target=tick, daemon=True).start()
    child = subprocess.Popen(["sleep", "1"], preexec_fn=os.setsid)  # noqa: PLW1509  # expect: SPN204 SPN301
    child.wait()


if __name__ == "__main__":
    main()
