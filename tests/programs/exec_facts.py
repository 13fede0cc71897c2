"""
A program that says how it was started, and ends as it is told: `exec_facts.py END`. It knows nothing of safespawn.
"""

import atexit
import json
import os
import sys
import threading
import time

main = sys.modules["__main__"]


def fail():
    """A function of the program's own."""
    return 1 // 0


def say_late():
    """A thread that is waited for at the end."""
    time.sleep(0.05)
    print("a thread has ended", flush=True)


if __name__ == "__main__":
    facts = {
        "argv": sys.argv,
        "path": sys.path[0],
        "file": getattr(main, "__file__", None),
        "spec": None if main.__spec__ is None else main.__spec__.name,
        "package": main.__package__,
        "loader": getattr(main.__loader__, "__name__", None) or type(main.__loader__).__name__,
        "names": main.__dict__ is globals(),
        "annotations": __annotations__,
        "directory": os.getcwd(),
        "input": sys.stdin.read(),
    }
    print(json.dumps(facts))
    atexit.register(print, "an exit function was called")
    threading.Thread(target=say_late).start()
    end = sys.argv[1]
    if end == "exit":
        sys.exit(int(sys.argv[2]))
    elif end == "message":
        sys.exit("a last word")
    elif end == "error":
        fail()
    elif end == "interrupt":
        raise KeyboardInterrupt
    elif end == "hook":
        sys.excepthook = lambda kind, error, trace: print(kind, error, trace.tb_lineno)
        fail()
