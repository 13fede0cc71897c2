"""The dispatcher's decisions one by one: how much goes in a message, what is put behind what, what is remembered."""

import functools

import pytest

from safespawn._core import dispatch
from safespawn._core.dispatch import BUSY, EACH, EMPTY, ENDING, IDLE, LENT, QUEUED, SENT, Dispatcher, Pace, Task


def task(function="quick", *, mode=dispatch.CALL, payload=b"x", parts=None, **options):
    """A task of that function."""
    return Task(mode, payload, parts, function, None, **options)


def dispatcher_of(size=1, *, average=0.0001, slowest=None):
    """One whose seats all have a worker, and that knows the function "quick"."""
    made = Dispatcher(size)
    for seat in made.seats:
        made.rest(seat)
    made.paces["quick"] = pace = Pace(average)
    pace.slowest = average if slowest is None else slowest
    return made


def submit(dispatcher, count, **options):
    """So many tasks, in order."""
    tasks = [task(**options) for _ in range(count)]
    for each in tasks:
        dispatcher.submit(each, 1.0)
    return tasks


class Source:
    """Stands in a queue for many tasks."""

    counted_out = False

    def __init__(self, priority=0):
        self.priority = priority
        self.function = "quick"


# --- how much goes in a message ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("average", "waiting", "size", "together"),
    [
        (0.0001, 1, 1, 1),
        (0.0001, 2, 1, 1),
        (0.0001, 3, 1, 2),
        (0.0001, 5, 1, 3),  # half of what waits behind the first
        (0.0001, 100, 1, 21),  # BATCH_SECONDS of it
        (0.0001, 9, 2, 3),  # each of two seats has a right to a half
        (0.0, 9, 1, 5),
        (0.0019, 100, 1, 2),
        (0.002, 100, 1, 1),
        (0.003, 100, 1, 1),
    ],
)
def test_the_size_of_a_batch(average, waiting, size, together):
    """About `BATCH_SECONDS` of work, and never more than its share of what waits."""
    dispatcher = dispatcher_of(size, average=average)
    tasks = submit(dispatcher, waiting)
    seat = dispatcher.idle.pop()
    assert dispatcher.pick(seat, 7.0) == tasks[:together]
    assert dispatcher.waiting == waiting - together
    assert list(seat.tasks) == [each.id for each in tasks[:together]]
    assert seat.ahead == pytest.approx(average * together)
    assert {(each.state, each.sent, each.submitted) for each in tasks[:together]} == {(SENT, 7.0, 1.0)}


@pytest.mark.parametrize(
    ("size", "together"), [(1, 21), (4096, 10), (20_480, 2), (20_481, 1), (40_960, 1), (50_000, 1)]
)
def test_a_batch_fits_a_datagram(size, together):
    """All its payloads have `BATCH_BYTES` at most; one alone may have more."""
    dispatcher = dispatcher_of()
    submit(dispatcher, 100, payload=bytes(size))
    assert len(dispatcher.pick(dispatcher.idle.pop(), 0.0)) == together


@pytest.mark.parametrize(
    "other", [{"function": "other"}, {"timeout": 1.0}, {"parts": [b"x"]}, {"deaths": 1}, {"mode": dispatch.STREAM}]
)
def test_a_batch_ends_before_what_is_different(other):
    """Another function, and whatever must be able to begin at once, is not put behind."""
    dispatcher = dispatcher_of()
    dispatcher.paces["other"] = Pace(0.0001)
    first = submit(dispatcher, 2)
    submit(dispatcher, 1, **other)
    submit(dispatcher, 20)
    assert dispatcher.pick(dispatcher.idle.pop(), 0.0) == first


def test_a_batch_ends_before_a_source():
    """A source is asked for a task, not sent."""
    dispatcher = dispatcher_of()
    first = submit(dispatcher, 2)
    dispatcher.add_source(Source())
    submit(dispatcher, 20)
    assert dispatcher.pick(dispatcher.idle.pop(), 0.0) == first


# --- what is put behind what runs -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("ahead", "goes"), [(0.0, True), (0.003, True), (0.0039, True), (0.00395, False), (0.01, False)]
)
def test_what_may_wait_in_a_worker(ahead, goes):
    """No more than `AHEAD_SECONDS` of work, the new one with it."""
    dispatcher = dispatcher_of(average=0.0001)
    seat = dispatcher.idle.pop()
    running = task()
    dispatcher.submit(running, 0.0)
    dispatcher.pick(seat, 0.0)
    submit(dispatcher, 1)
    seat.ahead = ahead
    assert (dispatcher.pick(seat, 0.0) is not None) is goes
    seat.tasks.clear()  # one that has nothing gets it in any case
    submit(dispatcher, 1)
    assert dispatcher.pick(seat, 0.0) is not None


@pytest.mark.parametrize(("ahead", "goes"), [(0.0, True), (0.0039, True), (0.004, False)])
def test_a_source_is_asked_while_there_is_room(ahead, goes):
    """A busy worker with `AHEAD_SECONDS` of work is not given more; the next map has the next turn."""
    dispatcher = dispatcher_of()
    sources = [Source(), Source(), Source()]
    for source in sources:
        dispatcher.add_source(source)
    seat = dispatcher.idle.pop()
    seat.tasks[1] = task()
    seat.ahead = ahead
    picked = [dispatcher.pick(seat, 0.0) for _ in range(4)]
    assert picked == ([*sources, sources[0]] if goes else [None] * 4)
    assert dispatcher.waiting == 3
    seat.tasks.clear()
    assert dispatcher.pick(seat, 0.0) in sources


def test_the_work_ahead_is_counted_down():
    """By what each call took, not below what is left, and to nothing when there is nothing."""
    dispatcher = dispatcher_of()
    tasks = submit(dispatcher, 7)
    seat = dispatcher.idle.pop()
    assert dispatcher.pick(seat, 0.0) == tasks[:4]
    seat.ahead = 0.5
    dispatcher.finish(seat, tasks[0].id, 0.2)
    assert seat.ahead == pytest.approx(0.3)
    dispatcher.finish(seat, tasks[1].id, 0.4)
    assert seat.ahead == pytest.approx(0.3)
    dispatcher.finish(seat, tasks[2].id, 0.1)
    assert seat.ahead == pytest.approx(0.2)
    dispatcher.finish(seat, tasks[3].id, 0.1)
    assert seat.ahead == 0.0
    assert seat.finished == 4
    assert seat.state is BUSY


# --- what is expected -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("mode", "slowest", "options", "expected"),
    [
        (dispatch.CALL, 0.001, {}, 0.001),
        (dispatch.CALL, 0.005, {}, 0.001),
        (dispatch.CALL, 0.0051, {}, None),
        (EACH, 0.05, {"items": 4}, 0.004),
        (dispatch.EACH_STAR, 0.05, {"items": 4}, 0.004),
        (EACH, 0.0501, {}, None),
        (dispatch.STREAM, 0.001, {}, None),
        (dispatch.CALL, 0.001, {"timeout": 0.0}, None),
        (dispatch.CALL, 0.001, {"deaths": 1}, None),
        (dispatch.CALL, 0.001, {"parts": [b""]}, None),
        (dispatch.CALL, 0.001, {"function": "new"}, None),
    ],
)
def test_what_a_task_is_expected_to_take(mode, slowest, options, expected):
    """Its function's average for each item; for ever, where it is not known, uneven, or must not share."""
    dispatcher = dispatcher_of(average=0.001, slowest=slowest)
    seconds = dispatcher.expected(task(mode=mode, **options))
    assert seconds == (float("inf") if expected is None else pytest.approx(expected))


def test_a_pace():
    """The average moves by an eighth; the slowest call is forgotten by 3 % a call, and a slower one is noted."""
    pace = Pace(0.8)
    pace.note(0.0)
    assert (pace.average, pace.slowest) == (pytest.approx(0.7), pytest.approx(0.776))
    pace.note(1.5)
    assert (pace.average, pace.slowest) == (pytest.approx(0.8), 1.5)
    for _ in range(200):
        pace.note(0.001)
    assert pace.slowest < dispatch.QUICK_SECONDS


def test_paces_are_per_item_and_bounded():
    """A task of many items tells of each; after 512 functions all are forgotten."""
    dispatcher = Dispatcher(1)
    seat = dispatcher.seats[0]

    def run(function, items, seconds):
        each = task(function, items=items)
        dispatcher.submit(each, 0.0)
        dispatcher.queues[0].clear()
        dispatcher.send(seat, [each], 0.0, 0.0)
        dispatcher.finish(seat, each.id, seconds)
        return dispatcher.paces[function]

    assert run("f", 4, 2.0).average == 0.5
    assert run("f", 10, 5.0).average == 0.5
    assert run("f", 2, 1.0).average == 0.5
    assert run("f", 1, 4.5).average == 1.0
    for number in range(511):
        run(number, 1, 0.1)
    assert len(dispatcher.paces) == 512
    run("one more", 1, 0.1)
    assert list(dispatcher.paces) == ["one more"]


# --- queues -----------------------------------------------------------------------------------------------------------
def test_priorities_in_their_order():
    """The largest first, whatever came when; an empty level is passed over."""
    dispatcher = dispatcher_of()
    tasks = {priority: task("new", priority=priority) for priority in (-1, 5, 0, 1)}
    for each in tasks.values():
        dispatcher.submit(each, 0.0)
    seat = dispatcher.idle.pop()
    for priority in (5, 1, 0, -1):
        assert dispatcher.pick(seat, 0.0) == [tasks[priority]]
        dispatcher.finish(seat, tasks[priority].id, 1.0)
    assert dispatcher.pick(seat, 0.0) is None
    assert (dispatcher.waiting, dispatcher.unfinished) == (0, 0)


@pytest.mark.parametrize("options", [{}, {"priority": 3}, {"key": 0}])
def test_what_came_first_is_sent_first(options):
    """Among those of one priority, or of one key."""
    dispatcher = dispatcher_of()
    tasks = submit(dispatcher, 3, function="new", **options)
    seat = dispatcher.idle.pop()
    for each in tasks:
        assert dispatcher.pick(seat, 0.0) == [each]
        dispatcher.finish(seat, each.id, 1.0)


def test_a_new_seat():
    """Nobody sits there."""
    seat = Dispatcher(3).seats[2]
    assert (seat.index, seat.state, seat.worker, seat.lender) == (2, EMPTY, None, None)
    assert (seat.tasks, list(seat.own), seat.ahead, seat.finished) == ({}, [], 0.0, 0)


def test_a_key_has_its_seat():
    """A task with a key waits for that seat, before all others there, and for no other one."""
    dispatcher = dispatcher_of(2)
    keyed, plain = task("new", key=1), task("new", priority=9)
    dispatcher.submit(plain, 0.0)
    dispatcher.submit(keyed, 0.0)
    assert dispatcher.pick(dispatcher.seats[1], 0.0) == [keyed]
    dispatcher.submit(task("new", key=1), 0.0)
    assert dispatcher.pick(dispatcher.seats[0], 0.0) == [plain]
    assert dispatcher.pick(dispatcher.seats[0], 0.0) is None


def test_without_seats_a_key_waits_in_its_level():
    """There is no seat whose own it could be."""
    dispatcher = Dispatcher(0)
    each = task(key=1)
    dispatcher.submit(each, 0.0)
    assert dispatcher.queued() == [each]
    assert dispatcher.cancel(each) is False or each.state is dispatch.OVER


def test_what_was_sent_comes_first_again():
    """In its old order, before what is new, and queued."""
    dispatcher = dispatcher_of()
    tasks = submit(dispatcher, 5)
    seat = dispatcher.idle.pop()
    assert dispatcher.pick(seat, 0.0) == tasks[:3]
    seat.worker, seat.finished = object(), 4
    victim, again = dispatcher.clear(seat, tasks[0].id)
    assert (victim, again) == (tasks[0], tasks[1:3])
    assert list(dispatcher.queues[0]) == tasks[1:]
    assert {each.state for each in again} == {QUEUED}
    assert dispatcher.waiting == 4
    assert (seat.tasks, seat.ahead, seat.finished, seat.state, seat.worker) == ({}, 0.0, 0, EMPTY, None)


def test_a_dead_idle_worker_is_not_idle():
    """Its seat is empty, and stands in no list."""
    dispatcher = dispatcher_of(2)
    assert dispatcher.clear(dispatcher.seats[0], 0) == (None, [])
    assert dispatcher.idle == [dispatcher.seats[1]]
    dispatcher.leave(dispatcher.seats[1])
    assert dispatcher.idle == []
    assert dispatcher.seats[1].state is ENDING
    dispatcher.leave(dispatcher.seats[0])
    assert dispatcher.seats[0].state is ENDING


def test_the_last_idle_seat_comes_first():
    """Its caches are warm; and a seat with a task is busy, but a lent one stays lent."""
    dispatcher = dispatcher_of(3)
    assert dispatcher.idle.pop() is dispatcher.seats[2]
    seat = dispatcher.seats[1]
    assert seat.state is IDLE
    dispatcher.send(seat, [task()], 0.5, 0.0)
    assert (seat.state, seat.ahead) == (BUSY, 0.5)
    seat.state = LENT
    dispatcher.send(seat, [task(id=2)], 0.5, 0.0)
    assert (seat.state, seat.ahead, len(seat.tasks)) == (LENT, 1.0, 2)


def test_a_source_is_counted_once():
    """It waits as one; it is taken out once and counted out once, and a strange one changes nothing."""
    dispatcher = dispatcher_of()
    source = Source(3)
    dispatcher.unfinished = 1
    dispatcher.add_source(source)
    assert dispatcher.waiting == 1
    for other in (Source(3), Source(8)):
        dispatcher.remove_source(other)
    assert dispatcher.waiting == 1
    for _ in range(2):
        dispatcher.remove_source(source)
        dispatcher.count_out(source)
        assert (dispatcher.waiting, dispatcher.unfinished, source.counted_out) == (0, 0, True)


def test_drained():
    """Everything that waits, seats' own first, and the queues are empty."""
    dispatcher = dispatcher_of()
    keyed, source, late = task(key=1), Source(), task(priority=-1)
    for each in (late, keyed):
        dispatcher.submit(each, 0.0)
    dispatcher.add_source(source)
    assert dispatcher.queued() == [late, keyed] or dispatcher.queued() == [keyed, late]
    assert dispatcher.drain() == [keyed, source, late]
    assert (dispatcher.waiting, dispatcher.drain(), dispatcher.queued()) == (0, [], [])


@pytest.mark.parametrize("options", [{}, {"key": 1}, {"priority": 4}])
def test_a_queued_task_is_cancelled_once(options):
    """What was sent, or is over, is not cancelled; what it carried is let go."""
    dispatcher = dispatcher_of()
    others = submit(dispatcher, 1, **options)
    each = task(**options)
    dispatcher.submit(each, 0.0)
    submit(dispatcher, 1, **options)
    assert dispatcher.cancel(each)
    assert (each.state, each.payload, each.parts) == (dispatch.OVER, None, None)
    assert (dispatcher.waiting, dispatcher.unfinished) == (2, 2)
    assert not dispatcher.cancel(each)
    dispatcher.pick(dispatcher.idle.pop(), 0.0)
    assert not dispatcher.cancel(others[0])


def test_a_key_is_found_after_the_seats_have_changed():
    """It stands where its key belonged when it came."""
    dispatcher = dispatcher_of(3)
    each = task(key=2)
    dispatcher.submit(each, 0.0)
    dispatcher.seats.append(dispatch.Seat(3))
    dispatcher.seats[0], dispatcher.seats[2] = dispatcher.seats[2], dispatcher.seats[0]
    assert dispatcher.cancel(each)
    strange = task(key=2, state=QUEUED)
    assert not dispatcher.cancel(strange)
    assert dispatcher.waiting == 0


def test_tasks_are_numbered():
    """From 1, over both ways to a number."""
    dispatcher = dispatcher_of()
    (first,) = submit(dispatcher, 1)
    assert (first.id, dispatcher.number(), dispatcher.submitted) == (1, 2, 2)
    (third,) = submit(dispatcher, 1)
    assert third.id == 3


def test_an_answer_that_nobody_waits_for():
    """It changes nothing."""
    dispatcher = dispatcher_of()
    (each,) = submit(dispatcher, 1)
    seat = dispatcher.idle.pop()
    assert dispatcher.finish(seat, 99, 1.0) is None
    assert (seat.finished, dispatcher.unfinished) == (0, 1)
    dispatcher.pick(seat, 0.0)
    assert dispatcher.finish(seat, each.id, 1.0) is each
    assert (each.state, each.payload, each.parts, seat.finished) == (dispatch.OVER, None, None, 1)
    assert (dispatcher.unfinished, seat.tasks) == (0, {})


# --- names ------------------------------------------------------------------------------------------------------------
class Called:
    """Something that is called and has no name of its own."""

    func = len  # one of the two marks of a partial


class Nameless:
    """Something without a module."""

    __module__ = None
    __qualname__ = "bare"


def test_what_a_function_is_called():
    """A partial is its function, however deep; an object is its class; without a module the name stands alone."""
    assert dispatch.describe(functools.partial(functools.partial(len, []), 1)) == "builtins.len"
    assert dispatch.describe(Called()) == f"{__name__}.Called"
    assert dispatch.describe(Nameless()) == "bare"
    assert dispatch.unwrapped(functools.partial(len)) is len
    called = Called()
    assert dispatch.unwrapped(called) is called
    assert task(len).label == "builtins.len"


@pytest.mark.parametrize(
    ("mode", "is_bulk"), [(dispatch.CALL, False), (EACH, True), (dispatch.EACH_STAR, True), (dispatch.STREAM, False)]
)
def test_what_is_a_part_of_a_map(mode, is_bulk):
    """Items of a map are; a call and a stream are not."""
    assert task(mode=mode).is_bulk is is_bulk
