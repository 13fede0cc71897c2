"""
The fourth incident: importing a module starts a thread, which runs a command and is joined. `incident_import.py WHEN`.

WHEN is "first", the application's first command, or "later". The module stands below, in a file that the test writes.
"""

import sys
import threading
import time

import safespawn

if __name__ == "__main__":
    if sys.argv[1] == "later":
        safespawn.run(["true"])
    began = time.monotonic()
    import incident_import_module

    assert incident_import_module.RESULT == [b"heard\n"] * 2, incident_import_module.RESULT
    assert time.monotonic() - began < 5
    assert threading.active_count() == 1
    print("fine", flush=True)
