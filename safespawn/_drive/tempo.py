"""
Whether to wait awake for the end of a short task, or asleep: whichever is quicker on this machine now.

On idle cores most of a short round trip is the kernel's: each side sleeps and is woken. Looking for the answer for some
microseconds before sleeping saves that. Where the two sides share a core, or others want it, it does the opposite. So
both are tried, in blocks of round trips, and the better one is kept; the other one is tried again now and then.

Runs in: application, any thread; a lost update costs a measurement.
"""

BRISK_SECONDS = 0.0001  # a task that takes less is waited for awake
BLOCK = 16  # round trips
TRIAL = 32  # blocks from one trial of the other way to the next


class Tempo:
    """
    The present choice.

    Attributes:
        awake: Look before sleeping.
    """

    __slots__ = ("_blocks", "_means", "_seen", "awake")

    def __init__(self) -> None:
        self.awake: bool = True
        self._seen: list[float] = []
        self._means: dict[bool, float] = {}
        self._blocks = 0

    def note(self, seconds: float) -> None:
        """
        A round trip took so long.
        """
        seen = self._seen
        seen.append(seconds)
        if len(seen) < BLOCK:
            return
        self._seen = []
        self._means[self.awake] = sorted(seen)[len(seen) // 2]  # the middle one: others may have had the core meanwhile
        self._blocks += 1
        if len(self._means) < 2 or self._blocks % TRIAL == 0:
            self.awake = not self.awake
        else:
            self.awake = self._means[True] <= self._means[False]
