"""
Rounds over many pools: each pool in a process of its own, all asked in turns, none waited for without end.

A pool that is not installed, not built yet, fails or hangs is out from then on; it is named, and the others go on.
"""

import contextlib
import dataclasses
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import time

from bench.harness import Figure, Pairs
from bench.pool_peers import ASYNC_NAMES, BLOCKING

OURS = ("safespawn.Pool", "safespawn.Executor", *(name for name in ASYNC_NAMES if name.startswith("safespawn")))
BLOCKING_NAMES = tuple(BLOCKING)
LIMIT_SECONDS = 60.0  # for one answer, far above the slowest; arbitrary
CLOSE_SECONDS = 10.0  # for a pool to end when it is asked to; arbitrary
LEFT_SECONDS = 2.0  # for what is left of it then, before it is killed; arbitrary


class Side:
    """
    The process of one pool, from outside.

    Attributes:
        name: Of the pool.
        out: Why it is not asked any more, else "".
        hung: Whether that was the reason.
    """

    def __init__(self, name):
        self.name = name
        self.out = ""
        self.hung = False
        environ = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bench.pool_side", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None if os.environ.get("BENCH_VERBOSE") else subprocess.DEVNULL,
            env=environ,  # compiled modules are kept, as they are in an installation
            process_group=0,
        )

    def ask(self, what, *, limit=LIMIT_SECONDS, **request):
        """
        One measure, or None when the side is out.
        """
        if self.out:
            return None
        try:
            self.process.stdin.write(json.dumps({"what": what, **request}).encode() + b"\n")
            self.process.stdin.flush()
            reply = json.loads(self.answer(limit))
        except TimeoutError:
            self.hung = True
            self.out = f"hung (over {limit:.0f} s)"
        except (OSError, EOFError, ValueError):
            self.out = "died"
        else:
            self.out = reply.get("out", "")
            if not self.out:
                return reply["value"]
        return None

    def answer(self, limit):
        """
        One line of the side's, within *limit* seconds.
        """
        deadline = time.monotonic() + limit
        data = b""
        while not data.endswith(b"\n"):
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                raise TimeoutError
            more = os.read(self.process.stdout.fileno(), 65536)
            if not more:
                raise EOFError
            data += more
        return data

    def stop(self):
        """
        End it, give what it leaves a moment to go (a tracker removes what is in /dev/shm), and kill the rest.
        """
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        if self.hung:
            self.process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(CLOSE_SECONDS)
        deadline = time.monotonic() + LEFT_SECONDS
        with contextlib.suppress(ProcessLookupError):  # nobody is left in the group
            while time.monotonic() < deadline:
                os.killpg(self.process.pid, 0)
                time.sleep(0.01)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()


@dataclasses.dataclass
class Rounds:
    """
    What came of them.

    Attributes:
        values: For each side that lasted: one value a round.
        out: For each that did not: why.
    """

    values: dict[str, list]
    out: dict[str, str]

    def medians(self) -> dict[str, float]:
        """
        Of the rounds, by side.
        """
        return {name: statistics.median(values) for name, values in self.values.items()}

    def best(self, names, better) -> str | None:
        """
        The name with the best median; None when none lasted.
        """
        medians = {name: value for name, value in self.medians().items() if name in names}
        return better(medians, key=medians.get) if medians else None

    def figure(self, name, ours, peer, target, form) -> Figure:
        """
        Ours against a peer. Without ours there is no figure, and that counts as a miss; without the peer no verdict.
        """
        if ours not in self.values:
            worst = float("inf") if target.startswith("<=") else 0.0
            return Figure(name, worst, "x", target, f"{ours}: {self.out.get(ours, 'not measured')}")
        if peer not in self.values:
            return Figure(name, 0.0, "x", "", f"no peer: {self.out.get(peer, 'not measured')}")
        pairs = Pairs(self.values[ours], self.values[peer])
        detail = f"{pairs.both(form)} of {peer}; middle half of the rounds {pairs.spread}"
        return Figure(name, pairs.ratio, "x", target, detail)

    def each(self, what, unit, scale=1.0) -> list[Figure]:
        """
        One line for each side that lasted, and what became of the others beside the last.
        """
        figures = []
        for name, value in self.medians().items():
            values = sorted(self.values[name])
            quarter = len(values) // 4
            detail = f"middle half {values[quarter] * scale:,.1f} to {values[-1 - quarter] * scale:,.1f}"
            figures.append(Figure(f"  {what}, {name}", value * scale, unit, "", detail))
        if figures and self.out:
            figures[-1].detail += "".join(f"; {name}: {why}" for name, why in self.out.items())
        return figures


@contextlib.contextmanager
def opened(names):
    """
    The sides of these pools.
    """
    sides = {}
    try:
        for name in names:
            sides[name] = Side(name)
        yield sides
    finally:
        for side in sides.values():
            side.stop()


def in_turns(sides, rounds, what, requests=None, **common) -> Rounds:
    """
    Ask every side once a round, each round beginning with another.

    Args:
        sides: By name.
        rounds: How many.
        what: The measure.
        requests: What some sides are asked otherwise, by name.
        common: What all are asked; `limit` for the seconds to wait.
    """
    values = {name: [] for name in sides}
    names = list(sides)
    for number in range(rounds):
        start = number % len(names)
        for name in names[start:] + names[:start]:
            value = sides[name].ask(**{"what": what, **common, **(requests or {}).get(name, {})})
            if value is not None:
                values[name].append(value)
    out = {name: side.out for name, side in sides.items() if side.out}
    return Rounds({name: values[name] for name in names if name not in out}, out)


def microseconds(seconds: float) -> str:
    """
    Seconds, for reading.
    """
    return f"{seconds * 1e6:,.0f} µs"


def mebibytes_per_second(rate: float) -> str:
    """
    A rate, for reading.
    """
    return f"{rate:,.0f} MiB/s"
