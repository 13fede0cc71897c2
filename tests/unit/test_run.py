"""What is kept of one process of a child."""

from safespawn import errors
from safespawn._drive.run import without_frames


def failed(kind):
    """An error of that kind with a cause and a context, all raised."""
    try:
        try:
            raise FileNotFoundError
        except OSError as cause:
            raise errors.BootError("it does not come up", executable="") from cause
    except errors.BootError:
        try:
            raise kind("late")
        except kind as error:
            return error


def test_an_error_of_a_start_keeps_no_frames():
    """Neither it nor what it came of: an event keeps it, and the frames would keep all that was in them."""
    error = without_frames(failed(OSError))
    seen = []
    while error is not None:
        seen.append(type(error).__name__)
        assert error.__traceback__ is None
        error = error.__cause__ or error.__context__
    assert seen == ["OSError", "BootError", "FileNotFoundError"]


def test_a_bug_keeps_them():
    """They are all that tells where it is."""
    assert without_frames(failed(KeyError)).__traceback__ is not None
