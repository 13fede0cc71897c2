"""The codec: what was said arrives, and whatever else arrives is a WireError."""

import fcntl
import marshal
import os
import resource
import subprocess
import sys
from binascii import crc32
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from safespawn._zygote import wire

FUZZ = Path(__file__).parents[1] / "programs" / "fault_wire_fuzz.py"
ROOT = Path(wire.__file__).parents[2]
HEADER_BYTES = 8
unhurried = settings(deadline=None)  # the machine may be busy with the tests beside

# --- values of each field ---------------------------------------------------------------------------------------------
integers = st.integers(-(2**63), 2**63 - 1)
numbers = st.integers(0, 2**31 - 1)
optional_bytes = st.none() | st.binary(max_size=40)
bytes_tuples = st.lists(st.binary(max_size=40), max_size=5).map(tuple)
int_tuples = st.lists(integers, max_size=5).map(tuple)
triples = st.lists(st.tuples(numbers, integers, integers), max_size=4).map(tuple)
environments = st.dictionaries(st.binary(max_size=20), st.binary(max_size=40), max_size=4)
ambients = st.none() | st.tuples(environments, triples, int_tuples, integers, integers)
streams = st.tuples(*[st.integers(wire.STDOUT, 260)] * 3)
optional_int = st.none() | integers
credentials = st.none() | st.tuples(
    optional_int,
    optional_int,
    st.none() | int_tuples,
    triples,
    optional_int,
    st.none() | int_tuples,
    optional_int,
)
usages = st.none() | st.lists(integers | st.floats(allow_nan=False), max_size=16).map(tuple)
facts = st.dictionaries(st.text(max_size=12), integers | st.floats(allow_nan=False) | st.text(max_size=20), max_size=6)
FIELDS = {
    wire.CONNECT: (),
    wire.CENSUS: (),
    wire.SPAWN: (
        bytes_tuples,
        optional_bytes,
        ambients,
        st.none() | environments,
        optional_bytes,
        streams,
        st.lists(int_tuples, max_size=3).map(tuple),
        optional_bytes,
        integers,
        integers,
        integers,
        int_tuples,
        credentials,
    ),
    wire.KILL: (integers, st.booleans()),
    wire.RELEASE: (),
    wire.LOAD_MAIN: (),
    wire.HELLO: (integers, st.text(max_size=20), integers, integers, integers, facts),
    wire.CONNECTED: (),
    wire.COUNTED: (facts,),
    wire.STARTED: (integers, integers),
    wire.FAILED: (st.text(max_size=12), integers, optional_bytes),
    wire.EXITED: (integers, integers, usages, st.none() | bytes_tuples),
    wire.RELEASED: (usages,),
    wire.LOADED: (),
    wire.SWEPT: (integers,),
    wire.REFUSED: (st.text(max_size=40),),
}
messages = st.sampled_from(sorted(FIELDS)).flatmap(lambda kind: st.tuples(st.just(kind), *FIELDS[kind]))
# Anything that marshal can carry: what a peer of another version, or a mistake, might send.
plain = st.recursive(
    st.none() | st.booleans() | integers | st.floats() | st.binary(max_size=20) | st.text(max_size=20) | st.just(...),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.binary(max_size=6) | st.text(max_size=6) | integers, inner, max_size=4)
        | st.frozensets(integers | st.binary(max_size=6), max_size=3)
    ),
    max_leaves=15,
)


def datagram(body, protocol=wire.PROTOCOL):
    """A datagram with a right header around *body*."""
    return b"ssp" + bytes([protocol]) + crc32(body).to_bytes(4, sys.byteorder) + body


def judge(data):
    """Decode *data*: the outcome is a message of a known shape, or a WireError, which is None here."""
    try:
        message = wire.decode(data)
    except wire.WireError as error:
        return None if str(error) else error
    assert type(message) is tuple
    assert len(message) == len(wire.SHAPES[message[0]]) + 1
    return message


def test_a_strategy_exists_for_every_message():
    """Every kind of message has its values here, field for field."""
    assert {kind: len(fields) for kind, fields in FIELDS.items()} == {
        kind: len(shape) for kind, shape in wire.SHAPES.items()
    }


@unhurried
@given(messages)
def test_every_message_round_trips(message):
    """What was encoded is decoded as it was, from bytes and from the bytearray that a socket filled."""
    data = wire.encode(message)
    assert wire.decode(data) == message
    assert wire.decode(bytearray(data)) == message
    assert [type(field) for field in wire.decode(data)] == [type(field) for field in message]


@unhurried
@given(messages)
def test_a_large_body_round_trips_through_a_memfd(message):
    """A body that was moved into a memfd comes back whole, and the descriptor stays the caller's."""
    data = wire.encode(message)
    header, fd = wire.to_memfd(data)
    try:
        assert len(header) == HEADER_BYTES
        assert wire.is_in_memfd(header)
        assert not wire.is_in_memfd(data)
        assert wire.decode(wire.from_memfd(header, fd)) == message
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


@unhurried
@given(st.binary(max_size=200))
@example(b"")
@example(b"ssp")
@example(b"ssp\x01\0\0\0\0")
def test_arbitrary_bytes_are_no_message(data):
    """Random bytes are refused with a WireError and nothing else."""
    assert judge(data) is None


@unhurried
@given(messages, st.data())
def test_a_truncated_message_is_refused(message, data):
    """Every true prefix of a message is a WireError."""
    whole = wire.encode(message)
    assert judge(whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@unhurried
@given(messages, st.data())
def test_a_flipped_bit_is_noticed(message, data):
    """One wrong bit anywhere, in the header or in the body, is a WireError."""
    whole = bytearray(wire.encode(message))
    bit = data.draw(st.integers(0, len(whole) * 8 - 1))
    whole[bit // 8] ^= 1 << bit % 8
    assert judge(whole) is None


@unhurried
@given(messages, messages, st.data())
def test_two_spliced_messages_are_refused(first, second, data):
    """The beginning of one message with the end of another one is one of the two, or a WireError."""
    one, two = wire.encode(first), wire.encode(second)
    cut = data.draw(st.integers(0, len(one)))
    spliced = one[:cut] + two[data.draw(st.integers(0, len(two))) :]
    assert judge(spliced) in (None, first, second)


@unhurried
@given(messages, st.binary(min_size=1, max_size=20))
def test_bytes_behind_a_message_are_noticed(message, rest):
    """A message with something behind it does not match its checksum."""
    assert judge(wire.encode(message) + rest) is None


@unhurried
@given(plain)
@example(())
@example((True,))
@example((wire.SPAWN,))
@example((2**100,))
@example([wire.CONNECT])
def test_a_body_of_the_wrong_shape_is_refused(value):
    """Whatever marshal can carry is a message of a known shape or a WireError, with a right checksum too."""
    judge(datagram(marshal.dumps(value)))
    judge(datagram(marshal.dumps(value, wire.MARSHAL_VERSION)))


@unhurried
@given(messages, st.data(), plain)
def test_one_field_of_another_type_is_refused(message, data, value):
    """A message with one field replaced is refused, unless the new value has that field's form too."""
    place = data.draw(st.integers(0, len(message) - 1))
    changed = (*message[:place], value, *message[place + 1 :])
    decoded = judge(datagram(marshal.dumps(changed, wire.MARSHAL_VERSION)))
    if decoded is not None and place > 0 and wire.SHAPES[message[0]][place - 1] is int:
        assert type(value) is int


@unhurried
@given(messages, plain)
def test_one_field_too_many_or_too_few_is_refused(message, value):
    """A message with a field more or less is refused."""
    assert judge(datagram(marshal.dumps((*message, value)))) is None
    if len(message) > 1:
        assert judge(datagram(marshal.dumps(message[:-1]))) is None


def test_a_bool_is_no_number():
    """True does not pass for 1: each field has exactly its type."""
    assert judge(datagram(marshal.dumps((wire.KILL, True, True)))) is None
    assert judge(datagram(marshal.dumps((wire.KILL, 9, 1)))) is None
    assert judge(datagram(marshal.dumps((True,)))) is None


def test_another_protocol_is_named():
    """A message of another protocol version is refused, with both numbers."""
    body = marshal.dumps((wire.CONNECT,))
    with pytest.raises(wire.WireError, match=f"protocol {wire.PROTOCOL + 1}, this side speaks {wire.PROTOCOL}"):
        wire.decode(datagram(body, wire.PROTOCOL + 1))


@pytest.mark.parametrize("value", [compile("1", "x", "eval"), {1, 2}, 1j, StopIteration])
def test_code_and_other_objects_never_pass(value):
    """What is not plain data is refused even where it would fit, code objects above all."""
    for message in ((wire.REFUSED, value), (wire.COUNTED, {"x": value}), (wire.SPAWN, value)):
        assert judge(datagram(marshal.dumps(message))) is None


def test_checksummed_nonsense_never_gets_further_than_a_wire_error():
    """20,000 damaged bodies with right checksums give messages or WireErrors, in a process short of memory too."""
    done = subprocess.run(
        [sys.executable, str(FUZZ), "20000", "1"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[:2] == ["20000", "bodies"]


# --- bodies in a memfd ------------------------------------------------------------------------------------------------
@pytest.fixture
def large():
    """A header and the memfd with its body, not yet sealed."""
    data = wire.encode((wire.REFUSED, "x" * 100_000))
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(fd, data[HEADER_BYTES:])
    header = data[:3] + bytes([data[3] | 0x80]) + data[4:HEADER_BYTES]
    yield header, fd
    os.close(fd)


SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def test_a_sealed_body_is_read(large):
    """A body with all four seals is taken."""
    header, fd = large
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    assert wire.decode(wire.from_memfd(header, fd)) == (wire.REFUSED, "x" * 100_000)


@pytest.mark.parametrize("missing", [SEALS, *[1 << bit for bit in range(4)]])
def test_a_body_that_its_sender_could_still_change_is_refused(large, missing):
    """A body that lacks one of the four seals, or all, is a WireError."""
    header, fd = large
    if SEALS & ~missing:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS & ~missing)
    with pytest.raises(wire.WireError, match="not sealed"):
        wire.from_memfd(header, fd)


def test_a_body_beyond_the_limit_is_refused_unread(large):
    """A memfd of 64 MiB and a byte is a WireError before any of it is read."""
    header, fd = large
    os.ftruncate(fd, wire.MEMFD_BYTES + 1)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(wire.WireError, match="is the limit"):
        wire.from_memfd(header, fd)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 10 * 1024  # KiB


def test_a_lying_header_is_found_out(large):
    """A body that is not the one that the header announces does not match its checksum."""
    header, fd = large
    os.ftruncate(fd, 50_000)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
    with pytest.raises(wire.WireError, match="checksum"):
        wire.decode(wire.from_memfd(header, fd))


def test_an_empty_body_is_refused():
    """A sealed memfd without a byte in it is no message."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, SEALS)
        header = b"ssp" + bytes([wire.PROTOCOL | 0x80]) + bytes(4)
        assert judge(wire.from_memfd(header, fd)) is None
    finally:
        os.close(fd)


@pytest.mark.parametrize("path", ["/dev/null", "/", "/proc/self/stat"])
def test_a_descriptor_that_is_no_memfd_is_refused(path):
    """Any other file in the place of the body is a WireError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(wire.WireError):
            wire.from_memfd(b"ssp" + bytes([wire.PROTOCOL | 0x80]) + bytes(4), fd)
    finally:
        os.close(fd)


def test_a_pipe_is_no_body():
    """A pipe in the place of the body is refused without waiting for it."""
    read_fd, write_fd = os.pipe()
    try:
        with pytest.raises(wire.WireError):
            wire.from_memfd(b"ssp" + bytes([wire.PROTOCOL | 0x80]) + bytes(4), read_fd)
    finally:
        os.close(read_fd)
        os.close(write_fd)


@settings(unhurried, max_examples=50)
@given(st.binary(max_size=12))
def test_a_header_that_speaks_of_a_memfd_is_no_message_by_itself(rest):
    """A datagram that says its body is in a memfd, and has none, is a WireError."""
    assert judge(b"ssp" + bytes([wire.PROTOCOL | 0x80]) + bytes(4) + rest) is None
