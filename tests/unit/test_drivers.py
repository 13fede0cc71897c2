"""Both drivers with hand-fed flows: what is waited for, what is thrown in, when a deadline has passed."""

import os
import signal
import threading
import time

import anyio
import pytest

from safespawn._core.flow import READ, WRITE
from safespawn._drive.async_driver import adrive
from safespawn._drive.blocking import drive
from safespawn._drive.interrupts import hold
from safespawn._drive.pump import Pump


def blocking(flow):
    """The blocking driver."""
    return drive(flow)


def asyncio(flow):
    """The async driver on asyncio."""
    return anyio.run(adrive, flow, backend="asyncio")


def trio(flow):
    """The async driver on trio."""
    return anyio.run(adrive, flow, backend="trio")


DRIVERS = [blocking, asyncio, trio]
each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.__name__)


@pytest.fixture
def pipe():
    """A pipe."""
    ends = list(os.pipe())
    yield ends
    for fd in ends:
        os.close(fd)


@each_driver
def test_a_flow_that_waits_for_nothing_just_runs(driver):
    """What a flow returns is what the driver returns."""

    def flow():
        return 5
        yield

    assert driver(flow()) == 5


@each_driver
def test_what_is_ready_is_what_the_flow_gets(driver, pipe):
    """A flow gets the descriptors that are ready, with their events, and no others."""
    read_fd, write_fd = pipe

    def flow():
        first = yield {read_fd: READ, write_fd: WRITE}, None
        os.write(write_fd, b"x")
        second = yield {read_fd: READ}, None
        return first, second

    assert driver(flow()) == ({write_fd: WRITE}, {read_fd: READ})


@each_driver
def test_an_empty_answer_means_that_the_deadline_has_passed(driver, pipe):
    """A flow gets the empty answer no earlier than at its deadline, and at once for one that has passed."""

    def flow():
        deadline = time.monotonic() + 0.05
        ready = yield {pipe[0]: READ}, deadline
        late = time.monotonic() - deadline
        again = yield {}, deadline
        return ready, late >= 0, again

    assert driver(flow()) == ({}, True, {})


@each_driver
def test_a_number_that_stands_for_another_file_is_watched_again(driver):
    """A flow may close a descriptor and wait for a new one that has got its number."""

    def flow():
        read_fd, write_fd = os.pipe()
        yield {read_fd: READ}, time.monotonic() + 0.01
        os.close(read_fd)
        os.close(write_fd)
        ends = os.pipe()
        assert read_fd in ends
        try:
            os.write(ends[1], b"x")
            return (yield {ends[0]: READ}, time.monotonic() + 5)
        finally:
            for fd in ends:
                os.close(fd)

    assert list(driver(flow()).values()) == [READ]


@each_driver
def test_what_a_flow_raises_leaves_the_driver(driver):
    """An exception of the flow's own passes through."""

    def flow():
        yield {}, time.monotonic()
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        driver(flow())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_cancelled_flow_may_go_on_waiting_until_it_is_through(backend, pipe):
    """Cancellation is thrown into the flow once; the waits with which it cleans up are shielded."""
    told = []

    def flow():
        try:
            yield {pipe[0]: READ}, None
        except BaseException as error:
            told.append(type(error).__name__)
            ready = yield {pipe[0]: READ}, time.monotonic() + 0.02
            told.append(ready)
            raise

    async def main():
        with anyio.move_on_after(0.01) as scope:
            await adrive(flow())
        return scope.cancelled_caught

    assert anyio.run(main, backend=backend)
    assert told[0] in ("CancelledError", "Cancelled")
    assert told[1:] == [{}]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------
@pytest.fixture
def python_handler():
    """SIGINT is handled as Python handles it, whatever the test runner does."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_comes_where_the_flow_waits(python_handler, pipe):
    """SIGINT between two waits is raised at the next one; the flow hears of it once and the caller after it."""
    told = []

    def flow():
        signal.raise_signal(signal.SIGINT)
        told.append("still here")
        try:
            yield {pipe[0]: READ}, None
        except KeyboardInterrupt:
            told.append("heard")
            yield {}, time.monotonic()
            told.append("cleaned")
            raise

    with pytest.raises(KeyboardInterrupt):
        drive(flow())
    assert told == ["still here", "heard", "cleaned"]


def test_ctrl_c_after_the_last_wait_is_raised_by_the_driver(python_handler):
    """A flow that does not wait any more ends, and then KeyboardInterrupt is raised."""
    told = []

    def flow():
        signal.raise_signal(signal.SIGINT)
        told.append("through")
        return 1
        yield

    with pytest.raises(KeyboardInterrupt):
        drive(flow())
    assert told == ["through"]


def test_a_later_ctrl_c_ends_a_callback_that_hangs(python_handler, monkeypatch):
    """SIGINT that finds another one noted for long is raised where it comes."""
    monkeypatch.setattr("safespawn._drive.interrupts.PATIENCE_SECONDS", 0.0)

    def flow():
        signal.raise_signal(signal.SIGINT)
        while True:
            signal.raise_signal(signal.SIGINT)
        yield

    with pytest.raises(KeyboardInterrupt):
        drive(flow())


def test_a_flow_within_a_flow_can_be_interrupted_too(python_handler, pipe):
    """A signal handler's own flow waits interruptibly, though it runs where the outer one holds Ctrl-C back."""

    def inner():
        signal.raise_signal(signal.SIGINT)
        yield {pipe[0]: READ}, None

    def outer():
        with pytest.raises(KeyboardInterrupt):
            drive(inner())
        return "went on"
        yield

    assert drive(outer()) == "went on"


def test_the_applications_own_handler_is_left_alone(pipe):
    """A handler that the application has set is called where the signal comes."""
    told = []
    before = signal.signal(signal.SIGINT, lambda *_: told.append("mine"))

    def flow():
        signal.raise_signal(signal.SIGINT)
        told.append("then")
        return signal.getsignal(signal.SIGINT)
        yield

    try:
        assert drive(flow())(None, None) is None
    finally:
        signal.signal(signal.SIGINT, before)
    assert told == ["mine", "then", "mine"]


def test_a_handler_that_a_callback_sets_stays(python_handler):
    """What is set for SIGINT inside of a flow is still set after it."""

    def handler(*_):
        """Nothing."""

    def flow():
        signal.signal(signal.SIGINT, handler)
        return 1
        yield

    drive(flow())
    assert signal.getsignal(signal.SIGINT) is handler
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_other_threads_touch_no_handler(python_handler):
    """In any thread but the main one nothing is held and nothing is set."""
    seen = []

    def work():
        with hold() as held:
            seen.extend([held, signal.getsignal(signal.SIGINT)])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None, signal.default_int_handler]


def test_a_timer_that_was_called_off():
    """It does nothing, also in the turn in which it is due; many of them make room at once, however far off."""
    pump, done = Pump(print), []
    try:
        now = time.monotonic()
        first = pump.call_at(now, lambda: pump.call_off(second))
        second = pump.call_at(now, lambda: done.append("second"))
        pump.call_at(now, lambda: done.append("third"))
        pump.turn([])
        assert done == ["third"]
        pump.call_off(first)  # done already
        timers = [pump.call_at(now + 1e9, print) for _ in range(1000)]
        pump.call_at(now, lambda: done.append("last"))
        for timer in timers:
            pump.call_off(timer)
            pump.call_off(timer)
        assert len(pump._timers) <= 101
        pump.turn([])
        assert done == ["third", "last"]
        assert pump._called_off == len(pump._timers)
    finally:
        pump.close()
