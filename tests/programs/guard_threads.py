"""
A child that starts one thread of each kind, takes a census and prints it as JSON.

Lines that end in `# mark: NAME` are what the test looks for. Each thread reports ready and blocks in one
expression, so that it is on one and the same line when the census is taken.
"""

import _thread
import ctypes
import json
import logging.handlers
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import attrs

from safespawn import _recorder, guard

hold = threading.Event()
ready = threading.Semaphore(0)


def poll():  # mark: poll
    """The job of a thread that `threading` starts."""
    _ = ready.release() or hold.wait()  # mark: poll runs


class Watcher(threading.Thread):
    def run(self):  # mark: watcher
        _ = ready.release() or hold.wait()  # mark: watcher runs


def raw():  # mark: raw
    """The job of a thread that `threading` does not know."""
    _ = ready.release() or hold.wait()  # mark: raw runs


def start_native(name):
    """Start a thread that runs no Python: pthread_create() on the C function pause()."""
    libc = ctypes.CDLL(None)
    handle = ctypes.c_ulong()
    code = libc.pthread_create(ctypes.byref(handle), None, libc.pause, None)
    assert code == 0, code
    assert libc.pthread_setname_np(handle, name) == 0


def main():
    """Start them all, name them all, let them go."""
    _recorder.install()
    threading.Thread(target=poll, name="poller").start()  # mark: poller
    Watcher(name="watcher", daemon=True).start()  # mark: watcher starts
    executor = ThreadPoolExecutor(1, thread_name_prefix="pool")
    executor.submit(poll)  # mark: submit
    listener = logging.handlers.QueueListener(queue.Queue())
    listener.start()  # mark: listener
    timer = threading.Timer(3600, poll)
    timer.name = "timer"
    timer.start()  # mark: timer
    _thread.start_new_thread(raw, ())
    for _ in range(4):
        assert ready.acquire(timeout=30)
    start_native(b"a (native) one")
    facts = guard.census()
    recorded = guard.recorded()
    with ThreadPoolExecutor(1, thread_name_prefix="asker") as asker:
        seen_by_thread = asker.submit(guard.census).result()
    result = {
        "facts": [{**attrs.asdict(fact), "text": str(fact)} for fact in facts],
        "seen_by_thread": [fact.name for fact in seen_by_thread],
        "recorded": recorded,
    }
    print(json.dumps(result))
    hold.set()
    timer.cancel()
    listener.stop()


main()
