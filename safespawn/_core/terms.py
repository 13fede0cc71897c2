"""
The terms on which a supervised child is kept: what the user has written, checked once.

Runs in: application; pure.
"""

import re
from collections.abc import Callable
from typing import Any, Literal

import attrs

from safespawn._core.restart import Backoff, Restart, check_choice, check_number
from safespawn._core.spec import SpawnSpec
from safespawn.errors import BadArgument, BadArgumentType

READY_SECONDS = 30.0  # for a child to get ready; arbitrary
STOP_SECONDS = 5.0  # for a child to end in order; arbitrary, as a pool's grace
OnHung = Literal["report", "restart"]
ON_HUNG: tuple[OnHung, ...] = ("report", "restart")


@attrs.frozen
class Function:
    """
    A Python child.

    Attributes:
        label: What it is called in words.
        payload: The pickled call, and its large buffers.
        inheritance: What the pickle refers to, or None.
        wants_main: Something of the program's own file is in it.
        preload: Modules that its template imports.
        main: How the program's own file can be loaded.
        env, cwd: Or None for the application's.
    """

    label: str
    payload: tuple[bytes, list[bytes]]
    inheritance: Any = None
    wants_main: bool = False
    preload: tuple[str, ...] = ()
    main: tuple[str, str] | None = None
    env: dict[bytes, bytes] | None = None
    cwd: bytes | None = None


@attrs.frozen
class Program:
    """
    A command.

    Attributes:
        args: As the user wrote it.
        spec: As the zygote wants it.
        pipes_output: Its stdout comes here, line by line.
    """

    args: Any
    spec: SpawnSpec
    pipes_output: bool = False


@attrs.frozen
class Readiness:
    """
    When a child counts as ready.

    Attributes:
        kind: "started", "notify", "port", "line", "probe".
        what: The address, the pattern, or the function.
    """

    kind: str
    what: Any = None

    def __str__(self) -> str:
        if self.kind == "port":
            host, port = self.what
            return f"port {port} of {host}"
        if self.kind == "line":
            return f"a line like {self.what.pattern!r}"
        if self.kind == "probe":
            return f"{getattr(self.what, '__qualname__', self.what)}() to be true"
        return self.kind


@attrs.frozen
class Terms:
    """
    Everything about one child.

    Attributes:
        name: Its name.
        what: What is run.
        restart, backoff, no_restart_codes: When it comes again.
        ready, ready_timeout: When it counts as ready, and how long it has for that.
        stop_timeout, stop_signal: How it is stopped.
        heartbeat, hang_after, on_hung: When it counts as hung, and what is done then.
        memory_max_bytes, max_age: When another one takes its place.
        on_line: Called with each line of a command's stdout.
    """

    name: str
    what: Function | Program
    restart: Restart
    backoff: Backoff
    no_restart_codes: frozenset[int]
    ready: Readiness
    ready_timeout: float
    stop_timeout: float
    stop_signal: int
    heartbeat: float | None
    hang_after: float | None
    on_hung: OnHung
    memory_max_bytes: int | None
    max_age: float | None
    on_line: Callable[[str], object] | None


def readiness(value: object, *, is_command: bool) -> Readiness:
    """
    What ``ready=`` says.

    Raises:
        BadArgument, BadArgumentType: Nothing that is known.
    """
    if value in ("started", "notify"):
        return Readiness(str(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return Readiness("port", ("127.0.0.1", _port(value)))
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str):
        return Readiness("port", (value[0], _port(value[1])))
    if isinstance(value, re.Pattern):
        if not is_command:
            raise BadArgument(
                "a pattern is looked for in the output of a command", parameter="ready", value=value,
                help="ready='notify': let the function call safespawn.ready()",
            )  # fmt: skip
        if isinstance(value.pattern, bytes):
            raise BadArgumentType("the pattern is for text", parameter="ready", value=value, help="compile a str")
        return Readiness("line", value)
    if callable(value):
        return Readiness("probe", value)
    raise BadArgument(
        "ready is 'started', 'notify', a port, (host, port), a compiled pattern, or a function",
        parameter="ready", value=value,
    )  # fmt: skip


def _port(value: Any) -> int:
    if isinstance(value, int) and 0 < value < 65536:
        return value
    raise BadArgument("a port is a number from 1 to 65535", parameter="ready", value=value)


def optional_number(name: str, value: object) -> float | None:
    """
    *value*, the parameter *name*, if it is a number above 0 or None.

    Raises:
        BadArgument, BadArgumentType: It is not.
    """
    if value is None:
        return None
    number = check_number(name, value)
    if number == 0:
        raise BadArgument(f"{name} is a number above 0", parameter=name, value=value)
    return number


def check_terms(terms: Terms) -> None:
    """
    Refuse what cannot be.

    Raises:
        BadArgument, BadArgumentType: What it is.
    """
    check_choice("restart", terms.restart, ("always", "on-failure", "never"))
    check_choice("on_hung", terms.on_hung, ON_HUNG)
    check_number("ready_timeout", terms.ready_timeout)
    check_number("stop_timeout", terms.stop_timeout)
    if terms.on_line is not None and not callable(terms.on_line):
        raise BadArgumentType("on_line is called with each line", parameter="on_line", value=terms.on_line)
    if terms.heartbeat is not None and isinstance(terms.what, Program) and terms.ready.kind != "notify":
        raise BadArgument(
            "a command beats by WATCHDOG=1, as sd_notify does", parameter="heartbeat", value=terms.heartbeat,
            help="ready='notify' gives it the socket for that",
        )  # fmt: skip
