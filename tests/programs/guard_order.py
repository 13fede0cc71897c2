"""
A child that declares its fork point: `guard_order.py POLICY STORY`.

Stories: `early` (a thread runs), `late` (it was started before the package was imported), `joined` (it has
ended), `alone`, `thrice` (a thread runs; one line declares three times while the thread moves on).
"""

import sys
import threading

hold = threading.Event()
moved = threading.Semaphore(0)
move = threading.Semaphore(0)


def work():
    """Be at another line each time that the main thread declares."""
    _ = moved.release() or move.acquire()
    _ = moved.release() or move.acquire()
    _ = moved.release() or move.acquire()
    hold.wait()


def declare(policy):
    """What `safespawn.init()` does: complain about its caller's line."""
    guard.check_order(policy, what="safespawn.init() is called", stacklevel=2)


policy, story = sys.argv[1:]
thread = threading.Thread(target=work, name="worker", daemon=True)

if story == "late":
    thread.start()

from safespawn import _recorder, errors, guard  # noqa: E402

_recorder.install()
if story in ("early", "thrice", "joined"):
    thread.start()  # mark: start
if story == "joined":
    for _ in range(3):
        move.release()
    hold.set()
    thread.join()
try:
    for _ in range(3 if story == "thrice" else 1):
        if thread.is_alive():
            moved.acquire()
        declare(policy)  # mark: declare
        move.release()
except (errors.OrderError, errors.ThreadOrderWarning, errors.BadArgument) as error:
    print(type(error).__name__)
    print(error)
else:
    print("went on")
