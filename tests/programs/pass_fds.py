"""
Passes descriptors of given numbers to children and prints what those see: `pass_fds.py FACE NUMBER...`.

The numbers are taken before anything else is loaded, so that neither the library nor an event loop owns them.
"""

import os
import sys

numbers = list(map(int, sys.argv[2:]))
for number in range(3, 16):
    if number not in numbers:
        continue
    try:
        os.close(number)  # an end of what started this program, if anything
    except OSError:
        continue
held = []
for number in numbers:
    read_fd, write_fd = os.pipe()
    while number in (read_fd, write_fd):  # the wanted number itself was free: the pipe is there already
        held.append(os.dup(write_fd))
        break
    os.dup2(read_fd, 900 + number, inheritable=False)
    os.dup2(write_fd, 700 + number, inheritable=False)
    os.close(read_fd)
    os.close(write_fd)
for number in numbers:
    os.dup2(900 + number, number, inheritable=False)

import anyio  # noqa: E402

import safespawn  # noqa: E402

SEEN = (
    "import os; print(sorted((int(n), os.readlink('/proc/self/fd/' + n)) for n in os.listdir('/proc/self/fd')"
    " if int(n) > 2 and os.path.exists('/proc/self/fd/' + n)))"
)
command = [sys.executable, "-I", "-S", "-c", SEEN]
wanted = sorted((number, os.readlink(f"/proc/self/fd/{number}")) for number in numbers)


async def main():
    """Pass them in both orders, with every kind of start."""
    for options in ({}, {"nice": 0}, {"stdin": safespawn.PIPE, "stderr": safespawn.PIPE}, {"input": b"x" * 100_000}):
        for order in (numbers, reversed(numbers)):
            chosen = {"stdout": safespawn.PIPE, "pass_fds": list(order), **options}
            if sys.argv[1] == "blocking":
                result = safespawn.run(command, **chosen)
            else:
                result = await safespawn.arun(command, **chosen)
            assert result.stdout.decode() == f"{wanted}\n", (options, wanted, result.stdout)
    assert not any(os.get_inheritable(number) for number in numbers)
    print("right")


anyio.run(main, backend="trio" if sys.argv[1] == "trio" else "asyncio")
