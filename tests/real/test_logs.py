"""
What workers log arrives in the handlers here: all of it, in order, before the result, whatever happens.
"""

import asyncio
import logging
import os
import threading
import time

import pytest

import safespawn
from support import log_tasks as tasks

BOUND = 60.0  # seconds; a hang is what is looked for


class Keep(logging.Handler):
    """
    Keeps the records; does *first* with each.
    """

    def __init__(self, first=None):
        super().__init__()
        self.first = first
        self.records = []

    def emit(self, record):
        """As every handler."""
        if self.first is not None:
            self.first(record)
        self.records.append(record)

    @property
    def texts(self):
        """The messages."""
        return [record.getMessage() for record in self.records]


@pytest.fixture
def listen():
    """Puts handlers on loggers, and logging back as it was."""
    logger = logging.getLogger(tasks.NAME)
    placed = []

    def place(handler=None, name=tasks.NAME):
        handler = handler or Keep()
        logging.getLogger(name).addHandler(handler)
        placed.append((name, handler))
        return handler

    logger.propagate = False
    yield place
    for name, handler in placed:
        logging.getLogger(name).removeHandler(handler)
        logging.getLogger(name).setLevel(logging.NOTSET)
    logger.propagate = True
    logging.disable(logging.NOTSET)


@pytest.fixture
def pool():
    """One worker."""
    with safespawn.Pool(1, name="words") as pool:
        yield pool


def test_a_handler_that_wants_to_exit_ends_nothing(pool, listen, monkeypatch):
    """Whatever a handler raises, and whatever the program's hook does about it: the next record is handled."""

    def first(record):
        if record.getMessage() == "says first":
            raise Exit("a handler's")

    def hook(args):
        caught.append(args.exc_value)
        raise ValueError("a hook's")

    caught, told = [], []
    monkeypatch.setattr(threading, "excepthook", hook)
    monkeypatch.setattr(threading, "__excepthook__", told.append)
    heard = listen(Keep(first))
    for text in ("first", "second"):
        pool.apply(tasks.say, (text,))
    assert heard.texts == ["says second"]
    assert [str(error) for error in caught] == ["a handler's"]
    assert [args.exc_value for args in told] == caught


class Exit(BaseException):
    """As SystemExit."""


# --- levels -----------------------------------------------------------------------------------------------------------
def test_workers_have_the_levels_of_the_program(pool, listen):
    """What nobody here would see is not made there; a change of logging here holds from the next task on."""
    logger = logging.getLogger(tasks.NAME)
    heard = listen()
    logger.setLevel(logging.INFO)
    assert pool.apply(tasks.say_at_levels) == [20, 30, 40]
    logger.setLevel(logging.DEBUG)
    assert pool.apply(tasks.say_at_levels) == [10, 20, 30, 40]
    logging.disable(logging.WARNING)
    assert pool.apply(tasks.say_at_levels) == [40]
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.ERROR)
    assert pool.apply_async(tasks.say_at_levels).get(BOUND) == [40]
    assert [record.levelno for record in heard.records] == [20, 30, 40, 10, 20, 30, 40, 40, 40]


def test_a_handlers_level_counts(pool, listen, monkeypatch):
    """A logger that lets all pass to handlers that want errors only: the worker makes errors only."""
    logger = logging.getLogger(tasks.NAME)
    heard = Keep()
    heard.setLevel(logging.ERROR)
    listen(heard)
    monkeypatch.setattr(logger, "handlers", [heard])  # without pytest's own, which want everything
    logger.setLevel(logging.DEBUG)
    assert pool.apply(tasks.say_at_levels) == [40]
    heard.setLevel(logging.INFO)  # leaves no trace: it is looked for once a second
    deadline = time.monotonic() + BOUND
    while pool.apply(tasks.say_at_levels) != [20, 30, 40]:
        assert time.monotonic() < deadline


def test_the_filters_and_levels_here_are_asked(pool, listen):
    """A logger's filter here sees the workers' records, and refuses them."""
    heard = listen()
    logger = logging.getLogger(tasks.NAME)

    def refuse(record):
        return "two" not in record.getMessage()

    logger.addFilter(refuse)
    try:
        pool.apply(tasks.say, ("one", "two", "three"))
    finally:
        logger.removeFilter(refuse)
    assert heard.texts == ["says one", "says three"]


@pytest.mark.parametrize(("mode", "level"), [("inherit", logging.WARNING), ("off", None)])
def test_other_modes_send_nothing(mode, level, listen):
    """With "inherit" a worker has the levels here and no handler, with "off" neither."""
    heard = listen()
    with safespawn.Pool(1, logging=mode) as pool:
        handlers, found = pool.apply(tasks.own_handlers)
        assert handlers == []
        assert level is None or found == logging.getLogger().level
        pool.apply(tasks.say, ("unheard",), {"level": logging.DEBUG})
    assert heard.texts == []


def test_an_unknown_mode_is_refused():
    """A mode that there is not is told at the pool's making."""
    with pytest.raises(safespawn.errors.BadArgument, match="one of 'relay', 'inherit', 'off'"):
        safespawn.Pool(1, logging="queue")


# --- what a record is made of -----------------------------------------------------------------------------------------
def test_a_record_knows_where_it_comes_from(pool, listen):
    """Names, places and times are the worker's; its name, its task and its process are with it."""
    heard = listen()
    before = time.time()
    pool.apply(tasks.say, ("one",), {"word": "w"})
    (record,) = heard.records
    assert (record.name, record.levelname, record.getMessage(), record.args) == (
        tasks.NAME, "WARNING", "says one", None,
    )  # fmt: skip
    assert (record.filename, record.module, record.funcName) == ("log_tasks.py", "log_tasks", "say")
    assert (record.processName, record.worker, record.threadName) == ("words-0", "words-0", "MainThread")
    assert record.process not in (None, os.getpid())
    assert record.task_id == 1
    assert before <= record.created <= time.time()
    assert record.relativeCreated > 0
    assert record.word == "w"


def test_extras_are_plain_data_or_their_repr(pool, listen):
    """Scalars, lists and dicts come as they are; what else there is as its repr, cut; a repr that fails says so."""
    heard = listen()
    pool.apply(tasks.say_odd_things)
    (record,) = heard.records
    assert (record.number, record.text, record.none) == (3, "ä", None)
    assert (record.listed, record.pair) == ([1, [2, {"a": 3.5}]], (1, "b"))
    assert record.opaque.startswith("<opaque ooo")
    assert len(record.opaque) == 1024
    assert record.inside["deep"] == record.opaque
    assert "RuntimeError" in record.broken


def test_exceptions_are_kept_apart_from_the_message(pool, listen):
    """The text, the class and the notes are attributes, so a formatter prints them as its own; and so is the stack."""
    heard = listen()
    pool.apply(tasks.fail_aloud)
    failed, where = heard.records
    assert failed.getMessage() == "could not find it"
    assert (failed.exc_type, failed.exc_notes) == ("KeyError", ("looked twice",))
    text = logging.Formatter().format(failed)
    assert text.startswith("could not find it\nTraceback")
    assert "KeyError: 'lost'" in text
    assert "in fail_aloud" in where.stack_info


def test_a_record_too_long_is_cut_with_a_mark(pool, listen):
    """Message, exception and extras of a megabyte each arrive as one record of less than 64 KiB."""
    heard = listen()
    pool.apply(tasks.say_long, (1_000_000,))
    (record,) = heard.records
    assert record.getMessage().endswith("[cut by safespawn: 987712 characters more]")
    assert "cut by safespawn" in record.exc_text
    assert record.exc_type == "ValueError"
    assert len(record.text) <= 1024
    assert sum(len(str(value)) for value in record.__dict__.values()) < 64 * 1024


def test_loose_ends_are_told(pool, listen):
    """Warnings, and what threads and finalizers end with, are records too."""
    listen(name="py.warnings")
    warned = listen(name="py.warnings")
    died = listen(name="safespawn.worker")
    pool.apply(tasks.leave_loose_ends)
    assert "UserWarning: old ways" in warned.texts[0]
    assert [(record.getMessage().partition(":")[0], record.exc_type) for record in died.records] == [
        ("exception in thread loose", "OSError"),
        (died.records[1].getMessage().partition(":")[0], "LookupError"),
    ]


# --- none is lost -----------------------------------------------------------------------------------------------------
def kill_after(pool, heard, number):
    """How many records of a worker came that logged *number* and killed itself."""
    heard.records.clear()
    with pytest.raises(safespawn.WorkerDied):
        pool.apply_async(tasks.count, (number, "kill")).get(BOUND)
    assert heard.texts == [str(index) for index in range(number)]
    return len(heard.records)


@pytest.mark.parametrize("number", [1, 7, 300, 10_000])
def test_a_worker_that_is_killed_has_lost_no_record(number, pool, listen):
    """SIGKILL after N records: N have arrived when the death is told, in order."""
    assert kill_after(pool, listen(), number) == number


@pytest.mark.stress
def test_a_worker_that_is_killed_has_lost_no_record_whatever_their_number(listen):
    """SIGKILL after N records, N from 1 to 10,000: N arrive."""
    heard = listen()
    with safespawn.Pool(1) as pool:
        for number in (*range(1, 300), *range(300, 10_001, 97), 10_000):
            assert kill_after(pool, heard, number) == number


def test_a_worker_killed_in_the_middle_of_a_record_leaves_no_half(listen):
    """Killed from outside while it logs without end: what arrived has no gap, and its successor's records follow."""
    heard = listen()
    with safespawn.Pool(1) as pool:
        for _ in range(5):
            heard.records.clear()
            with pytest.raises(safespawn.WorkerDied):
                pool.apply_async(tasks.count_and_be_killed_amid).get(BOUND)
            assert heard.texts == [str(index) for index in range(len(heard.texts))]
            assert heard.texts
            pool.apply(tasks.say, ("still here",))
            assert heard.texts[-1] == "says still here"


def test_a_death_is_told_in_the_log(pool, listen):
    """Behind the dead worker's records: which worker, how, in which task, and where it was."""
    listen(heard := Keep(), name="safespawn.worker")
    listen(heard)
    with pytest.raises(safespawn.WorkerDied):
        pool.apply(tasks.count, (3, "crash"))
    pool.apply(tasks.say, ("next",))
    assert heard.texts[:3] == ["0", "1", "2"]
    told = heard.records[3]
    assert "worker 0 of pool 'words'" in told.getMessage()
    assert "died: SIGSEGV, task 1 support.log_tasks.count" in told.getMessage()
    assert "in count" in told.exc_text
    assert (told.levelname, told.worker) == ("ERROR", "words-0")
    assert heard.texts[4:] == ["says next"]


@pytest.mark.parametrize("face", ["apply", "apply_async", "imap"])
def test_records_come_before_the_result(face, pool, listen):
    """Also when the handlers are slow: the result is there when all records are."""
    heard = listen(Keep(first=lambda _record: time.sleep(0.01)))
    for number in (5, 3):
        heard.records.clear()
        if face == "apply":
            pool.apply(tasks.count, (number,))
        elif face == "apply_async":
            pool.apply_async(tasks.count, (number,)).get(BOUND)
        else:
            list(pool.imap(tasks.count, [number]))
        assert heard.texts == [str(index) for index in range(number)]


def test_threads_signals_and_copies_log(pool, listen):
    """Records of a signal's handler that interrupts the writing of one, and of a fork that a task has made, arrive."""
    heard = listen()
    pool.apply(tasks.say_in_handlers, (3000,))
    numbers = [text for text in heard.texts if text != "tick"]
    assert numbers == [str(index) for index in range(3000)]
    assert len(numbers) < len(heard.texts)
    heard.records.clear()
    pool.apply(tasks.say_from_a_copy)
    deadline = time.monotonic() + BOUND
    while "from the copy" not in heard.texts and time.monotonic() < deadline:
        time.sleep(0.005)
    assert sorted(heard.texts) == ["after", "before", "from the copy"]


# --- handlers that do not play along ----------------------------------------------------------------------------------
def test_a_handler_that_raises_harms_nobody(pool, listen, monkeypatch):
    """Each exception of a handler is told by the hook of threads; the records after it arrive, and the results."""
    told = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))

    def refuse(record):
        if record.getMessage() in ("1", "3"):
            raise ArithmeticError(record.getMessage())

    heard = listen(Keep(first=refuse))
    assert pool.apply(tasks.count, (5,)) == 5
    assert heard.texts == ["0", "2", "4"]
    assert told == [ArithmeticError, ArithmeticError]


def test_a_handler_that_blocks_holds_up_no_result(listen):
    """The pool goes on without its records; when the handler lets go, what had room arrives, the rest is counted."""
    gate = threading.Event()
    heard = listen(Keep(first=lambda _record: gate.wait(BOUND)))
    told = listen(name="safespawn.worker")
    number = 20_000
    try:
        with safespawn.Pool(2, name="stuck") as pool:
            assert pool.apply(tasks.count, (1,)) == 1
            assert pool.apply_async(tasks.count, (number,)).get(BOUND) == number  # its ring is full long before
            assert pool.map(abs, range(100)) == list(range(100))
            assert not heard.records
            gate.set()
            assert pool.apply_async(tasks.count, (1,)).get(BOUND) == 1
            deadline = time.monotonic() + BOUND
            dropped = 0
            while len(heard.records) + dropped < number + 2 and time.monotonic() < deadline:
                dropped = sum(record.dropped for record in told.records if hasattr(record, "dropped"))
                time.sleep(0.01)
    finally:
        gate.set()
    assert dropped > 0
    assert len(heard.records) + dropped == number + 2
    assert "log records of worker" in told.texts[0]


def test_a_handler_that_blocks_holds_up_no_end(listen):
    """A pool ends in order, and is terminated, while a handler blocks; dead workers' records come when it lets go."""
    gate = threading.Event()
    heard = listen(Keep(first=lambda _record: gate.wait(BOUND)))
    try:
        began = time.monotonic()
        with safespawn.Pool(1) as pool:
            pool.apply(tasks.count, (10,))
        with pytest.raises(safespawn.WorkerDied), safespawn.Pool(1) as pool:
            pool.apply(tasks.count, (10, "kill"))
        assert time.monotonic() - began < BOUND / 2
        assert not heard.records
    finally:
        gate.set()
    deadline = time.monotonic() + BOUND
    while len(heard.records) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert heard.texts == [str(index) for index in range(10)] * 2


def test_a_handler_that_blocks_holds_up_no_event_loop(listen):
    """With an AsyncPool the handlers run beside the loop: it goes on while one blocks; the result comes after them."""
    gate, entered = threading.Event(), threading.Event()

    def block(_record):
        entered.set()
        assert gate.wait(BOUND)

    heard = listen(Keep(first=block))

    async def main():
        async with safespawn.AsyncPool(1) as pool:
            call = asyncio.ensure_future(pool.run(tasks.count, 3))
            await asyncio.to_thread(entered.wait, BOUND)
            gate.set()
            assert await call == 3
            return heard.texts

    assert asyncio.run(main()) == ["0", "1", "2"]


def test_a_handler_may_use_the_pool(pool, listen):
    """A handler that calls into the pool that the record came from has its answer, and the task its result."""
    found = []
    heard = listen(Keep(first=lambda record: found.append(pool.apply_async(abs, (-int(record.getMessage()),)).get(5))))
    assert pool.apply_async(tasks.count, (2,)).get(BOUND) == 2
    deadline = time.monotonic() + BOUND
    while len(heard.records) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert found == [0, 1]


def test_logging_is_configured_anew_while_workers_log(pool, listen):
    """Handlers come and go and levels change while records arrive: nothing raises, and the last word holds."""
    logger = logging.getLogger(tasks.NAME)
    listen()
    result = pool.apply_async(tasks.count, (5000,))
    rounds = 0
    while not result.ready():
        handler = Keep()
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if rounds % 2 else logging.WARNING)
        logger.removeHandler(handler)
        rounds += 1
    assert result.get(BOUND) == 5000
    logger.setLevel(logging.DEBUG)
    assert pool.apply(tasks.say_at_levels) == [10, 20, 30, 40]
