"""The lives of a supervised child and of its processes, as the tables have them: every cell, and every walk."""

import ast
import importlib.util
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safespawn._core import upkeep

PACKAGE = Path(next(iter(importlib.util.find_spec("safespawn").submodule_search_locations)))
RUN_CELLS = sorted(upkeep.RUN_TABLE)
CHILD_CELLS = sorted(upkeep.CHILD_TABLE)
MACHINES = {
    "run": (upkeep.RUN_TABLE, upkeep.RUN_STATES, upkeep.RUN_EVENTS, upkeep.BORN, "run.py", "Run"),
    "child": (upkeep.CHILD_TABLE, upkeep.CHILD_STATES, upkeep.CHILD_EVENTS, upkeep.IDLE, "charge.py", "Charge"),
}


def methods(file, name):
    """The methods of a class that take nothing but the object."""
    tree = ast.parse((PACKAGE / "_drive" / file).read_text())
    (owner,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return {node.name for node in owner.body if isinstance(node, ast.FunctionDef) and len(node.args.args) == 1}


class Owner:
    """Writes down what it is to do."""

    def __init__(self):
        self.did = []

    def __getattr__(self, name):
        return lambda: self.did.append(name)


@pytest.mark.parametrize(
    ("which", "cell"), [("run", cell) for cell in RUN_CELLS] + [("child", cell) for cell in CHILD_CELLS]
)
def test_a_cell_names_known_things_and_does_them(which, cell):
    """A cell leads from a known state by a known event to a known state, and its effects are done in their order."""
    table, states, events, _, file, name = MACHINES[which]
    (state, event), (following, effects) = cell, table[cell]
    assert state in states
    assert event in events
    assert following in states
    assert set(effects) <= methods(file, name)
    machine, owner = upkeep.Machine(table, state), Owner()
    assert machine.knows(event)
    assert machine.send(event, owner)
    assert machine.state == following
    assert owner.did == list(effects)


@pytest.mark.parametrize("which", MACHINES)
def test_an_event_without_a_cell_changes_nothing(which):
    """Each pair of state and event that has no cell leaves the state as it is, and says so."""
    table, states, events, *_ = MACHINES[which]
    missing = [(state, event) for state in states for event in events if (state, event) not in table]
    assert missing
    for state, event in missing:
        machine, owner = upkeep.Machine(table, state), Owner()
        assert not machine.send(event, owner)
        assert (machine.state, owner.did) == (state, [])


@pytest.mark.parametrize("which", MACHINES)
def test_all_that_is_named_is_used(which):
    """Every state can be reached, every event has a cell, and from every state the end can be reached."""
    table, states, events, start, *_ = MACHINES[which]
    assert {event for _, event in table} == set(events)
    assert reached(table, {start}) == set(states)
    ends = {upkeep.GONE} if which == "run" else {upkeep.DONE}
    for state in states:
        assert reached(table, {state}) & ends, state


def test_what_happens_to_a_process_is_heard_wherever_there_is_one():
    """Its exit while it lives; that it never started while it is being started; a stop and a hurry until SIGKILL."""
    table = upkeep.RUN_TABLE
    assert {state for state, event in table if event == upkeep.EXITED} == upkeep.ALIVE
    assert {table[state, upkeep.EXITED] for state in upkeep.ALIVE} == {(upkeep.BURYING, ("bury",))}
    for event in (upkeep.STARTED, upkeep.FAILED):
        assert {state for state, each in table if each == event} == {upkeep.BORN, upkeep.UNWANTED}
    assert {state for state, event in table if event == upkeep.STOP} == {upkeep.BORN, upkeep.STARTING, upkeep.UP}
    assert {state for state, event in table if event == upkeep.HURRY} == {
        upkeep.BORN, upkeep.STARTING, upkeep.UP, upkeep.ASKED, upkeep.DUMPED,
    }  # fmt: skip


def test_a_child_hears_its_owner_in_every_state():
    """A stop unless it stops or is done; a start where nothing runs; the end of a run where one may."""
    table = upkeep.CHILD_TABLE
    assert {state for state, event in table if event == upkeep.STOP} == (
        set(upkeep.CHILD_STATES) - {upkeep.STOPPING, upkeep.DONE}
    )
    assert {state for state, event in table if event == upkeep.START} == upkeep.RUNLESS
    assert {state for state, event in table if event == upkeep.RUN_OVER} == (
        set(upkeep.CHILD_STATES) - upkeep.RUNLESS - {upkeep.DOWN}
    )
    assert upkeep.RUNLESS - {upkeep.WAITING} == upkeep.RESTING
    for event in (upkeep.REST, upkeep.RETRY, upkeep.OVERRUN):  # what is decided when a run is over
        assert {state for state, each in table if each == event} == {upkeep.DOWN}


def reached(table, found):
    """The states that can be reached from those *found*."""
    while True:
        more = found | {table[cell][0] for cell in table if cell[0] in found}
        if more == found:
            return found
        found = more


def walk(table, state, events):
    """The states and the effects of a walk."""
    machine, owner = upkeep.Machine(table, state), Owner()
    return [state, *(machine.state for event in events if machine.send(event, owner))], owner.did


@given(st.lists(st.sampled_from(upkeep.RUN_EVENTS), max_size=40))
def test_a_process_goes_once_and_by_the_ladder(events):
    """Whatever comes in whatever order: it is watched once, asked once, before that not killed, and told over once."""
    states, did = walk(upkeep.RUN_TABLE, upkeep.BORN, events)
    for effect in ("watch", "ask", "dump", "kill", "bury"):
        assert did.count(effect) <= 1
    order = [effect for effect in did if effect in ("ask", "dump", "say_verdict", "kill")]
    assert order == ["ask", "dump", "say_verdict", "kill"][: len(order)]
    told = [effect for effect in did if effect in ("report_failed", "report_over", "report_stuck")]
    assert len(told) == (states[-1] == upkeep.GONE)
    assert did.count("report_ready") <= 1


@given(st.lists(st.sampled_from(upkeep.RUN_EVENTS), max_size=20))
def test_patience_is_bounded(events):
    """From any state at most three more signs of impatience lead to SIGKILL, or there is no process to kill."""
    states, _ = walk(upkeep.RUN_TABLE, upkeep.BORN, events)
    after, _ = walk(upkeep.RUN_TABLE, states[-1], [upkeep.HURRY] * 3)
    assert after[-1] in (upkeep.KILLED, upkeep.BURYING, upkeep.GONE, upkeep.UNWANTED)


@given(st.lists(st.sampled_from(upkeep.CHILD_EVENTS), max_size=40))
def test_a_child_that_is_to_stop_is_not_started_again(events):
    """After STOP nothing starts a process until its owner wants it to run again."""
    states, _ = walk(upkeep.CHILD_TABLE, upkeep.IDLE, events)
    later = [event for event in events if event != upkeep.START]
    after, did = walk(upkeep.CHILD_TABLE, states[-1], [upkeep.STOP, *later])
    assert "spawn" not in did
    assert after[-1] in (upkeep.DONE, upkeep.STOPPING)


@given(st.lists(st.sampled_from(upkeep.CHILD_EVENTS), max_size=60))
def test_a_child_has_one_process_at_a_time(events):
    """A process is started when there is none, or as the successor of the one that there is."""
    machine, owner = upkeep.Machine(upkeep.CHILD_TABLE, upkeep.IDLE), Owner()
    runs = False
    for event in events:
        if event == upkeep.RUN_OVER and not runs:
            continue  # the world has no such event
        before = len(owner.did)
        if not machine.send(event, owner):
            continue
        for effect in owner.did[before:]:
            assert effect != "spawn" or not runs
            runs = runs or effect == "spawn"
        if event == upkeep.RUN_OVER:
            runs = False
        assert runs == (machine.state not in (upkeep.RUNLESS | {upkeep.DOWN}))
