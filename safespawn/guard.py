"""
The order guard: says which threads already run when the application reaches its fork point, and after that what else
forks.

Here is the first part, at `safespawn.init()` and on entering a Supervisor; `_policy` and `_watch` are the second. It
runs in the application, and only looks: it never stops a thread, signals it, reads its memory, or calls a C function
with a thread's handle, which would crash if that thread ended meanwhile. Because the zygote is exec'ed, threads that
run early corrupt nothing of ours; they are what makes every *other* fork of the program unsafe.

How a census is taken. Three lists are compared:

    threading.enumerate()    what `threading` knows: name, target, kernel id; by the recorder also the place
    sys._current_frames()    every thread that runs Python, by handle: `_thread.start_new_thread` ones as well
    /proc/self/task          every thread there is, by kernel id, with its comm

A thread in the first list is matched to the third by its kernel id. One that is only in the second has no
kernel id, only a handle; C libraries on Linux keep the thread's own record at the top of its stack and use
its address as the handle, so the task whose stack pointer lies closest below is that thread. What is left in
the third list runs no Python: a native thread.

The lists cannot be read at one moment, and a thread that was joined is still in the third for some
microseconds. So whatever is only in the third is believed after it was there, asleep, in a few looks in a
row.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any, Literal

import attrs

from safespawn import _policy, _recorder, errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import FrameType

    from safespawn._policy import Policy
    from safespawn._watch import ForkRecord

Place = tuple[str, int]

_TASK_DIR = "/proc/self/task"
_LOOK_INTERVAL = 0.001  # seconds; a joined thread is gone after some 0.05 ms, if a CPU is free
_CALM_LOOKS = 3  # looks in a row that must agree on the threads without Python: arbitrary, 2 ms in all
_SETTLE_LIMIT = 0.1  # seconds, then what is in doubt is reported as it is: a BLAS thread may spin for ever
_STACK_SPAN_BYTES = 8 << 20  # a usual thread stack; farther from its top, a stack pointer is in another
_HELP = (
    "start these threads after this line; if importing a module starts them, import it after this line.\n"
    "Nothing is corrupted: safespawn's own processes come from a clean one. Bare forks are what is in danger."
)


def _at(place: Place | None) -> str:
    return "" if place is None else f"{place[0]}:{place[1]}"


@attrs.frozen(kw_only=True)
class ThreadFact:
    """
    What is known about one thread; None is "not known".

    Args:
        name: Its `threading` name; else the kernel's (comm); else "?".
        kind: "python" if it has run Python code, else "native" (BLAS, gRPC, any C library's).
        native_id: The kernel's id; None without /proc, or if the thread is just being started.
        daemon: Whether the interpreter ends without waiting for it.
        in_threading: Whether `threading` started it or was told of it: False for `_thread.start_new_thread`
            and C callbacks.
        target: The qualified name of the function it was started with.
        target_at: Where that function is defined.
        started_at: The user's line that started it, if the recorder was installed by then.
        running_at: The user's line that it executes now; its innermost frame outside the standard library.
        comm: The kernel's name for it; up to 3.13 that is the program's, if C code gave it no other.
    """

    name: str
    kind: Literal["python", "native"]
    native_id: int | None = None
    daemon: bool = False
    in_threading: bool = False
    target: str | None = None
    target_at: Place | None = None
    started_at: Place | None = None
    running_at: Place | None = None
    comm: str | None = None

    def __str__(self) -> str:
        if self.kind == "native":
            return f"'{self.name}' (native, id {self.native_id}): started by C code, place unknown"
        notes = ["daemon"] if self.daemon else []
        if not self.in_threading:
            notes += ["not known to threading"] + ([f"id {self.native_id}"] if self.native_id else [])
        text = f"'{self.name}'" + (f" ({', '.join(notes)})" if notes else "")
        if self.target:
            text += f" runs {self.target}" + (f" ({_at(self.target_at)})" if self.target_at else "")
        if self.running_at:
            text += f", now at {_at(self.running_at)}"
        if self.started_at:
            return f"{text}; started at {_at(self.started_at)}"
        if self.in_threading:
            return f"{text}; started before 'import safespawn': place unknown"
        return f"{text}; started by _thread or by C code: place unknown"


def check_order(policy: Policy, *, what: str, stacklevel: int = 1) -> tuple[ThreadFact, ...]:
    """
    Complain if threads run at a fork point.

    Args:
        policy: "error" raises, "warn" warns, "off" does not even look.
        what: What is about to happen, as the start of a sentence: "safespawn.init() is called".
        stacklevel: Whose line a warning is about: 1 is the caller of this function, 2 its caller, as for
            `warnings.warn`.

    Returns:
        The threads that run.

    Raises:
        BadArgument: *policy* is none of the three.
        OrderError: Threads run, and *policy* is "error".

    Warns:
        ThreadOrderWarning: Threads run, and *policy* is "warn". By Python's default filter each line
            warns only once, whatever the threads do meanwhile.

    Runs in: application, any thread. May take some milliseconds, 0.1 s at worst, if there are native threads.
    """
    _policy.check(policy)
    if policy == "off":
        return ()
    facts = census()
    if facts:
        error = errors.OrderError(what, threads=[str(fact) for fact in facts], help=_HELP)
        if policy == "error":
            raise error
        _warn(str(error), stacklevel + 1)
    return facts


def _warn(text: str, stacklevel: int) -> None:
    """
    Warn, once per line under the filters that say so.

    The registry of warnings remembers whole texts, and ours changes as the threads move on. So what is
    remembered for this line is replaced by the new text first; if the filters were changed since, or are
    "always" or "error", Python takes no notice of it, and rightly.
    """
    try:
        frame = sys._getframe(stacklevel)  # pyright: ignore[reportPrivateUsage]
        registry = frame.f_globals.get("__warningregistry__", {})
        for key in list(registry):
            if isinstance(key, tuple) and key[1:] == (errors.ThreadOrderWarning, frame.f_lineno):
                registry[(text, *key[1:])] = registry.pop(key)
    except ValueError:
        pass  # fewer callers than that; warnings.warn() then names the outermost
    warnings.warn(text, errors.ThreadOrderWarning, stacklevel=stacklevel + 1)


def phase() -> Literal["boot", "running"]:
    """
    Tell in which phase the program is: "running" from `safespawn.init()`, or while a Supervisor is entered.
    """
    return "running" if _policy.layers else "boot"


def policies() -> dict[str, Policy]:
    """
    Tell what is done about each kind of start now; everything is "off" in the boot phase.
    """
    return dict(_policy.layers[-1].policies) if _policy.layers else dict.fromkeys(_policy.KINDS, "off")


def forks() -> tuple[ForkRecord, ...]:
    """
    Tell of the forks of this process that copied threads, the latest last; in such a copy, the last one is its own.

    They are kept from the fork point on, sixteen of them. Each has `pid`, `time` and `threads`: who was alive, where
    each was started, and where it stood.
    """
    from safespawn import _watch

    return tuple(_watch.records)


def recorded() -> int:
    """
    Count the living threads whose place of start is on record.

    Runs in: application, any thread.
    """
    return sum(_recorder.started_at(thread) is not None for thread in threading.enumerate())


def census(task_dir: str = _TASK_DIR) -> tuple[ThreadFact, ...]:
    """
    Name every thread of this process except the main one.

    The main thread is what a single-threaded program has, so it never counts. Called from another thread,
    that one counts: it is there, and it was started.

    Args:
        task_dir: Where the kernel lists the threads. If it cannot be read, or is about other ids (a /proc of
            another pid namespace), only threads that run Python are found.

    Returns:
        One fact per thread: what `threading` knows, in its order; other Python threads; native ones by id.

    Runs in: application, any thread; not in a signal handler.
    Source: proc_pid_task(5), proc_pid_syscall(5).
    """
    limit = time.monotonic() + _SETTLE_LIMIT
    calm, before = 0, None
    while True:
        look = _Look.now(task_dir)
        if look.settled:
            return look.facts
        natives = {fact.native_id for fact in look.facts if fact.kind == "native"}
        calm = calm + 1 if look.calm and natives == before else 1
        before = natives
        if (look.calm and calm >= _CALM_LOOKS) or time.monotonic() >= limit:
            return look.facts
        time.sleep(_LOOK_INTERVAL)


# --- one look
# ---------------------------------------------------------------------------------------------------------


@attrs.frozen
class _Task:
    """A thread as the kernel lists it; *stack* is its stack pointer, None while it runs or if hidden."""

    comm: str
    asleep: bool
    stack: int | None


@attrs.frozen
class _Look:
    """One comparison of the three lists. *settled*: nothing is in doubt. *calm*: what is in doubt sleeps."""

    facts: tuple[ThreadFact, ...]
    settled: bool
    calm: bool

    @classmethod
    def now(cls, task_dir: str) -> _Look:
        """Read the lists and compare them."""
        main = threading.main_thread()
        threads = [thread for thread in threading.enumerate() if thread is not main]
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
        try:
            tasks = _read_tasks(task_dir)
            main_id = main.native_id if tasks and main.native_id in tasks else os.getpid()
            if not tasks or tasks.pop(main_id or 0, None) is None:
                tasks = None  # the ids are another namespace's
            return compare(threads, frames, tasks, main_ident=main.ident)
        finally:
            frames.clear()  # a kept frame keeps its local variables alive


def _read(path: str) -> str:
    # Not open(): one system call less each, and no text layer. The files are short and of one piece.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 4096).decode("utf-8", "replace")
    finally:
        os.close(fd)


def _read_tasks(task_dir: str) -> dict[int, _Task] | None:
    """Read what the kernel lists; None if it cannot be read. A thread that ends while we look is left out."""
    try:
        ids = [int(name) for name in os.listdir(task_dir)]
    except (OSError, ValueError):
        return None
    tasks: dict[int, _Task] = {}
    for native_id in ids:
        try:
            stat = _read(f"{task_dir}/{native_id}/stat")
        except OSError:
            continue
        # As in "4041 (a name, perhaps with brackets) S ...":
        comm, _, rest = stat.partition("(")[2].rpartition(")")
        try:
            # Number and six arguments of a system call, stack pointer, program counter; or the word
            # "running".
            stack = int(_read(f"{task_dir}/{native_id}/syscall").split()[-2], 16)
        except (OSError, ValueError, IndexError):
            stack = 0
        tasks[native_id] = _Task(comm, asleep=rest[1:2] in ("S", "D", "T", "t"), stack=stack or None)
    return tasks


def compare(
    threads: Iterable[threading.Thread],
    frames: Mapping[int, FrameType],
    tasks: Mapping[int, _Task] | None,
    *,
    main_ident: int | None,
) -> _Look:
    """
    Turn the three lists into facts. Pure, but for reading the attributes of the threads.

    Args:
        threads: What `threading` knows, without the main thread.
        frames: What each thread runs, by handle.
        tasks: What the kernel knows, without the main thread; None if unknown.
        main_ident: The main thread's handle.
    """
    facts: list[ThreadFact] = []
    natives = dict(tasks or {})
    unknown = {ident: frame for ident, frame in frames.items() if ident != main_ident}
    settled = True
    for thread in threads:
        native_id, ident = thread.native_id, thread.ident
        frame = unknown.pop(ident, None) if ident is not None else None
        task = natives.pop(native_id, None) if native_id is not None else None
        if native_id is None:
            settled = False  # between start() and its first step: its kernel id is nobody's yet
        elif tasks is not None and task is None:
            continue  # ended meanwhile
        facts.append(_fact_of(thread, frame, task))

    owners = _owners(unknown, natives)
    for ident, frame in unknown.items():
        native_id = owners.get(ident)
        task = natives.pop(native_id) if native_id is not None else None
        settled = settled and (task is not None or tasks is None)
        facts.append(_fact_of_frame(frame, native_id, task))

    settled = settled and not natives
    calm = all(task.asleep for task in natives.values()) and all(fact.native_id for fact in facts)
    facts += [
        ThreadFact(name=task.comm, kind="native", native_id=native_id, comm=task.comm)
        for native_id, task in sorted(natives.items())
    ]
    return _Look(tuple(facts), settled, calm)


def _owners(idents: Iterable[int], tasks: Mapping[int, _Task]) -> dict[int, int]:
    """
    Find the kernel ids of threads of which only the handle is known.

    One handle and one task left, and no stack pointer known of it (it runs, or the kernel hides it): they
    belong together. More than that stays unknown, and those threads are then told of twice: as Python's
    without an id, and as native.
    """
    idents = set(idents)
    gaps = sorted(
        (ident - task.stack, ident, native_id)
        for ident in idents
        for native_id, task in tasks.items()
        if task.stack is not None and 0 < ident - task.stack < _STACK_SPAN_BYTES
    )
    owners: dict[int, int] = {}
    for _, ident, native_id in gaps:
        if ident not in owners and native_id not in owners.values():
            owners[ident] = native_id
    left = idents - owners.keys()
    hidden = [native_id for native_id, task in tasks.items() if task.stack is None]
    if len(left) == len(hidden) == 1:
        owners[left.pop()] = hidden[0]
    return owners


# --- what one thread is
# -----------------------------------------------------------------------------------------------


def _fact_of(thread: threading.Thread, frame: FrameType | None, task: _Task | None) -> ThreadFact:
    target, target_at = _function(_target(thread))
    started_at = _recorder.started_at(thread)
    return ThreadFact(
        name=thread.name,
        kind="python",
        native_id=thread.native_id,
        daemon=thread.daemon,
        # A dummy was not started by threading; it has asked for its own name and so became known to it. The
        # class has no public name.
        in_threading=not isinstance(thread, threading._DummyThread),  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
        target=target,
        target_at=target_at,
        started_at=started_at,
        running_at=_recorder.user_place(frame),
        comm=task.comm if task else None,
    )


def _fact_of_frame(frame: FrameType, native_id: int | None, task: _Task | None) -> ThreadFact:
    running_at = _recorder.user_place(frame)
    while frame.f_back is not None:
        frame = frame.f_back
    code = frame.f_code
    return ThreadFact(
        name=task.comm if task else "?",
        kind="python",
        native_id=native_id,
        daemon=True,  # the interpreter waits for no thread that threading does not know
        target=f"{frame.f_globals.get('__name__', '?')}.{code.co_qualname}",
        target_at=(code.co_filename, code.co_firstlineno),
        running_at=running_at,
        comm=task.comm if task else None,
    )


def _target(thread: threading.Thread) -> Any:
    """Find what the thread was made to run; `threading` has no public name for it and forgets it later."""
    if isinstance(thread, threading.Timer):
        return thread.function
    if type(thread).run is not threading.Thread.run:
        return type(thread).run
    return getattr(thread, "_target", None)


def _function(target: Any) -> tuple[str | None, Place | None]:
    """Tell the qualified name and the place of definition of anything that can be called."""
    if target is None:
        return None, None
    while isinstance(target, functools.partial):
        target = target.func
    function = getattr(target, "__func__", target)  # of a bound method
    if not hasattr(function, "__qualname__"):  # an object that can be called: its class says what
        function = type(function).__call__
    module = getattr(function, "__module__", None) or type(target).__module__
    code = getattr(function, "__code__", None)
    return f"{module}.{function.__qualname__}", (code.co_filename, code.co_firstlineno) if code else None
