"""
The board: what an owner publishes is what a reader of the same user sees, and a reader holds nobody up.
"""

import os
import time

import pytest

from safespawn._drive import board


def read():
    """This process's own board, as a stranger sees it."""
    return board.read_board(os.getpid())


def test_a_row_is_read_as_it_was_published():
    """Every fact comes back; a state's time is that of its change; what is withdrawn is gone, with the memory."""
    row = board.publish("child", "collector", owner="agent", pid=7, state="starting", cells=(3, 4096))
    try:
        before = time.monotonic()
        row.update(state="stopping", until=before + 12)
        row.note("exited with 1", restarts=row.restarts + 1, task="t", task_since=1.5)
        (facts,), hidden = read()
        assert facts == row.facts
        assert facts.since >= before
        assert (facts.name, facts.restarts, facts.until, facts.cells) == ("collector", 1, before + 12, (3, 4096))
        assert not hidden
        row.update(state="stopped")
        assert read()[0][0].until == 0.0
    finally:
        row.withdraw()
        row.withdraw()
    row.update(state="nobody sees it")
    assert read() is None


def test_long_texts_are_cut_and_zeros_do_no_harm():
    """The longest texts, of more than one byte a character, with zero bytes: a row that can be read."""
    row = board.publish("k" * 99, "näme\0" * 99, owner="ö" * 999, state="s" * 99, event="é\0" * 999, task="t" * 999)
    try:
        (facts,), _ = read()
        assert facts.name.startswith("näme näme")
        assert len(facts.event) > 50
        assert len(board.encode(row.facts)) <= board.ROW_BYTES
    finally:
        row.withdraw()


def test_a_row_that_is_just_being_written_is_known_as_such():
    """Half of one row and half of another have no valid checksum."""
    old = board.encode(board.Facts("child", "one", state="ready"))
    new = board.encode(board.Facts("child", "two", state="stopped"))
    for cut in range(4, len(old)):
        if old[:cut] + new[cut:] not in (old, new):
            with pytest.raises(ValueError, match="torn"):
                board.decode(old[:cut] + new[cut:])


def test_rows_beyond_the_last_are_counted(monkeypatch):
    """A full board counts what it cannot show, and their owners notice nothing; freed slots are used again."""
    monkeypatch.setattr(board, "ROWS", 2)
    rows = [board.publish("child", str(number)) for number in range(5)]
    try:
        facts, hidden = read()
        assert [each.name for each in facts] == ["0", "1"]
        assert hidden == 3
        rows.pop(0).withdraw()
        rows.append(board.publish("child", "new"))
        assert {each.name for each in read()[0]} == {"1", "new"}
    finally:
        for row in rows:
            row.withdraw()


def test_a_forked_copy_has_no_rows():
    """In a fork the rows are the original's: it shows none, and changes none of them."""
    row = board.publish("child", "mine", state="ready")
    try:
        pid = os.fork()
        if not pid:
            row.update(state="lost")
            row.withdraw()
            os._exit(0 if board.read_board(os.getpid()) is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert [each.state for each in read()[0]] == ["ready"]
    finally:
        row.withdraw()
