"""
OpenTelemetry: the trace goes on in commands and in the tasks of pools.

    safespawn.run(["convert", name], env=otel.environment())      # TRACEPARENT, TRACESTATE, BAGGAGE
    pool.map(otel.carry(resize), names)                            # spans there are children of the current one

What is current when `environment` and `carry` are called goes along, as text, by the propagators that are set for the
program (OTEL_PROPAGATORS). A worker needs a tracer provider of its own, from an initializer: the program's has threads,
which no worker has.

Runs in: application, any thread; worker. Needs: opentelemetry-api.
"""

# pyright: reportMissingImports=false

import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, MutableMapping
from types import AsyncGeneratorType, GeneratorType
from typing import Any

from opentelemetry import context as contexts
from opentelemetry.propagate import extract, inject
from opentelemetry.propagators.textmap import Getter, Setter

_NO_NAME = re.compile("[^A-Za-z0-9_]")


def environment(env: Mapping[str, str] | None = None, *, context: Any = None) -> dict[str, str]:
    """
    An environment that says which trace its process belongs to.

    Args:
        env: What to add to; default: `os.environ`. What it says of a trace is replaced, as that is an older one.
        context: The OpenTelemetry context that goes along; default: the current one.

    Returns:
        A new dict, for the ``env=`` of a command, a pool or a supervisor's child.
    """
    made = dict(os.environ if env is None else env)
    for name in ("TRACEPARENT", "TRACESTATE", "BAGGAGE"):
        made.pop(name, None)
    inject(made, context, _EnvironmentSetter())
    return made


def from_environment(env: Mapping[str, str] | None = None) -> Any:
    """
    The OpenTelemetry context that *env* (default: `os.environ`) tells of: for a command that is written in Python.

        opentelemetry.context.attach(otel.from_environment())
    """
    return extract(os.environ if env is None else env, getter=_EnvironmentGetter())


def carry(function: Callable[..., Any], *, context: Any = None) -> "Carried":
    """
    *function*, to be called in a worker, with the context that is current here and now.

    Args:
        function: For any method of a pool or an executor, also a generator for `stream`.
        context: The OpenTelemetry context that goes along; default: the current one.
    """
    carrier: dict[str, str] = {}
    inject(carrier, context)
    return Carried(function, carrier)


class Carried:
    """
    A function and the context that it is called in; it pickles if the function does.
    """

    __slots__ = ("__wrapped__", "carrier")

    def __init__(self, function: Callable[..., Any], carrier: dict[str, str]) -> None:
        self.__wrapped__: Callable[..., Any] = function
        self.carrier: dict[str, str] = carrier

    def __repr__(self) -> str:
        return f"carry({self.__wrapped__!r})"

    def __reduce__(self) -> tuple[type["Carried"], tuple[Callable[..., Any], dict[str, str]]]:
        return Carried, (self.__wrapped__, self.carrier)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102 - as the class says
        token = contexts.attach(extract(self.carrier))
        try:
            result = self.__wrapped__(*args, **kwargs)
        finally:
            contexts.detach(token)
        if isinstance(result, GeneratorType):
            return self._items(result)  # its code has not begun yet
        if isinstance(result, AsyncGeneratorType):
            return self._aitems(result)
        return result

    def _items(self, generator: Any) -> Iterator[Any]:
        token = contexts.attach(extract(self.carrier))
        try:
            yield from generator
        finally:
            contexts.detach(token)

    async def _aitems(self, generator: Any) -> AsyncIterator[Any]:
        token = contexts.attach(extract(self.carrier))
        try:
            async for item in generator:
                yield item
        finally:
            await generator.aclose()
            contexts.detach(token)


class _EnvironmentSetter(Setter):  # type: ignore[misc, type-arg, unused-ignore]
    """
    The names of variables are those of headers in capitals.
    """

    def set(self, carrier: MutableMapping[str, str], key: str, value: str) -> None:
        """
        As the propagators ask.
        """
        carrier[_variable(key)] = value


class _EnvironmentGetter(Getter):  # type: ignore[misc, type-arg, unused-ignore]
    """
    The way back.
    """

    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        """
        As the propagators ask.
        """
        value = carrier.get(_variable(key))
        return None if value is None else [value]

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        """
        As the propagators ask.
        """
        return list(carrier)


def _variable(key: str) -> str:
    return _NO_NAME.sub("_", key).upper()
