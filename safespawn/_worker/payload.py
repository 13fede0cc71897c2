"""
The forms in which tasks, results and exceptions travel between the application and its workers.

Values are pickled (protocol 5); large buffers in them stay where they are and are given to the caller, who moves them
by a better way. What plain pickle refuses, a lambda or what an interactive session has defined, goes by value if
cloudpickle is installed. An exception travels three times at once, as the thing itself, as what it can be made from,
and as plain text, and arrives as the best of these that works here: that it was raised is never lost.

Runs in: application and workers, any thread.
Never: waits; imports anything beyond `pickle` before something goes wrong.
"""

from __future__ import annotations

import marshal
import sys
from pickle import Pickler, PicklingError, dumps, loads

TYPE_CHECKING = False  # as in typing, which workers need not import
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pickle import PickleBuffer
    from typing import Any, Final

OUT_OF_BAND_BYTES: Final = 64 * 1024  # below, copying into the message is cheaper than shared memory

_PROTOCOL = 5
_STEPS = 2000  # arbitrary: how many parts are tried to find the one that does not pickle
_DEPTH = 16  # arbitrary: how deep
_MESSAGE_CHARS = 16 * 1024  # arbitrary: of `str(error)` as plain text
_TRACEBACK_CHARS = 256 * 1024  # arbitrary
_OWN_FOLDER = __file__.rpartition("/")[0] + "/"

# Exceptions that are a matter of the process, not of the value at hand.
_NOT_OURS = (MemoryError, KeyboardInterrupt)


# --- values ----------------------------------------------------------------------------------------------------------


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
        data = dumps(value, _PROTOCOL, buffer_callback=keep)
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
                self.head = dumps(function, _PROTOCOL)
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
                data = dumps(items, _PROTOCOL, buffer_callback=buffers.append)
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
        raise _refusal(value, what, error, _Plain) from error
    buffers: list[memoryview] = []

    def keep(buffer: PickleBuffer) -> bool:
        raw = buffer.raw()
        small = raw.nbytes < OUT_OF_BAND_BYTES
        buffers.extend(() if small else (raw,))
        return small

    try:
        return cloudpickle.dumps(value, _PROTOCOL, buffer_callback=keep), buffers
    except MemoryError:
        raise
    except Exception as second:
        raise _refusal(value, what, second, cloudpickle.Pickler, by_value=True) from second


def _pack_main(value: object, what: str, packed: tuple[bytes, list[memoryview]]) -> tuple[bytes, list[memoryview]]:
    """
    Pickle what perhaps needs the main module.
    """
    if _cloudpickle() is not None:
        return _pack_by_value(value, what, PicklingError("the main module cannot be imported by a worker"))
    try:
        _NoMain(_Sink(), _PROTOCOL, buffer_callback=_out_of_band).dump(value)
    except PicklingError as error:
        raise _refusal(value, what, error, _NoMain) from error
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
    base: Any = _NoMain if cloudpickle is None else cloudpickle.Pickler
    tables: Any = ChainMap({}, dict(table), *([] if cloudpickle is None else [base.dispatch_table]))
    pickler: Any = type("Pickler", (base,), {"dispatch_table": tables})  # looked up once, in the class
    try:
        pickler(file, _PROTOCOL).dump(value)
    except PicklingError as error:
        raise _refusal(value, "process", error, pickler, by_value=cloudpickle is not None) from error


# --- which part of a value does not pickle ---------------------------------------------------------------------------


class _Sink:
    """
    A file that forgets.
    """

    def write(self, data: Any) -> int:
        return len(data)


class _Plain(Pickler):
    """
    Plain pickle, with a name of its own so that it has the parameters of the others.
    """


class _NoMain(Pickler):
    """
    Plain pickle that refuses what the main module defines.
    """

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, _MAIN_KINDS) and getattr(obj, "__module__", None) == "__main__":
            name = getattr(obj, "__qualname__", "?")
            raise PicklingError(f"__main__.{name} is of an interactive session, which a worker cannot import")
        return NotImplemented


_Function = type(pack)
_Method: Any = type(_Sink().write)
_MAIN_KINDS = (type, _Function)
_SURE = frozenset((int, float, complex, bool, str, bytes, bytearray, type(None)))  # these always pickle


def _refusal(
    value: object, what: str, error: Exception, pickler: Callable[..., Any], *, by_value: bool = False
) -> Exception:
    """
    Make the error that says which part of *value* was refused with *error*.
    """
    from safespawn import pool_errors

    depth = 2 if isinstance(error, RecursionError) else _DEPTH  # each level has the same trouble
    try:
        path, part = _Search(pickler, depth=depth, by_value=by_value).find(value, what)
    except _NOT_OURS:
        raise
    except Exception:  # noqa: BLE001 - a strange object: what pickle said must do
        path, part = "", None
    type_name = _type_name(type(part)) if path else ""
    reason = f"{_type_name(type(error))}: {_text_of(error)}"
    if what == "result":
        return pool_errors.UnpicklableResult(_short(error), _short(value), what=what, path=path, type_name=type_name)
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
            self._pickler(_Sink(), _PROTOCOL, buffer_callback=_out_of_band).dump(part)
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
                yield f"{path}{{{_short(item)}}}", item
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


def _out_of_band(_buffer: object) -> bool:
    return False


def _items(path: str, items: Any) -> Iterator[tuple[str, object]]:
    """
    Yield the values of a mapping, and its keys.
    """
    for key, item in items:
        yield f"{path}[{_short(key)}]", item
        if not isinstance(key, str | int):
            yield f"{path}.keys(): {_short(key)}", key


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
        reduced = reduce(value) if reduce is not None else value.__reduce_ex__(_PROTOCOL)
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


# --- exceptions ------------------------------------------------------------------------------------------------------
# On the wire: a marshalled tuple (type name, message, traceback text, notes, pickle or None, recipe or None), which
# can always be read. A recipe is (_PLAIN, pickle of the class, pickles of the args, those for OSError's constructor or
# None, pickles of the attributes by name, names of those left out), or (_GROUP, pickle of the class, message, packed
# members, and the same two).

_GROUP = "group"
_PLAIN = "plain"


def pack_error(error: BaseException) -> bytes:
    """
    Make bytes of an exception that was raised in a task; no frames travel, their text does.

    Never raises, but for MemoryError and KeyboardInterrupt.
    """
    return _pack_error(error, _traceback_text(error))


def unpack_error(data: bytes, remote_traceback: type[Exception] | None = None) -> BaseException:
    """
    Return the exception that `pack_error` was given, as near to it as can be had here.

    Never raises, but for KeyboardInterrupt: what went wrong is in the RemoteError that comes in its place.

    Args:
        data: What `pack_error` returned.
        remote_traceback: The class of the `__cause__`, made from the text; `pool_errors.RemoteTraceback` if None.
    """
    try:
        record = marshal.loads(data)  # noqa: S302 - from our own process, over a private socket
        type_name, message, text, notes, pickled, recipe = record
    except Exception as reason:  # noqa: BLE001 - whatever came, the caller has a future to fail
        type_name, message, text, notes, pickled, recipe = "unknown", "", "", [], None, None
        return _remote_error(type_name, message, text, notes, [f"what came is not an exception: {reason!r}"])
    reasons: list[str] = []
    error = _revive(pickled, recipe, reasons)
    if error is None:
        error = _remote_error(type_name, message, text, notes, reasons)
    if text:
        _set_cause(error, text, remote_traceback)
    return error


def _pack_error(error: BaseException, text: str) -> bytes:
    """
    Make bytes of one exception, with *text* as its traceback.
    """
    type_name = _type_name(type(error))
    message = _clip(_text_of(error), _MESSAGE_CHARS)
    notes = _notes(error)
    pickled: bytes | None = None
    recipe: Any = None
    try:
        if isinstance(error, BaseExceptionGroup):
            recipe = _group_recipe(error)
        else:
            pickled = _round_trip(error)
            recipe = None if pickled is not None else _recipe(error)
        return marshal.dumps((type_name, message, text, notes, pickled, recipe))
    except _NOT_OURS:
        raise
    except BaseException:  # noqa: BLE001 - a stranger's code ran, which may raise anything, SystemExit too
        return marshal.dumps((type_name, message, text, notes, None, None))


def _try_pickle(value: object) -> tuple[bytes, Any] | None:
    """
    Pickle an exception or a part of one: plainly, or by value if that is in use here already.

    Returns:
        The pickle, and what it makes; None if there is none, or nothing can be made from it.
    """
    picklers: list[Callable[..., bytes]] = [dumps]
    if "cloudpickle" in sys.modules:
        picklers.append(sys.modules["cloudpickle"].dumps)
    for pickler in picklers:
        try:
            data = pickler(value, _PROTOCOL)
            return data, loads(data)  # noqa: S301 - our own bytes
        except _NOT_OURS:
            raise
        except BaseException:  # noqa: BLE001 - as above
            continue
    return None


def _round_trip(error: BaseException) -> bytes | None:
    """
    Return a pickle of *error* that gives the same type with the same args; None if there is none.
    """
    pickled = _try_pickle(error)
    if pickled is None:
        return None
    data, copy = pickled
    if type(copy) is not type(error) or len(copy.args) != len(error.args):
        return None
    return data if all(map(_is_same, copy.args, error.args)) else None


def _is_same(one: Any, other: Any) -> bool:
    """
    Say whether *one* is surely a copy of *other*.
    """
    if type(one) is not type(other):
        return False
    try:
        if (one == other) is True:
            return True
    except _NOT_OURS:
        raise
    except Exception:  # noqa: BLE001 - a strange `__eq__`: the bytes will say
        pass
    return dumps(one, _PROTOCOL) == dumps(other, _PROTOCOL)


def _recipe(error: BaseException) -> tuple[object, ...] | None:
    """
    Return what *error* can be made from without its `__init__`, which may want other arguments than `args`.

    What does not pickle is replaced in `args` by its repr, so that the message stays right, and left out of the
    attributes, with a note.
    """
    cls = _try_pickle(type(error))
    if cls is None:
        return None
    native = None  # the arguments of OSError's own constructor: they are more than `args`
    if isinstance(error, OSError):
        native = _pickle_each(OSError.__reduce__(error)[1])
    return _PLAIN, cls[0], _pickle_each(error.args), native, *_attribute_recipe(error)


def _pickle_each(args: Any) -> list[bytes]:
    """
    Pickle each of *args*, or its repr.
    """
    tried = [(part, _try_pickle(part)) for part in args]
    return [dumps(_short(part), _PROTOCOL) if pickled is None else pickled[0] for part, pickled in tried]


def _group_recipe(group: BaseExceptionGroup[BaseException]) -> tuple[object, ...] | None:
    """
    Return what an exception group can be made from: each member travels by itself.
    """
    cls = _try_pickle(type(group))
    if cls is None:
        return None
    members = [_pack_error(member, "") for member in group.exceptions]  # their text is in the group's
    return _GROUP, cls[0], _exact(group.message), members, *_attribute_recipe(group)


def _attribute_recipe(error: BaseException) -> tuple[dict[str, bytes], list[str]]:
    """
    Return the attributes of *error* that pickle, and the names of those that do not.
    """
    attributes: dict[str, bytes] = {}
    lost: list[str] = []
    for name, value in getattr(error, "__dict__", {}).items():
        pickled = _try_pickle(value)
        if pickled is None:
            lost.append(f"{name} ({_type_name(type(value))})")
        else:
            attributes[_exact(name)] = pickled[0]
    return attributes, lost


def _revive(pickled: bytes | None, recipe: tuple[Any, ...] | None, reasons: list[str]) -> BaseException | None:
    """
    Return the exception from its pickle or its recipe; None, with the reason, if neither works here.
    """
    ways: list[tuple[Callable[[Any], Any], Any]] = [(loads, pickled), (_rebuild, recipe)]
    for build, source in ways:
        if source is None:
            continue
        try:
            error: BaseException = build(source)
            if issubclass(type(error), BaseException):  # isinstance would believe a mock
                return error
            reasons.append(f"its pickle makes a {_type_name(type(error))}")
        except KeyboardInterrupt:
            raise
        except BaseException as reason:  # noqa: BLE001 - a stranger's code ran, which may raise anything, SystemExit too
            reasons.append(f"{_type_name(type(reason))}: {_text_of(reason)}")
    return None


def _rebuild(recipe: tuple[Any, ...]) -> BaseException:
    """
    Make an exception from its recipe.
    """
    kind, cls_data, *rest, attributes, lost = recipe
    cls = loads(cls_data)  # noqa: S301 - from our own process
    natives = [c for c in cls.__mro__ if c.__module__ == "builtins"]
    if kind == _GROUP:
        message, members = rest
        return _dress(cls.__new__(cls, message, [unpack_error(member) for member in members]), attributes, lost)
    args, native_args = ([loads(part) for part in parts or ()] for parts in rest)  # noqa: S301 - our own
    native_args = native_args or args
    error: BaseException
    try:
        error = cls.__new__(cls, *args)
    except TypeError:  # a `__new__` with other parameters
        error = natives[0].__new__(cls, *args)
    for native in natives[: natives.index(BaseException)]:
        # OSError, SystemExit, UnicodeError keep their facts outside of `__dict__`, and set them here.
        try:
            native.__init__(error, *native_args)
        except TypeError:  # under a class with other args
            continue
    error.args = tuple(args)
    return _dress(error, attributes, lost)


def _dress(error: BaseException, attributes: dict[str, bytes], lost: list[str]) -> BaseException:
    """
    Give *error* its attributes, and a note on those that it has lost.
    """
    for name, data in attributes.items():
        error.__dict__[name] = loads(data)  # noqa: S301 - from our own process
    if lost:
        error.add_note("not brought over from the worker: " + ", ".join(lost))
    return error


def _remote_error(
    type_name: str, message: str, text: str, notes: Sequence[str], reasons: Sequence[str]
) -> BaseException:
    """
    Return what stands for an exception that cannot be made here.
    """
    from safespawn import pool_errors

    error = pool_errors.RemoteError(
        type_name=type_name, message=message, traceback_text=text, reason="; ".join(reasons)
    )
    for note in notes:
        error.add_note(note)
    return error


def _set_cause(error: BaseException, text: str, remote_traceback: type[Exception] | None) -> None:
    """
    Set the traceback text as the cause of *error*, which had its own in the text.
    """
    if remote_traceback is None:
        from safespawn.pool_errors import RemoteTraceback

        remote_traceback = RemoteTraceback
    try:
        cause = remote_traceback(text)
    except Exception as reason:  # noqa: BLE001 - the caller's class; the text must not be lost with it
        from safespawn.pool_errors import RemoteTraceback

        cause = RemoteTraceback(f"{text}\n({remote_traceback!r} failed: {reason!r})\n")
    set_cause: Any = BaseException.__dict__["__cause__"].__set__  # whatever the class does on assignment
    set_cause(error, cause)


# --- words -----------------------------------------------------------------------------------------------------------


def _traceback_text(error: BaseException) -> str:
    """
    Return the traceback of *error* and its causes, without the frames of the worker's own machinery on top.
    """
    try:
        from traceback import TracebackException

        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER):
            frames = frames.tb_next
        if frames is None:
            frames = error.__traceback__  # our own failure: the frames are all there is
        return _clip("".join(TracebackException(type(error), error, frames, compact=True).format()), _TRACEBACK_CHARS)
    except _NOT_OURS:
        raise
    except BaseException as reason:  # noqa: BLE001 - a strange exception, or a chain too deep
        said = f"{_type_name(type(error))}: {_text_of(error)}"
        return f"{said}\n(its traceback cannot be shown: {_type_name(type(reason))})\n"


def _text_of(error: BaseException) -> str:
    """
    Return `str(error)`, or a word on why there is none.
    """
    try:
        return _exact(str(error))
    except _NOT_OURS:
        raise
    except BaseException as reason:  # noqa: BLE001 - a stranger's `__str__`
        return f"<its __str__ raised {_type_name(type(reason))}>"


def _notes(error: BaseException) -> list[str]:
    """
    Return the notes of *error*, as far as they are notes.
    """
    try:
        notes = error.__dict__.get("__notes__", ())
        return [_clip(_exact(note), _MESSAGE_CHARS) for note in notes if isinstance(note, str)]
    except _NOT_OURS:
        raise
    except BaseException:  # noqa: BLE001 - not a list of notes
        return []


def _type_name(cls: type) -> str:
    """
    Return the name of *cls* with its module, which is left out for the built-in ones.
    """
    try:
        module, name = cls.__module__, cls.__qualname__
        return _exact(name) if module == "builtins" else f"{module}.{name}"
    except _NOT_OURS:
        raise
    except BaseException:  # noqa: BLE001 - a stranger's metaclass
        return "a class without a name"


def _exact(text: str) -> str:
    """
    Return *text* as a str and not a subclass, which marshal would refuse.
    """
    return str.__str__(text)


def _short(value: object) -> str:
    """
    Return a bounded repr of *value*, which survives a class whose `__repr__` raises.
    """
    from safespawn import errors

    return errors._short(value)  # noqa: SLF001 - how every error of the package shortens a value


def _clip(text: str, limit: int) -> str:
    """
    Return *text*, without its middle if it is longer than *limit*.
    """
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n... {len(text) - limit} characters left out ...\n{text[-limit // 2 :]}"
