"""
Kill, or stop with SIGSTOP, a random part of the agent every half second; then end it, and look what is left.

    python examples/agent/chaos.py [SECONDS [SEED]]

The parts are all processes below the agent: its children, the commands that it runs, the template, the zygote, and the
warden above that. The agent itself is left alone.
"""

import ctypes
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AGENT = Path(__file__).with_name("agent.py")
PACE_SECONDS = 0.5
CALM_SECONDS = 30.0  # for the agent to be whole again after the last blow; what was stopped is found out by time limits
STOP_SECONDS = 30.0


def below(pid):
    """
    All processes below *pid*.
    """
    found = []
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    for task in tasks:
        try:
            with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
                children = [int(word) for word in file.read().split()]
        except OSError:
            continue
        for child in children:
            found += [child, *below(child)]
    return found


def memory(pid):
    """
    Resident bytes.
    """
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def zygotes(parts):
    """
    Resident bytes of the largest zygote among these processes.
    """
    sizes = [0]
    for pid in parts:
        try:
            comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").rstrip()
        except OSError:
            continue
        if comm == "safespawn":
            sizes.append(memory(pid))
    return max(sizes)


def growth(samples):
    """
    How much more the last tenth of these has than the first, in percent; by the median, and None of too few.
    """
    seen = [size for size in samples if size]
    tenth = len(seen) // 10
    if not tenth:
        return None
    return 100 * (statistics.median(seen[-tenth:]) / statistics.median(seen[:tenth]) - 1)


def birth(pid):
    """
    When a process that runs was born, which tells it from a later one with its number; None when it does not run.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else fields[19]


def describe(pid):
    """
    A process in words.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            state, parent = file.read().rpartition(")")[2].split()[:2]
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return f"{pid} [{state}], child of {parent}: {file.read().replace(bytes(1), b' ').decode()[:100]}"
    except OSError:
        return f"{pid}, gone"


def records(path, since):
    """
    Which parts of the agent have logged something since that place of the log.
    """
    text = path.read_bytes()[since:].decode(errors="replace")
    return {word for word in ("load", "sockets", "disk") if f"INFO {word} " in text}


def recover(path):
    """
    Seconds until all parts of the agent log again; None if they do not.
    """
    began, since = time.monotonic(), path.stat().st_size
    while time.monotonic() - began < CALM_SECONDS:
        time.sleep(0.05)
        if path.stat().st_size < since:
            since = 0  # it was rotated
        if len(records(path, since)) == 3:
            return time.monotonic() - began
    return None


def main():
    """
    The chaos; the exit code says whether the agent was stronger.
    """
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    dice = random.Random(int(sys.argv[2]) if len(sys.argv) > 2 else 1)  # noqa: S311 - no secret
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER: whoever is left behind comes to us
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "agent.log"
        agent = subprocess.Popen([sys.executable, str(AGENT), str(path)], stdout=subprocess.PIPE, text=True)
        assert agent.stdout is not None
        print(agent.stdout.readline().partition(":")[0], flush=True)
        recover(path)
        blows, seen = 0, {}
        sizes = {"program": [], "zygote": []}
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(PACE_SECONDS)
            parts = below(agent.pid)
            seen.update({pid: birth(pid) for pid in parts})
            sizes["program"].append(memory(agent.pid))
            sizes["zygote"].append(zygotes(parts))
            if parts:
                victim = dice.choice(parts)
                try:
                    os.kill(victim, dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]))
                    blows += 1
                except ProcessLookupError:
                    continue
        took = recover(path)
        print(f"blows: {blows}; whole again: {took is not None}", flush=True)
        seen.update({pid: birth(pid) for pid in below(agent.pid)})
        began = time.monotonic()
        agent.send_signal(signal.SIGTERM)
        try:
            code = agent.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
            agent.kill()
            agent.wait()
        stopped = time.monotonic() - began
        time.sleep(1.0)
        left = [pid for pid, born in seen.items() if born is not None and birth(pid) == born]
        took_words = "never" if took is None else f"{took:.1f} s"
        print(f"(recovered after {took_words}, stopped after {stopped:.1f} s)")
        for who, samples in sizes.items():
            grown = growth(samples)
            if grown is not None:
                print(f"(memory of the {who}: {grown:+.1f} % from the first tenth of the time to the last)")
        print(f"exit code: {code}; left: {len(left)}", *map(describe, left), sep="\n  ")
        if took is None:
            print("the end of its log:", path.read_text(errors="replace")[-4000:], sep="\n")
        agent.stdout.close()
    sys.exit(0 if took is not None and code == 0 and not left else 1)


if __name__ == "__main__":
    main()
