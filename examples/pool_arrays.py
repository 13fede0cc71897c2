"""
Large data: buffers over 64 KiB travel in shared memory, in both directions. Nothing has to be named or unlinked.

Run it with `python examples/pool_arrays.py`. It uses bytearrays, so that it needs nothing; NumPy arrays travel the same
way (pickle protocol 5).
"""

import time
from pickle import PickleBuffer

import safespawn

SIZE = 64 * 1024 * 1024


def look(data):
    """
    Read a few bytes of many: only those pages are touched.
    """
    return len(data), data[0], data[-1]


def write(data):
    """
    Write into an argument: it is the worker's own, the caller's does not change.
    """
    data[0] = 99
    return data[0]


def fill(size, value):
    """
    A large result: its memory is the caller's when it is there, to read and to write.
    """
    return PickleBuffer(bytearray([value]) * size)


def main():
    data = bytearray(SIZE)
    data[0], data[-1] = 1, 2
    with safespawn.Pool(2) as pool:
        pool.apply(look, (b"x",))  # the workers are there
        for number in range(3):
            began = time.perf_counter()
            print("read in a worker:", pool.apply(look, (PickleBuffer(data),)))
            print(f"  {SIZE >> 20} MiB, round {number + 1}: {(time.perf_counter() - began) * 1000:.0f} ms")
        print("written in a worker:", pool.apply(write, (PickleBuffer(data),)), "and here still", data[0])
        result = pool.apply(fill, (SIZE, 7))
        result[0] = 8  # ours
        print("result:", len(result), result[0], result[1])


if __name__ == "__main__":
    main()
