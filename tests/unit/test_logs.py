"""
The parts of the relay of log records, each by itself: the ring, the levels, a record as plain data.
"""

import logging
import marshal
import random
import threading

import pytest

from safespawn._drive import levels
from safespawn._worker import logs
from safespawn._worker.ring import DROPPED, HEAD_BYTES, Ring


def two_sides(size):
    """A ring of *size* bytes, as its writer and as its reader see it."""
    memory = memoryview(bytearray(HEAD_BYTES + size))
    return Ring(memory), Ring(memory)


# --- the ring ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(20))
def test_what_is_put_is_taken_in_order(seed):
    """Messages of random sizes, put and taken in random turns: each comes once, in order, or found no room."""
    dice = random.Random(seed)
    size = dice.choice([64, 200, 4096, 70_000, 200_000])
    writer, reader = two_sides(size)
    put, taken = [], []
    for number in range(2000):
        if dice.random() < 0.6:
            message = number.to_bytes(4, "little") + bytes(dice.randrange(dice.choice([20, size // 4])))
            if writer.put(message):
                put.append(message)
        else:
            taken += reader.take(dice.randrange(1, 9))
    assert len(put) > 100
    taken += reader.take(10_000)
    assert taken == put
    assert reader.is_empty


def test_a_full_ring_refuses_and_nothing_is_written_over():
    """When there is no room a message is refused, the earlier ones stay, and there is room again when they are read."""
    writer, reader = two_sides(256)
    number = 0
    while writer.put(b"%30d" % number):
        number += 1
    assert not writer.put(b"x" * 300)
    writer.drop()
    assert reader.dropped == writer.cells[DROPPED] == 1
    assert [int(each) for each in reader.take(100)] == list(range(number))
    assert writer.put(b"again")
    assert reader.take(1) == [b"again"]


def test_a_half_written_message_is_not_there():
    """A writer that ends before it has said how far it wrote has written nothing."""
    writer, reader = two_sides(4096)
    writer.put(b"whole")
    before = bytes(writer.cells)
    writer.put(b"half")
    writer.cells[0] = int.from_bytes(before[:8], "little")
    assert reader.take(10) == [b"whole"]


def test_a_ring_that_was_written_over_ends_and_does_no_harm():
    """Lengths that cannot be are the end of what was written, not a walk through strange memory."""
    writer, reader = two_sides(4096)
    writer.put(b"one")
    writer.put(b"two")
    writer.data[8:12] = b"\xf0\xff\xff\x7f"
    assert reader.take(10) == [b"one"]
    assert reader.is_empty
    assert writer.put(b"three")
    assert reader.take(10) == [b"three"]


def test_two_threads_agree_on_a_ring():
    """A writer and a reader at once: a hundred thousand messages, every one, in order."""
    writer, reader = two_sides(10_000)
    number = 20_000
    taken = []

    def read():
        while len(taken) < number:
            taken.extend(reader.take(50))

    thread = threading.Thread(target=read)
    thread.start()
    for index in range(number):
        while not writer.put(b"%d" % index):
            pass
    thread.join(60)
    assert taken == [b"%d" % index for index in range(number)]


# --- levels -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def tree():
    """A logging module of its own: its root, and its loggers by name."""

    class Module:
        Logger = logging.Logger
        lastResort = logging.lastResort  # noqa: N815 - as in logging

    root = logging.RootLogger(logging.WARNING)
    manager = logging.Manager(root)
    manager.root = root
    root.manager = manager
    Module.root = root
    return Module, manager.getLogger


def handler(level):
    """A handler with that level."""
    made = logging.NullHandler()
    made.setLevel(level)
    return made


def test_thresholds_are_the_level_or_the_lowest_handler(tree):
    """A table: what a logger has, and from which level on anybody sees its records."""
    module, get = tree
    assert levels.find_levels(module) == (0, {"root": 30})  # the last resort's
    module.root.addHandler(handler(logging.INFO))
    module.root.setLevel(logging.DEBUG)
    get("a.b").setLevel(logging.ERROR)
    get("a.b.c.d")
    get("quiet").propagate = False
    get("loud").addHandler(handler(logging.DEBUG))
    get("alone").addHandler(handler(logging.CRITICAL))
    get("alone").propagate = False
    module.root.manager.disable = 5
    assert levels.find_levels(module) == (
        5, {"root": 20, "a.b": 40, "quiet": 30, "loud": 10, "alone": 50},
    )  # fmt: skip


def test_levels_stay_the_same_object_until_they_change():
    """Whoever compares by `is` sends levels when they are others; a change by `setLevel` is seen at once."""
    logger = logging.getLogger("tests.levels")
    first = levels.current_levels()
    assert levels.current_levels() is first
    logger.setLevel(logging.CRITICAL)
    try:
        second = levels.current_levels()
        assert second is not first
        assert second[1]["tests.levels"] == 50
    finally:
        logger.setLevel(logging.NOTSET)
    assert "tests.levels" not in levels.current_levels()[1]


def test_levels_that_are_no_more_are_taken_back():
    """A worker's loggers that the program has no level for any more have none."""
    root = logging.getLogger().level
    try:
        logs.set_levels((0, {"root": root, "tests.pushed": 50}))
        assert logging.getLogger("tests.pushed.below").getEffectiveLevel() == 50
        logs.set_levels((7, {"root": root}))
        assert logging.getLogger("tests.pushed").level == logging.NOTSET
        assert logging.root.manager.disable == 7
    finally:
        logs.set_levels((0, {"root": root}))


# --- records ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [10, 5_000, 50_000, 3_000_000])
def test_a_record_is_never_too_long(size):
    """Whatever is long in it, also its names, it fits, and can be read."""
    record = logging.LogRecord("n" * size, 30, "p" * size, 1, "ö" * size, None, None, "f" * size)
    record.exc_text = "e" * size
    record.stack_info = "s" * size
    record.__dict__.update({f"extra{number}": "x" * size for number in range(5)})
    data = logs.pack_record(record, 1)
    assert len(data) <= logs.RECORD_BYTES
    assert marshal.loads(data)[1] == 30


def test_a_record_with_strange_parts_can_be_packed():
    """Objects where a record has names and numbers, surrogates in its text: packed all the same."""
    record = logging.LogRecord(object(), 30, "p", 1, "\udcff %s", ("x",), None, object())
    values = marshal.loads(logs.pack_record(record, 0))
    assert values[0].startswith("<object")
    assert values[3] == "\udcff x"
