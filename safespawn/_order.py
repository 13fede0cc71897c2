"""
The declared order of a program: what starts processes first, then threads.

A Supervisor collects declarations before it is entered. Entering it calls the declared children in the order of their
declaration, as far as ``after`` wants no other; when the last one is up, the threads start. What is declared later is
started at once. Leaving stops the threads, in the reverse order, before the processes are ended.

Runs in: application; in the thread that enters and leaves the Supervisor.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from safespawn.errors import BadArgument, BadArgumentType


@attrs.define
class Declared:
    """
    One declaration.

    Attributes:
        name: What others name in their ``after``.
        is_thread: Whether it starts threads.
        start: Called to start it.
        after: Names of those that come before it.
        stop: Called to end it, or None.
        result: What *start* has returned: for a thread, the thread.
    """

    name: str
    is_thread: bool
    start: Callable[[], Any]
    after: tuple[str, ...]
    stop: Callable[[], object] | None = None
    result: Any = None


class Plan:
    """
    The declarations of one Supervisor.
    """

    def __init__(self) -> None:
        self.declared: dict[str, Declared] = {}
        self.started: list[Declared] = []
        self.running = False  # the last declared child is up

    def add(self, entry: Declared) -> None:
        """
        Declare *entry*; when the program runs already, start it.

        Raises:
            BadArgument: There is one of that name; or, when it is started now, it names one that there is not.
        """
        calls: dict[str, Any] = {"start": entry.start, "stop": entry.stop}  # not every caller's code has been checked
        for parameter, value in calls.items():
            if not callable(value) and (value is not None or parameter == "start"):
                raise BadArgumentType(f"{parameter} of {entry.name!r} is called", parameter=parameter, value=value)
        if entry.name in self.declared:
            raise BadArgument(f"{entry.name!r} is declared already", parameter="name", value=entry.name)
        self.declared[entry.name] = entry
        if self.running:
            try:
                self.order()
                self._start(entry)
            except BaseException:
                del self.declared[entry.name]
                raise

    def order(self) -> list[Declared]:
        """
        All declarations, in the order in which they are to be started: children, then threads.

        Raises:
            BadArgument: One comes after another that is not declared, after itself in a circle, or is a child that
                waits for a thread.
        """
        found: list[Declared] = []
        for entry in sorted(self.declared.values(), key=lambda each: each.is_thread):  # stable: as they were declared
            self._visit(entry, [], found)
        return found

    def _visit(self, entry: Declared, path: list[str], found: list[Declared]) -> None:
        if entry in found:
            return
        if entry.name in path:
            circle = " -> ".join([*path[path.index(entry.name) :], entry.name])
            raise BadArgument(f"each of these waits for the next: {circle}", parameter="after", value=entry.after)
        for name in entry.after:
            before = self.declared.get(name)
            if before is None:
                raise BadArgument(
                    f"{entry.name!r} is to start after {name!r}, which is not declared", parameter="after", value=name
                )
            if before.is_thread and not entry.is_thread:
                raise BadArgument(
                    f"thread {name!r} is declared too early: {entry.name!r}, which starts processes, waits for it",
                    parameter="after", value=name, help="threads start when the last child is up: turn the order round",
                )  # fmt: skip
            self._visit(before, [*path, entry.name], found)
        found.append(entry)

    def start(self) -> None:
        """
        Start everything. What is up when one fails is for the caller to stop.
        """
        for entry in self.order():
            self._start(entry)
        self.running = True

    def _start(self, entry: Declared) -> None:
        entry.result = entry.start()
        self.started.append(entry)

    def stop(self) -> "Stopping":
        """
        Have everything that can be asked to stop asked, the last one first.
        """
        self.running = False
        entries, self.started = self.started[::-1], []
        return Stopping([entry for entry in entries if entry.stop is not None])


class Stopping:
    """
    The end of what was declared. A daemon thread asks one after the other: whoever waits has a deadline, and a *stop*
    that hangs holds up neither him nor the end of the processes.
    """

    def __init__(self, entries: Sequence[Declared]) -> None:
        self.trouble: Exception | None = None  # of the first *stop* that raised; the others were called all the same
        self._entries = entries
        self._threads = [entry.result for entry in entries if isinstance(entry.result, threading.Thread)]
        if entries:
            asker = threading.Thread(target=self._ask, name="safespawn stop", daemon=True)
            asker.start()
            self._threads.insert(0, asker)

    def _ask(self) -> None:
        for entry in self._entries:
            try:
                if entry.stop is not None:
                    entry.stop()
            except Exception as error:  # noqa: BLE001 - raised by `check`
                self.trouble = self.trouble or error

    @property
    def is_over(self) -> bool:
        """
        Whether all were asked, and their threads have ended.
        """
        return not any(thread.is_alive() for thread in self._threads)

    def wait(self, deadline: float) -> None:
        """
        Until it is over, or the monotonic time *deadline*.
        """
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def check(self) -> None:
        """
        Raise what a *stop* has raised.
        """
        if self.trouble is not None:
            raise self.trouble


def thread_starter(
    target: Callable[..., object], name: str, args: Sequence[Any], kwargs: dict[str, Any] | None, *, daemon: bool
) -> Callable[[], threading.Thread]:
    """
    What starts a declared thread.
    """

    def start() -> threading.Thread:
        thread = threading.Thread(target=target, name=name, args=tuple(args), kwargs=kwargs, daemon=daemon)
        thread.start()
        return thread

    return start
