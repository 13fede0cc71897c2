"""
Exceptions on their way between the application and its workers.

One travels three times at once, as the thing itself, as what it can be made from, and as plain text, and arrives as the
best of these that works here: that it was raised is never lost.

On the wire: a marshalled tuple (type name, message, traceback text, notes, pickle or None, recipe or None), which can
always be read. A recipe is (_PLAIN, pickle of the class, pickles of the args, those for OSError's constructor or None,
pickles of the attributes by name, names of those left out), or (_GROUP, pickle of the class, message, packed members,
and the same two).

Runs in: application and workers, any thread.
Never: waits; imports anything beyond `pickle` before something goes wrong.
"""

from __future__ import annotations

import marshal
import sys
from pickle import dumps, loads

from safespawn._worker.messages import PICKLE_PROTOCOL
from safespawn._worker.texts import NOT_OURS, class_name, clip, exact, short, text_of

TYPE_CHECKING = False  # as in typing, which workers need not import
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

_MESSAGE_CHARS = 16 * 1024  # arbitrary: of `str(error)` as plain text
_TRACEBACK_CHARS = 256 * 1024  # arbitrary
_OWN_FOLDER = __file__.rpartition("/")[0] + "/"
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
    type_name = class_name(type(error))
    message = clip(text_of(error), _MESSAGE_CHARS)
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
    except NOT_OURS:
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
            data = pickler(value, PICKLE_PROTOCOL)
            return data, loads(data)  # noqa: S301 - our own bytes
        except NOT_OURS:
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
    except NOT_OURS:
        raise
    except Exception:  # noqa: BLE001 - a strange `__eq__`: the bytes will say
        pass
    return dumps(one, PICKLE_PROTOCOL) == dumps(other, PICKLE_PROTOCOL)


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
    return [dumps(short(part), PICKLE_PROTOCOL) if pickled is None else pickled[0] for part, pickled in tried]


def _group_recipe(group: BaseExceptionGroup[BaseException]) -> tuple[object, ...] | None:
    """
    Return what an exception group can be made from: each member travels by itself.
    """
    cls = _try_pickle(type(group))
    if cls is None:
        return None
    members = [_pack_error(member, "") for member in group.exceptions]  # their text is in the group's
    return _GROUP, cls[0], exact(group.message), members, *_attribute_recipe(group)


def _attribute_recipe(error: BaseException) -> tuple[dict[str, bytes], list[str]]:
    """
    Return the attributes of *error* that pickle, and the names of those that do not.
    """
    attributes: dict[str, bytes] = {}
    lost: list[str] = []
    for name, value in getattr(error, "__dict__", {}).items():
        pickled = _try_pickle(value)
        if pickled is None:
            lost.append(f"{name} ({class_name(type(value))})")
        else:
            attributes[exact(name)] = pickled[0]
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
            reasons.append(f"its pickle makes a {class_name(type(error))}")
        except KeyboardInterrupt:
            raise
        except BaseException as reason:  # noqa: BLE001 - a stranger's code ran, which may raise anything, SystemExit too
            reasons.append(f"{class_name(type(reason))}: {text_of(reason)}")
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
        return clip("".join(TracebackException(type(error), error, frames, compact=True).format()), _TRACEBACK_CHARS)
    except NOT_OURS:
        raise
    except BaseException as reason:  # noqa: BLE001 - a strange exception, or a chain too deep
        said = f"{class_name(type(error))}: {text_of(error)}"
        return f"{said}\n(its traceback cannot be shown: {class_name(type(reason))})\n"


def _notes(error: BaseException) -> list[str]:
    """
    Return the notes of *error*, as far as they are notes.
    """
    try:
        notes = error.__dict__.get("__notes__", ())
        return [clip(exact(note), _MESSAGE_CHARS) for note in notes if isinstance(note, str)]
    except NOT_OURS:
        raise
    except BaseException:  # noqa: BLE001 - not a list of notes
        return []
