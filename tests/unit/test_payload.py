"""What travels between application and workers: values, the reasons why some do not, and exceptions."""

import collections
import enum
import functools
import marshal
import os
import pickle
import subprocess
import sys
import threading
import traceback

import pytest

from safespawn import pool_errors
from safespawn._worker import payload
from safespawn._worker.payload import OUT_OF_BAND_BYTES, Repeated, pack, unpack
from safespawn._worker.raised import pack_error, unpack_error


@pytest.fixture
def plain_only(monkeypatch):
    """Without cloudpickle, as where it is not installed."""
    monkeypatch.setitem(sys.modules, "cloudpickle", None)


@pytest.fixture
def by_value():
    """With cloudpickle."""
    return pytest.importorskip("cloudpickle", reason="optional: what plain pickle refuses goes by value")


class Box:
    """An object with attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("lock", "other")

    def __init__(self):
        self.other = 1
        self.lock = threading.Lock()


class Stateful:
    def __getstate__(self):
        return {"inner": threading.Lock()}


class Rude:
    """Raises something of its own when it is pickled."""

    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


class Bytes(bytes):
    """Goes out of band, as arrays do."""

    def __reduce_ex__(self, protocol):
        return Bytes, (pickle.PickleBuffer(self),)


# --- values


@pytest.mark.parametrize("value", [None, 1, "x" * 100_000, b"x" * 1_000_000, [1, {"a": (2.5, None)}], {1, 2}, len])
def test_a_value_arrives_as_it_was(value):
    """What pickles is equal on the other side, and plain values have no buffers."""
    data, buffers = pack(value)
    assert buffers == []
    assert unpack(data) == value
    assert unpack(memoryview(data)) == value


def test_large_buffers_stay_out_of_the_pickle():
    """A buffer of the limit or more is given apart, as flat bytes; a smaller one is in the pickle."""
    small, large = Bytes(b"s" * (OUT_OF_BAND_BYTES - 1)), Bytes(b"l" * OUT_OF_BAND_BYTES)
    data, buffers = pack((large, small, [large[:0]]))
    assert [(b.format, b.ndim, b.nbytes, bytes(b[:1])) for b in buffers] == [("B", 1, OUT_OF_BAND_BYTES, b"l")]
    assert len(data) < OUT_OF_BAND_BYTES + 500
    assert unpack(data, buffers) == (large, small, [b""])


def test_arrays_travel_without_a_copy_and_are_writable():
    """An array's memory is a buffer; on the other side the array stands on what it is given."""
    numpy = pytest.importorskip("numpy", reason="optional: its arrays are the payloads that matter most")
    array = numpy.arange(100_000, dtype="f8").reshape(100, 1000)
    for given in (array, numpy.asfortranarray(array), array[:50], array.astype("i2")):
        data, buffers = pack([given, "x"])
        assert len(data) < 1000
        assert len(buffers) == 1
        assert numpy.shares_memory(numpy.frombuffer(buffers[0], "B"), given)
        memory = bytearray(buffers[0])
        copy, text = unpack(data, [memoryview(memory)])
        assert text == "x"
        assert (copy == given).all()
        assert copy.dtype == given.dtype
        copy[0, 0] = 7
        assert bytes(memory) != bytes(buffers[0])


def test_a_lambda_goes_by_value(by_value):
    """What plain pickle refuses travels by cloudpickle, large buffers apart as ever."""
    number, large = 5, Bytes(b"l" * OUT_OF_BAND_BYTES)
    data, buffers = pack((lambda x: x + number, (large,), {}))
    function, args, _ = unpack(data, buffers)
    assert function(1) == 6
    assert args == (large,)
    assert len(buffers) == 1


INTERACTIVE = """
import pickle, sys
from safespawn._worker.payload import pack
class C: pass
def f(): return 42
text = pack((len, ("__main__",), {}), by_value=True)
print(pickle.loads(text[0]) == (len, ("__main__",), {}))
try:
    data = pack((len, ({"key": [f, C()]},), {}), by_value=True)[0]
    print(b"cloudpickle" in data, b"f" in pack(f)[0], b"cloudpickle" in pack(f)[0])
except Exception as error:
    print(type(error).__name__, error.path, error.type_name, "cloudpickle" in error.help)
"""


def run_interactive(before=""):
    """Return what INTERACTIVE prints."""
    code = [sys.executable, "-c", before + INTERACTIVE]
    return subprocess.run(code, check=True, capture_output=True, text=True).stdout


def test_an_interactive_session_goes_by_value(by_value):
    """With by_value=True, what the main module defines is in the pickle itself, and without it is named only."""
    assert run_interactive() == "True\nTrue True False\n"


def test_an_interactive_session_without_cloudpickle_is_told_so():
    """What the main module defines is named as the trouble; a mere text "__main__" is none."""
    stopped = "import sys; sys.modules['cloudpickle'] = None\n"
    assert run_interactive(stopped) == "True\nUnpicklableTask args[0]['key'][0] function True\n"


def nest(depth):
    """Return lists in lists."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


LOCK = threading.Lock()
PATHS = {
    "function": (lambda: (lambda: 0, (), {})),
    "args[1].config.lock": (lambda: (len, (1, Box(config=Box(x=1, lock=LOCK))), {})),
    "kwargs['a'][2]": (lambda: (len, (), {"a": [1, 2, LOCK]})),
    "args[0]['x']": (lambda: (len, ({"y": 1, "x": LOCK},), {})),
    "args[0].lock": (lambda: (len, (Slotted(),), {})),
    "args[0].inner": (lambda: (len, (Stateful(),), {})),
    "function.func.__self__.lock": (lambda: (functools.partial(Box(lock=LOCK).__init__, 1), ())),
    "function.args[1]": (lambda: (functools.partial(len, 1, LOCK), ())),
    "function.keywords['k']": (lambda: (functools.partial(len, k=LOCK), ())),
    "args[0]['k'][1]": (lambda: (len, (collections.defaultdict(list, k=[1, LOCK]),), {})),
    "args[0][1]": (lambda: (len, (collections.deque([1, LOCK]),), {})),
    "args[0][99999]": (lambda: (len, ([*range(99_999), LOCK],), {})),
    "args[0].args[0]": (lambda: (len, (functools.partial(len, Rude(ValueError("no"))),), {})),
    "task['plain'][0]": (lambda: {"plain": (LOCK,)}),
}


@pytest.mark.parametrize("path", PATHS)
def test_the_error_names_the_part(path, plain_only):
    """The innermost part that does not pickle is named by its path and its type, and the cause is what pickle said."""
    with pytest.raises(pool_errors.UnpicklableTask) as caught:
        pack(PATHS[path]())
    error = caught.value
    assert error.path == path
    assert f"{path}: {error.type_name}" in str(error)
    assert error.__cause__ is not None
    assert error.type_name in ("_thread.lock", "function", f"{__name__}.Rude")


def test_a_set_names_its_element(plain_only):
    """An element of a set is named by its repr."""
    with pytest.raises(pool_errors.UnpicklableTask, match=r"args\[0\]\{<unlocked _thread.lock"):
        pack((len, ({1, LOCK},), {}))


def test_the_error_names_what_a_closure_holds(by_value):
    """With cloudpickle, the trouble may lie in what a function takes with it."""
    held = Box(lock=LOCK)
    with pytest.raises(pool_errors.UnpicklableTask) as caught:
        pack((lambda: held, (), {}))
    assert (caught.value.path, caught.value.type_name) == ("function: held.lock", "_thread.lock")
    assert "initializer" in caught.value.help


def test_each_kind_of_payload_has_its_error(plain_only):
    """A result is UnpicklableResult with its short repr, an initializer is named as one."""
    with pytest.raises(pool_errors.UnpicklableResult) as caught:
        pack([1, "x" * 10_000, LOCK], what="result")
    assert caught.value.path == "result[2]"
    assert len(str(caught.value)) < 1000
    assert "_thread.lock" in caught.value.exc
    with pytest.raises(pool_errors.UnpicklableTask, match="the initializer cannot be pickled: initargs") as caught:
        pack((len, (LOCK,)), what="initializer")
    assert caught.value.what == "initializer"


@pytest.mark.parametrize("installed", [True, False])
def test_deep_nesting_is_the_same_error(installed, request):
    """RecursionError becomes the typed error, with its own help."""
    request.getfixturevalue("by_value" if installed else "plain_only")
    with pytest.raises(pool_errors.UnpicklableTask) as caught:
        pack((len, (nest(100_000),), {}))
    assert isinstance(caught.value.__cause__, RecursionError)
    assert "nested too deeply" in caught.value.help


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_what_concerns_the_process_is_let_through(error, plain_only):
    """KeyboardInterrupt and the like, raised while pickling, are not made errors of the value."""
    with pytest.raises(type(error)) as caught:
        pack((len, (Rude(error),), {}))
    assert caught.value is error


class Liar:
    """Nothing about it can be trusted."""

    def __reduce_ex__(self, protocol):
        return Liar, None

    def __repr__(self):
        raise ValueError("no")


class Endless:
    """Has a new one of itself in it whenever it is looked at."""

    def __reduce__(self):
        return Box, (), {"more": Endless(), "lock": LOCK}


@pytest.mark.parametrize("value", [Liar(), {Liar(): Liar()}, [Rude(ZeroDivisionError())], (i for i in ()), Endless()])
def test_the_search_never_fails_itself(value, plain_only):
    """Whatever the value is, the error is the typed one; what a task's own code raises is the caller's to see."""
    own = ZeroDivisionError if isinstance(value, list) else pool_errors.UnpicklableTask
    for what, error in (("task", own), ("result", pool_errors.UnpicklableResult)):
        with pytest.raises(error):
            pack(value, what=what)


def test_the_search_is_bounded(plain_only):
    """A part among a hundred thousand objects is looked for in bounded steps; the path ends at their container."""
    with pytest.raises(pool_errors.UnpicklableTask) as caught:
        pack((len, ([Box() for _ in range(100_000)] + [LOCK],), {}))
    assert caught.value.path == "args[0]"


def test_a_cycle_ends(plain_only):
    """A value that holds itself is searched once."""
    value = Box()
    value.me, value.list = value, [value]
    value.lock = LOCK
    with pytest.raises(pool_errors.UnpicklableTask) as caught:
        pack((len, (value,), {}))
    assert caught.value.path == "args[0].lock"


# --- exceptions


class Classic(Exception):
    """The class that breaks pools: its `args` are not what its constructor takes."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")
        self.first = first


class Prefixed(Exception):
    """Its constructor takes what `args` has, and changes it once more."""

    def __init__(self, text):
        super().__init__("prefix " + text)


class KeywordOnly(ValueError):
    def __init__(self, *, code):
        super().__init__()
        self.code = code

    def __str__(self):
        return f"code {self.code}"


class OwnNew(Exception):
    def __new__(cls, *, code):
        self = super().__new__(cls)
        self.code = code
        return self

    def __init__(self, *, code):
        super().__init__("own", code)


class SystemClassic(OSError):
    def __init__(self, path):
        super().__init__(2, "gone", path)


class Closing(SystemExit):
    def __init__(self, status, why):
        super().__init__(status)
        self.why = why


class Holder(Exception):
    def __init__(self, text, lock):
        super().__init__(text, lock)
        self.lock = lock
        self.text = text


class Mute(Exception):
    def __str__(self):
        raise ValueError("no")


class Evil(Exception):
    """Does what it is told when it is unpickled."""

    def __init__(self, deed):
        super().__init__(deed)

    def __reduce__(self):
        return do, self.args


def do(deed):
    """Do something that no unpickling should."""
    if deed == "exit":
        sys.exit(3)
    if deed == "raise":
        raise ValueError("no")
    if deed == "stop":
        raise GeneratorExit
    return 7


class Hostile(Exception):
    """Refuses every attribute."""

    def __setattr__(self, name, value):
        raise AttributeError("no")


class Text(str):
    __slots__ = ()


class Odd(Exception):
    def __str__(self):
        return Text("odd")


class Colour(enum.Enum):
    RED = 1


def throw(error, cause=None):
    """Raise *error*, as a task does, and return it."""
    try:
        raise error from cause
    except BaseException as caught:  # noqa: BLE001 - SystemExit and KeyboardInterrupt travel too
        return caught


def travel(error, **kwargs):
    """Return what arrives."""
    return unpack_error(pack_error(throw(error)), **kwargs)


EXCEPTIONS = [
    ValueError("no"),
    ValueError(),
    KeyError("k"),
    Classic(1, 2),
    Prefixed("x"),
    KeywordOnly(code=3),
    OwnNew(code=3),
    FileNotFoundError(2, "gone", "x"),
    OSError("just words"),
    SystemClassic("/x"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"),
    StopIteration(3),
    SystemExit(3),
    Closing(4, "why"),
    KeyboardInterrupt(),
    GeneratorExit(),
    AssertionError(Colour.RED, [1, {2}]),
    SyntaxError("bad", ("f.py", 1, 2, "x y")),
    ImportError("no", name="m"),
    ExceptionGroup("g", [ValueError(1), Classic(1, 2), ExceptionGroup("h", [KeyError(2)])]),
    BaseExceptionGroup("g", [KeyboardInterrupt(), Classic(3, 4)]),
    pool_errors.WorkerDied(pid=7, returncode=-9, task="f"),
    pool_errors.TaskTimeout(seconds=5, task="f"),
    pool_errors.UnpicklableResult(TypeError("no"), "<x>", path="result"),
]


@pytest.mark.parametrize("error", EXCEPTIONS, ids=lambda e: type(e).__name__)
def test_an_exception_arrives_as_itself(error):
    """Type, text, args and attributes are the same; the traceback is the cause, as text, and no frame travels."""
    error.add_note("a note")
    back = travel(error)
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
    assert back.__traceback__ is None
    if not isinstance(error, BaseExceptionGroup):
        assert back.args == error.args
    for name in ("errno", "strerror", "filename", "code", "value", "object", "reason", "lineno"):
        assert getattr(back, name, None) == getattr(error, name, None)
    text = str(back.__cause__)
    assert type(back.__cause__) is pool_errors.RemoteTraceback
    assert text.startswith('\n"""\n')
    assert "in throw" in text
    assert "a note" in text


def test_a_group_arrives_with_its_members():
    """Each member is of its own class, also those that break pickling, and has no cause: the group has the text."""
    back = travel(ExceptionGroup("g", [ValueError(1), Classic(1, 2), Evil("exit"), ExceptionGroup("h", [KeyError(2)])]))
    assert [type(e) for e in back.exceptions] == [ValueError, Classic, Evil, ExceptionGroup]
    assert [str(e) for e in back.exceptions[:3]] == ["1", "1 2", "exit"]
    assert back.exceptions[0].__cause__ is None
    assert "1 2" in str(back.__cause__)


def test_the_causes_are_in_the_text():
    """The text has the chain of causes, and the frames of the worker's own files on top are not in it."""
    try:
        payload.unpack(pickle.dumps(Evil("raise")))
    except ValueError as caught:
        error = throw(Classic(1, 2), cause=caught)
    back = unpack_error(pack_error(error))
    assert "ValueError: no" in str(back.__cause__)
    assert "direct cause" in str(back.__cause__)
    try:
        payload.unpack(pickle.dumps(Evil("raise")))
    except ValueError as caught:
        caught.__traceback__ = caught.__traceback__.tb_next  # as if the worker's file were on top
        text = str(unpack_error(pack_error(caught)).__cause__)
    assert "_worker/payload.py" not in text
    assert "in do" in text


def test_the_whole_prints_as_with_multiprocessing():
    """A printed error shows the worker's traceback, and then its own."""
    printed = "".join(traceback.format_exception(travel(Classic(1, 2))))
    assert printed.count("Classic: 1 2") == 2
    assert "The above exception was the direct cause of the following exception:" in printed


def test_what_does_not_pickle_in_an_exception_is_replaced_and_noted():
    """A lock in args becomes its repr, as an attribute it is left out, and a note says so; the rest arrives."""
    back = travel(Holder("text", LOCK))
    assert type(back) is Holder
    assert back.args == ("text", repr(LOCK))
    assert back.text == "text"
    assert not hasattr(back, "lock")
    assert back.__notes__ == ["not brought over from the worker: lock (_thread.lock)"]


def make_local():
    """Return an exception of a class that nobody can import."""

    class Local(Exception):
        pass

    return Local("no")


def test_a_class_that_cannot_be_imported_is_told_of(monkeypatch):
    """An exception of a local class arrives as RemoteError, with name, message, traceback and notes."""
    monkeypatch.delitem(sys.modules, "cloudpickle", raising=False)
    error = make_local()
    error.add_note("a note")
    back = travel(error)
    assert type(back) is pool_errors.RemoteError
    assert back.type_name == f"{__name__}.make_local.<locals>.Local"
    assert back.message == "no"
    assert "in throw" in back.traceback_text
    assert back.__notes__ == ["a note"]
    assert type(back.__cause__) is pool_errors.RemoteTraceback


def test_a_local_class_goes_by_value_where_cloudpickle_is_in_use(by_value):
    """Where the task came by cloudpickle, its exception goes back the same way."""
    back = travel(make_local())
    assert type(back).__name__ == "Local"
    assert str(back) == "no"


def test_a_class_that_is_not_here_is_told_of(monkeypatch):
    """When the application cannot import the class, RemoteError says so, with the reason."""
    data = pack_error(throw(Classic(1, 2)))
    monkeypatch.delattr(sys.modules[__name__], "Classic")
    back = unpack_error(data)
    assert type(back) is pool_errors.RemoteError
    assert (back.type_name, back.message) == (f"{__name__}.Classic", "1 2")
    assert "AttributeError" in back.reason
    assert "1 2" in str(back.__cause__)


@pytest.mark.parametrize("deed", ["exit", "raise", "stop", "number"])
def test_an_exception_that_misbehaves_in_pickle_still_arrives(deed):
    """One whose unpickling exits, raises or makes a number is made by recipe instead."""
    back = travel(Evil(deed))
    assert type(back) is Evil
    assert back.args == (deed,)


@pytest.mark.parametrize("deed", ["exit", "raise", "stop", "number"])
def test_an_exception_that_misbehaves_only_here_becomes_a_remote_error(deed):
    """The application survives a pickle that exits, raises, or makes something else."""
    record = ("m.E", "words", "Traceback\n", ["note"], pickle.dumps(Evil(deed)), None)
    back = unpack_error(marshal.dumps(record))
    assert type(back) is pool_errors.RemoteError
    assert back.message == "words"
    assert back.reason


@pytest.mark.parametrize("data", [b"", b"rubbish", marshal.dumps(7), marshal.dumps((1, 2)), pickle.dumps(1)])
def test_rubbish_is_an_error_too(data):
    """Bytes that are no exception at all give RemoteError."""
    assert type(unpack_error(data)) is pool_errors.RemoteError


def test_strange_exceptions_travel():
    """One without a text, one that refuses attributes, one with odd notes: each arrives, as well as it can."""
    back = travel(Mute("a"))
    assert (type(back), back.args) == (Mute, ("a",))
    assert "str() failed" in str(back.__cause__)
    assert type(travel(Hostile("a"))) is Hostile
    assert type(travel(Odd())) is Odd
    error = ValueError("x")
    error.__notes__ = 7
    assert str(travel(error)) == "x"
    error = ValueError("x" * 1_000_000, "\udcff")
    assert travel(error).args == error.args
    assert len(str(travel(error).__cause__)) < 300_000


def test_a_long_chain_of_causes_travels():
    """Ten thousand causes neither hang nor break it."""
    error = ValueError(0)
    for number in range(10_000):
        error = throw(ValueError(number), cause=error)
    assert travel(error).args == (9_999,)


def test_an_interrupt_is_not_swallowed(monkeypatch):
    """KeyboardInterrupt and MemoryError while packing come through."""

    class Interrupting(Exception):
        def __str__(self):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_error(Interrupting())


def test_the_class_of_the_cause_can_be_chosen():
    """A class of the caller's is used for the text; if that fails, our own, with the text all the same."""

    class Mine(Exception):
        pass

    class Broken(Exception):
        def __init__(self):
            pass

    back = travel(ValueError("x"), remote_traceback=Mine)
    assert type(back.__cause__) is Mine
    assert "ValueError: x" in str(back.__cause__)
    back = travel(ValueError("x"), remote_traceback=Broken)
    assert type(back.__cause__) is pool_errors.RemoteTraceback
    assert "ValueError: x" in str(back.__cause__)


def test_the_modules_are_light():
    """Importing them brings nothing that a task would have to pay for; that comes when something goes wrong."""
    heavy = "traceback multiprocessing concurrent.futures attr anyio safespawn.pool_errors cloudpickle"
    modules = "safespawn._worker.payload, safespawn._worker.raised"
    code = f"import sys, {modules}; print([m for m in {heavy.split()} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


class Counter:
    """A callable with state."""

    def __init__(self):
        self.step = 1

    def __call__(self, value):
        return value * self.step


def unpack_each(packed):
    """What a worker makes of a call of one function on many items."""
    data, parts, head = packed
    views = [memoryview(bytes(part)) for part in parts]
    return (unpack(head), unpack(data, views)) if head else unpack(data, views)


def test_a_function_that_goes_by_its_name_is_pickled_once():
    """The head of all lists of items is one and the same."""
    calls = Repeated(os.path.join, by_value=False)
    first, second = calls.pack(["a"]), calls.pack(["b", "c"])
    assert first[2]
    assert first[2] is second[2]
    assert unpack_each(second) == (os.path.join, ["b", "c"])


def test_an_object_that_is_called_goes_as_it_is_at_that_moment():
    """Its state is not that of the first call."""
    counter = Counter()
    calls = Repeated(counter, by_value=False)
    first = unpack_each(calls.pack([1]))
    counter.step = 5
    second = unpack_each(calls.pack([1]))
    assert (first[0](1), second[0](1)) == (1, 5)


@pytest.mark.parametrize("size", [10, OUT_OF_BAND_BYTES])
def test_buffers_of_repeated_calls_travel_as_those_of_one(size):
    """Large ones apart, small ones in the pickle."""
    packed = Repeated(len, by_value=False).pack([pickle.PickleBuffer(bytearray(b"x" * size)), "word"])
    assert len(packed[1]) == (size >= OUT_OF_BAND_BYTES)
    function, (data, word) = unpack_each(packed)
    assert (function(data), word) == (size, "word")


def test_an_item_that_does_not_pickle_is_named_as_in_a_call(plain_only):
    """With the same path to it."""
    with pytest.raises(pool_errors.UnpicklableTask) as caught:
        Repeated(len, by_value=False).pack([1, Box(lock=threading.Lock())])
    with pytest.raises(pool_errors.UnpicklableTask) as alone:
        pack((len, [1, Box(lock=threading.Lock())]))
    assert caught.value.path == alone.value.path


def test_a_lambda_goes_by_value_each_time(by_value):
    """With its closure as it is then."""
    step = 1
    calls = Repeated(lambda value: value * step, by_value=False)
    first = unpack_each(calls.pack([2]))
    step = 5
    second = unpack_each(calls.pack([2]))
    assert (first[0](2), second[0](2)) == (2, 10)
