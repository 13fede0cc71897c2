"""
An application that starts COUNT children, some hundred at a time: `fault_many.py COUNT`.

It prints what the zygote held before and after (descriptors, resident KiB), and the time that zygotes take to start.
"""

import json
import os
import sys
import threading
import time

import safespawn

THREADS = 16
KINDS = (
    lambda run: run(["true"]),
    lambda run: run(["echo", "x"], capture_output=True),
    lambda run: run(["sh", "-c", "exit 3"], stdout=safespawn.PIPE),
    lambda run: run(["cat"], input=b"x" * 1000, capture_output=True),
)


def resident_kib(pid):
    """Resident memory of a process."""
    with open(f"/proc/{pid}/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def descriptors(pid):
    """How many descriptors a process has."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def load(owner, count):
    """Start *count* children from many threads."""
    todo = list(range(count))

    def work():
        while True:
            try:
                number = todo.pop()
            except IndexError:
                return
            KINDS[number % len(KINDS)](owner.run)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def look(owner, pid):
    """What the zygote holds when nothing runs."""
    owner._engine._current[False].trim()
    until = time.monotonic() + 2
    while owner.statistics()["zygote"]["connections"] and time.monotonic() < until:
        continue
    return {"descriptors": descriptors(pid), "resident_kib": resident_kib(pid)}


def main():
    """Measure."""
    count = int(sys.argv[1])
    boots = []
    for _ in range(20):
        began = time.perf_counter()
        with safespawn.Supervisor("boot", guard="off"):
            boots.append(time.perf_counter() - began)
    with safespawn.Supervisor("many", guard="off") as owner:
        load(owner, 1000)  # what is allocated once is allocated now
        pid = owner._engine._current[False].pid
        before = look(owner, pid)
        began = time.perf_counter()
        load(owner, count)
        seconds = time.perf_counter() - began
        after = look(owner, pid)
        children = owner.statistics()["zygote"]["children"]
    facts = {
        "before": before, "after": after, "children": children, "count": count, "seconds": round(seconds, 2),
        "boot_ms_median": round(sorted(boots)[len(boots) // 2] * 1000, 1),
    }  # fmt: skip
    print(json.dumps(facts), flush=True)


main()
