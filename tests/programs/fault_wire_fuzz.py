"""
A child that decodes damaged bodies with right checksums: `fault_wire_fuzz.py COUNT SEED`.

Its memory is limited: a length of billions in a damaged body asks for gigabytes, which shall be an error like others.
"""

import marshal
import random
import resource
import sys
from binascii import crc32

from safespawn._zygote import wire

MEMORY_BYTES = 64 << 20  # little, because marshal fills what a damaged length asks for
SAMPLES = (
    (wire.CONNECT,),
    (wire.KILL, 9, True),
    (wire.EXITED, 12345, 256, (0.25, 0.5, 1000, 0), (b"printed", b"")),
    (wire.FAILED, "exec", 2, b"name"),
    (wire.REFUSED, "no"),
    (wire.HELLO, 1, "3.11", 10, 9, 2, {"threads": 1, "rss": 1.5}),
    (
        wire.SPAWN, (b"ss", b"-tn"), None, ({b"PATH": b"/bin"}, ((7, 10, 20),), (0, 1), 0, 5), None, b"/",
        (1, -1, -3), ((2, 7),), b"input", 3, -1, 18, (13,), (0, 0, (1,), ((7, 1, 2),), 5, (0,), 9),
    ),
)  # fmt: skip


def damage(body: bytes, chance: random.Random) -> bytes:
    """
    Change a few bytes, cut some out or put some in; never one that begins a code object.

    Unmarshalling a damaged code object may end the interpreter, by design of marshal: the codec's peer is trusted as
    far as that.
    """
    data = bytearray(body)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data)) if data else 0
        action = chance.randrange(4)
        if action == 0 and data:
            data[place] ^= 1 << chance.randrange(8)
        elif action == 1 and data:
            data[place] = chance.choice(b"(){}[]<>zZaAuUtTiIlfgyYrsNF0TS.\x00\xff\x80")
        elif action == 2:
            del data[place : place + chance.randint(1, 4)]
        else:
            data[place:place] = chance.randbytes(chance.randint(1, 4))
    return bytes(data).replace(b"c", b"i").replace(b"\xe3", b"i")


def main() -> None:
    """Decode them all and print how they fared."""
    count, seed = int(sys.argv[1]), int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    chance = random.Random(seed)
    refused = 0
    for _ in range(count):
        body = damage(marshal.dumps(chance.choice(SAMPLES), wire.MARSHAL_VERSION), chance)
        data = b"ssp" + bytes([wire.PROTOCOL]) + crc32(body).to_bytes(4, sys.byteorder) + body
        try:
            message = wire.decode(data)
        except wire.WireError:
            refused += 1
        else:
            assert len(message) == len(wire.SHAPES[message[0]]) + 1, message
    print(count, "bodies", refused, "refused")


main()
