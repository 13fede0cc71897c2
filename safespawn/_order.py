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
        Start everything. If one fails, those before it are stopped.
        """
        entries = self.order()
        try:
            for entry in entries:
                self._start(entry)
        except BaseException:
            self.stop()
            raise
        self.running = True

    def _start(self, entry: Declared) -> None:
        entry.result = entry.start()
        self.started.append(entry)

    def stop(self) -> list[threading.Thread]:
        """
        Ask everything that can be asked to stop, the last one first. Returns the threads that may be waited for.

        Raises:
            Exception: Whatever the first *stop* raised that did; the others were called all the same.
        """
        self.running = False
        threads: list[threading.Thread] = []
        trouble: Exception | None = None
        while self.started:
            entry = self.started.pop()
            if entry.stop is None:
                continue
            try:
                entry.stop()
            except Exception as error:  # noqa: BLE001 - raised below
                trouble = trouble or error
            if isinstance(entry.result, threading.Thread):
                threads.append(entry.result)
        if trouble is not None:
            raise trouble
        return threads


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


def join_all(threads: Sequence[threading.Thread], deadline: float) -> None:
    """
    Wait for *threads*, until the monotonic time *deadline*.
    """
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
