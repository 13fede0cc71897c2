"""
Which part of a value does not pickle: for the error that says so.

The value is taken apart as pickle does it, and each part is tried by itself, down to the innermost one that is refused.

Runs in: application and workers, any thread; after something went wrong only.
"""

from __future__ import annotations

from pickle import Pickler, PicklingError

from safespawn._worker.messages import PICKLE_PROTOCOL
from safespawn._worker.texts import NOT_OURS, class_name, short, text_of

TYPE_CHECKING = False  # as in typing, which workers need not import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

_STEPS = 2000  # arbitrary: how many parts are tried to find the one that does not pickle
_DEPTH = 16  # arbitrary: how deep


class Sink:
    """
    A file that forgets.
    """

    def write(self, data: Any) -> int:
        return len(data)


class Plain(Pickler):
    """
    Plain pickle, with a name of its own so that it has the parameters of the others.
    """


class NoMain(Pickler):
    """
    Plain pickle that refuses what the main module defines.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _MAIN_KINDS) and getattr(obj, "__module__", None) == "__main__":
            name = getattr(obj, "__qualname__", "?")
            raise PicklingError(f"__main__.{name} is of an interactive session, which a worker cannot import")
        return NotImplemented


_Function: Any = type(lambda: None)
_Method: Any = type(Sink().write)
_MAIN_KINDS = (type, _Function)
_SURE = frozenset((int, float, complex, bool, str, bytes, bytearray, type(None)))  # these always pickle


def refusal(
    value: object, what: str, error: Exception, pickler: Callable[..., Any], *, by_value: bool = False
) -> Exception:
    """
    Make the error that says which part of *value* was refused with *error*.
    """
    from safespawn import pool_errors

    depth = 2 if isinstance(error, RecursionError) else _DEPTH  # each level has the same trouble
    try:
        path, part = _Search(pickler, depth=depth, by_value=by_value).find(value, what)
    except NOT_OURS:
        raise
    except Exception:  # noqa: BLE001 - a strange object: what pickle said must do
        path, part = "", None
    type_name = class_name(type(part)) if path else ""
    reason = f"{class_name(type(error))}: {text_of(error)}"
    if what == "result":
        return pool_errors.UnpicklableResult(short(error), short(value), what=what, path=path, type_name=type_name)
    return pool_errors.UnpicklableTask(what=what, path=path, type_name=type_name, reason=reason)


class _Search:
    """
    The way to the innermost part that does not pickle.

    Args:
        pickler: The class that refuses.
        depth: How deep to look.
        by_value: It takes functions apart, so that the trouble may lie in one.
    """

    def __init__(self, pickler: Callable[..., Any], *, depth: int, by_value: bool) -> None:
        self._pickler = pickler
        self._depth = depth
        self._by_value = by_value
        self._steps = 0
        self._seen: dict[int, object] = {}  # by id; holds them, so that no id is used twice
        self._refused: set[int] = set()

    def find(self, value: object, what: str) -> tuple[str, object]:
        """
        Return the path of the part, and the part.
        """
        self._refused.add(id(value))
        return self._descend(what, value, self._tops(value, what), self._depth) or (what, value)

    def _descend(
        self, path: str, part: object, parts: Iterable[tuple[str, object]], depth: int
    ) -> tuple[str, object] | None:
        """
        Find the innermost trouble of *part*; None if all of it is what another part refers to as well.
        """
        shared = False
        for name, inner in parts if depth else ():
            if type(inner) in _SURE:
                continue
            if id(inner) in self._seen:
                shared = shared or id(inner) in self._refused
                continue
            if self._steps >= _STEPS:
                break
            if self._refuses(inner):
                found = self._descend(name, inner, self._parts(name, inner), depth - 1)
                if found is not None:
                    return found
                shared = True
        return None if shared else (path, part)

    def _refuses(self, part: object) -> bool:
        self._seen[id(part)] = part
        self._steps += 1
        try:
            self._pickler(Sink(), PICKLE_PROTOCOL, buffer_callback=out_of_band).dump(part)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - the part's own code ran
            self._refused.add(id(part))
            return True
        return False

    def _tops(self, value: object, what: str) -> Iterator[tuple[str, object]]:
        """
        Yield the parts of the whole, by the names that the caller knows them by.
        """
        names = {"task": ("function", "args", "kwargs"), "initializer": ("initializer", "initargs")}.get(what, ())
        if names and type(value) is tuple and 2 <= len(value) <= len(names) and callable(value[0]):
            yield from zip(names, value, strict=False)
        else:
            yield from self._parts(what, value)

    def _parts(self, path: str, value: Any) -> Iterator[tuple[str, object]]:
        """
        Yield what pickle will find in *value*, with a path for each.
        """
        from functools import partial

        if type(value) in (list, tuple):
            for index, item in enumerate(value):
                yield f"{path}[{index}]", item
        elif type(value) is dict:
            yield from _items(path, value.items())
        elif type(value) in (set, frozenset):
            for item in value:
                yield f"{path}{{{short(item)}}}", item
        elif type(value) is partial:
            yield f"{path}.func", value.func
            for index, item in enumerate(value.args):
                yield f"{path}.args[{index}]", item
            yield from _items(f"{path}.keywords", value.keywords.items())
            yield from _attributes(path, value.__dict__)
        elif isinstance(value, _Function):
            if self._by_value:
                yield from _function_parts(path, value)
        elif isinstance(value, _Method):
            yield f"{path}.__self__", value.__self__
        elif not isinstance(value, type):
            yield from _reduced_parts(path, value)


def out_of_band(_buffer: object) -> bool:
    return False


def _items(path: str, items: Any) -> Iterator[tuple[str, object]]:
    """
    Yield the values of a mapping, and its keys.
    """
    for key, item in items:
        yield f"{path}[{short(key)}]", item
        if not isinstance(key, str | int):
            yield f"{path}.keys(): {short(key)}", key


def _attributes(path: str, state: Any) -> Iterator[tuple[str, object]]:
    for name, item in state.items():
        yield f"{path}.{name}", item


def _function_parts(path: str, function: Any) -> Iterator[tuple[str, object]]:
    """
    Yield what a function takes with it when it goes by value.
    """
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f"{path}: {name}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for index, item in enumerate(function.__defaults__ or ()):
        yield f"{path}.__defaults__[{index}]", item
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"{path}: {name}", function.__globals__[name]


def _reduced_parts(path: str, value: Any) -> Iterator[tuple[str, object]]:
    """
    Yield the parts of an object, as its own `__reduce_ex__` names them: attributes, slots, items.
    """
    import copyreg

    reduce = copyreg.dispatch_table.get(type(value))
    try:
        reduced = reduce(value) if reduce is not None else value.__reduce_ex__(PICKLE_PROTOCOL)
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - the object's own code ran
        return  # it refuses as a whole: a lock, a file, a generator
    if not isinstance(reduced, tuple):
        return
    padded: list[Any] = [*reduced, None, None, None]
    function, args, state, items, pairs = padded[:5]
    for index, item in enumerate(args):
        if index or getattr(function, "__name__", "") != "__newobj__":  # there, the first one is the class
            yield f"{path}.__reduce__()[1][{index}]", item
    if isinstance(state, dict):
        yield from _attributes(path, state)
    elif isinstance(state, tuple) and len(state) == 2 and all(isinstance(half, dict | None) for half in state):
        for half in state:
            yield from _attributes(path, half or {})
    elif state is not None:
        yield f"{path}.__getstate__()", state
    for index, item in enumerate(items or ()):
        yield f"{path}[{index}]", item
    yield from _items(path, pairs or ())
