"""
Supervised children: what `Supervisor.start` and `AsyncSupervisor.start` take and give.

Runs in: application, any thread but the one that serves the children.
"""

# pyright: reportPrivateUsage=false

import functools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from safespawn._commands import audit
from safespawn._core import upkeep
from safespawn._core.options import SpawnOptions, build_spec
from safespawn._core.restart import Backoff, Restart
from safespawn._core.terms import (
    READY_SECONDS,
    STOP_SECONDS,
    Function,
    OnHung,
    Program,
    Terms,
    check_terms,
    optional_number,
    readiness,
)
from safespawn._drive.charge import Charge
from safespawn._drive.keeper import Keeper
from safespawn._drive.run import Run
from safespawn._pool_base import checked_preload
from safespawn._worker import current, main_module
from safespawn._worker.payload import pack
from safespawn.errors import BadArgument, BadArgumentType, ClosedError, ForeignCopy, UnsupportedOption

if TYPE_CHECKING:
    from safespawn._family import Family


class ChildOptions(SpawnOptions, total=False):
    """
    The keyword options of `start`; docs/supervisor.md tells each. Those of `SpawnOptions` are for commands; of them
    ``env`` and ``cwd`` are for functions too.
    """

    kwargs: Mapping[str, Any] | None
    restart: Restart
    backoff: Backoff
    no_restart_codes: Iterable[int]
    ready: Any
    ready_timeout: float
    stop_timeout: float
    stop_signal: int
    heartbeat: float | None
    hang_after: float | None
    on_hung: OnHung
    memory_max: int | None
    max_age: float | None
    on_line: Callable[[str], object] | None
    preload: Sequence[str]


def make_terms(name: str, target: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> Terms:
    """
    Check everything that `start` takes.

    Raises:
        BadArgument, BadArgumentType, UnsupportedOption: What cannot be.
        UnpicklableTask: The function or its arguments cannot be sent.
    """
    given: dict[str, Any] = dict(options)
    if not name or type(name) is not str:
        raise BadArgumentType("a child has a name", parameter="name", value=name)
    is_command = not callable(target)
    ready = readiness(given.pop("ready", "started"), is_command=is_command)
    backoff = given.pop("backoff", None)
    if backoff is not None and not isinstance(backoff, Backoff):
        raise BadArgumentType("backoff is a Backoff", parameter="backoff", value=backoff, help="safespawn.Backoff(0.2)")
    on_line = given.pop("on_line", None)
    memory = optional_number("memory_max", given.pop("memory_max", None))
    policy: dict[str, Any] = {
        "restart": given.pop("restart", "always"),
        "backoff": backoff or Backoff(),
        "no_restart_codes": frozenset(given.pop("no_restart_codes", ())),
        "ready": ready,
        "ready_timeout": given.pop("ready_timeout", READY_SECONDS),
        "stop_timeout": given.pop("stop_timeout", STOP_SECONDS),
        "stop_signal": int(given.pop("stop_signal", signal.SIGTERM)),
        "heartbeat": optional_number("heartbeat", given.pop("heartbeat", None)),
        "hang_after": optional_number("hang_after", given.pop("hang_after", None)),
        "on_hung": given.pop("on_hung", "report"),
        "memory_max_bytes": None if memory is None else int(memory),
        "max_age": optional_number("max_age", given.pop("max_age", None)),
        "on_line": on_line,
    }
    what: Function | Program
    if is_command:
        what = _program(target, args, given, pipes=ready.kind == "line" or on_line is not None)
    else:
        if on_line is not None:
            raise BadArgument("on_line is for a command's output", parameter="on_line", value=on_line)
        what = _function(target, args, given)
    sys.audit("safespawn.Process", name)  # the guard may refuse it
    terms = Terms(name, what, **policy)
    check_terms(terms)
    return terms


def _program(target: Any, args: tuple[Any, ...], options: dict[str, Any], *, pipes: bool) -> Program:
    if args:
        raise BadArgument(
            "a command's arguments stand in its list", parameter="args", value=args, help="start(name, [program, ...])"
        )
    for name in ("kwargs", "preload"):
        if name in options:
            raise BadArgument(f"{name} is for a function", parameter=name, value=options[name])
    if options.get("detach"):
        raise UnsupportedOption("detach", help="a supervised child does not outlive the application: use Popen")
    if options.get("kill_tree") is False:
        raise UnsupportedOption("kill_tree", help="nothing of a supervised child outlives it: use Popen")
    if pipes:
        if options.get("stdout") is not None:
            raise BadArgument(
                "the output is read line by line", parameter="stdout", value=options["stdout"],
                help="leave stdout away: it is passed on, or given to on_line",
            )  # fmt: skip
        options["stdout"] = subprocess.PIPE
    for name in ("stdin", "stdout", "stderr"):
        if options.get(name) == subprocess.PIPE and not (pipes and name == "stdout"):
            raise BadArgument(
                f"nobody would serve the pipe of {name}", parameter=name, value=subprocess.PIPE,
                help="on_line= reads stdout; a file takes the rest",
            )  # fmt: skip
    options.setdefault("stdin", subprocess.DEVNULL)
    if not options.get("start_new_session"):
        options.setdefault("process_group", 0)  # Ctrl-C is for the application, which stops its children in order
    spec = build_spec(target, options, hold=True)
    audit(target, options)
    return Program(target, spec, pipes_output=pipes)


def _function(target: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Function:
    own: dict[str, Any] = {}
    for name in ("kwargs", "preload", "env", "cwd"):
        if name in options:
            own[name] = options.pop(name)
    if options:
        name, value = next(iter(options.items()))
        raise BadArgument(f"{name} is no option for a function", parameter=name, value=value)
    current.refuse_reentry("Supervisor.start")
    sys.modules.setdefault("__mp_main__", sys.modules["__main__"])
    main = main_module.describe()
    call = (target, args, dict(own.get("kwargs") or {}))
    data, parts, inheritance = _pack(call, by_value=main is None)
    env = own.get("env")
    return Function(
        label=getattr(target, "__qualname__", repr(target)),
        payload=(data, parts),
        inheritance=inheritance,
        wants_main=b"__main__" in data,
        preload=checked_preload(own.get("preload", ())),
        main=main,
        env=None if env is None else {os.fsencode(key): os.fsencode(value) for key, value in env.items()},
        cwd=None if own.get("cwd") is None else os.fsencode(own["cwd"]),
    )


def _pack(call: Any, *, by_value: bool) -> tuple[bytes, list[bytes], Any]:
    """
    Pickle the call; locks and queues of multiprocessing go along as they do with a process of its own.
    """
    try:
        data, parts = pack(call, what="task", by_value=by_value)
    except Exception:
        if "multiprocessing.context" not in sys.modules:
            raise
        from safespawn._inherit import pack_inheriting

        try:
            data, inheritance = pack_inheriting(call)
        except Exception:  # noqa: BLE001 - then the first error says more
            inheritance, data = None, b""
        if inheritance is not None and by_value and b"__main__" in data:  # nobody there could import that
            inheritance.close()
            raise
        if inheritance is None:
            raise
        return data, [], inheritance
    return data, [bytes(part) for part in parts], None


def _nobody() -> None:
    """
    Is told, and does nothing.
    """


def _hurry_each(runs: Iterable[Run]) -> None:
    for run in runs:
        run.send(upkeep.HURRY)


class ChildView:
    """
    A supervised child, as `Child` and `AsyncChild` have it in common. Its process may change; it stays the same.
    """

    def __init__(self, keeper: Keeper, charge: Charge) -> None:
        self._keeper = keeper
        self._charge = charge

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}, {self.state}, pid {self.pid}>"

    @property
    def name(self) -> str:
        """
        The name that it was started under.
        """
        return self._charge.name

    @property
    def pid(self) -> int | None:
        """
        The process id of its present process; None where there is none.
        """
        return self._charge.pid

    @property
    def state(self) -> str:
        """
        "starting", "up", "stopping", "replacing", "waiting" (for its next start), "done", "given-up"; and for a moment
        "down".
        """
        return self._charge.state

    @property
    def value(self) -> Any:
        """
        What its present process passed to `safespawn.ready`; the match, the port or the function's value, where one of
        these says that it is ready.
        """
        return self._charge.value

    @property
    def restarts(self) -> int:
        """
        How often it was started again.
        """
        return self._charge.restarts

    def statistics(self) -> dict[str, Any]:
        """
        Figures: name, state, pid, uptime, restarts, failures in a row, last event.
        """
        return self._charge.figures(time.monotonic())

    def request_stop(self, timeout: float | None = None) -> None:
        """
        Ask for what `stop` does, and return at once; from any thread or callback, ``on_event`` too.

        Args:
            timeout: Seconds after which it gets no more time to end by itself; default: its ``stop_timeout``.
        """
        self._call(functools.partial(self._stop_soon, timeout))

    def _stop_soon(self, timeout: float | None) -> None:
        self._charge.stop("stop")
        if timeout is not None:
            self._keeper.later(timeout, functools.partial(_hurry_each, self._charge.processes()))

    def send_signal(self, number: int) -> None:
        """
        Signal its process; nothing happens where there is none.
        """
        self._call(functools.partial(self._signal, number))

    def _signal(self, number: int) -> None:
        run = self._charge.run
        if run is not None:
            run.signal(number)

    def _call(self, action: Callable[[], object]) -> None:
        if self._keeper.pid != os.getpid():
            raise ForeignCopy(f"child {self.name!r}", owner_pid=self._keeper.pid, pid=os.getpid())
        self._keeper.call(action)

    def _restart(self, tell: Callable[[], object], refused: list[Exception]) -> None:
        """
        Where the pump runs: another process, whatever there is now. Why it cannot be is in *refused* then.
        """
        charge = self._charge
        if charge.is_forgotten:
            refused.append(ClosedError(f"child {self.name!r}", help="it ended, and was forgotten: start another one"))
            tell()
            return
        if self._keeper.closing:
            tell()
            return
        charge.changing.append(tell)
        if charge.state in upkeep.RESTING:
            charge.send(upkeep.START)
        elif charge.state == upkeep.WAITING:
            self._keeper.begin_round(charge, 0.0, alone=True)  # without what is left of its delay
        else:
            charge.replace("restart")


class Child(ChildView):
    """
    A supervised child of a `Supervisor`.
    """

    _family: "Family"

    def stop(self, timeout: float | None = None) -> None:
        """
        Stop it, and wait until it is gone with all that it started; it is not started again. Bounded by the ladder's
        own time. In a callback (``on_event``, ``on_line``) it is asked for only: nothing is waited for.

        Args:
            timeout: Seconds after which it gets no more time to end by itself; default: its ``stop_timeout``.
        """
        if self._family.is_served_here():
            self.request_stop(timeout)
            return
        gone = threading.Event()
        self._call(functools.partial(self._stop, gone.set))
        self._family.wait(gone, timeout, self._hurry)

    def restart(self) -> None:
        """
        Have another process take its place, and wait until that is ready, or the child at rest. In a callback it is
        asked for only.

        Raises:
            ClosedError: It ended long ago, and was forgotten: start another one.
        """
        refused: list[Exception] = []
        if self._family.is_served_here():
            self._call(functools.partial(self._restart, _nobody, refused))
            return
        done = threading.Event()
        self._call(functools.partial(self._restart, done.set, refused))
        self._family.wait(done, None, self._hurry)
        if refused:
            raise refused[0]

    def stacks(self) -> str:
        """
        What its threads do now, as text; for a command what the kernel says of it.
        """
        done = threading.Event()
        found: list[str] = []
        self._call(functools.partial(self._look, found, done.set))
        self._family.wait(done, None, self._hurry)
        return found[0] if found else ""

    def _stop(self, tell: Callable[[], object]) -> None:
        self._charge.stop("stop")
        self._charge.when_resting(tell)

    def _hurry(self) -> None:
        _hurry_each(self._charge.processes())

    def _look(self, found: list[str], tell: Callable[[], object]) -> None:
        run = self._charge.run
        if run is None or run.state not in upkeep.ALIVE:
            tell()
            return

        def seen(text: str | None, _error: BaseException | None) -> None:
            found.append(text or "")
            tell()

        self._keeper.pump.spawn(run.stacks_flow(), seen)
