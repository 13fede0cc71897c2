"""Applications that fork, drop rights, move, are interrupted or re-entered while they run commands."""

import os

import pytest

from support.applications import Application, Census

STORIES = {
    "sigchld_ignored": "Statuses are right in an application that ignores SIGCHLD.",
    "waitpid_thief": "Statuses are right while a thread waits for any child in a loop, a dead zygote's included.",
    "first_use": "64 threads whose first commands come at once start one zygote.",
    "first_use_async": "120 tasks of three event loops whose first commands come at once start one zygote.",
    "copied": "After os.fork() both sides run commands; the copy is refused the original's, and delays no stdin's end.",
    "copied_storm": "Copies that are made while commands run work, and disturb nobody.",
    "daemonised": "The original exits, and its copy's copy goes on running commands.",
    "another_namespace": "A command sees the host name of the application's present namespace.",
    "limited": "An application without the right to change namespaces starts one zygote and keeps it.",
    "short_thread": "A child outlives the thread that started it, with a death signal too.",
    "bomb": "Thirty generations that ignore SIGTERM and go on forking are gone when a timeout ends the first.",
    "alarms": "A signal handler may run commands whatever the main thread is just doing.",
    "finalisers": "A finaliser may run commands whatever its thread is just doing.",
}
AS_ROOT = {
    "dropped": "When root has become nobody no command is root's any more.",
    "dropped_for_a_moment": "Commands run as the effective user, whoever that is at the time.",
    "another_root": "After chroot() nothing runs in the old root.",
}


def play(story):
    """Run the program to its end; nothing is left of it."""
    census = Census()
    with Application("fault_worlds", story) as app:
        assert app.line(60) == "fine"
        if story != "daemonised":  # there the first process has ended long ago
            assert app.finish() == ""
    assert census.gone(2.0) == {}


@pytest.mark.parametrize("story", STORIES, ids=STORIES.get)
def test_story(story):
    """The program's assertions hold, and it leaves nothing behind."""
    play(story)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give up root's rights")
@pytest.mark.parametrize("story", AS_ROOT, ids=AS_ROOT.get)
def test_story_of_root(story):
    """The program's assertions hold, and it leaves nothing behind."""
    play(story)
