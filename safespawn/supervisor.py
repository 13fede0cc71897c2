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
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from safespawn import _policy, _start_method, _watch
from safespawn import guard as order
from safespawn._commands import Runner
from safespawn._core.command import unbooted
from safespawn._core.options import deadline_after
from safespawn._drive.blocking import drive
from safespawn._drive.engine import Engine
from safespawn._order import Declared, Plan, Stopping, thread_starter
from safespawn._policy import Setting
from safespawn.errors import BadArgument, BadArgumentType, ClosedError

if TYPE_CHECKING:
    from safespawn._core.events import Event
    from safespawn._core.flow import Flow
    from safespawn._core.restart import GiveUp, Strategy
    from safespawn._drive.keeper import Keeper
    from safespawn._family import Events, Family
    from safespawn.children import Child, ChildOptions

STOP_SECONDS = 5.0  # how long leaving may take before everything is killed; SIGTERM's grace is a part of it
_CENSUS_SECONDS = 2.0
SIGNALS = (signal.SIGINT, signal.SIGTERM)  # what asks a program to end; who sees that the last is heard knows of both
LOOK_SECONDS = 0.005  # between an event loop's looks at what a thread does: it cannot wait for it


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
        stop_timeout: Seconds that leaving may take before everything that still runs is killed; beside the time that
            the supervised children have for their end.
        strategy: Which children are started again with one that has failed: "one_for_one", itself only; "one_for_all",
            all; "rest_for_one", itself and those that were started after it.
        restarts: So many restarts are allowed,
        per: in so many seconds.
        give_up: What happens beyond that: "raise" stops all children, and `serve`, `start` and leaving raise
            `ChildrenGaveUp`; "degrade" leaves that child down, and the others are counted for themselves.
        on_event: Called with each event of the children (`safespawn.events`), where they are served: it must not wait.

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
        strategy: "Strategy" = "one_for_one",
        restarts: int = 5,
        per: float = 60.0,
        give_up: "GiveUp" = "raise",
        on_event: "Callable[[Event], object] | None" = None,
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
        self._policy: tuple[Any, ...] = (strategy, restarts, per, give_up, on_event)
        if self._policy != ("one_for_one", 5, 60.0, "raise", None):
            self._check_policy()
        self._family: Any = None  # a Family, with the first child
        self._is_async = False
        self._told: BaseException | None = None  # of the children, and raised already
        self._closer: threading.Thread | None = None  # once a callback has asked for the end
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
            if not noted(error, self.name, trouble):
                raise
        untold = self._untold(error)
        if untold is not None and not noted(error, self.name, untold):
            raise untold

    async def __aenter__(self) -> Self:
        from safespawn._drive.async_driver import adrive

        self._check_line(stacklevel=2)
        self._is_async = True
        try:
            try:
                await adrive(self._engine.zygote_flow(patient=True))
            except OSError as error:
                raise unbooted(error) from None
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
            if not noted(error, self.name, trouble):
                raise

    def _open(self, stacklevel: int) -> Self:
        self._check_line(stacklevel + 1)
        try:
            try:
                drive(self._engine.zygote_flow())
            except OSError as error:
                raise unbooted(error) from None
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
        End everything that this supervisor started: declared threads are asked to stop; the supervised children are
        stopped, the last one first, each within its own time; the rest gets SIGTERM, a grace, SIGKILL, whole trees,
        within stop_timeout. Ctrl-C makes it shorter.

        A second call does nothing. In a forked copy of the application nothing is touched. In a callback of the
        children (``on_event``, ``on_line``) it returns at once: a thread does all that, and leaving waits for it.
        """
        if self._family is not None and self._family.is_served_here():
            self._close_beside()
            return
        self._await_closer()
        stopping, deadline = self._begin_to_close()
        try:
            stopping.wait(deadline)
        finally:
            deadline = self._close_children(deadline)
        stopping.check()

    def _close_beside(self) -> None:
        """
        Have a thread close this supervisor: where a callback runs nothing can be waited for.
        """
        if self._closer is None:
            self._closer = threading.Thread(target=self.close, name=f"safespawn close {self.name}")
            try:
                self._closer.start()
            except RuntimeError:  # no further thread is allowed: then leaving does the rest
                self._closer = None
                self._family.keeper.call(self._family.keeper.close)

    def _await_closer(self) -> None:
        """
        Wait for the thread that closes this supervisor, if there is one. Ctrl-C makes it shorter.
        """
        closer, interruption = self._closer, None
        while closer is not None and closer is not threading.current_thread() and closer.is_alive():
            try:
                closer.join()
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption = interruption or error
                self._family.keeper.call(self._family.keeper.hurry)
        if interruption is not None:
            raise interruption

    def _close_children(self, deadline: float) -> float:
        """
        End the supervised children, then the engine with all the rest; returns the deadline of that.
        """
        family = self._family
        try:
            if family is not None:
                family.close()
                deadline = time.monotonic() + self._stop_timeout
        finally:
            drive(self._engine.close_flow(deadline))
        return deadline

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
                    await anyio.sleep(LOOK_SECONDS)
                    if time.monotonic() >= deadline:
                        break
            finally:
                await adrive(self._engine.close_flow(deadline))
        stopping.check()

    # --- supervised children -----------------------------------------------------------------------------------------
    def start(self, name: str, target: Any, /, *args: Any, **options: "Unpack[ChildOptions]") -> "Child":
        """
        Start a child that is kept alive, and wait until it is ready.

        Args:
            name: What it is called.
            target: A function, run in a process that is forked from a clean template; or a command, as a list.
            *args: For the function.
            **options: ``kwargs`` for the function. When it comes again: ``restart`` ("always", "on-failure", "never"),
                ``backoff``, ``no_restart_codes``. When it counts as ready: ``ready`` ("started", "notify", a port, a
                pattern, a function), ``ready_timeout``. How it is stopped: ``stop_timeout``, ``stop_signal``. How it is
                watched: ``heartbeat``, ``hang_after``, ``on_hung``. When another one takes its place: ``max_age``,
                ``memory_max``. And ``on_line``, ``preload``, ``env``, ``cwd``; for a command those of `run`.
                docs/supervisor.md tells each.

        Returns:
            The child; its `value` is what it passed to `safespawn.ready`.

        Raises:
            ChildFailed: It ended before it was ready; what it raised is the `__cause__`.
            ChildNotReady: It was not ready in time, and was ended.
            SpawnError: A command could not be started.
            ChildrenGaveUp: An earlier child has failed too often.
            UnpicklableTask, BadArgument, BadArgumentType: Nothing was started.

        Runs in: application, any thread; blocks. Ctrl-C ends what there is of the child.
        """
        from safespawn.children import make_terms

        return self._open_family().start(make_terms(name, target, args, options))

    def serve(self, signals: Iterable[int] = SIGNALS, timeout: float | None = None) -> int | None:
        """
        Wait until this program is to end: for one of *signals*, or until all children are at rest, or for *timeout*
        seconds. Tells systemd READY=1, where that has asked for it.

        From the first signal on until the supervisor is left, a further one makes the end of the children shorter. The
        signals are heard in the main thread only.

        Returns:
            The signal; None where none came.

        Raises:
            ChildrenGaveUp: A child has failed too often; all were stopped.
        """
        try:
            found: int | None = self._open_family().serve(signals, timeout)
        except BaseException as error:
            self._told = error
            raise
        return found

    def events(self) -> "Events":
        """
        What happens to the children from now on: ``for event in supervisor.events()``, in a thread of yours. It ends
        when the supervisor is left.
        """
        events: Events = self._open_family().events()
        return events

    def recent_events(self) -> "list[Event]":
        """
        What happened to the children lately, 250 events at most.
        """
        return [] if self._family is None else list(self._family.keeper.history)

    def _open_family(self) -> "Family":
        from safespawn._family import Family

        if self._is_async:
            raise BadArgument(
                f"{self!r} was entered by an event loop, which this would block", parameter="self", value=self,
                help="async with safespawn.AsyncSupervisor() as supervisor: await supervisor.start(...)",
            )  # fmt: skip
        if self._engine.closed or self not in _entered:
            raise ClosedError(f"Supervisor {self.name!r}", help="enter it: with safespawn.Supervisor() as supervisor")
        if self._family is None:
            self._family = Family(self._new_keeper())
        family: Family = self._family
        return family

    def _new_keeper(self) -> "Keeper":
        from safespawn._drive.keeper import Keeper

        strategy, restarts, per, give_up, on_event = self._policy
        return Keeper(
            self._engine, self.name, strategy=strategy, restarts=restarts, per=per, give_up=give_up, on_event=on_event
        )

    def _check_policy(self) -> None:
        from safespawn._core.restart import GIVE_UPS, STRATEGIES, check_choice, check_number

        strategy, restarts, per, give_up, on_event = self._policy
        check_choice("strategy", strategy, STRATEGIES)
        check_choice("give_up", give_up, GIVE_UPS)
        check_number("restarts", restarts)
        check_number("per", per)
        if on_event is not None and not callable(on_event):
            raise BadArgumentType("on_event is called with each event", parameter="on_event", value=on_event)

    def _untold(self, error: BaseException | None) -> "BaseException | None":
        """
        Why the children were given up, if nobody has been told yet.
        """
        broken = None if self._family is None else self._family.keeper.broken
        if broken is None or broken is self._told or broken is error:
            return None
        self._told = broken
        return broken  # type: ignore[no-any-return]

    # --- the rest ----------------------------------------------------------------------------------------------------
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
        return self._add_children(drive(self._statistics_flow()))

    def _statistics_flow(self) -> "Flow[dict[str, Any]]":
        figures = self._engine.statistics()
        figures["name"] = self.name
        figures["zygote"] = yield from self._engine.census_flow(time.monotonic() + _CENSUS_SECONDS)
        return figures

    def _add_children(self, figures: dict[str, Any]) -> dict[str, Any]:
        if self._family is not None:
            figures.update(self._family.keeper.statistics())
        return figures


def noted(error: BaseException | None, name: str, trouble: BaseException) -> bool:
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
        try:
            _default[0].close()
        except KeyboardInterrupt:
            pass  # it has made this shorter; the program ends anyway
        _default.clear()
