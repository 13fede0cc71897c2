"""
The same in an event loop: many commands at once, lines as they come, cancellation.

Run it with `python examples/async_commands.py [asyncio|trio]`.
"""

import sys
import time

import anyio

import safespawn


async def main() -> None:
    # Thirty commands at once; the loop never stands still, and no thread is started.
    began = time.monotonic()
    results = {}

    async def square(number: int) -> None:
        done = await safespawn.arun(["expr", str(number), "*", str(number)], capture_output=True, text=True)
        results[number] = int(done.stdout)

    async with anyio.create_task_group() as tasks:
        for number in range(30):
            tasks.start_soon(square, number)
    print(f"30 commands in {time.monotonic() - began:.2f} s, right: {results == {n: n * n for n in range(30)}}")

    # Lines, as they come.
    script = "for i in 1 2 3; do echo line $i; sleep 0.1; done"
    async with await safespawn.aopen_process(["sh", "-c", script], stdout=safespawn.PIPE, text=True) as process:
        async for line in process.stdout:
            print("  ", line.strip())
    print("exit code:", process.returncode)

    # Cancelling a call ends its command, with all that it started.
    with anyio.move_on_after(0.2) as scope:
        await safespawn.arun(["sh", "-c", "sleep 60; true"])
    print("cancelled:", scope.cancelled_caught)


if __name__ == "__main__":
    anyio.run(main, backend=sys.argv[1] if len(sys.argv) > 1 else "asyncio")
