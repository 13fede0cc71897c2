"""
What the tests of supervised children have them do, and one way to supervise over all faces.
"""

# ruff: noqa: D103 - each is read where it is used, and does what it is called

import contextlib
import logging
import os
import signal
import sys
import threading
import time

import anyio

import safespawn

SECONDS = 20.0  # for an event on a busy machine; a hang ends as a failure that says so
PLAIN = ["sleep", "1000"]
STUBBORN = ["sh", "-c", "trap '' TERM; sleep 1000 & echo up; while :; do wait; done"]


class Kept:
    """
    A supervisor that was entered, on one face. Its events are read by `until`.
    """

    def __init__(self, supervisor, *, is_async):
        self.supervisor = supervisor
        self.is_async = is_async
        self.seen = []
        self._events = supervisor.events()

    async def start(self, name, target, *args, **options):
        found = self.supervisor.start(name, target, *args, **options)
        return await found if self.is_async else found

    async def call(self, method, *args):
        result = method(*args)
        return await result if self.is_async else result

    async def next(self):
        if self.is_async:
            with anyio.fail_after(SECONDS):
                event = await anext(self._events)
        else:
            event = self._events.get(timeout=SECONDS)
            assert event is not None, f"no event; before: {self.seen[-5:]}"
        self.seen.append(event)
        return event

    async def until(self, kind, child=None):
        """The next event of this kind (and child)."""
        while True:
            event = await self.next()
            if type(event).__name__ == kind and child in (None, event.child):
                return event

    def story(self, *kinds):
        """What was seen of these kinds, as words."""
        return [f"{type(each).__name__} {each.child}" for each in self.seen if type(each).__name__ in kinds]


@contextlib.asynccontextmanager
async def keeping(face, **options):
    """
    Enter a supervisor as a program of this face does.
    """
    options = {"guard": "off", **options}
    if face.is_async:
        async with safespawn.AsyncSupervisor(**options) as supervisor:
            yield Kept(supervisor, is_async=True)
    else:
        with safespawn.Supervisor(**options) as supervisor:
            yield Kept(supervisor, is_async=False)


# --- what runs in the children ---------------------------------------------------------------------------------------
def polite(value):
    logging.getLogger("polite").warning("starts with %s", value)
    print(f"printed {value}", flush=True)
    assert not safespawn.stop_requested()  # from here on SIGTERM raises nothing
    safespawn.ready({"value": value, "pid": os.getpid()})
    while not safespawn.stop_requested(60.0):
        raise AssertionError("nobody asks")
    logging.getLogger("polite").warning("stops with %s", value)


def waits_long(seconds):
    assert not safespawn.stop_requested()
    safespawn.ready()
    while not safespawn.stop_requested(seconds):
        raise AssertionError("nobody asks")


def only_once(path):
    with open(path, "x"):
        safespawn.ready()
    safespawn.stop_requested(1000.0)


def with_finally(path):
    try:
        safespawn.ready()
        time.sleep(1000)
    finally:
        with open(path, "a") as file:
            file.write("finally\n")


def raises_early(message):
    raise LookupError(message)


def raises_late(message):
    safespawn.ready()
    raise LookupError(message)


def never_ready():
    time.sleep(1000)


def beats(count):
    safespawn.ready()
    for _ in range(count):
        safespawn.beat()
        time.sleep(0.02)
    time.sleep(1000)


def says_and_is_killed():
    safespawn.ready()
    sys.excepthook = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    raise LookupError("last words")


def talk():
    logging.getLogger("chatty").info("more")
    logging.getLogger("chatty").debug("all")


def asks_and_logs():
    thread = threading.Thread(target=beats_and_logs, args=(int,), daemon=True)
    thread.start()
    safespawn.stop_requested(1000.0)


def beats_and_logs(beat=safespawn.beat):
    safespawn.ready()
    while True:
        beat()
        talk()
        time.sleep(0.02)


def only_logs():
    safespawn.ready()
    while True:
        logging.getLogger("chatty.loud").error("loud")
        talk()
        time.sleep(0.02)


def logs_beside_a_copy():
    if os.fork() == 0:
        safespawn.stop_requested(1000.0)
        os._exit(0)
    beats_and_logs()


def never_reads():
    safespawn.ready()
    time.sleep(1000)


def unready_value():
    safespawn.ready(threading.Lock())


def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    safespawn.ready()
    while True:
        time.sleep(1000)


async def coroutine():
    safespawn.ready("from a coroutine")
    await anyio.sleep(1000)


def inherits(event):
    safespawn.ready()
    event.wait()


def inner_supervisor():
    with safespawn.Supervisor("inner", guard="off") as supervisor:
        child = supervisor.start("sleep", PLAIN)
        safespawn.ready(child.pid)
        supervisor.serve()
