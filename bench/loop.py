"""
An event loop that starts a thousand commands, 50 at a time: for how long does it stand still, and how fast is it?

A ticker sleeps for 1 ms again and again; the longest time by which it is late is the longest stall.
"""

import asyncio
import itertools
import subprocess
import time

import anyio

import safespawn
from bench.harness import Figure, Pairs, milliseconds, per_second

TITLE = "event loop: 50 at a time, beside a 1 ms ticker"
AT_ONCE = 50
TICK_SECONDS = 0.001


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    calls, rounds = (200, 3) if quick else (1000, 5)
    figures = []
    with safespawn.Supervisor("bench", guard="off") as supervisor:
        for peer_name, backend, peer in peers():
            pairs = anyio.run(in_turns, supervisor, peer, calls, rounds, backend=backend)
            for what, pair in pairs.items():
                if what == "stall":
                    figure = Figure(f"longest stall, {peer_name}", pair.ratio, "x", "<= 0.333", pair.both(milliseconds))
                else:
                    figure = Figure(f"calls a second, {peer_name}", pair.ratio, "x", ">= 1.0", pair.both(per_second))
                figure.detail += f"; middle half of the rounds {pair.spread}"
                figures.append(figure)
    return figures


def peers():
    """
    Name, backend, and what starts one command and waits for it.
    """
    yield "asyncio.create_subprocess_exec", "asyncio", asyncio_run
    yield "anyio.run_process on asyncio", "asyncio", anyio_run
    try:
        import trio
    except ImportError:
        return

    async def trio_run() -> None:
        await trio.run_process(["true"], stdin=None)

    yield "trio.run_process", "trio", trio_run


async def asyncio_run() -> None:
    process = await asyncio.create_subprocess_exec("true")
    await process.wait()


async def anyio_run() -> None:
    await anyio.run_process(["true"], stdin=subprocess.DEVNULL, stdout=None, stderr=None)


async def in_turns(supervisor, peer, calls: int, rounds: int) -> dict[str, Pairs]:
    """
    Stalls and rates of both sides.
    """

    async def ours() -> None:
        await supervisor.arun(["true"])

    sides = {"ours": ours, "theirs": peer}
    figures = {"stall": Pairs([], []), "rate": Pairs([], [])}
    for call in sides.values():
        await load(call, AT_ONCE)  # what is imported or made at the first call is not part of it
    for number in range(rounds):
        for side in sides if number % 2 else reversed(sides):
            stall, rate = await load(sides[side], calls)
            getattr(figures["stall"], side).append(stall)
            getattr(figures["rate"], side).append(rate)
    return figures


async def load(call, calls: int) -> tuple[float, float]:
    """
    The longest stall in seconds, and the calls a second.
    """
    worst = 0.0
    left = itertools.repeat(None, calls)

    async def tick() -> None:
        nonlocal worst
        while True:
            began = time.perf_counter()
            await anyio.sleep(TICK_SECONDS)
            worst = max(worst, time.perf_counter() - began - TICK_SECONDS)

    async def work() -> None:
        for _ in left:
            await call()

    async with anyio.create_task_group() as ticker:
        ticker.start_soon(tick)
        began = time.perf_counter()
        async with anyio.create_task_group() as workers:
            for _ in range(AT_ONCE):
                workers.start_soon(work)
        took = time.perf_counter() - began
        ticker.cancel_scope.cancel()
    return worst, calls / took
