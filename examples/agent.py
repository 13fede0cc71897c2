"""
A monitoring agent in small: threads that run commands again and again, while another part of the program forks.

With the standard library such an agent stands still sooner or later: a forked copy holds a pipe that a starting command
waits for. Run it with `python examples/agent.py [SECONDS]`.
"""

import os
import sys
import threading
import time

import safespawn

CHECKS = {
    "sockets": ["ss", "-tn"],
    "disks": ["df", "-P", "/"],
    "load": ["cat", "/proc/loadavg"],
}


class Check(threading.Thread):
    """
    Runs one command every 20 ms, and counts.
    """

    def __init__(self, name: str, argv: list[str], stop: threading.Event) -> None:
        super().__init__(name=name)
        self.argv = argv
        self.stop = stop
        self.done = 0
        self.slowest = 0.0
        self.trouble = ""
        self.last = ""

    def run(self) -> None:
        """
        The thread's life.
        """
        while not self.stop.wait(0.02):
            try:
                done = safespawn.run(self.argv, capture_output=True, text=True, timeout=5)
            except safespawn.SafespawnError as error:
                self.trouble = str(error)
                return
            self.done += 1
            self.slowest = max(self.slowest, done.duration)
            self.last = done.stdout.strip().splitlines()[-1]


def fork_now_and_then(stop: threading.Event) -> None:
    """
    What a C library or a worker pool in the same program may do: fork, and hold copies of everything for a while.
    """
    while not stop.wait(0.05):
        if os.fork() == 0:
            time.sleep(1)
            os._exit(0)
    try:
        while True:
            os.waitpid(-1, 0)  # the copies; that it reaps others' children too does no harm to safespawn
    except ChildProcessError:
        return


def main(seconds: float) -> int:
    if not os.path.exists("/usr/bin/ss") and not os.path.exists("/bin/ss"):
        CHECKS["sockets"] = ["cat", "/proc/net/tcp"]
    stop = threading.Event()
    # First the supervisor, then the threads. That something forks later is what this example is about.
    with safespawn.Supervisor("agent", guard={"thread": "error"}) as supervisor:
        checks = [Check(name, argv, stop) for name, argv in CHECKS.items()]
        for check in checks:
            check.start()
        threading.Thread(target=fork_now_and_then, args=(stop,), name="forks").start()
        time.sleep(seconds)
        stop.set()
        for check in checks:
            check.join()
        figures = supervisor.statistics()
    for check in checks:
        print(f"{check.name:>8}: {check.done} runs, slowest {check.slowest * 1000:.0f} ms, last: {check.last[:60]}")
        if check.trouble:
            print(check.trouble)
    print(f"commands started: {figures['zygote']['started']}, running at the end: {figures['zygote']['running']}")
    return 1 if any(check.trouble or not check.done for check in checks) else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else 2.0))
