"""
A program that uses processes: `mp_program.py MODE`.
"""

import atexit
import fcntl
import json
import logging
import multiprocessing
import os
import signal
import sys
import termios
import threading
import time
from multiprocessing import resource_tracker

import safespawn
from support import mp_targets as targets

MODE = sys.argv[1]
if __name__ != "__main__" and MODE in {"lazy", "threaded-main"}:
    print("loaded by", multiprocessing.current_process().name, flush=True)
if MODE == "threaded-main":
    threading.Thread(target=time.sleep, args=(0.3,)).start()
log = logging.getLogger("app")


def say(line):
    """Print in one piece, beside others who do."""
    os.write(1, f"{line}\n".encode())


def own():
    """A target of the program's own file."""
    print("own:", __name__, flush=True)


def speak_late():
    """A process that ends after its program would."""
    time.sleep(0.3)
    print("late", flush=True)


def tree(connection):
    """A process with a process and a command of its own."""
    child = safespawn.Process(target=time.sleep, args=(60,))
    child.start()
    command = safespawn.Popen(["sleep", "60"])
    connection.send([os.getpid(), child.pid, command.pid])
    time.sleep(60)


def until_interrupted(name):
    """Wait for Ctrl-C."""
    try:
        say(f"{name} waits")
        time.sleep(30)
    except KeyboardInterrupt:
        say(f"{name} interrupted")
        sys.exit(5)


def log_once():
    """What the second incident's process does."""
    log.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115 - for the life of the process
    log.warning("from the process")


# --- the modes --------------------------------------------------------------------------------------------------------
def lazy():
    """The program's own file is loaded once, in the template, and only when it is needed."""
    for target in (targets.nothing, own, own):
        process = safespawn.Process(target=target)
        process.start()
        process.join()
        print("exit", process.exitcode, flush=True)


threaded_main = lazy


def no_tracker():
    """Processes alone start no resource tracker."""
    queue = targets.Mailbox()
    process = safespawn.Process(target=targets.tracker, args=(queue,))
    process.start()
    process.join()
    print(queue.get(), resource_tracker._resource_tracker._fd, flush=True)
    queue.close()


def by_name():
    """As the program's start method: multiprocessing.Process, and a process of the spawn method beside it."""
    import safespawn.context  # noqa: F401 - makes the name known

    multiprocessing.set_start_method("safespawn")
    for kind in (multiprocessing, multiprocessing.get_context("spawn")):
        queue = targets.Mailbox()
        process = kind.Process(target=targets.facts, args=(queue,))
        process.start()
        print(queue.get()["method"], end=" ", flush=True)
        process.join()
        print(type(process._popen).__module__, process.exitcode, flush=True)
        queue.close()


def at_exit():
    """The end of a program: processes are joined, daemons ended, before the zygote is."""
    atexit.register(print, "last words", flush=True)
    safespawn.Process(target=speak_late).start()
    daemon = safespawn.Process(target=time.sleep, args=(60,), daemon=True)
    daemon.start()
    with safespawn.Supervisor("inner", guard="off"):
        process = safespawn.Process(target=targets.nothing)
        process.start()
        process.join()
    safespawn.Process(target=speak_late).start()


def killed():
    """Say who is there, and wait for SIGKILL."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    safespawn.Process(target=tree, args=(writer,)).start()
    with open(os.devnull) as null:
        ignorer = safespawn.Process(target=targets.ignore_sigterm, args=(None,), daemon=True)
        ignorer.start()
        null.read()
    print(json.dumps([*reader.recv(), ignorer.pid]), flush=True)
    time.sleep(60)


def parent_dies():
    """A process whose parent is killed is told by `parent_process()`."""
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = safespawn.Process(target=targets.start_watcher, args=(writer,))
    process.start()
    print(reader.recv(), flush=True)
    process.kill()
    print(reader.recv(), flush=True)
    process.join()


def terminal():
    """Ctrl-C at a terminal reaches the program and its processes."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    alone()


def alone():
    """Without a terminal a process has a group of its own."""
    process = safespawn.Process(target=until_interrupted, args=("process",))
    process.start()
    say(f"group {os.getpgid(process.pid) == os.getpgrp()}")
    try:
        say(f"pid {process.pid}")
        process.join()
    except KeyboardInterrupt:
        say("program interrupted")
        process.join()
    print("exit", process.exitcode, flush=True)


def storm():
    """The second incident, many times over: threads log and others fork while processes start, which log."""
    log.addHandler(logging.StreamHandler(open(os.devnull, "w")))  # noqa: SIM115 - for the life of the process
    stop = threading.Event()
    slow, codes = [], []

    def talk():
        while not stop.is_set():
            log.warning("a thread has something to say, %s", "again " * 20)

    def fork():
        while not stop.wait(0.01):
            pid = os.fork()
            if pid == 0:
                time.sleep(0.2)
                os._exit(0)
            threading.Thread(target=os.waitpid, args=(pid, 0)).start()

    def start(count):
        for _ in range(count):
            began = time.monotonic()
            process = safespawn.Process(target=log_once)
            process.start()
            process.join(30)
            codes.append(process.exitcode)
            slow.append(time.monotonic() - began)

    threads = [threading.Thread(target=target) for target in (talk, talk, fork)]
    starters = [threading.Thread(target=start, args=(25,)) for _ in range(4)]
    for thread in (*threads, *starters):
        thread.start()
    for thread in starters:
        thread.join()
    stop.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"codes": codes, "slowest": max(slow)}), flush=True)


if MODE == "unguarded":
    print("unguarded in", multiprocessing.current_process().name, flush=True)
    process = safespawn.Process(target=own)
    process.start()
    process.join()
    print("exit", process.exitcode, flush=True)
elif __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    globals()[MODE.replace("-", "_")]()
