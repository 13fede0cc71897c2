"""
`AsyncSupervisor`: the owner of a zygote, and of supervised children, for an event loop: asyncio, uvloop or trio.

A task of its own serves the children; it starts no thread but that of the log handlers, and never blocks the loop.

Runs in: application, tasks of the event loop in which the supervisor was entered.
"""

# pyright: reportPrivateUsage=false

import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self, Unpack

from safespawn._core import upkeep
from safespawn._core.events import Event
from safespawn._core.terms import Terms
from safespawn._drive.async_driver import Home, Latch, adrive, find_home, shielded
from safespawn._drive.keeper import Feed, Keeper
from safespawn._drive.relay import SLOW_SECONDS
from safespawn._family import LATE_SECONDS
from safespawn._worker.notice import notify
from safespawn.children import ChildOptions, ChildView, make_terms
from safespawn.errors import BadArgument, ClosedError, ForeignCopy
from safespawn.supervisor import LOOK_SECONDS, SIGNALS, Supervisor, noted


class AsyncSupervisor(Supervisor):
    """
    `Supervisor` for an event loop; see there for the parameters.

        async with AsyncSupervisor() as supervisor:
            child = await supervisor.start("collector", collect, ready="notify")

    With ``give_up="raise"`` a child that fails too often cancels the block, whose end raises `ChildrenGaveUp`.
    """

    _family: "AsyncFamily | None"

    def __enter__(self) -> Self:
        raise BadArgument(
            f"{self!r} is entered by an event loop", parameter="self", value=self, help="async with; or Supervisor"
        )

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            self._family = AsyncFamily(self._new_keeper())
            await self._family.open()
        except BaseException:
            self._family = None
            await super().aclose()
            raise
        self._family.scope.__enter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = self._family
        assert family is not None  # noqa: S101 - it was entered
        if family.scope.__exit__(kind, error, trace):
            error = None  # the cancellation that came with the giving up
        trouble: BaseException | None = None
        try:
            await self.aclose()
        except BaseException as raised:  # noqa: BLE001 - raised below, or noted at the other error
            trouble = raised
        finally:
            await family.group.__aexit__(None, None, None)
        trouble = trouble or self._untold(error)
        if trouble is not None and not (isinstance(trouble, Exception) and noted(error, self.name, trouble)):
            raise trouble

    def close(self) -> None:
        """
        Ask for the end, and return at once, for ``on_event`` and other callbacks: the children are stopped in order,
        and `serve` returns then. `aclose`, or leaving the block, waits for that and ends the rest.
        """
        family = self._family
        if family is None:
            super().close()  # it was never entered
        else:
            family.keeper.call(family.keeper.close)

    async def aclose(self) -> None:
        """
        Stop the children, then end everything else that this supervisor started. Bounded. Leaving the block does it.
        """
        family = self._family
        try:
            if family is not None:
                await family.close()
        finally:
            await super().aclose()

    async def start(  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        self, name: str, target: Any, /, *args: Any, **options: Unpack[ChildOptions]
    ) -> "AsyncChild":
        """
        `Supervisor.start`. A cancellation ends what there is of the child, and waits for that.
        """
        return await self._open_family_here().start(make_terms(name, target, args, options))

    def _open_family_here(self) -> "AsyncFamily":
        if self._family is None:
            raise ClosedError(f"Supervisor {self.name!r}", help="enter it first: async with AsyncSupervisor() as ...")
        return self._family

    async def serve(self, signals: Iterable[int] = SIGNALS) -> int | None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """
        `Supervisor.serve`: wait for one of *signals*, or until all children are at rest.
        """
        return await self._open_family_here().serve(signals)

    def events(self) -> "AsyncEvents":  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """
        What happens to the children from now on: ``async for event in supervisor.events()``.
        """
        return AsyncEvents(self._open_family_here())

    async def astatistics(self) -> dict[str, Any]:
        """
        `Supervisor.statistics`, without blocking the loop.
        """
        return self._add_children(await adrive(self._statistics_flow()))


class AsyncChild(ChildView):
    """
    A supervised child of an `AsyncSupervisor`.
    """

    _family: "AsyncFamily"

    async def stop(self, timeout: float | None = None) -> None:
        """
        `Child.stop`. A cancellation makes it shorter, and waits for the end.
        """
        latch = self._family.latch()
        self._charge.stop("stop")
        self._charge.when_resting(latch.set)
        await self._family.wait(latch, timeout, self._hurry)

    async def restart(self) -> None:
        """
        `Child.restart`.
        """
        latch = self._family.latch()
        refused: list[Exception] = []
        self._restart(latch.set, refused)
        await self._family.wait(latch, None, self._hurry)
        if refused:
            raise refused[0]

    async def stacks(self) -> str:
        """
        `Child.stacks`.
        """
        run = self._charge.run
        if run is None or run.state not in upkeep.ALIVE:
            return ""
        latch = self._family.latch()
        found: list[str] = []

        def seen(text: str | None, _error: BaseException | None) -> None:
            found.append(text or "")
            latch.set()

        self._keeper.pump.spawn(run.stacks_flow(), seen)
        self._keeper.advance()  # the pump looks anew what it waits for
        await self._family.wait(latch, None, self._hurry)
        return found[0]

    def _hurry(self) -> None:
        for run in self._charge.processes():
            run.send(upkeep.HURRY)


class AsyncFamily:
    """
    The children of an `AsyncSupervisor`, and the task that serves them.
    """

    def __init__(self, keeper: Keeper) -> None:
        import anyio

        self.keeper = keeper
        self.home: Home = find_home()
        self.scope: Any = anyio.CancelScope()
        self.over: Latch = self.home.latch()
        self.group: Any = anyio.create_task_group()
        keeper.on_broken.append(self.scope.cancel)

    async def open(self) -> None:
        """
        Start the task. A cancellation waits for that: it takes no time, and a task that is half started is shielded.
        """
        await self.group.__aenter__()
        try:
            with shielded():
                await self.group.start(self._serve)
        except BaseException as error:
            self.keeper.release()
            self.over.set()
            await self.group.__aexit__(type(error), error, error.__traceback__)
            raise

    async def _serve(self, *, task_status: Any) -> None:
        keeper = self.keeper
        interruption: BaseException | None = None
        try:
            with shielded():
                task_status.started()
                while not keeper.over:
                    try:
                        await keeper.pump.arun()
                    except BaseException as error:
                        if keeper.is_over() or isinstance(error, (GeneratorExit, Exception)):
                            raise
                        interruption = error  # the event loop is being ended, and waits for this task
                        keeper.close()
                        keeper.hurry()
        except Exception as error:  # noqa: BLE001 - whoever waits must hear of it
            keeper.lose_pump(error)
        finally:
            keeper.release()
            self.over.set()
        if interruption is not None:
            raise interruption

    def latch(self) -> Latch:
        """
        For one wait of a task of this loop.

        Raises:
            WrongLoop, ForeignCopy: It would never end.
        """
        keeper = self.keeper
        if keeper.pid != os.getpid():
            raise ForeignCopy(f"Supervisor {keeper.name!r}", owner_pid=keeper.pid, pid=os.getpid())
        if not self.home.is_here():
            from safespawn.pool_errors import WrongLoop

            raise WrongLoop(f"Supervisor {keeper.name!r}")
        return self.home.latch()

    async def wait(self, latch: Latch, timeout: float | None, hurry: Callable[[], object]) -> None:
        """
        Wait for *latch*. *timeout*, and a cancellation, only make it come sooner; that one is raised then.
        """
        import anyio

        interruption: BaseException | None = None
        shield = False
        while True:
            try:
                with anyio.CancelScope(shield=shield) as scope:
                    if timeout is not None:
                        scope.deadline = anyio.current_time() + timeout
                    await latch.wait()
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption, shield = interruption or error, True
            if latch.is_set or self.over.is_set:
                break
            timeout = None
            self.keeper.call(hurry)
        if interruption is not None:
            raise interruption

    async def start(self, terms: Terms) -> AsyncChild:
        """
        Start a child, and wait until it is ready.
        """
        latch = self.latch()
        errors: list[BaseException | None] = []

        def answer(error: BaseException | None) -> None:
            errors.append(error)
            latch.set()

        charge = self.keeper.start(terms, answer)
        self.keeper.advance()
        try:
            await latch.wait()
        except BaseException:
            if charge is not None:
                gone = self.home.latch()
                charge.stop("cancelled")
                charge.when_resting(gone.set)
                with shielded():
                    await self.wait(gone, None, self.keeper.hurry)
            raise
        if errors[0] is not None:
            raise errors[0]
        assert charge is not None  # noqa: S101 - it is ready
        child = AsyncChild(self.keeper, charge)
        child._family = self  # noqa: SLF001 - the same module's
        return child

    async def close(self) -> None:
        """
        Stop all children. A cancellation makes it shorter, and is raised in the end.
        """
        import anyio

        keeper = self.keeper
        keeper.close()
        limit = time.monotonic() + keeper.bound() + LATE_SECONDS
        interruption: BaseException | None = None
        while not self.over.is_set and time.monotonic() < limit:
            try:
                with shielded(max(0.0, limit - time.monotonic())):
                    await self.over.wait()
            except BaseException as error:  # noqa: BLE001 - raised below
                interruption = interruption or error
                keeper.call(keeper.hurry)
        try:
            with shielded(SLOW_SECONDS):
                while not keeper.logged.is_set():  # noqa: ASYNC110 - it is set by a thread
                    await anyio.sleep(LOOK_SECONDS)
        except BaseException as error:  # noqa: BLE001 - as above
            interruption = interruption or error
        if not self.over.is_set:  # a bug of ours: the zygote ends what there is
            keeper.finish()
            self.group.cancel_scope.cancel()
        if interruption is not None:
            raise interruption

    async def serve(self, signals: Iterable[int]) -> int | None:
        """
        Wait for a signal, or for the end of all children.
        """
        import anyio

        latch = self.latch()
        keeper = self.keeper
        notify("READY=1")
        found: list[int] = []

        async def hear(*, task_status: Any) -> None:
            with anyio.open_signal_receiver(*map(signal.Signals, signals)) as heard:
                task_status.started()
                async for number in heard:
                    found.append(int(number))
                    latch.set()
                    return

        async with anyio.create_task_group() as group:
            await group.start(hear)
            keeper.on_rest.append(latch.set)
            try:
                if not keeper.is_at_rest():
                    await latch.wait()
            finally:
                keeper.on_rest.remove(latch.set)
                group.cancel_scope.cancel()
        return found[0] if found else None

    def events(self) -> "AsyncEvents":
        """
        What happens from now on.
        """
        return AsyncEvents(self)


class AsyncEvents(AsyncIterator[Event]):
    """
    What happens to an AsyncSupervisor's children. It ends when the supervisor is left.
    """

    def __init__(self, family: AsyncFamily) -> None:
        self._family = family
        self._latch: Latch | None = None
        self._feed = Feed(self._wake)
        family.keeper.feeds.append(self._feed)
        if family.keeper.over:
            self._feed.end()

    def _wake(self) -> None:
        if self._latch is not None:
            self._latch.set()

    @property
    def dropped(self) -> int:
        """
        How many were not read in time, and are lost.
        """
        return self._feed.dropped

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        while not self._feed.events:
            if self._feed.ended:
                raise StopAsyncIteration
            self._latch = self._family.latch()
            await self._latch.wait()
        return self._feed.events.popleft()

    async def aclose(self) -> None:
        """
        Collect no more.
        """
        with contextlib.suppress(ValueError):
            self._family.keeper.feeds.remove(self._feed)
        self._feed.end()
