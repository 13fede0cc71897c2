"""
What the processes of the tests run: importable by name, as a process's target must be.
"""

import multiprocessing
import os
import signal
import sys
import threading
import time
from multiprocessing import resource_tracker, shared_memory, util
from pathlib import Path

import safespawn


def nothing():
    """Return."""


def leave(code):
    """Exit with *code*."""
    sys.exit(code)


def leave_at_once(code):
    """Exit with *code* without a word to Python."""
    os._exit(code)


def fail():
    """Raise."""
    raise ValueError("it was meant to")


def die(number):
    """End by a signal."""
    signal.signal(number, signal.SIG_DFL) if number != signal.SIGKILL else None
    os.kill(os.getpid(), number)


def leave_a_thread(queue):
    """Return while a thread still works."""
    threading.Thread(target=lambda: (time.sleep(0.2), queue.put("the thread's"))).start()


def sleep(event=None):
    """Say that it runs, and run."""
    if event is not None:
        event.set()
    time.sleep(60)


def ignore_sigterm(event):
    """Run, whatever SIGTERM says."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sleep(event)


def put(queue, value):
    """Send *value* back."""
    queue.put(value)


def facts(queue):
    """Send back what the process is."""
    this, parent = multiprocessing.current_process(), multiprocessing.parent_process()
    queue.put(
        {
            "name": this.name,
            "daemon": this.daemon,
            "authkey": bytes(this.authkey),
            "argv": sys.argv,
            "path": sys.path,
            "cwd": os.getcwd(),
            "env": os.environ.get("MP_TEST"),
            "umask": os.umask(0),
            "parent": (parent.pid, parent.name, parent.is_alive()),
            "stdin": (sys.stdin.read(), os.readlink("/proc/self/fd/0")),
            "method": multiprocessing.get_start_method(),
            "level": util.get_logger().level,
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "group": os.getpgrp(),
            "pid": os.getpid(),
            "threads": len(os.listdir("/proc/self/task")),
            "comm": Path("/proc/self/comm").read_text().strip(),
            "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
            "worker": safespawn.current_worker(),
            "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        }
    )


def tracker(queue, *_):
    """Send back whether this process has a resource tracker, and whether it started that."""
    queue.put((resource_tracker._resource_tracker._fd is not None, resource_tracker._resource_tracker._pid))


def make_shared_memory(queue):
    """Make shared memory that outlives this process."""
    memory = shared_memory.SharedMemory(create=True, size=4)
    memory.buf[:4] = b"kept"
    memory.close()
    queue.put(memory.name)


def write_shared_memory(name):
    """Write into shared memory of that name."""
    memory = shared_memory.SharedMemory(name)
    memory.buf[:4] = b"seen"
    memory.close()


def count_up(lock, value, times):
    """Add to *value*, under *lock*."""
    for _ in range(times):
        with lock:
            value.value += 1


def take_all(lock):
    """How often *lock* can be taken without waiting is this process's exit code."""
    times = 0
    while times < 9 and lock.acquire(block=False):
        times += 1
    sys.exit(times)


def notify(condition, value):
    """Set *value* and notify."""
    with condition:
        value.value = 7
        condition.notify()


def set_when_set(first, second):
    """Pass an event on."""
    first.wait(20)
    second.set()


def meet(barrier, queue):
    """Meet at a barrier."""
    barrier.wait(20)
    queue.put(os.getpid())


def answer(connection):
    """Answer what comes, doubled."""
    connection.send(connection.recv() * 2)


def send_numbers(connections):
    """Send to each its place."""
    for place, connection in enumerate(connections):
        connection.send(place)


def work_off(queue):
    """Take until None comes."""
    while queue.get() is not None:
        queue.task_done()
    queue.task_done()


def fill(values, raw):
    """Write into shared arrays."""
    for place in range(len(values)):
        values[place] = place * place
    raw.value = 2.5


def update(mapping):
    """Write into a manager's dict."""
    mapping["from"] = os.getpid()


def size(queue, data):
    """Send back how much came."""
    queue.put(len(data))


def square(number):
    """Square."""
    return number * number


def where(_):
    """Which process this is."""
    time.sleep(0.01)
    return os.getpid()


def start_another(queue):
    """Start a process, and say how that ended."""
    process = safespawn.Process(target=put, args=(queue, "grandchild"))
    process.start()
    process.join()
    queue.put(process.exitcode)


def use_pools(queue):
    """Use a pool of either kind."""
    with safespawn.get_context().Pool(2) as pool:
        queue.put(pool.map(square, range(4)))
    with safespawn.Pool(2) as pool:
        queue.put(pool.map(square, range(4)))


def start_in_worker(number):
    """In a pool's worker: start a process and take what it says."""
    queue = safespawn.get_context().SimpleQueue()
    process = safespawn.Process(target=put, args=(queue, number))
    process.start()
    found = queue.get()
    process.join()
    return found, process.exitcode


def was_preloaded(queue, name):
    """Send back whether the module *name* was there from the start."""
    queue.put(name in sys.modules)


def register_exit(connection):
    """Leave something to be done at the exit."""
    import atexit

    util.Finalize(None, connection.send, ("finalizer",), exitpriority=1)
    atexit.register(connection.send, "atexit")


def watch_parent(connection):
    """Say when the parent has ended."""
    parent = multiprocessing.parent_process()
    connection.send(parent.is_alive())
    parent.join()
    connection.send(parent.is_alive())


def start_watcher(connection):
    """Start somebody who watches this process, and stay."""
    safespawn.Process(target=watch_parent, args=(connection,)).start()
    time.sleep(60)


def log_something(level):
    """Log by multiprocessing's logger."""
    util.get_logger().log(level, "from the process")


class Subclass(safespawn.Process):
    """A process by inheritance."""

    def __init__(self, queue, values):
        super().__init__(name="sub", daemon=True)
        self.queue = queue
        self.values = values

    def run(self):
        """Sum up."""
        self.queue.put((self.name, sum(self.values)))


class Grumpy:
    """It pickles, and does not unpickle."""

    def __reduce__(self):
        return int, ("no number",)


class Mailbox:
    """
    Where processes put small things and the test takes them: a pipe, so that it leaves no named semaphore behind.
    """

    def __init__(self):
        self.reader, self.writer = multiprocessing.Pipe(duplex=False)

    def __getstate__(self):
        return {"writer": self.writer}

    def put(self, value):
        """Send."""
        self.writer.send(value)

    def get(self):
        """Receive, within a bound."""
        assert self.reader.poll(20), "nobody has put anything"
        return self.reader.recv()

    def close(self):
        """Close both ends."""
        self.reader.close()
        self.writer.close()
