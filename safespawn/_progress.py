"""
A progress bar for `Pool.map(progress=True)`, drawn by rich, which is an extra.

It is drawn where results come in, at most ten times a second; no thread refreshes it.

Runs in: application.
"""

import time
from collections.abc import Callable
from typing import Any

from safespawn.errors import BadArgumentType, UnsupportedOption

Report = Callable[[int, "int | None"], object]  # called with how many are done, and of how many
REFRESH_SECONDS = 0.1


class Bar:
    """
    The bar.

    Raises:
        UnsupportedOption: rich is not installed.
    """

    def __init__(self, what: str) -> None:
        try:
            from rich.progress import Progress
        except ImportError:
            raise UnsupportedOption(
                "progress",
                known=("progress=True draws a bar with rich, which is not installed",),
                help='install it: pip install "safespawn[progress]"; '
                "or give a function, progress=f, for f(done, total)",
            ) from None
        self._progress: Any = Progress(auto_refresh=False, transient=False)
        self._bar = self._progress.add_task(what, total=None)
        self._drawn = 0.0

    def __call__(self, done: int, total: int | None) -> None:
        """
        So many are done.
        """
        now = time.monotonic()
        over = total is not None and done >= total
        if not over and now - self._drawn < REFRESH_SECONDS:
            return
        if not self._drawn:
            self._progress.start()
        self._drawn = now
        self._progress.update(self._bar, completed=done, total=total)
        self._progress.refresh()
        if over:
            self._progress.stop()


def reporter(progress: Any, what: str) -> Report | None:
    """
    What to call for the option ``progress``: nothing, a bar, or the user's own function.
    """
    if progress is None or progress is False:
        return None
    if progress is True:
        return Bar(what)
    if not callable(progress):
        raise BadArgumentType("progress is True or a function of (done, total)", parameter="progress", value=progress)
    report: Report = progress
    return report
