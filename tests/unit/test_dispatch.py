"""The dispatcher against a model: every task is sent to one worker at a time, and comes to one end."""

import time
from collections import Counter

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from safespawn._core import dispatch
from safespawn._core.dispatch import BUSY, EMPTY, ENDING, IDLE, LENT, Dispatcher, Seat, Task

FUNCTIONS = ("quick", "slow", "new")
SECONDS = {"quick": 0.0001, "slow": 0.5, "new": 0.01}


class Recorder:
    """A sink that is not called: the dispatcher decides, the crew delivers."""


class Row:
    """A source of a few tasks."""

    counted_out = False

    def __init__(self, name, priority, left):
        self.function = name
        self.priority = priority
        self.left = left


def task(name="quick", **options):
    """A task of that function."""
    return Task(0, b"payload", None, name, Recorder(), **options)


class Machine(RuleBasedStateMachine):
    """
    The crew's moves, in any order: submit, supply, lend, finish, die, recycle, resize, cancel, close.

    The model is what the worker of each seat has been sent and has not said anything about.
    """

    tasks = Bundle("tasks")

    def __init__(self):
        super().__init__()
        self.dispatcher = Dispatcher(2)
        self.open = {}  # id -> task: submitted and not over
        self.ended = Counter()  # id -> how often it came to an end
        self.at = {}  # id -> the seat whose worker has it
        self.sources = []
        self.gone = []  # seats that resize has taken away, with workers that have tasks
        self.now = 0.0

    # --- moves
    @rule(target=tasks, name=st.sampled_from(FUNCTIONS), priority=st.integers(-1, 1), key=st.sampled_from((None, 1, 2)))
    def submit(self, name, priority, key):
        each = task(name, priority=priority, key=key)
        self.dispatcher.submit(each, self.now)
        assert each.id not in self.open
        self.open[each.id] = each
        return each

    @rule(target=tasks, count=st.integers(1, 30))
    def submit_many(self, count):
        return multiple(*[self.submit("quick", 0, None) for _ in range(count)])

    @rule(left=st.integers(0, 5), priority=st.integers(0, 1))
    def add_source(self, left, priority):
        source = Row("quick", priority, left)
        self.dispatcher.add_source(source)
        self.dispatcher.unfinished += 1
        self.sources.append(source)

    @rule(index=st.integers(0, 7))
    def start(self, index):
        seat = self.seat(index)
        if seat.state is EMPTY:
            seat.worker = object()
            self.dispatcher.rest(seat)

    @rule(index=st.integers(0, 7))
    def supply(self, index):
        seat = self.seat(index)
        if seat.state is IDLE:
            self.dispatcher.idle.remove(seat)
            seat.state = BUSY
        if seat.state is not BUSY:
            return
        found = self.dispatcher.pick(seat, self.now)
        if found is None:
            if not seat.tasks:
                self.dispatcher.rest(seat)
            return
        if type(found) is not list:
            self.draw(seat, found)
            return
        assert found
        for each in found:
            self.sent(seat, each)
        if len(found) > 1:
            assert len({each.function for each in found}) == 1
            assert all(each.is_plain for each in found)

    def draw(self, seat, source):
        if source.left == 0:
            self.dispatcher.remove_source(source)
            self.dispatcher.unfinished -= 1
            self.sources.remove(source)
            if not seat.tasks:
                self.dispatcher.rest(seat)
            return
        source.left -= 1
        each = task(source.function)
        each.id = self.dispatcher.number()
        self.open[each.id] = each
        self.dispatcher.unfinished += 1
        self.dispatcher.send(seat, [each], self.dispatcher.expected(each), self.now)
        self.sent(seat, each)

    @rule(name=st.sampled_from(FUNCTIONS))
    def lend(self, name):
        if not self.dispatcher.idle or self.dispatcher.waiting:
            return
        seat = self.dispatcher.idle.pop()
        seat.state = LENT
        each = task(name)
        each.id = self.dispatcher.number()
        each.state = dispatch.SENT
        seat.tasks[each.id] = each
        self.dispatcher.unfinished += 1
        self.open[each.id] = each
        self.sent(seat, each)

    @rule(index=st.integers(0, 7), count=st.integers(1, 40))
    def finish(self, index, count):
        seat = self.seat(index)
        for number in list(seat.tasks)[:count]:
            each = self.dispatcher.finish(seat, number, SECONDS[seat.tasks[number].function])
            assert each is self.open[number]
            self.end(each)
            assert self.dispatcher.finish(seat, number, 0.0) is None  # the same record a second time
        if seat.state is LENT and not seat.tasks:
            seat.state = BUSY

    @rule(index=st.integers(0, 7), begun=st.booleans(), retry=st.booleans())
    def die(self, index, begun, retry):
        seat = self.seat(index)
        if seat.state is EMPTY:
            return
        had = list(seat.tasks.values())
        running = had[0].id if begun and had else 0
        victim, again = self.dispatcher.clear(seat, running)
        assert (victim is None) == (running == 0)
        assert again == [each for each in had if each is not victim]
        for each in had:
            assert self.at.pop(each.id) is seat
        if victim is not None and retry:
            victim.deaths += 1
            self.dispatcher.enqueue(victim, first=True)
        elif victim is not None:
            self.dispatcher.over(victim)
            self.end(victim)
        self.forget(seat)

    @rule(index=st.integers(0, 7))
    def recycle(self, index):
        seat = self.seat(index)
        if seat.state in (IDLE, BUSY) and not seat.tasks:
            if seat.state is BUSY:
                self.dispatcher.rest(seat)
            self.dispatcher.leave(seat)
            assert self.dispatcher.clear(seat, 0) == (None, [])

    @rule(each=consumes(tasks))
    def cancel(self, each):
        queued = each.id in self.open and each.id not in self.at
        assert self.dispatcher.cancel(each) == queued
        if queued:
            self.end(each)

    @rule(size=st.integers(1, 4))
    def resize(self, size):
        seats = self.dispatcher.seats
        leaving = seats[size:]
        moved = [each for seat in leaving for each in seat.own]
        for seat in leaving:
            seat.own.clear()
            if seat.state in (IDLE, BUSY):
                self.dispatcher.leave(seat)
        self.gone += [seat for seat in leaving if seat.tasks]
        self.dispatcher.seats = seats[:size] + [Seat(index) for index in range(len(seats), size)]
        for each in moved:
            self.dispatcher.waiting -= 1
            self.dispatcher.enqueue(each)

    @rule()
    def drain(self):
        entries = self.dispatcher.drain()
        for each in entries:
            if type(each) is Task:
                assert each.id not in self.at
                self.dispatcher.over(each)
                self.end(each)
            else:
                self.sources.remove(each)
                self.dispatcher.unfinished -= 1

    # --- the model
    def seat(self, index):
        seats = [*self.dispatcher.seats, *self.gone]
        return seats[index % len(seats)]

    def forget(self, seat):
        if seat in self.gone:
            self.gone.remove(seat)

    def sent(self, seat, each):
        assert each.id not in self.at, "sent twice"
        assert each.state is dispatch.SENT
        self.at[each.id] = seat

    def end(self, each):
        self.ended[each.id] += 1
        self.at.pop(each.id, None)
        del self.open[each.id]
        assert each.state is dispatch.OVER
        assert each.payload is None

    # --- what is always so
    @invariant()
    def nothing_is_lost_and_nothing_is_twice(self):
        queued = [each.id for each in self.dispatcher.queued()]
        sent = [number for seat in [*self.dispatcher.seats, *self.gone] for number in seat.tasks]
        assert Counter(queued + sent) == Counter(list(self.open))
        assert sorted(sent) == sorted(self.at)
        assert all(times == 1 for times in self.ended.values())

    @invariant()
    def the_counts_are_right(self):
        assert self.dispatcher.unfinished == len(self.open) + len(self.sources)
        assert self.dispatcher.waiting == len(self.dispatcher.queued()) + len(self.sources)

    @invariant()
    def the_idle_seats_are_those_that_are_idle(self):
        idle = self.dispatcher.idle
        assert len(set(map(id, idle))) == len(idle)
        seats = [*self.dispatcher.seats, *self.gone]  # one that was lent may rest once more before it leaves
        assert {id(seat) for seat in idle} == {id(seat) for seat in seats if seat.state is IDLE}
        assert all(not seat.tasks for seat in idle)

    @invariant()
    def quick_ones_stand_behind_quick_ones_only(self):
        for seat in self.dispatcher.seats:
            if seat.state is BUSY and len(seat.tasks) > 1:
                assert all(each.is_plain for each in list(seat.tasks.values())[1:])


Machine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)  # 10,000 steps
TestDispatcher = Machine.TestCase


def idle_dispatcher(size=1):
    """One whose seats all have a worker."""
    dispatcher = Dispatcher(size)
    for seat in dispatcher.seats:
        seat.worker = object()
        dispatcher.rest(seat)
    return dispatcher


def test_an_unknown_function_goes_alone():
    """Nothing is put behind a task of which nothing is known."""
    dispatcher = idle_dispatcher()
    for _ in range(3):
        dispatcher.submit(task("new"), 0.0)
    seat = dispatcher.idle.pop()
    assert len(dispatcher.pick(seat, 0.0)) == 1
    assert dispatcher.pick(seat, 0.0) is None


def test_a_task_with_a_limit_goes_alone():
    """A limit counts from the sending, so the task must be able to begin at once."""
    dispatcher = idle_dispatcher()
    seat = dispatcher.idle.pop()
    first = task("quick")
    dispatcher.submit(first, 0.0)
    dispatcher.pick(seat, 0.0)
    dispatcher.finish(seat, first.id, 0.0001)
    dispatcher.submit(task("quick"), 0.0)
    dispatcher.submit(task("quick", timeout=1.0), 0.0)
    assert [each.timeout for each in dispatcher.pick(seat, 0.0)] == [None]
    assert dispatcher.pick(seat, 0.0) is None


def test_a_higher_priority_comes_first():
    """Of two waiting tasks the one with the larger number is sent first, whenever it came."""
    dispatcher = idle_dispatcher()
    low, high = task("new"), task("new", priority=5)
    dispatcher.submit(low, 0.0)
    dispatcher.submit(high, 0.0)
    assert dispatcher.pick(dispatcher.idle.pop(), 0.0) == [high]


@pytest.mark.parametrize("count", [100_000])
def test_a_long_queue_costs_nothing_per_look(count):
    """With a hundred thousand tasks waiting, sending the first thousand takes far less than a second."""
    dispatcher = idle_dispatcher()
    for _ in range(count):
        dispatcher.submit(task("slow"), 0.0)
    seat = dispatcher.idle.pop()
    began = time.perf_counter()
    for _ in range(1000):
        (each,) = dispatcher.pick(seat, 0.0)
        dispatcher.finish(seat, each.id, 0.5)
    assert time.perf_counter() - began < 0.5
    assert ENDING is dispatch.ENDING


@pytest.mark.parametrize(
    ("mode", "slowest", "together"),
    [
        (dispatch.CALL, 0.004, True),
        (dispatch.CALL, 0.02, False),  # somebody waits for each of these alone
        (dispatch.EACH, 0.02, True),
        (dispatch.EACH_STAR, 0.02, True),
        (dispatch.EACH, 0.06, False),
    ],
)
def test_an_uneven_function(mode, slowest, together):
    """Its calls go alone; as items of a map they go together for longer."""
    dispatcher = Dispatcher(1)
    dispatcher.paces["uneven"] = pace = dispatch.Pace(0.0001)
    pace.slowest = slowest
    for _ in range(40):
        dispatcher.submit(Task(mode, b"payload", None, "uneven", Recorder()), 0.0)
    seat = dispatcher.seats[0]
    dispatcher.rest(seat)
    assert (len(dispatcher.pick(seat, 0.0)) > 1) is together
