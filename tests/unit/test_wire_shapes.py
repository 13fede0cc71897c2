"""Each field of each message, one by one: what it may be, and what makes the whole message none."""

import fcntl
import marshal
import os
import sys
from binascii import crc32

import pytest

from safespawn._zygote import wire

ENV = {b"A": b"1"}
AMBIENT = (ENV, ((7, 1, 2),), (0, 1), 0, -1)
CREDENTIALS = (1, 2, (3, 4), ((7, 1, 2),), 5, (0, 1), 9)
SPAWN = (
    wire.SPAWN, (b"a", b"b"), b"exe", AMBIENT, ENV, b"/", (0, wire.PIPE, wire.STDOUT), ((4, 5), (6, 7)), b"in",
    3, 0, 0o22, (13,), CREDENTIALS,
)  # fmt: skip
MESSAGES = {
    "connect": (wire.CONNECT,),
    "census": (wire.CENSUS,),
    "spawn": SPAWN,
    "kill": (wire.KILL, 9, True),
    "release": (wire.RELEASE,),
    "load-main": (wire.LOAD_MAIN,),
    "hello": (wire.HELLO, 2, "3.11", 5, 6, 2, {"a": 1, "b": 1.5, "c": "x"}),
    "connected": (wire.CONNECTED,),
    "counted": (wire.COUNTED, {"a": 1, "b": 1.5, "c": "x"}),
    "started": (wire.STARTED, 7, 3),
    "failed": (wire.FAILED, "exec", 2, b"x"),
    "exited": (wire.EXITED, 7, 256, (1, 1.5), (b"out", b"err")),
    "released": (wire.RELEASED, (1, 1.5)),
    "loaded": (wire.LOADED,),
    "swept": (wire.SWEPT, 3),
    "refused": (wire.REFUSED, "no"),
}
SAMPLES = [None, True, 5, 1.5, b"x", "x", (), [], {}]  # one of each type that there is


def decoded(message):
    """The message, if these bytes are one; else None."""
    body = marshal.dumps(message, wire.MARSHAL_VERSION)
    header = b"ssp" + bytes([wire.PROTOCOL]) + crc32(body).to_bytes(4, sys.byteorder)
    try:
        return wire.decode(header + body)
    except wire.WireError:
        return None


def changed(message, place, value):
    """The message with another value at that place, which may lie deeper."""
    first, *rest = place
    new = changed(message[first], rest, value) if rest else value
    return (*message[:first], new, *message[first + 1 :])


@pytest.mark.parametrize("name", MESSAGES)
def test_a_whole_message_is_one(name):
    """As it is, and with no field more or less."""
    message = MESSAGES[name]
    assert decoded(message) == message
    assert decoded((*message, None)) is None
    assert decoded((*message, 1)) is None
    if len(message) > 1:
        assert decoded(message[:-1]) is None


@pytest.mark.parametrize(
    ("name", "place", "types"),
    [
        ("spawn", 1, (tuple,)),
        ("spawn", 2, (bytes, type(None))),
        ("spawn", 3, (type(None),)),  # a tuple, but not an empty one
        ("spawn", 4, (dict, type(None))),
        ("spawn", 5, (bytes, type(None))),
        ("spawn", 6, ()),
        ("spawn", 7, (tuple,)),
        ("spawn", 8, (bytes, type(None))),
        ("spawn", 9, (int,)),
        ("spawn", 10, (int,)),
        ("spawn", 11, (int,)),
        ("spawn", 12, (tuple,)),
        ("spawn", 13, (type(None),)),
        ("kill", 1, (int,)),
        ("kill", 2, (bool,)),
        ("hello", 1, (int,)),
        ("hello", 2, (str,)),
        ("hello", 3, (int,)),
        ("hello", 4, (int,)),
        ("hello", 5, (int,)),
        ("hello", 6, (dict,)),
        ("counted", 1, (dict,)),
        ("started", 1, (int,)),
        ("started", 2, (int,)),
        ("failed", 1, (str,)),
        ("failed", 2, (int,)),
        ("failed", 3, (bytes, type(None))),
        ("exited", 1, (int,)),
        ("exited", 2, (int,)),
        ("exited", 3, (tuple, type(None))),
        ("exited", 4, (tuple, type(None))),
        ("released", 1, (tuple, type(None))),
        ("swept", 1, (int,)),
        ("refused", 1, (str,)),
    ],
)
def test_a_field_has_its_types_and_no_other(name, place, types):
    """True is no number, and a list no tuple."""
    for value in SAMPLES:
        message = changed(MESSAGES[name], [place], value)
        assert decoded(message) == (message if type(value) in types else None), value


RIGHT = {
    "streams": [(6, (0, 0, 0)), (6, (wire.STDOUT,) * 3), (6, (250, wire.NULL, wire.PIPE))],
    "passed": [(7, ()), (7, ((1, 2),)), (7, ((),))],
    "ambient": [(3, 0, {}), (3, 1, ()), (3, 1, ((1, 2, 3), (4, 5, 6))), (3, 2, ()), (3, 3, -5), (3, 4, 7)],
    "environment": [(4, {}), (4, {b"": b""})],
    "credentials": [
        (13, 0, None), (13, 1, None), (13, 2, None), (13, 2, ()), (13, 3, ()), (13, 4, None), (13, 5, None),
        (13, 5, ()), (13, 6, None), (13, (None, None, None, (), None, None, None)),
    ],
    "ignored": [(12, ())],
    "argv": [(1, ())],
}  # fmt: skip
WRONG = {
    "streams": [
        (6, (0, 0)), (6, (0, 0, 0, 0)), (6, (0, 0, None)), (6, (0, 0, 1.5)), (6, (0, 0, True)), (6, (0, 0, -4)),
        (6, (-4, 0, 0)), (6, ()),
    ],
    "passed": [(7, (1,)), (7, ((1, b"2"),)), (7, ([1, 2],)), (7, ((1, 2), None)), (7, ((True, 2),))],
    "ambient": [
        (3, AMBIENT[:4]), (3, (*AMBIENT, 1)), (3, 0, None), (3, 0, ()), (3, 0, {b"A": 1}), (3, 0, {"A": b"1"}),
        (3, 1, None), (3, 1, [(7, 1, 2)]), (3, 1, ((7, 1),)), (3, 1, ((7, 1, 2, 3),)), (3, 1, ([7, 1, 2],)),
        (3, 1, ((7, 1, None),)), (3, 1, (5,)), (3, 2, [0]), (3, 2, None), (3, 2, (b"0",)), (3, 3, None), (3, 3, b"0"),
        (3, 4, None), (3, 4, 1.5),
    ],
    "environment": [(4, {b"A": None}), (4, {b"A": "1"}), (4, {"A": b"1"}), (4, {1: b"1"})],
    "credentials": [
        (13, CREDENTIALS[:6]), (13, (*CREDENTIALS, None)),
        *[(13, place, value) for place in (0, 1, 4, 6) for value in (b"1", 1.5, True, (1,))],
        *[(13, place, value) for place in (2, 5) for value in (3, [3], (b"3",), (None,), {}, (True,), b"")],
        *[(13, 3, value) for value in (None, 5, [], ((1, 2),), ((1, 2, 3, 4),), ([1, 2, 3],), ((1, 2, b""),), (5,))],
    ],
    "ignored": [(12, (None,)), (12, (b"13",)), (12, (13, True))],
    "argv": [(1, (b"a", "b")), (1, (None,)), (1, (b"a", 5))],
}  # fmt: skip


@pytest.mark.parametrize("what", RIGHT)
def test_what_may_be_in_a_request(what):
    """Each of the variants is a message."""
    for *place, value in RIGHT[what]:
        message = changed(SPAWN, place, value)
        assert decoded(message) == message, (place, value)


@pytest.mark.parametrize("what", WRONG)
def test_what_may_not_be_in_a_request(what):
    """One wrong thing anywhere makes it none, though all else is right; and also where all else is not there."""
    bare = (wire.SPAWN, (b"a",), None, None, None, None, (0, 1, 2), (), None, 0, 0, 0, (), None)
    assert decoded(bare) == bare
    for *place, value in WRONG[what]:
        assert decoded(changed(SPAWN, place, value)) is None, (place, value)
        sparse = changed(bare, place[:1], SPAWN[place[0]]) if len(place) > 1 else bare
        assert decoded(changed(sparse, place, value)) is None, (place, value)


@pytest.mark.parametrize(
    ("name", "place", "values"),
    [
        ("exited", 3, [(b"1",), (None,), (1, True)]),
        ("exited", 4, [("out",), (b"out", None), (1,)]),
        ("released", 1, [(b"1",), (None,), (1, True)]),
        ("hello", 6, [{1: 1}, {"a": None}, {"a": b"1"}, {"a": (1,)}, {b"a": 1}]),
        ("counted", 1, [{1: 1}, {"a": None}, {"a": b"1"}, {"a": (1,)}, {b"a": 1}]),
    ],
)
def test_what_may_not_be_in_an_answer(name, place, values):
    """The numbers are numbers, the outputs bytes, the facts names with numbers or texts."""
    for value in values:
        assert decoded(changed(MESSAGES[name], [place], value)) is None, value
        if name == "exited":  # also where the other one is not there
            other = changed(MESSAGES[name], [7 - place], None)
            assert decoded(changed(other, [place], value)) is None


def test_what_is_no_message():
    """Too short, another mark, another protocol, a wrong sum, an unknown kind: each is refused with its words."""
    body = marshal.dumps((wire.CONNECT,), wire.MARSHAL_VERSION)
    good = b"ssp" + bytes([wire.PROTOCOL]) + crc32(body).to_bytes(4, sys.byteorder) + body
    assert wire.decode(good) == (wire.CONNECT,)
    assert wire.encode((wire.CONNECT,)) == good
    for data, said in [
        (good[:7], "7 bytes are not even a header"),
        (b"", "0 bytes are not even a header"),
        (good[:8], "the body does not match its checksum"),
        (b"ssq" + good[3:], "no safespawn message"),
        (good[:3] + bytes([wire.PROTOCOL + 1]) + good[4:], f"protocol {wire.PROTOCOL + 1}, this side speaks"),
        (good + b"x", "the body does not match its checksum"),
    ]:
        with pytest.raises(wire.WireError, match=said):
            wire.decode(data)
    for value, said in [
        ((), "not a message"), ([wire.CONNECT], "not a message"), (5, "not a message"), (("x",), "not a message"),
        ((99,), "unknown kind 99"), ((wire.CONNECT, 1), f"kind {wire.CONNECT}: a field is missing, is too many"),
        ((wire.COUNTED, {"a": None}), f"kind {wire.COUNTED}: what is in a field has the wrong form"),
    ]:  # fmt: skip
        body = marshal.dumps(value, wire.MARSHAL_VERSION)
        with pytest.raises(wire.WireError, match=said):
            wire.decode(b"ssp" + bytes([wire.PROTOCOL]) + crc32(body).to_bytes(4, sys.byteorder) + body)
    nothing = b"ssp" + bytes([wire.PROTOCOL]) + bytes(4)
    with pytest.raises(wire.WireError, match="the body cannot be read: "):
        wire.decode(nothing)


def test_a_body_in_a_memfd(monkeypatch):
    """Sealed, CLOEXEC, announced by its header; of just the greatest size too."""
    datagram = wire.encode((wire.REFUSED, "x" * 1000))
    header, fd = wire.to_memfd(datagram)
    assert wire.is_in_memfd(header)
    assert not wire.is_in_memfd(datagram)
    assert not wire.is_in_memfd(datagram[:8])
    assert not wire.is_in_memfd(header + b"x")
    assert not os.get_inheritable(fd)
    assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) == (
        fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
    )
    size = os.fstat(fd).st_size
    assert size == len(datagram) - 8
    monkeypatch.setattr(wire, "MEMFD_BYTES", size)
    assert wire.from_memfd(header, fd) == datagram
    monkeypatch.setattr(wire, "MEMFD_BYTES", size - 1)
    with pytest.raises(wire.WireError, match=f"the body has {size} bytes; {size - 1} is the limit"):
        wire.from_memfd(header, fd)
    os.close(fd)
    with pytest.raises(wire.WireError, match=r"the body cannot be read: .*Bad file descriptor"):
        wire.from_memfd(header, fd)


@pytest.mark.parametrize("missing", [0, *[1 << bit for bit in range(4)]])
def test_a_body_without_one_of_its_seals(missing):
    """Could still be changed by who sent it: it is refused."""
    datagram = wire.encode((wire.REFUSED, "x"))
    fd = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.write(fd, datagram[8:])
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 15 & ~missing)
    header = datagram[:3] + bytes([wire.PROTOCOL | 0x80]) + datagram[4:8]
    if missing:
        with pytest.raises(wire.WireError, match="the body is not sealed"):
            wire.from_memfd(header, fd)
    else:
        assert wire.from_memfd(header, fd) == datagram
    os.close(fd)


def test_a_memfd_that_cannot_be_filled_is_closed(monkeypatch):
    """And the error is told."""
    before = len(os.listdir("/proc/self/fd"))

    def refuse(_fd, _data):
        raise OSError(28, "no space")

    monkeypatch.setattr(wire.os, "write", refuse)
    with pytest.raises(OSError, match="no space"):
        wire.to_memfd(wire.encode((wire.CONNECT,)))
    monkeypatch.undo()
    assert len(os.listdir("/proc/self/fd")) == before
