"""
The words that the application and the zygote say to each other, and their form on the wire.

One message is one datagram of a private SEQPACKET socketpair: eight bytes of header (magic, protocol, CRC of the body)
and a marshalled tuple that begins with the message's kind. The tuple holds plain data only: nothing in it can name
code. A body that is too large for a datagram travels in a sealed memfd, the first descriptor of the message.
`decode` lets nothing through whose shape is not exactly that of a message in `SHAPES`: whatever bytes arrive, the
outcome is a well-formed message or a `WireError`.

Runs in: zygote (as the module `wire`) and application (as `safespawn._zygote.wire`).
Never: imports anything but C modules; waits.
"""

import fcntl
import marshal
import os
from _struct import Struct
from binascii import crc32

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

PROTOCOL = 2  # any change of a message's shape or meaning
INLINE_BYTES = 64 * 1024  # a datagram of this size fits the smallest socket buffer that distributions configure
MEMFD_BYTES = 64 * 1024 * 1024  # far beyond ARG_MAX (6 MiB at most) plus prefilled input: larger is a mistake
MAX_FDS = 253  # SCM_MAX_FD, Linux; 254 are refused with EINVAL
MARSHAL_VERSION = 2  # no back references: shorter to write, and the bytes depend on the values alone

_HEADER = Struct("=3sBI")  # magic, protocol and form, CRC-32 of the body
_MAGIC = b"ssp"
_IN_MEMFD = 0x80  # in the protocol byte: the body is in the first descriptor
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

# --- kinds: application to zygote ------------------------------------------------------------------------------------
CONNECT = 1  # on the control socket: make one more connection
CENSUS = 2  # on the control socket: how are you?
SPAWN = 3  # start this command
KILL = 4  # signal the child, or the whole of its tree
RELEASE = 5  # the exit has been seen: reap it
LOAD_MAIN = 6  # to a template, on the control socket: load the application's __main__

# --- kinds: zygote to application ------------------------------------------------------------------------------------
HELLO = 65  # once, with the first connections
CONNECTED = 66  # one connection, as a descriptor
COUNTED = 67  # the answer to CENSUS
STARTED = 68  # the child runs; its pidfd and the application's pipe ends
FAILED = 69  # the child never ran: stage and errno
EXITED = 70  # raw wait status; with the resources used when it has been reaped already, and what it printed if quiet
RELEASED = 71  # reaped; the resources used
SWEPT = 72  # the rest of an ended child's tree has been killed
REFUSED = 73  # a well-formed message that this connection must not send now, and why
LOADED = 74  # __main__ is loaded, and there still is one thread

# --- standard streams of a child -------------------------------------------------------------------------------------
PIPE = -1  # the zygote makes a pipe and gives the application its end
NULL = -2  # /dev/null
STDOUT = -3  # stderr only: where stdout goes
# a number from 0 up: index of the descriptor in the message

# --- flags of SPAWN --------------------------------------------------------------------------------------------------
HOLD = 1  # keep the zombie until RELEASE, so that pid and process group stay reserved
QUIET = 2  # say STARTED only if the child has not exited within a moment; else EXITED brings its short outputs
NEW_SESSION = 4
TREE = 8  # whoever ends this child ends its whole tree
NO_NEW_PRIVS = 16

MARK = b"SAFESPAWN_CHILD"  # in the environment of a supervised child, and so of all that it starts: which one it is
GROUP_AUTO = -1  # own process group, unless the session has a terminal: then the application's


class WireError(Exception):
    """
    These bytes are not a message of this protocol.
    """


# --- shapes ----------------------------------------------------------------------------------------------------------
# A message's shape: the type of each field, or the types, and what else must hold of what is in them. The types of a
# whole message are compared in one step, and the rest in one function, since this is done for every command twice.
_NONE = type(None)
_BYTES, _INT, _NUMBERS, _OPTIONAL_INT = {bytes}, {int}, {int, float}, {int, _NONE}


def _all_ints(value: "tuple[Any, ...]") -> bool:
    return _INT.issuperset(map(type, value))


def _int_rows(value: "tuple[Any, ...]") -> bool:
    return not value or all(type(row) is tuple and _all_ints(row) for row in value)


def _triples(value: object) -> bool:
    return type(value) is tuple and all(type(row) is tuple and len(row) == 3 and _all_ints(row) for row in value)


def _env(value: "dict[Any, Any]") -> bool:
    return _BYTES.issuperset(map(type, value)) and _BYTES.issuperset(map(type, value.values()))


def _spawn(message: "tuple[Any, ...]") -> bool:
    ambient, env, streams, credentials = message[3], message[4], message[6], message[13]
    return (
        _BYTES.issuperset(map(type, message[1]))
        and len(streams) == 3
        and _INT.issuperset(map(type, streams))
        and min(streams) >= STDOUT
        and _INT.issuperset(map(type, message[12]))
        and (not message[7] or _int_rows(message[7]))
        and (ambient is None or _ambient(ambient))
        and (env is None or _env(env))
        and (credentials is None or _credentials(credentials))
    )


def _exited(message: "tuple[Any, ...]") -> bool:
    return (message[3] is None or _NUMBERS.issuperset(map(type, message[3]))) and (
        message[4] is None or _BYTES.issuperset(map(type, message[4]))
    )


def _facts(value: "dict[Any, Any]") -> bool:
    return {str}.issuperset(map(type, value)) and {int, float, str}.issuperset(map(type, value.values()))


def _ambient(value: "tuple[Any, ...]") -> bool:
    """
    What a child takes from the application, beside descriptors: environment, limits, CPU set, nice, process group.
    """
    return (
        len(value) == 5
        and type(value[0]) is dict
        and _env(value[0])
        and _triples(value[1])
        and type(value[2]) is tuple
        and _all_ints(value[2])
        and _all_ints(value[3:])
    )


def _credentials(value: "tuple[Any, ...]") -> bool:
    """
    What needs a process of its own before exec: user, group, groups, limits, nice, CPU set, death signal.
    """
    return (
        len(value) == 7
        and _OPTIONAL_INT.issuperset(map(type, (value[0], value[1], value[4], value[6])))
        and (value[2] is None or (type(value[2]) is tuple and _all_ints(value[2])))
        and _triples(value[3])
        and (value[5] is None or (type(value[5]) is tuple and _all_ints(value[5])))
    )


_MAYBE_BYTES, _MAYBE_TUPLE, _MAYBE_DICT = (bytes, _NONE), (tuple, _NONE), (dict, _NONE)
SHAPES: "dict[int, tuple[Any, ...]]" = {
    CONNECT: (),
    CENSUS: (),
    # argv, executable, ambient (None: as in the last SPAWN here), env (None: the ambient one), cwd, streams,
    # pass_fds as (index, number), input, flags, process group, umask, ignored signals, credentials
    SPAWN: (
        tuple, _MAYBE_BYTES, _MAYBE_TUPLE, _MAYBE_DICT, _MAYBE_BYTES, tuple,
        tuple, _MAYBE_BYTES, int, int, int, tuple, _MAYBE_TUPLE,
    ),
    KILL: (int, bool),  # signal, whole tree
    RELEASE: (),
    LOAD_MAIN: (),
    HELLO: (int, str, int, int, int, dict),  # protocol, version of Python, zygote pid, warden pid, connections, facts
    CONNECTED: (),
    COUNTED: (dict,),
    STARTED: (int, int),  # pid; which descriptors come: bit 0 stdin, 1 stdout, 2 stderr (the pidfd always)
    FAILED: (str, int, _MAYBE_BYTES),  # stage, errno, name
    EXITED: (int, int, _MAYBE_TUPLE, _MAYBE_TUPLE),  # pid, raw wait status, resources, outputs that STARTED had brought
    RELEASED: (_MAYBE_TUPLE,),
    LOADED: (),
    SWEPT: (int,),  # processes killed
    REFUSED: (str,),
}  # fmt: skip
_INSIDE: "dict[int, Callable[[tuple[Any, ...]], bool]]" = {
    SPAWN: _spawn,
    HELLO: lambda message: _facts(message[6]),
    COUNTED: lambda message: _facts(message[1]),
    EXITED: _exited,
    RELEASED: lambda message: message[1] is None or _NUMBERS.issuperset(map(type, message[1])),
}


def _combinations(fields: "tuple[Any, ...]") -> "frozenset[tuple[type, ...]]":
    """
    Every row of types that *fields* allow, that of the kind in front.
    """
    rows: list[tuple[type, ...]] = [(int,)]
    for field in fields:
        rows = [(*row, each) for row in rows for each in (field if type(field) is tuple else (field,))]
    return frozenset(rows)


_CHECKS = {kind: (_combinations(fields), _INSIDE.get(kind)) for kind, fields in SHAPES.items()}


def encode(message: "tuple[Any, ...]") -> bytes:
    """
    One datagram for *message*; past `INLINE_BYTES` the sender moves its body with `to_memfd`.
    """
    body = marshal.dumps(message, MARSHAL_VERSION)
    return _HEADER.pack(_MAGIC, PROTOCOL, crc32(body)) + body


def to_memfd(datagram: bytes) -> tuple[bytes, int]:
    """
    Move the body of *datagram* into a sealed memfd.

    Returns:
        The header that announces it, and the descriptor (CLOEXEC), which the caller owns.
    """
    fd = os.memfd_create("safespawn-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(datagram)[_HEADER.size :]
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return _HEADER.pack(_MAGIC, PROTOCOL | _IN_MEMFD, crc32(memoryview(datagram)[_HEADER.size :])), fd


def is_in_memfd(datagram: "bytes | memoryview") -> bool:
    """
    Whether the first descriptor of this message is its body.
    """
    return len(datagram) == _HEADER.size and bool(datagram[3] & _IN_MEMFD)


def from_memfd(header: "bytes | memoryview", fd: int) -> bytes:
    """
    The whole datagram whose body is in *fd*, which stays the caller's.
    """
    try:
        size = os.fstat(fd).st_size
        if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
            raise WireError("the body is not sealed")
        if size > MEMFD_BYTES:
            raise WireError(f"the body has {size} bytes; {MEMFD_BYTES} is the limit")
        body = os.pread(fd, size, 0)
    except OSError as error:
        raise WireError(f"the body cannot be read: {error}") from None
    return _HEADER.pack(_MAGIC, header[3] & ~_IN_MEMFD, _HEADER.unpack(header)[2]) + body


def decode(datagram: "bytes | memoryview") -> "tuple[Any, ...]":
    """
    The message in *datagram*, checked field by field.

    Raises:
        WireError: These bytes are not a message of this protocol.
    """
    if len(datagram) < _HEADER.size:
        raise WireError(f"{len(datagram)} bytes are not even a header")
    magic, protocol, crc = _HEADER.unpack_from(datagram)
    if magic != _MAGIC:
        raise WireError("no safespawn message")
    if protocol != PROTOCOL:
        raise WireError(f"protocol {protocol}, this side speaks {PROTOCOL}")
    body = memoryview(datagram)[_HEADER.size :]
    if crc32(body) != crc:
        raise WireError("the body does not match its checksum")
    try:
        message = marshal.loads(body)
    except (EOFError, ValueError, TypeError, MemoryError) as error:
        raise WireError(f"the body cannot be read: {error}") from None
    if type(message) is not tuple or not message or type(message[0]) is not int:
        raise WireError("the body is not a message")
    checks = _CHECKS.get(message[0])
    if checks is None:
        raise WireError(f"unknown kind {message[0]}")
    if tuple(map(type, message)) not in checks[0]:
        raise WireError(f"kind {message[0]}: a field is missing, is too many, or has the wrong type")
    if checks[1] is not None and not checks[1](message):
        raise WireError(f"kind {message[0]}: what is in a field has the wrong form")
    return message
