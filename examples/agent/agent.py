"""
A monitoring agent: a thread that runs a command again and again, two long-running children, a rotating log.

    python examples/agent/agent.py [LOGFILE [SECONDS]]

It runs until SIGTERM, Ctrl-C or for SECONDS. The collector is a function in a process of its own, which logs as if it
were here; the disk watcher is a command, whose lines come to the same log. Kill any part of it: it comes again. Stop
it: it ends within seconds, and nothing of it is left. `chaos.py` does the killing.
"""

import logging
import logging.handlers
import os
import shutil
import sys
import threading

import safespawn

SOCKETS = ["ss", "-tn"] if shutil.which("ss") else ["cat", "/proc/net/tcp"]
WATCH_DISKS = "while :; do df -P / | tail -n 1; sleep 0.5; done"

log = logging.getLogger("agent")


def collect(interval):
    """
    A child: reads the load, and says that it lives.
    """
    safespawn.stop_requested()  # from here on SIGTERM interrupts nothing
    safespawn.ready(os.getpid())
    while not safespawn.stop_requested(interval):
        with open("/proc/loadavg", encoding="ascii") as file:
            log.info("load %s", file.read().split()[0])
        safespawn.beat()
    log.info("the collector leaves")


def count_sockets(stop, counts):
    """
    A plugin's thread: any command, any number of times, whatever other threads fork meanwhile.
    """
    while not stop.wait(0.1):
        try:
            done = safespawn.run(SOCKETS, capture_output=True, text=True, timeout=5)
        except safespawn.SafespawnError as error:
            counts["trouble"] += 1
            log.warning("sockets: %s", str(error).partition("\n")[0])
        else:
            counts["done"] += 1
            log.info("sockets %d", len(done.stdout.splitlines()) - 1)


def main():
    """
    The agent.
    """
    path = sys.argv[1] if len(sys.argv) > 1 else "agent.log"
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else None
    handler = logging.handlers.RotatingFileHandler(path, maxBytes=1_000_000, backupCount=3)
    form = "%(asctime)s %(process)d %(name)s %(levelname)s %(message)s"
    logging.basicConfig(handlers=[handler], level=logging.INFO, format=form)

    counts = {"done": 0, "trouble": 0}
    stop = threading.Event()
    policy = {"backoff": safespawn.Backoff(0.1, max=2.0), "stop_timeout": 2.0, "on_hung": "restart"}
    with safespawn.Supervisor("agent", restarts=100, per=10.0, give_up="degrade") as supervisor:
        collector = supervisor.start("collector", collect, 0.1, ready="notify", heartbeat=1.0, **policy)
        command = ["sh", "-c", WATCH_DISKS]
        disks = supervisor.start(
            "disks", command, on_line=lambda line: log.info("disk %s", line), hang_after=3.0, **policy
        )  # a shell that waits for a `df` which hangs is up, and of no use
        supervisor.thread(count_sockets, name="sockets", args=(stop, counts), stop=stop.set)
        print(f"up: {os.getpid()}, collector {collector.value}, disks {disks.pid}", flush=True)
        number = supervisor.serve(timeout=seconds)
        print(f"ends: {'its time is over' if number is None else f'signal {number}'}", flush=True)
        figures = supervisor.statistics()
    print(f"commands run: {counts['done'] > 0}, restarts: {sum(each['restarts'] for each in figures['children'])}")
    print(f"children: {collector.state}, {disks.state}", flush=True)


if __name__ == "__main__":
    main()
