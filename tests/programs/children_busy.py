"""
A program whose file takes as long to import as a file is there: `children_busy.py PATH HOW`. One child runs; for the
next one the template of both imports this file, and meanwhile the first is stopped. Prints what was seen.

    stop     the first alone; the second gets ready when the import is over
    close    both
"""

import json
import os
import sys
import threading
import time

if __name__ != "__main__":
    while os.path.exists(sys.argv[1]):
        time.sleep(0.01)

import safespawn


def second():
    """Needs this file."""
    safespawn.ready()
    time.sleep(1000)


def main():
    """Do that."""
    _, path, how = sys.argv
    ends, errors = [], []

    def note(event):
        if type(event).__name__ == "Exited":
            ends.append((event.child, event.returncode))

    def start():
        try:
            supervisor.start("second", second, ready="notify")
        except safespawn.SafespawnError as error:
            errors.append(type(error).__name__)

    with safespawn.Supervisor(guard="off", on_event=note) as supervisor:
        first = supervisor.start("first", time.sleep, 1000)
        thread = threading.Thread(target=start)
        thread.start()
        while not any(template.is_busy for template in supervisor._engine.templates):
            time.sleep(0.01)
        began = time.monotonic()
        if how == "stop":
            first.stop()
        else:
            supervisor.close()
        seconds = time.monotonic() - began
        if how == "stop":
            os.unlink(path)
        thread.join()
    print(json.dumps({"seconds": seconds, "ends": ends, "errors": errors}))


if __name__ == "__main__":
    main()
