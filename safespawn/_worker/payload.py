"""
The forms in which tasks and results travel between the application and its workers.

Values are pickled (protocol 5); large buffers in them stay where they are and are given to the caller, who moves them
by a better way. What plain pickle refuses, a lambda or what an interactive session has defined, goes by value if
cloudpickle is installed.

Runs in: application and workers, any thread.
Never: waits; imports anything beyond `pickle` before something goes wrong.
"""

from __future__ import annotations

from pickle import PicklingError, dumps, loads

from safespawn._worker.messages import PICKLE_PROTOCOL
from safespawn._worker.refusal import NoMain, Plain, Sink, out_of_band, refusal

TYPE_CHECKING = False  # as in typing, which workers need not import
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pickle import PickleBuffer
    from typing import Any, Final

OUT_OF_BAND_BYTES: Final = 64 * 1024  # below, copying into the message is cheaper than shared memory

# Whose pickle is a name, so that it is the same each time.
_BY_NAME = (type(lambda: None), type(len))

# What pickle and its protocol say no with.
_REFUSALS = (PicklingError, AttributeError, TypeError, ValueError, RecursionError, NotImplementedError, ImportError)


def pack(value: object, *, what: str = "task", by_value: bool = False) -> tuple[bytes, list[memoryview]]:
    """
    Pickle *value*; leave its large buffers apart.

    Args:
        value: For a task `(function, args, kwargs)`, for an initializer `(function, args)`: errors then name the place.
        what: "task", "initializer" or "result".
        by_value: What the main module defines goes by value, because no worker can import it.

    Returns:
        The pickle, and its buffers of OUT_OF_BAND_BYTES and more, as flat bytes: views of the value's own memory.

    Raises:
        UnpicklableTask: It does not pickle; `path` says which part.
        UnpicklableResult: The same, for a result.
    """
    buffers: list[memoryview] = []

    def keep(buffer: PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND_BYTES:
            return True  # in the pickle
        buffers.append(raw)
        return False

    try:
        data = dumps(value, PICKLE_PROTOCOL, buffer_callback=keep)
    except MemoryError:
        raise
    except _REFUSALS as error:
        return _pack_by_value(value, what, error)
    except Exception as error:
        if what == "task":
            raise  # what the value's own code raises is the caller's to see
        return _pack_by_value(value, what, error)
    if by_value and b"__main__" in data:
        return _pack_main(value, what, (data, buffers))
    return data, buffers


class Repeated:
    """
    Packs calls of one function on many lists of items. A function that goes by its name is pickled once, as the head of
    all; anything else, which may have changed meanwhile, goes with every list.
    """

    __slots__ = ("_by_value", "_function", "head")

    def __init__(self, function: Callable[..., Any], *, by_value: bool) -> None:
        self._function = function
        self._by_value = by_value
        self.head: bytes = b""
        if type(function) in _BY_NAME and not by_value:
            try:
                self.head = dumps(function, PICKLE_PROTOCOL)
            except Exception:  # noqa: BLE001 - a lambda and its like: `pack` sees to it, or says why not
                return

    def pack(self, items: Sequence[Any]) -> tuple[bytes, Sequence[memoryview], bytes]:
        """
        Pickle one call: payload, buffers and head.

        Raises:
            UnpicklableTask: It does not pickle; `path` says which part.
        """
        if self.head:
            buffers: list[PickleBuffer] = []
            try:
                data = dumps(items, PICKLE_PROTOCOL, buffer_callback=buffers.append)
                if not buffers:
                    return data, (), self.head
                return *pack(items), self.head
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - by value, or with an error that names the place
                pass
        return *pack((self._function, items), by_value=self._by_value), b""


def unpack(data: bytes | memoryview, buffers: Sequence[memoryview] = ()) -> Any:
    """
    Return what was packed; arrays in it stand on *buffers*, which must be as many as `pack` gave.
    """
    return loads(data, buffers=buffers)  # noqa: S301 - from our own process, over a private socket


def _cloudpickle() -> Any:
    """
    Return the module, or None if it is not installed.
    """
    try:
        import cloudpickle  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        return None
    return cloudpickle


def _pack_by_value(value: object, what: str, error: Exception) -> tuple[bytes, list[memoryview]]:
    """
    Pickle what plain pickle has refused with *error*.
    """
    cloudpickle = None if isinstance(error, RecursionError) else _cloudpickle()
    if cloudpickle is None:
        raise refusal(value, what, error, Plain) from error
    buffers: list[memoryview] = []

    def keep(buffer: PickleBuffer) -> bool:
        raw = buffer.raw()
        small = raw.nbytes < OUT_OF_BAND_BYTES
        buffers.extend(() if small else (raw,))
        return small

    try:
        return cloudpickle.dumps(value, PICKLE_PROTOCOL, buffer_callback=keep), buffers
    except MemoryError:
        raise
    except Exception as second:
        raise refusal(value, what, second, cloudpickle.Pickler, by_value=True) from second


def _pack_main(value: object, what: str, packed: tuple[bytes, list[memoryview]]) -> tuple[bytes, list[memoryview]]:
    """
    Pickle what perhaps needs the main module.
    """
    if _cloudpickle() is not None:
        return _pack_by_value(value, what, PicklingError("the main module cannot be imported by a worker"))
    try:
        NoMain(Sink(), PICKLE_PROTOCOL, buffer_callback=out_of_band).dump(value)
    except PicklingError as error:
        raise refusal(value, what, error, NoMain) from error
    return packed  # it has the text only


def dump_main(value: object, file: Any, table: Mapping[type, Any]) -> None:
    """
    Pickle *value*, a process that perhaps needs what the main module defines, into *file*, by value.

    Args:
        value: The process.
        file: Where to.
        table: How to reduce what pickle does not know (copyreg's form).

    Raises:
        UnpicklableTask: It needs it, and cloudpickle is not installed; or it does not pickle at all.
    """
    from collections import ChainMap

    cloudpickle = _cloudpickle()
    base: Any = NoMain if cloudpickle is None else cloudpickle.Pickler
    tables: Any = ChainMap({}, dict(table), *([] if cloudpickle is None else [base.dispatch_table]))
    pickler: Any = type("Pickler", (base,), {"dispatch_table": tables})  # looked up once, in the class
    try:
        pickler(file, PICKLE_PROTOCOL).dump(value)
    except PicklingError as error:
        raise refusal(value, "process", error, pickler, by_value=cloudpickle is not None) from error
