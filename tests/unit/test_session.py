"""The life of a child on its connection, as the table has it: every cell, and every walk through the cells."""

import ast
import importlib.util
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

PACKAGE = Path(next(iter(importlib.util.find_spec("safespawn").submodule_search_locations)))


def load_table():
    """The zygote's module, from its file: the application has no name for it."""
    spec = importlib.util.spec_from_file_location("session_table", PACKAGE / "_zygote" / "session.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = load_table()
TABLE = table.TABLE
CELLS = sorted(TABLE)
CLOSED_STATES = {table.ENDING, table.KILLING, table.LEFT, table.GONE}
DETAILS = {  # how many things the server hands to the effects
    table.SPAWN: 2, table.LAUNCH_FAILED: 1, table.KILL: 1, table.EXITED_HOLD: 1, table.EXITED: 1,
}  # fmt: skip
KERNEL = {
    table.EXITED_HOLD,
    table.EXITED,
    table.GRACE_OVER,
    table.LAUNCH_FAILED,
    table.EXECED,
    table.LAUNCHED,
}


def server_methods():
    """The methods of Server and how many arguments after the session each takes: least and most."""
    tree = ast.parse((PACKAGE / "_zygote" / "server.py").read_text())
    (server,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Server"]
    found = {}
    for node in server.body:
        if isinstance(node, ast.FunctionDef):
            most = len(node.args.args) - 2
            found[node.name] = (
                most - len(node.args.defaults),
                float("inf") if node.args.vararg else most,
            )
    return found


@pytest.mark.parametrize(("state", "event"), CELLS)
def test_a_cell_names_known_things(state, event):
    """A cell goes from a known state by a known event to a known state, with effects that Server has."""
    following, effects = TABLE[state, event]
    assert state in table.STATES
    assert event in table.EVENTS
    assert following in table.STATES
    methods = server_methods()
    for effect in effects:
        assert effect in methods, effect
        least, most = methods[effect]
        assert least <= DETAILS.get(event, 0) <= most, f"{effect} of {event} takes {least} to {most} details"


def test_each_event_and_state_is_used():
    """No state and no event stands in the lists without a cell."""
    assert {event for _, event in TABLE} == set(table.EVENTS)
    assert {state for state, _ in TABLE} == set(table.STATES) - {table.GONE}
    assert len(set(table.STATES)) == len(table.STATES)
    assert len(set(table.EVENTS)) == len(table.EVENTS)


def reached(start, allowed):
    """The states that can be reached from *start* by the *allowed* events."""
    found, frontier = {start}, [start]
    while frontier:
        state = frontier.pop()
        for (origin, event), (following, _) in TABLE.items():
            if origin == state and event in allowed and following not in found:
                found.add(following)
                frontier.append(following)
    return found


@pytest.mark.parametrize("state", table.STATES)
def test_every_state_can_be_reached(state):
    """Each state lies on a way from idle."""
    assert state in reached(table.IDLE, set(table.EVENTS))


@pytest.mark.parametrize("hang_up", [table.CLOSED, table.HUNG_UP])
@pytest.mark.parametrize("state", table.STATES)
def test_gone_is_reached_from_everywhere_without_the_peer(state, hang_up):
    """The end of the connection and the kernel's events alone lead from each state to gone."""
    assert table.GONE in reached(state, KERNEL | {hang_up})


@pytest.mark.parametrize("state", sorted(set(table.STATES) - CLOSED_STATES))
def test_every_open_state_knows_what_to_do_when_the_peer_hangs_up(state):
    """A connection may close in each state that has one, in both kinds of zygote."""
    for event in (table.CLOSED, table.HUNG_UP):
        following, _ = TABLE[state, event]
        assert following in CLOSED_STATES


@pytest.mark.parametrize("state", sorted(CLOSED_STATES))
def test_a_closed_state_answers_nobody(state):
    """Where there is no connection no effect replies, and no request has a cell."""
    for (origin, event), (following, effects) in TABLE.items():
        if origin == state:
            assert event in KERNEL
            assert following in CLOSED_STATES
            assert not [effect for effect in effects if effect.startswith(("reply", "announce"))]


def test_gone_is_the_end():
    """Nothing leads out of gone, and whatever leads there forgets the session."""
    assert not [event for state, event in TABLE if state == table.GONE]
    for (state, event), (following, effects) in TABLE.items():
        if following == table.GONE:
            assert effects[-1] == "forget", (state, event)


@pytest.mark.parametrize("state", [table.RUNNING, table.ENDING, table.KILLING, table.LEFT])
def test_an_exit_is_noticed_wherever_the_child_is_watched(state):
    """A child that was started may end in each state in which it is watched."""
    for event in (table.EXITED_HOLD, table.EXITED) if state == table.RUNNING else (table.EXITED,):
        _, effects = TABLE[state, event]
        assert "unwatch" in effects, "an ended child's descriptor is ready for ever"


class Walk(RuleBasedStateMachine):
    """
    A server that keeps no process, only what must be true of one: driven by a peer that reads before it asks again.
    """

    def __init__(self):
        super().__init__()
        self.state = table.IDLE
        self.child = None  # None, "forked", "running", "zombie"
        self.watched = False
        self.known = True  # in the server's list
        self.open = True
        self.unread = []
        self.most_unread = 0

    def event(self, name):
        """As Server.event: an empty cell changes nothing."""
        before = (self.state, self.child, self.watched, self.known, list(self.unread))
        cell = TABLE.get((self.state, name))
        if cell is None:
            if name in table.REQUESTS:
                self.answer("refused")
            assert before[:4] == (self.state, self.child, self.watched, self.known)
            assert self.unread == before[4] + ["refused"] * (name in table.REQUESTS and self.open)
            return
        self.state, effects = cell
        for effect in effects:
            getattr(self, effect)()

    def answer(self, word):
        if self.open:
            self.unread.append(word)

    # The effects.

    def start(self):
        """Decided by the rules, which say how the start goes on."""
        assert self.child is None

    def await_exec(self):
        assert self.child == "forked"

    def watch_child(self):
        assert self.child is not None
        self.watched = True

    def announce(self):
        self.answer("started")

    def reply_failed(self):
        self.child = None
        self.answer("failed")

    def pass_signal(self):
        assert self.child in ("forked", "running"), "a signal to a zombie's tree is a sweep"

    def reply_exited(self):
        self.answer("exited")

    def unwatch(self):
        self.watched = False

    def reap(self):
        assert self.child == "zombie", "only a zombie is reaped: waiting would stop the loop"
        self.child = None

    def reply_released(self):
        self.answer("released")

    def sweep(self):
        assert self.child in (None, "zombie")

    def reply_swept(self):
        self.answer("swept")

    def sweep_tree(self):
        assert self.child is None

    def terminate(self):
        assert self.child == "running"

    def start_grace(self):
        """A timer, whose end is a rule."""

    def kill_tree(self):
        assert self.child in ("forked", "running")

    def forget(self):
        assert self.child is None
        assert not self.watched
        self.known = False

    # What may happen.

    @property
    def may_ask(self):
        """The peer has read what it was told, and does not wait for the answer to a start."""
        return self.open and not self.unread and self.state != table.LAUNCHING

    @rule()
    @precondition(lambda self: self.may_ask)
    def spawn_at_once(self):
        """A request that posix_spawn carries out, or a refused one."""
        possible = (self.state, table.SPAWN) in TABLE
        self.event(table.SPAWN)
        if possible:
            self.child = "running"
            self.event(table.EXECED)

    @rule()
    @precondition(lambda self: self.may_ask)
    def spawn_by_fork(self):
        possible = (self.state, table.SPAWN) in TABLE
        self.event(table.SPAWN)
        if possible:
            self.child = "forked"
            self.event(table.LAUNCHED)

    @rule()
    @precondition(lambda self: self.may_ask)
    def spawn_that_fails(self):
        possible = (self.state, table.SPAWN) in TABLE
        self.event(table.SPAWN)
        if possible:
            self.event(table.LAUNCH_FAILED)

    @rule()
    @precondition(lambda self: self.state == table.LAUNCHING and self.child == "forked")
    def exec_succeeds(self):
        self.child = "running"
        self.event(table.EXECED)

    @rule()
    @precondition(lambda self: self.state == table.LAUNCHING and self.child == "forked")
    def exec_fails(self):
        self.child = None
        self.event(table.LAUNCH_FAILED)

    @rule()
    @precondition(lambda self: self.watched and self.state == table.RUNNING)
    def exits_held(self):
        self.child = "zombie"
        self.event(table.EXITED_HOLD)

    @rule()
    @precondition(lambda self: self.watched and self.child in ("forked", "running"))
    def exits_reaped(self):
        self.child = None
        self.event(table.EXITED)

    @rule()
    @precondition(lambda self: self.open and not self.unread)
    def kill(self):
        self.event(table.KILL)

    @rule()
    @precondition(lambda self: self.may_ask)
    def release(self):
        self.event(table.RELEASE)

    @rule()
    def read(self):
        self.unread.clear()

    @rule()
    @precondition(lambda self: self.open)
    def hang_up(self):
        self.open = False
        self.unread.clear()
        self.event(table.CLOSED)

    @rule()
    @precondition(lambda self: self.open)
    def hang_up_and_leave(self):
        self.open = False
        self.unread.clear()
        self.event(table.HUNG_UP)

    @rule()
    def grace_over(self):
        if self.state != table.RUNNING:  # there the timer is that of the late announcement
            self.event(table.GRACE_OVER)

    @rule()
    @precondition(lambda self: not self.open)
    def hang_up_again(self):
        self.event(table.CLOSED)

    # What is always true.

    @invariant()
    def at_most_two_answers_wait(self):
        assert len(self.unread) <= 2

    @invariant()
    def a_session_is_forgotten_when_it_is_gone_and_only_then(self):
        assert self.known == (self.state != table.GONE)

    @invariant()
    def the_state_says_what_is_true_of_the_child(self):
        children = {
            table.IDLE: {None},
            table.LAUNCHING: {"forked"},
            table.RUNNING: {"running"},
            table.HELD: {"zombie"},
            table.REAPED: {None},
            table.ENDING: {"running"},
            table.KILLING: {"forked", "running"},
            table.LEFT: {"forked", "running"},
            table.GONE: {None},
        }
        assert self.child in children[self.state]


class TestWalk(Walk.TestCase):
    """No walk through the table breaks what the states mean."""

    settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
