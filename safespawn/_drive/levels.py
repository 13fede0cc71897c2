"""
The levels of this program's loggers, as its workers get them: a call of `log.debug` that nobody here would see costs a
worker no record and no message.

A logger's threshold is its effective level, or the lowest level of the handlers that its records reach, if that is
higher. Workers get the thresholds that differ from those of the logger above.

That logging was configured anew is noticed by a mark in the root logger's cache of answers, which logging throws away
with each `setLevel` and `disable`; by the number of handlers; and, for what leaves no such trace (the level of a
handler, one that is moved), by a look once a second.

Runs in: application, any thread.
"""

import sys
import time
from typing import Any

LOOK_SECONDS = 1.0
WARNING = 30
Levels = tuple[int, dict[str, int]]  # what logging.disable was called with; level by the name of the logger

_MARK = -0x5AFE  # no level


class _Seen:
    """
    What was found last.
    """

    levels: Levels = (0, {"root": WARNING})
    handlers = -1
    due = 0.0


def current_levels() -> Levels:
    """
    The levels now. The same object as before, if they are as before: to be compared by `is`.
    """
    logging: Any = sys.modules.get("logging")
    if logging is None:
        return _Seen.levels
    try:
        cache = logging.root._cache  # noqa: SLF001 - without it the look once a second would do
        handlers = len(logging._handlerList)  # noqa: SLF001
        if _MARK in cache and handlers == _Seen.handlers and time.monotonic() < _Seen.due:
            return _Seen.levels
        cache[_MARK] = False
    except AttributeError:  # logging is just being imported
        if time.monotonic() < _Seen.due or not hasattr(logging, "root"):
            return _Seen.levels
        handlers = -1
    _Seen.handlers = handlers
    _Seen.due = time.monotonic() + LOOK_SECONDS
    found = find_levels(logging)
    if found != _Seen.levels:
        _Seen.levels = found
    return _Seen.levels


def find_levels(logging: Any) -> Levels:
    """
    The thresholds of all loggers, those that differ from what is above them.
    """
    root = logging.root
    thresholds: dict[str, int] = {"root": threshold(root, logging)}
    found = dict(thresholds)
    loggers = dict(root.manager.loggerDict)
    for name in sorted(loggers):
        logger = loggers[name]
        if not isinstance(logger, logging.Logger):
            continue  # a placeholder
        thresholds[name] = threshold(logger, logging)
        above = name.rpartition(".")[0]
        while above and above not in thresholds:
            above = above.rpartition(".")[0]
        if thresholds[name] != thresholds[above or "root"]:
            found[name] = thresholds[name]
    return int(root.manager.disable), found


def threshold(logger: Any, logging: Any) -> int:
    """
    The level from which on a record of *logger* is seen by anybody.
    """
    lowest: int | None = None
    each = logger
    while each is not None:
        for handler in each.handlers:
            lowest = int(handler.level) if lowest is None else min(lowest, int(handler.level))
        each = each.parent if each.propagate else None
    if lowest is None:
        lowest = int(getattr(logging.lastResort, "level", WARNING))
    return max(1, int(logger.getEffectiveLevel()), lowest)
