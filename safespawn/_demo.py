"""
What `safespawn demo` measures: one real command, called many times, one library and one way of calling at a time.

Each cell of the table is measured in a process of its own, so that nothing of one cell (threads, loops, forked copies)
is there in the next one, and so that a library that hangs can be ended: the asker gives it a time limit.

The storm: a thread forks about every 10 ms, as C libraries, `multiprocessing` and web servers do, and the copies live
2 s without exec. A copy holds every descriptor that was open at the moment of its fork, among them those of a
`subprocess.Popen` that is just being made in another thread; that call then waits for the copy's end.

The pools: many calls of a Python function in two workers, one of which is killed by its task. Of safespawn's pool this
one call fails, at once, with what happened; of multiprocessing's it never comes back.

Runs in: an application of its own, `python -m safespawn._demo LIBRARY WAY CALLS SECONDS COMMAND...`.
"""

import functools
import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import attrs

from safespawn.supervisor import Supervisor

THREADS = 8
AT_ONCE = 25  # calls of an event loop; arbitrary, a usual fan-out
FORK_SECONDS = 0.010
COPY_SECONDS = 2.0
BLOCKED_SECONDS = 1.0  # a call that takes longer counts as blocked; it usually takes milliseconds
PATIENCE_SECONDS = 1.2  # for the calls that are under way when the time is over: enough to see that they are blocked
RELEASE_SECONDS = 5.0  # for the blocked ones to come free once the copies are gone

LIBRARIES = ("safespawn", "subprocess")
WAYS = {
    "blocking": "one call after another",
    "threads": f"{THREADS} threads, foreign forks",
    "asyncio": f"asyncio.gather, {AT_ONCE} at once",
    "asyncio-storm": "asyncio.gather, foreign forks",
    "trio": f"trio nursery, {AT_ONCE} at once",
    "pool": "worker pool, one task killed",
}
WORKERS = 2
POOL_CALLS = 1000  # at most: they are begun all at once, and the last one shall not count as blocked
VICTIM = 1  # the task that kills its worker
MP_POOL = "mp.Pool"  # multiprocessing's, in the place of subprocess


@attrs.define(slots=True)
class Cell:
    """
    One row of the table.

    Attributes:
        library: Of `LIBRARIES`.
        way: Of `WAYS`.
        calls: How many were made.
        blocked: Those that took more than a second.
        wrong: Those that failed, or gave another output than they should.
        slowest: Seconds of the slowest.
        processes: How many are left over of what was started.
        fds: How many descriptors are open that were not before.
        copies: Foreign forks meanwhile.
        seconds: For all.
        trouble: What was wrong with the first of those, or "".
        error: Why there are no figures, or "".
    """

    library: str
    way: str
    calls: int = 0
    blocked: int = 0
    wrong: int = 0
    slowest: float = 0.0
    processes: int = 0
    fds: int = 0
    copies: int = 0
    seconds: float = 0.0
    trouble: str = ""
    error: str = ""

    @property
    def clean(self) -> bool:
        """
        Whether nothing went wrong.
        """
        return bool(self.calls) and not (self.blocked or self.wrong or self.processes or self.fds or self.error)


def ask(library: str, way: str, calls: int, seconds: float, command: Sequence[str]) -> Cell:
    """
    Measure one cell in a process of its own; ended, with all that it started, when it takes too long.
    """
    from safespawn._functions import run
    from safespawn.errors import TimeoutExpired

    argv = [sys.executable, "-m", "safespawn._demo", library, way, str(calls), str(seconds), *command]
    limit = seconds + PATIENCE_SECONDS + RELEASE_SECONDS + 5.0
    try:
        done = run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit)
    except TimeoutExpired:
        return Cell(library, way, error=f"no result after {limit:.0f} s, ended")
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return Cell(library, way, error=lines[-1] if lines else f"exit code {done.returncode}")
    return Cell(**json.loads(done.stdout))


# --- in the measuring process ----------------------------------------------------------------------------------------
class Tally:
    """
    Which calls may still be made, and how long those took that were.
    """

    def __init__(self, calls: int, seconds: float, first_word: list[bytes]) -> None:
        self._left = itertools.repeat(None, calls)
        self._first_word = first_word
        self.stop_at = time.monotonic() + seconds
        self.took: list[float] = []
        self.wrong = 0
        self.trouble = ""
        self.begun: dict[object, float] = {}

    def begin(self) -> object | None:
        """
        A token for one more call; None when there were enough, or the time is over.
        """
        if time.monotonic() >= self.stop_at or next(self._left, self) is self:
            return None
        token = object()
        self.begun[token] = time.monotonic()
        return token

    def end(self, token: object, returncode: int, output: bytes) -> None:
        """
        The call has come back.
        """
        self.took.append(time.monotonic() - self.begun.pop(token))
        if returncode or output.split(None, 1)[:1] != self._first_word:
            self._note(f"exit code {returncode}, output {output[:50]!r}")

    def fail(self, token: object, error: Exception) -> None:
        """
        The call has raised.
        """
        self.took.append(time.monotonic() - self.begun.pop(token))
        self._note(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")

    def _note(self, trouble: str) -> None:
        self.wrong += 1
        self.trouble = self.trouble or trouble

    def durations(self) -> list[float]:
        """
        Of all calls, those that are still under way included.
        """
        now = time.monotonic()
        return [*self.took, *[now - begun for begun in list(self.begun.values())]]


class Storm(threading.Thread):
    """
    Forks, and leaves the copies asleep.
    """

    def __init__(self) -> None:
        super().__init__(name="storm", daemon=True)
        self._over = threading.Event()
        self._alive: list[int] = []
        self.copies = 0

    def run(self) -> None:
        """
        Fork until `stop`.
        """
        warnings.simplefilter("ignore", DeprecationWarning)  # os.fork beside threads: that is the point
        while not self._over.wait(FORK_SECONDS):
            pid = os.fork()
            if pid == 0:
                time.sleep(COPY_SECONDS)
                os._exit(0)
            self.copies += 1
            self._alive.append(pid)
            self._alive = [each for each in self._alive if os.waitpid(each, os.WNOHANG) == (0, 0)]

    def stop(self) -> None:
        """
        End the forking and the copies.
        """
        self._over.set()
        self.join()
        for pid in self._alive:
            os.kill(pid, signal.SIGKILL)
        for pid in self._alive:
            os.waitpid(pid, 0)


def measure(cell: Cell, calls: int, seconds: float, command: Sequence[str]) -> None:
    """
    Fill in *cell*.
    """
    if cell.way == "pool":
        measure_pool(cell, calls, seconds)
        return
    first_word = subprocess.run(command, capture_output=True, check=True).stdout.split(None, 1)[:1]
    if cell.way not in ("blocking", "threads"):
        importlib.import_module(cell.way.partition("-")[0])
    fds = set(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    if cell.library == "safespawn":
        with Supervisor("demo", guard="error") as supervisor:  # before the threads
            tally = Tally(calls, seconds, first_word)
            call_ways(cell, tally, command, supervisor)
    else:
        tally = Tally(calls, seconds, first_word)
        call_ways(cell, tally, command, None)
    cell.seconds = time.monotonic() - began
    durations = tally.durations()
    cell.calls = len(durations)
    cell.blocked = sum(took > BLOCKED_SECONDS for took in durations)
    cell.slowest = max(durations, default=0.0)
    cell.wrong, cell.trouble = tally.wrong, tally.trouble
    cell.fds = len(set(os.listdir("/proc/self/fd")) - fds)
    cell.processes = len(children_of(os.getpid()))


def children_of(pid: int) -> list[int]:
    """
    The children of *pid*, zombies too.
    """
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children", encoding="ascii") as file:
            found.extend(map(int, file.read().split()))
    return found


def call_ways(cell: Cell, tally: Tally, command: Sequence[str], supervisor: Supervisor | None) -> None:
    """
    Call *command* in the cell's way, from *supervisor* or from the standard library.
    """
    run: Callable[..., Any] = subprocess.run if supervisor is None else supervisor.run
    if cell.way == "blocking":
        call_all(tally, run, command)
    elif cell.way == "threads":
        cell.copies = call_in_threads(tally, run, command)
    elif cell.way == "asyncio":
        call_in_asyncio(tally, asyncio_run if supervisor is None else supervisor.arun, command)
    elif cell.way == "asyncio-storm":
        storm = Storm()
        storm.start()
        call_in_asyncio(tally, asyncio_run if supervisor is None else supervisor.arun, command)
        storm.stop()
        cell.copies = storm.copies
    else:
        import anyio

        trio_run = importlib.import_module("trio").run_process
        peer = trio_peer(trio_run) if supervisor is None else supervisor.arun
        anyio.run(call_in_tasks, tally, peer, command, backend="trio")


def call_all(tally: Tally, run: Callable[..., Any], command: Sequence[str]) -> None:
    """
    Call until there were enough.
    """
    while (token := tally.begin()) is not None:
        try:
            done = run(command, capture_output=True)
        except Exception as error:  # noqa: BLE001 - it is counted; the next may be better
            tally.fail(token, error)
        else:
            tally.end(token, done.returncode, done.stdout)


def call_in_threads(tally: Tally, run: Callable[..., Any], command: Sequence[str]) -> int:
    """
    Call from several threads under the storm; returns the number of copies.
    """
    storm = Storm()
    storm.start()
    threads = [threading.Thread(target=call_all, args=(tally, run, command), daemon=True) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    join_all(threads, tally.stop_at + PATIENCE_SECONDS)
    storm.stop()
    join_all(threads, time.monotonic() + RELEASE_SECONDS)
    return storm.copies


def join_all(threads: list[threading.Thread], deadline: float) -> None:
    """
    Wait for *threads*, until *deadline* (monotonic) at most.
    """
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


async def call_one_by_one(tally: Tally, arun: Callable[..., Awaitable[Any]], command: Sequence[str]) -> None:
    """
    One task of several.
    """
    while (token := tally.begin()) is not None:
        try:
            done = await arun(command, capture_output=True)
        except Exception as error:  # noqa: BLE001 - it is counted; the next may be better
            tally.fail(token, error)
        else:
            tally.end(token, done.returncode, done.stdout)


def call_in_asyncio(tally: Tally, arun: Callable[..., Awaitable[Any]], command: Sequence[str]) -> None:
    """
    The way most programs do it.
    """
    import asyncio

    async def gather() -> None:
        await asyncio.gather(*[call_one_by_one(tally, arun, command) for _ in range(AT_ONCE)])

    asyncio.run(gather())


async def call_in_tasks(tally: Tally, arun: Callable[..., Awaitable[Any]], command: Sequence[str]) -> None:
    """
    The same in a nursery.
    """
    import anyio

    async with anyio.create_task_group() as tasks:
        for _ in range(AT_ONCE):
            tasks.start_soon(call_one_by_one, tally, arun, command)


async def asyncio_run(command: Sequence[str], *, capture_output: bool) -> subprocess.CompletedProcess[bytes]:
    """
    What stands for `subprocess.run` in asyncio.
    """
    import asyncio

    pipe = subprocess.PIPE if capture_output else None
    process = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    output, _ = await process.communicate()
    return subprocess.CompletedProcess(command, process.returncode or 0, output)


def trio_peer(run_process: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """
    `trio.run_process` with the options' names of `subprocess.run`.
    """

    async def run(command: Sequence[str], *, capture_output: bool) -> Any:
        return await run_process(command, capture_stdout=capture_output, capture_stderr=capture_output, check=False)

    return run


# --- pools -----------------------------------------------------------------------------------------------------------
def square_or_die(number: int) -> int:
    """
    The task of the pools' row. One of them kills the worker that runs it, as the kernel does when memory is short.
    """
    if number == VICTIM:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def measure_pool(cell: Cell, calls: int, seconds: float) -> None:
    """
    Fill in *cell*: calls of a function in workers, all at once.
    """
    calls = min(calls, POOL_CALLS)
    fds = set(os.listdir("/proc/self/fd"))
    began = time.monotonic()
    if cell.library == "safespawn":
        from safespawn.pool import Pool

        with Supervisor("demo", guard="error"), Pool(WORKERS) as pool:
            call_pool(cell, pool, calls, seconds)
    else:
        from multiprocessing import active_children, get_context

        cell.library = MP_POOL
        other = get_context("fork").Pool(WORKERS)
        call_pool(cell, other, calls, seconds)
        ending = threading.Thread(target=other.terminate, daemon=True)
        ending.start()
        ending.join(PATIENCE_SECONDS)
        for child in active_children():
            child.kill()
            child.join()
    cell.seconds = time.monotonic() - began
    cell.fds = len(set(os.listdir("/proc/self/fd")) - fds)
    cell.processes = len(children_of(os.getpid()))


def call_pool(cell: Cell, pool: Any, calls: int, seconds: float) -> None:
    """
    Call, and wait until all have come back but those that do not.
    """
    began = time.monotonic()
    took: dict[int, float] = {}
    troubles: list[str] = []
    all_here = threading.Event()

    def over(number: int, trouble: str) -> None:
        took[number] = time.monotonic() - began
        if trouble:
            troubles.append(trouble)
        if len(took) == calls:
            all_here.set()

    def came(number: int, value: object) -> None:
        over(number, "" if value == number * number else f"the result of {number} is {value!r}")

    def failed(number: int, error: BaseException) -> None:
        expected = number == VICTIM and getattr(error, "returncode", None) == -signal.SIGKILL
        over(number, "" if expected else f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")

    for number in range(calls):
        pool.apply_async(
            square_or_die,
            (number,),
            callback=functools.partial(came, number),
            error_callback=functools.partial(failed, number),
        )
    all_here.wait(min(seconds, PATIENCE_SECONDS))
    now = time.monotonic() - began
    durations = [took.get(number, now) for number in range(calls)]
    cell.calls = calls
    cell.blocked = sum(each > BLOCKED_SECONDS for each in durations)
    cell.slowest = max(durations)
    cell.wrong, cell.trouble = len(troubles), (troubles or [""])[0]


def main(arguments: list[str]) -> None:
    """
    Measure one cell and print it.
    """
    library, way, calls, seconds, *command = arguments
    cell = Cell(library, way)
    measure(cell, int(calls), float(seconds), command)
    sys.stdout.write(json.dumps(attrs.asdict(cell)) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a call that hangs in its thread must not hold up the end


if __name__ == "__main__":
    main(sys.argv[1:])
