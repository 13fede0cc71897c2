"""
What `Pool`, `AsyncPool` and `Executor` have in common: how they are configured, and the checks of that.

Runs in: application, any thread.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, Literal

from safespawn._core.cpus import usable_cpus
from safespawn._drive.crew import Crew
from safespawn._drive.post import CrewConfig, PoolEvent
from safespawn._drive.worker import Inheritance
from safespawn._worker import current, main_module
from safespawn._worker.carried import Carrier, Variable
from safespawn._worker.payload import pack
from safespawn.errors import BadArgument, BadArgumentType
from safespawn.supervisor import current_engine

GRACE_SECONDS = 5.0  # for a stopping worker to finish by itself: its finalizer, its exit functions
_names = itertools.count(1)


class PoolBase:
    """
    What `Pool`, `AsyncPool` and `Executor` have in common: how they are configured.

    Args:
        processes: Workers; default: the CPUs that this process may use, by affinity and control group.
        initializer: Called in each worker before its first task, with *initargs*. When it raises, the pool is broken.
        initargs: Its arguments.
        maxtasksperchild: Tasks after which a worker is replaced.
        context: As multiprocessing's; not needed, not used.
        name: For messages, process names and statistics.
        preload: Modules to import once, in the template, before the workers are forked from it.
        env: The workers' whole environment; default: the application's when a worker starts.
        cwd: Their working directory; default: the application's when a worker starts.
        affinity: CPUs for the workers: a list of CPUs for all, or a list of lists, one for each worker in turn.
        max_rss_bytes: Resident memory of a worker at which its task fails with `WorkerMemoryExceeded`.
        finalizer: Called in each worker that ends in order.
        spares: Further workers, ready to take the place of one that ends.
        grace: Seconds that an ending worker has for its finalizer and exit functions.
        library_threads: For OMP_NUM_THREADS and the like; default: CPUs divided by workers.
        logging: "relay": what workers log comes to the handlers of this process; "inherit": workers have the levels of
            this process, and handlers of their own; "off": their logging is theirs.
        output: What becomes of what workers, and the processes that they start, write to stdout and stderr: "inherit":
            it goes where this process's goes; "prefix": the same, each line with the worker's name before it; "log":
            each line is a record of the logger ``safespawn.stdout.WORKER`` or ``safespawn.stderr.WORKER``; "return":
            results are `Returned` tuples of value, stdout and stderr; a path: into that file, at its end, where
            ``{worker}`` and ``{pid}`` stand for the worker's number and process.
        contextvars: Context variables, each of a module, whose values go along with each call.
        on_event: Called with each `PoolEvent`.

    Raises:
        BadArgument, BadArgumentType: What cannot be.
        UnpicklableTask: *initializer* or *finalizer* cannot be sent to a worker.
        MainReentered: The program's own file makes a pool when it is imported.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: Any = None,
        *,
        name: str | None = None,
        preload: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        cwd: Any = None,
        affinity: Sequence[Any] | None = None,
        max_rss_bytes: int | None = None,
        finalizer: Callable[[], object] | None = None,
        spares: int = 0,
        grace: float = GRACE_SECONDS,
        library_threads: int | None = None,
        logging: Literal["relay", "inherit", "off"] = "relay",
        output: "str | os.PathLike[str]" = "inherit",
        contextvars: Iterable[ContextVar[Any]] = (),
        on_event: Callable[[PoolEvent], object] | None = None,
    ) -> None:
        del context
        current.refuse_reentry(type(self).__name__)
        cpus = usable_cpus()
        size = cpus if processes is None else positive("processes", processes)
        if maxtasksperchild is not None:
            limit: Any = maxtasksperchild  # not every caller's code has been checked for types
            if not isinstance(limit, int) or limit < 1:
                raise BadArgument(
                    "maxtasksperchild must be a positive int or None",
                    parameter="maxtasksperchild",
                    value=maxtasksperchild,
                )
        if initializer is not None and not callable(initializer):
            raise BadArgumentType("initializer must be a callable", parameter="initializer", value=initializer)
        sys.modules.setdefault("__mp_main__", sys.modules["__main__"])  # what workers call it, in what they send back
        self._main = main_module.describe()
        self._by_value = self._main is None
        self.name: str = name or f"pool-{next(_names)}"
        packed, inheritance = None, None
        if initializer is not None:
            packed, inheritance = self._pack_initializer((initializer, tuple(initargs)))
        self._initargs = initargs  # as the standard one: what is only named there, a lock, lives as long as the pool
        config = CrewConfig(
            name=self.name,
            size=size,
            preload=checked_preload(preload),
            main=self._main,
            initializer=packed,
            inheritance=inheritance,
            finalizer=None if finalizer is None else pack(finalizer, what="initializer", by_value=self._by_value)[0],
            env=None if env is None else {os.fsencode(key): os.fsencode(value) for key, value in env.items()},
            cwd=None if cwd is None else os.fsencode(cwd),
            cpus=_cpu_sets(affinity),
            max_tasks=maxtasksperchild,
            max_rss_bytes=max_rss_bytes,
            spares=spares,
            grace=grace,
            library_threads=library_threads or max(1, cpus // size),
            output=_checked_output(output),
            logging=one_of("logging", logging, ("relay", "inherit", "off")),
            on_event=on_event,
        )
        self._size = size
        variables = tuple((variable, _place_of(variable, self._by_value)) for variable in contextvars)
        self._carrier = Carrier(variables, capture=output == "return") if variables or output == "return" else None
        self._crew = Crew(current_engine(), config)
        self._eager = initializer
        self._open()

    def _open(self) -> None:
        """
        The pool is configured: what a kind of pool does then.
        """

    def _pack_initializer(self, call: Any) -> tuple[tuple[bytes, Any], Inheritance | None]:
        """
        Pickle the initializer; locks and queues of multiprocessing go along as they do with a process of its own.
        """
        try:
            return pack(call, what="initializer", by_value=self._by_value), None
        except Exception:
            if "multiprocessing.context" not in sys.modules:
                raise
            from safespawn._inherit import pack_inheriting

            try:
                data, inheritance = pack_inheriting(call)
            except RuntimeError:
                raise
            except Exception:  # noqa: BLE001 - then the first error says more
                data, inheritance = b"", None
            if inheritance is not None and self._by_value and b"__main__" in data:  # nobody there could import that
                inheritance.close()
                raise
            if inheritance is None:
                raise
            return (data, ()), inheritance

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r} with {self._size} workers>"

    def statistics(self) -> dict[str, Any]:
        """
        Figures: tasks waiting, completed, failed; seconds they were queued and ran; each worker's pid, state and task.
        """
        return self._crew.statistics()

    def events(self) -> list[PoolEvent]:
        """
        What happened to the workers lately, a thousand events at most.
        """
        return list(self._crew.events)


def checked_preload(preload: Sequence[str]) -> tuple[str, ...]:
    """
    The names of modules.

    Raises:
        BadArgumentType: It is one name, and not a list.
    """
    if isinstance(preload, str):
        raise BadArgumentType(
            "preload is a list of module names", parameter="preload", value=preload, help=f"give [{preload!r}]"
        )
    return tuple(preload)


def positive(name: str, value: Any) -> int:
    """
    *value*, the parameter *name*, if it is a whole number from 1 up.

    Raises:
        BadArgument, BadArgumentType: It is not.
    """
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadArgumentType(f"{name} is a number of at least 1", parameter=name, value=value)
    if value < 1:
        what = "Number of processes must be at least 1" if name == "processes" else f"{name} must be at least 1"
        raise BadArgument(what, parameter=name, value=value)
    return value


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """
    *value*, the parameter *name*, if it is one of *choices*.

    Raises:
        BadArgument: It is not.
    """
    if value not in choices:
        raise BadArgument(f"{name} is one of {', '.join(map(repr, choices))}", parameter=name, value=value)
    chosen: str = value
    return chosen


OUTPUTS = ("inherit", "prefix", "log", "return")


def _checked_output(output: Any) -> str:
    if isinstance(output, str) and output in OUTPUTS:
        return output
    if isinstance(output, os.PathLike) or (isinstance(output, str) and ("/" in output or "." in output)):
        return _absolute(output)
    raise BadArgument(
        f"output is one of {', '.join(map(repr, OUTPUTS))}, or a path (a str with a slash or a dot in it)",
        parameter="output", value=output,
    )  # fmt: skip


def _absolute(path: Any) -> str:
    return os.path.abspath(os.fsdecode(path))


def _is_variable(value: Any) -> bool:
    return isinstance(value, ContextVar)


def _place_of(variable: Any, by_value: bool) -> Variable:  # noqa: FBT001 - as everywhere here
    """
    Where the workers find a context variable.

    Raises:
        BadArgument, BadArgumentType: They do not.
    """
    if not _is_variable(variable):
        raise BadArgumentType(
            "contextvars is a list of contextvars.ContextVar", parameter="contextvars", value=variable
        )
    for name, module in list(sys.modules.items()):
        if name == "__mp_main__" or (name == "__main__" and by_value):
            continue
        for key, value in list(getattr(module, "__dict__", {}).items()):
            if value is variable:
                return Variable(name, key)
    raise BadArgument(
        f"{variable!r} is in no module that a worker could import", parameter="contextvars", value=variable,
        help="make it at the top level of a module",
    )  # fmt: skip


def _cpu_sets(affinity: Sequence[Any] | None) -> tuple[tuple[int, ...], ...]:
    if not affinity:
        return ()
    if all(isinstance(each, int) for each in affinity):
        return (tuple(affinity),)
    return tuple(tuple(each) for each in affinity)
