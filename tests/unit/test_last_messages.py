"""What the other side said before it died with messages unread: the kernel tells of the reset first, once."""

import socket

import pytest

from safespawn._core.connection import Connection
from safespawn._drive.worker import Worker
from safespawn._worker.messages import RESULTS
from safespawn._zygote import wire


@pytest.fixture
def ends():
    """Our end of a connection, and the other side's."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield pair
    for end in pair:
        end.close()


def die(ours, theirs, *messages):
    """The other side says something and ends, without having read what was sent to it."""
    for message in messages:
        theirs.send(message)
    ours.send(b"never read")
    theirs.close()


def test_a_zygotes_last_message_is_read(ends):
    """It comes before the end of the connection."""
    message = (wire.REFUSED, "the last word")
    die(*ends, wire.encode(message))
    connection = Connection(ends[0], None)
    assert connection.receive() == (message, [])
    assert connection.receive() == (None, [])


def test_a_workers_last_results_are_read(ends):
    """All of them, in order, and then the end."""
    first, second = bytes((RESULTS,)) + b"1", bytes((RESULTS,)) + b"2"
    die(*ends, first, second)
    worker = Worker.__new__(Worker)
    worker.socket = ends[0]
    assert [worker.receive() for _ in range(3)] == [(first, -1), (second, -1), (b"", -1)]


def test_a_reset_alone_is_the_end(ends):
    """Where nothing was said, the end is all there is."""
    die(*ends)
    assert Connection(ends[0], None).receive() == (None, [])
