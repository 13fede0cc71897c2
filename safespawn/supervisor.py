"""
The owner of a zygote's life: `Supervisor`, the default one behind the module's functions, and `init`.

Entering a Supervisor is the line between a program's two phases: before it, boot, when no thread runs; after it,
threads may start and nothing forks any more. The zygote is started on the line. Because it is exec'ed, a late start is
a diagnosis and not a corruption: the default is a warning that says which threads were there first.

Leaving ends everything that was started, within a bound.

Runs in: application, any thread; entered and left by the same one.
"""

# What is private is ruff's to watch (SLF001), with a reason at each exception.
# pyright: reportPrivateUsage=false

import atexit
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from safespawn import _policy, _start_method, _watch
from safespawn import guard as order
from safespawn._commands import Runner
from safespawn._core.options import deadline_after
from safespawn._drive.blocking import drive
from safespawn._drive.engine import Engine
from safespawn._order import Declared, Plan, Stopping, thread_starter
from safespawn._policy import Setting
from safespawn.errors import BadArgument, BadArgumentType, ClosedError

STOP_SECONDS = 5.0  # how long leaving may take before everything is killed; SIGTERM's grace is a part of it
_CENSUS_SECONDS = 2.0
_LOOK_SECONDS = 0.005  # between looks whether a thread has ended, for an event loop that cannot wait for it


class Supervisor(Runner):
    """
    Starts commands, and ends what is left of them when it is left.

    Args:
        name: For messages.
        guard: What to do when threads run before the zygote does, and while it is entered when something forks: "warn",
            "error" or "off"; or a mapping with one of these for each of the kinds "thread", "fork", "preexec", "shell",
            "start-method", "import". With "off" a guard that is set already goes on.
        allow: Modules that may, as patterns: ``["gunicorn.*"]``.
        start_method: multiprocessing's default from here on: "safespawn", "forkserver", "spawn"; None leaves it alone.
        stop_timeout: Seconds that leaving may take before everything that still runs is killed.

    While it is entered, the module's functions (`safespawn.run` and the others) use its zygote too.

    Raises:
        OrderError: Threads run, and the guard says "error".
        BootError: The zygote did not come up.
    """

    def __init__(
        self,
        name: str = "supervisor",
        *,
        guard: Setting = "warn",
        allow: Sequence[str] = (),
        start_method: str | None = "safespawn",
        stop_timeout: float = STOP_SECONDS,
    ) -> None:
        if deadline_after(stop_timeout, 0.0) is None:
            raise BadArgumentType("stop_timeout is a number of seconds", parameter="stop_timeout", value=stop_timeout)
        self.name = name
        _start_method.check(start_method)
        self._start_method = start_method
        self._layer = _policy.make_layer(guard, allow)
        self._stop_timeout = stop_timeout
        self._engine = Engine(f"Supervisor {name!r}")
        self._plan = Plan()
        self._change: tuple[Any, Any] | None = None  # of multiprocessing's start method

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r}>"

    def __enter__(self) -> Self:
        return self._open(stacklevel=2)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception as trouble:
            if not _noted(error, self.name, trouble):
                raise

    async def __aenter__(self) -> Self:
        from safespawn._drive.async_driver import adrive

        self._check_line(stacklevel=2)
        try:
            await adrive(self._engine.zygote_flow(patient=True))
            self._enter()
            self._plan.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.aclose()
        except Exception as trouble:
            if not _noted(error, self.name, trouble):
                raise

    def _open(self, stacklevel: int) -> Self:
        self._check_line(stacklevel + 1)
        try:
            drive(self._engine.zygote_flow())
            self._enter()
            self._plan.start()
        except BaseException:
            self.close()
            raise
        return self

    def _check_line(self, stacklevel: int) -> None:
        if self._engine.closed:
            raise ClosedError(f"Supervisor {self.name!r}")
        if self in _entered:
            raise BadArgument(
                f"Supervisor {self.name!r} is entered already", parameter="self", value=self, help="make another one"
            )
        thread = self._layer.policies["thread"]
        order.check_order(thread, what=f"Supervisor {self.name!r} starts", stacklevel=stacklevel + 1)

    def _enter(self) -> None:
        _entered.append(self)
        self._change = _draw_line(self._layer, self._start_method)

    def _leave(self) -> None:
        if self in _entered:
            _entered.remove(self)
            _watch.end(self._layer)
            _start_method.restore(self._change)

    # --- the declared order ------------------------------------------------------------------------------------------
    def declare(self, start: Callable[[], Any], *, name: str, after: Sequence[str] = ()) -> None:
        """
        Declare something that starts processes: *start* is called when this supervisor is entered, before any thread.

        Args:
            start: Called without arguments: ``lambda: safespawn.Pool(4)``. What it returns is `declared` by its name.
            name: What it is called, in messages and in the ``after`` of others.
            after: Names of those that are started before it.

        Raises:
            BadArgument: There is one of that name; on entering: *after* names nobody, a thread, or makes a circle.
        """
        self._plan.add(Declared(name, is_thread=False, start=start, after=tuple(after)))

    def thread(
        self, target: Callable[..., object], *, name: str, args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None, after: Sequence[str] = (), daemon: bool = True,
        stop: Callable[[], object] | None = None,
    ) -> None:  # fmt: skip
        """
        Declare a thread: it starts when the last declared child is up; at once, if this supervisor is entered.

        Args:
            target: The function that it runs.
            name: Its name, also for the ``after`` of others.
            args: For *target*.
            kwargs: For *target*.
            daemon: Whether the program may end without it.
            after: Names of those that are started before it.
            stop: Called when this supervisor is left, before its processes are ended: ``event.set``. The thread is then
                waited for. Both within stop_timeout: it is called in a thread of its own.

        Raises:
            BadArgument: As `declare`.
        """
        start = thread_starter(target, name, args, kwargs, daemon=daemon)
        self._plan.add(Declared(name, is_thread=True, start=start, after=tuple(after), stop=stop))

    def start_soon_after_boot(
        self,
        start: Callable[[], Any],
        *,
        name: str = "",
        after: Sequence[str] = (),
        stop: Callable[[], object] | None = None,
    ) -> None:
        """
        Declare something that starts threads by itself: ``start_soon_after_boot(listener.start, stop=listener.stop)``
        for a QueueListener, a thread pool, a client library. As `thread` otherwise.
        """
        name = name or getattr(start, "__qualname__", "") or repr(start)
        self._plan.add(Declared(name, is_thread=True, start=start, after=tuple(after), stop=stop))

    @property
    def declared(self) -> dict[str, Any]:
        """
        What each declaration has started, by name: a thread for `thread`, else what *start* returned; None before.
        """
        return {entry.name: entry.result for entry in self._plan.declared.values()}

    def close(self) -> None:
        """
        End everything that this supervisor started: declared threads are asked to stop; SIGTERM, a grace, SIGKILL,
        whole trees. Bounded by stop_timeout.

        A second call does nothing. In a forked copy of the application nothing is touched.
        """
        stopping, deadline = self._begin_to_close()
        try:
            stopping.wait(deadline)
        finally:
            drive(self._engine.close_flow(deadline))
        stopping.check()

    def _begin_to_close(self) -> tuple[Stopping, float]:
        """
        Be left, and have the declared threads stopped; with the monotonic time by which all is to be over.
        """
        self._leave()
        deadline = time.monotonic() + self._stop_timeout
        ours = self._engine.pid == os.getpid()
        return self._plan.stop() if ours else Stopping([]), deadline

    async def aclose(self) -> None:
        """
        `close` for an event loop. A cancellation waits for it: its time is bounded by stop_timeout.
        """
        import anyio

        from safespawn._drive.async_driver import adrive, shielded

        stopping, deadline = self._begin_to_close()
        with shielded():
            try:
                while not stopping.is_over:
                    await anyio.sleep(_LOOK_SECONDS)
                    if time.monotonic() >= deadline:
                        break
            finally:
                await adrive(self._engine.close_flow(deadline))
        stopping.check()

    def Popen(self, args: Any, **options: Any) -> Any:  # noqa: N802 - the name that it stands for
        """
        `safespawn.Popen` from this supervisor's zygote.
        """
        from safespawn.process import Popen

        return Popen(args, engine=self._engine, **options)

    open_process = Popen

    async def aopen_process(self, args: Any, **options: Any) -> Any:
        """
        `safespawn.aopen_process` from this supervisor's zygote.
        """
        from safespawn.aprocess import aopen_process

        return await aopen_process(args, engine=self._engine, **options)

    def statistics(self) -> dict[str, Any]:
        """
        Figures: how many zygotes were started, which run, connections, and what the present zygote says of itself.

        Blocks for its answer, two seconds at most; without one ``zygote`` is empty.
        """
        figures = self._engine.statistics()
        figures["name"] = self.name
        figures["zygote"] = drive(self._engine.census_flow(time.monotonic() + _CENSUS_SECONDS))
        return figures


def _noted(error: BaseException | None, name: str, trouble: Exception) -> bool:
    """
    Note *trouble* at the error that is on its way already, whose place it must not take; False where there is none.
    """
    if error is not None:
        error.add_note(f"leaving Supervisor {name!r} also raised {type(trouble).__name__}: {trouble}")
    return error is not None


_entered: list[Supervisor] = []
_default: list[Supervisor] = []


def default_supervisor() -> Supervisor:
    """
    The supervisor of the module's functions: the one entered last, else one for the life of the process.
    """
    if _entered:
        return _entered[-1]
    try:
        return _default[0]
    except IndexError:
        _default.append(Supervisor("default", guard="off"))
        if len(_default) == 1:
            atexit.register(_close_default)
        return _default[0]


def current_engine() -> Engine:
    """
    The engine of `default_supervisor`.
    """
    return default_supervisor()._engine  # noqa: SLF001 - the same module's class


def init(
    guard: Setting = "warn",
    *,
    allow: Sequence[str] = (),
    start_method: str | None = "safespawn",
    preload: Sequence[str] | None = None,
) -> None:
    """
    Draw the line: check that no thread runs yet, and start the zygote. Call it once, first thing in the program.

    From here on threads may start, and nothing else may fork: `os.fork`, a ``preexec_fn``, `os.system`, the start
    method "fork", and any start of a process while a module is being imported, are met by the policy.

    Args:
        guard: What to do then, and when threads run already: "warn", "error" or "off"; or a mapping with one of these
            for each of the kinds "thread", "fork", "preexec", "shell", "start-method", "import". Another call changes
            it.
        allow: Modules that may, as patterns: ``["gunicorn.*"]``.
        start_method: multiprocessing's default from here on: "safespawn", "forkserver", "spawn"; None leaves it alone.
        preload: For a program that has pools: start the template of their workers as well, with these modules imported
            (``[]`` for none). A `Pool` with the same *preload* then has its workers in some milliseconds.

    Raises:
        OrderError: Threads run, and *guard* is "error".
        BootError: The zygote did not come up.
        PreloadError: A module of *preload* raises at its import, or leaves a thread behind.
        BadArgument: No such policy, kind or start method.
    """
    layer = _policy.make_layer(guard, allow)
    _start_method.check(start_method)
    order.check_order(layer.policies["thread"], what="safespawn.init() is called", stacklevel=2)
    engine = current_engine()
    drive(engine.zygote_flow())
    if _init_layer:
        _watch.end(_init_layer.pop())
    _init_layer.append(layer)
    _draw_line(layer, start_method, first=True)
    if preload is not None:
        from safespawn.pool import warm_template

        warm_template(engine, preload)


_init_layer: list[_policy.Layer] = []


def _draw_line(layer: _policy.Layer, start_method: str | None, *, first: bool = False) -> "tuple[Any, Any] | None":
    """
    The boot phase is over: the policies of *layer* count, and multiprocessing's start method is forced.
    """
    if set(layer.policies.values()) != {"off"}:
        _watch.begin(layer, first=first)
    return _start_method.force(start_method, quietly=layer.policies["start-method"] == "off")


def _close_default() -> None:
    if _default and _default[0]._engine.pid == os.getpid():  # noqa: SLF001 - the same module's class
        _default[0].close()
        _default.clear()
