"""The fourth incident: importing the module starts a thread, which imports and runs a command, and waits for it."""

import subprocess
import threading

RESULT = []


def ask():
    """In the thread: the import waits for the lock that the importing thread holds."""
    from json import decoder

    RESULT.append((decoder, subprocess.run(["ss", "-tn"], capture_output=True, check=False)))


thread = threading.Thread(target=ask)
thread.start()  # expect: SPN101
thread.join()  # expect: SPN104
