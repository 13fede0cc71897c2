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
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Literal, Self

from safespawn import guard as order
from safespawn._commands import Runner
from safespawn._core.options import deadline_after
from safespawn._drive.blocking import drive
from safespawn._drive.engine import Engine
from safespawn.errors import BadArgumentType, ClosedError

Policy = Literal["error", "warn", "off"]
STOP_SECONDS = 5.0  # how long leaving may take before everything is killed; SIGTERM's grace is a part of it
_CENSUS_SECONDS = 2.0


class Supervisor(Runner):
    """
    Starts commands, and ends what is left of them when it is left.

    Args:
        name: For messages.
        guard: What to do when threads run before the zygote does: "warn", "error", or "off".
        stop_timeout: Seconds that leaving may take before everything that still runs is killed.

    While it is entered, the module's functions (`safespawn.run` and the others) use its zygote too.

    Raises:
        OrderError: Threads run, and the guard says "error".
        BootError: The zygote did not come up.
    """

    def __init__(self, name: str = "supervisor", *, guard: Policy = "warn", stop_timeout: float = STOP_SECONDS) -> None:
        if deadline_after(stop_timeout, 0.0) is None:
            raise BadArgumentType("stop_timeout is a number of seconds", parameter="stop_timeout", value=stop_timeout)
        self.name = name
        self._guard: Policy = guard
        self._stop_timeout = stop_timeout
        self._engine = Engine(f"Supervisor {name!r}")
        self._entered = False

    def __repr__(self) -> str:
        return f"<Supervisor {self.name!r}>"

    def __enter__(self) -> Self:
        return self._open(stacklevel=2)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        from safespawn._drive.async_driver import adrive

        self._check_line(stacklevel=2)
        await adrive(self._engine.zygote_flow(patient=True))
        self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _open(self, stacklevel: int) -> Self:
        self._check_line(stacklevel + 1)
        drive(self._engine.zygote_flow())
        self._enter()
        return self

    def _check_line(self, stacklevel: int) -> None:
        if self._engine.closed:
            raise ClosedError(f"Supervisor {self.name!r}")
        order.check_order(self._guard, what=f"Supervisor {self.name!r} starts", stacklevel=stacklevel + 1)

    def _enter(self) -> None:
        self._entered = True
        _entered.append(self)

    def _leave(self) -> None:
        if self in _entered:
            _entered.remove(self)

    def close(self) -> None:
        """
        End everything that this supervisor started: SIGTERM, a grace, SIGKILL, whole trees. Bounded by stop_timeout.

        A second call does nothing. In a forked copy of the application nothing is touched.
        """
        self._leave()
        drive(self._engine.close_flow(time.monotonic() + self._stop_timeout))

    async def aclose(self) -> None:
        """
        `close` for an event loop. A cancellation waits for it: its time is bounded by stop_timeout.
        """
        from safespawn._drive.async_driver import adrive, shielded

        self._leave()
        with shielded():
            await adrive(self._engine.close_flow(time.monotonic() + self._stop_timeout))

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


def init(guard: Policy = "warn", *, preload: Sequence[str] | None = None) -> None:
    """
    Draw the line: check that no thread runs yet, and start the zygote. Call it once, first thing in the program.

    Args:
        guard: What to do when threads run already: "warn", "error", or "off".
        preload: For a program that has pools: start the template of their workers as well, with these modules imported
            (``[]`` for none). A `Pool` with the same *preload* then has its workers in some milliseconds.

    Raises:
        OrderError: Threads run, and *guard* is "error".
        BootError: The zygote did not come up.
        PreloadError: A module of *preload* raises at its import, or leaves a thread behind.
        BadArgument: No such policy.
    """
    order.check_order(guard, what="safespawn.init() is called", stacklevel=2)
    engine = current_engine()
    drive(engine.zygote_flow())
    if preload is not None:
        from safespawn.pool import warm_template

        warm_template(engine, preload)


def _close_default() -> None:
    if _default and _default[0]._engine.pid == os.getpid():  # noqa: SLF001 - the same module's class
        _default[0].close()
        _default.clear()
