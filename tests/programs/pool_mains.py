"""
A program whose own functions are a pool's tasks: `pool_mains.py HOW`, or as text for -c, for stdin and for `-m`.
"""

import sys
import threading

from safespawn.pool import Pool

HOW = sys.argv[1] if len(sys.argv) > 1 else "plain"

if HOW == "thread":
    threading.Thread(target=threading.Event().wait, args=(0.3,), daemon=True).start()


def double(number):
    """Of the main module."""
    return 2 * number


class Point:
    """Of the main module, too."""

    def __init__(self, x):
        self.x = x

    def __eq__(self, other):
        return type(other) is Point and other.x == self.x

    __hash__ = None


def move(point):
    """An argument and a result of a class of the main module."""
    assert isinstance(point, Point)
    return Point(point.x + 1)


def main():
    """Use them."""
    with Pool(2) as pool:
        assert pool.map(double, range(10)) == [2 * number for number in range(10)]
        assert pool.apply(move, (Point(1),)) == Point(2)
    print("right")


if HOW == "unguarded":
    try:
        main()
    except AssertionError:
        raise
    except Exception as error:  # noqa: BLE001 - told to the test
        print(type(error).__name__, "from", __name__, flush=True)
elif __name__ == "__main__":
    main()
