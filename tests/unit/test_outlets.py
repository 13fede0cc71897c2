"""What workers print, on its way to the program's own output."""

import os

import pytest

from safespawn._drive import outlets


@pytest.fixture
def posted(monkeypatch):
    """What is handed to the thread of the relay, which does not run here."""
    actions = []
    monkeypatch.setattr(outlets.relay, "post", actions.append)
    return actions


@pytest.mark.parametrize("more", [b"", b"the last\n"])
def test_lines_that_found_no_room_are_told_by_the_end(posted, capsys, more):
    """When the reader comes late: also if no line came after those that were lost."""
    reader, writer = os.pipe()
    outlet = outlets.Outlet(reader, 1, "prefix", "w-0", 0, b"token")
    outlet.waiting = outlets.WAITING_BYTES  # of earlier ones, that nobody has taken
    os.write(writer, b"one\ntwo\n")
    outlet.read()
    if more:
        outlet.waiting = 0
    os.write(writer, more)
    os.close(writer)
    outlet.close()
    for action in posted:
        action()
    assert capsys.readouterr().out.splitlines() == [
        "[w-0] [2 lines lost: they were not taken in time]", *(["[w-0] the last"] if more else []),
    ]  # fmt: skip
