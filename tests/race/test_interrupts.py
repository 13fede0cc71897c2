"""Ctrl-C at any moment."""

import os
import pty
import select
import signal
import time

from support.applications import Application, Census

TIMES = 800


def test_nothing_is_lost_when_ctrl_c_comes_at_random_moments():
    """Interrupted calls end in KeyboardInterrupt and nothing else, and leave no descriptor and no process."""
    census = Census()
    with Application("race_interrupts", TIMES) as app:
        facts = app.facts(60)
        app.process.wait(30)
    assert facts["interrupted"] >= TIMES, facts
    assert facts["errors"] == []
    assert facts["left"] == []
    assert set(facts["zygote"].values()) == {0}
    assert facts["boots"] <= 1 + facts["suspicions"]  # a zygote that was late, on a busy machine, is replaced
    assert census.gone(2.0) == {}


def read_until(fd, word, seconds=20.0):
    """What a terminal shows, until *word* stands in it."""
    deadline = time.monotonic() + seconds
    seen = b""
    while word not in seen:
        ready = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]
        assert ready, f"{word!r} did not come: {seen!r}"
        seen += os.read(fd, 4096)
    return seen


def test_ctrl_c_of_a_terminal_reaches_the_command_and_not_the_zygote():
    """At a terminal Ctrl-C reaches application and command, one group, and the zygote starts the next one."""
    census = Census()
    terminal, inside = pty.openpty()
    try:
        with Application("race_terminal", stdin=inside, stdout=inside, stderr=inside, start_new_session=True) as app:
            os.close(inside)
            inside = -1
            read_until(terminal, b"child runs")
            os.write(terminal, b"\x03")
            shown = read_until(terminal, b"fine")
            assert b"child heard it" in shown
            assert app.process.wait(20) == 0
    finally:
        os.close(terminal)
        if inside >= 0:
            os.close(inside)
    assert census.gone(2.0) == {}


def test_sigint_to_the_application_alone_ends_the_command_too():
    """KeyboardInterrupt in the application, sent to it alone, ends the command with its tree before it is raised."""
    census = Census()
    with Application("race_terminal", "alone") as app:
        assert app.line() == "child runs"
        app.signal(signal.SIGINT)
        assert app.line() == "fine"
        assert app.process.wait(20) == 0
    assert census.gone(2.0) == {}
