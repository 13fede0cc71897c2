"""Pipe ends as flows, and the outputs of a child: what is taken at once, what is left, what is closed."""

import contextlib
import errno
import fcntl
import os
import signal
import socket
import termios

import pytest

from safespawn._core import connection as connections
from safespawn._core import stream, transfer
from safespawn._core.connection import Connection, Truncated, close_all
from safespawn._core.flow import READ, WRITE, earliest
from safespawn._core.stream import ReadEnd, WriteEnd
from safespawn._core.transfer import Drain, Feed, LimitReached, Streams
from safespawn._zygote import wire
from safespawn.errors import ClosedError, RemoteProtocolError
from support.stage import is_open, null_fds


@pytest.fixture
def pipe():
    """A pipe; whoever is given an end may close it."""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):
            os.close(fd)


def run(flow, *steps):
    """Drive a flow: before each answer the next step is done; returns what it returns, and what it waited for."""
    waits, left = [], list(steps)
    try:
        waits.append(next(flow))
        while True:
            left.pop(0)()
            waits.append(flow.send({}))
    except StopIteration as end:
        assert not left
        return end.value, waits


# --- streams of a held process ----------------------------------------------------------------------------------------
def test_a_read_gives_what_was_asked_for(pipe):
    """So many bytes, the rest at the end; what was read beyond is given next."""
    read_fd, write_fd = pipe
    end = ReadEnd(read_fd)
    assert not os.get_blocking(read_fd)
    os.write(write_fd, b"0123456789")
    assert run(end.read_flow(4)) == (b"0123", [])
    assert run(end.read_flow(0)) == (b"", [])
    assert run(end.read_flow(6)) == (b"456789", [])
    os.write(write_fd, b"abcd")
    assert run(end.read_flow(4)) == (b"abcd", [])  # no more than that is waited for
    os.write(write_fd, b"456789")
    assert run(end.receive_flow(3)) == (b"456", [])
    waited = ({read_fd: READ}, None)
    assert run(end.read_flow(5), lambda: os.write(write_fd, b"a"), lambda: os.write(write_fd, b"bc")) == (
        b"789ab", [waited, waited],
    )  # fmt: skip
    assert end.read_ahead() == b"c"
    assert end.read_ahead() == b""
    os.write(write_fd, b"rest")
    assert run(end.read_flow(-1), lambda: os.close(write_fd)) == (b"rest", [waited])
    assert [run(flow)[0] for flow in (end.read_flow(5), end.receive_flow(5), end.line_flow())] == [b""] * 3


def test_a_receive_gives_what_there_is(pipe):
    """At least one byte, no more than asked for."""
    read_fd, write_fd = pipe
    end = ReadEnd(read_fd)
    assert run(end.receive_flow(2), lambda: os.write(write_fd, b"abc")) == (b"ab", [({read_fd: READ}, None)])
    os.write(write_fd, b"d")
    assert run(end.receive_flow(2)) == (b"c", [])
    assert run(end.receive_flow(2)) == (b"d", [])


def test_lines(pipe):
    """Each with its end, however it came; the last one may lack it."""
    read_fd, write_fd = pipe
    end = ReadEnd(read_fd)
    os.write(write_fd, b"one\n\ntw")
    assert run(end.line_flow()) == (b"one\n", [])
    assert run(end.line_flow()) == (b"\n", [])
    steps = [lambda: os.write(write_fd, b"o"), lambda: os.write(write_fd, b"\nthree")]
    assert run(end.line_flow(), *steps)[0] == b"two\n"
    assert run(end.line_flow(), lambda: os.close(write_fd))[0] == b"three"
    assert run(end.line_flow()) == (b"", [])


def test_what_is_closed_is_closed_once(pipe):
    """And then it is refused; another file with that number is left alone."""
    end, other = ReadEnd(pipe[0]), WriteEnd(pipe[1])
    assert not os.get_blocking(pipe[1])
    assert pipe[1] in connections._write_ends
    for each in (end, other):
        fd = each.fd
        each.close()
        assert each.fd == -1
        assert not is_open(fd)
        each.close()
    assert pipe[1] not in connections._write_ends
    for flow in (end.receive_flow(1), end.read_flow(1), end.line_flow(), other.write_flow(memoryview(b"x"))):
        with pytest.raises(ClosedError, match="this stream is closed"):
            next(flow)
    assert run(other.write_flow(memoryview(b""))) == (None, [])


@pytest.fixture
def number_zero():
    """Something is done with the descriptor 0 free, as in a program whose stdin is closed."""
    kept = os.dup(0)
    os.close(0)
    yield
    os.dup2(kept, 0)
    os.close(kept)


@pytest.mark.usefixtures("number_zero")
def test_an_end_may_be_any_number():
    """0 is a descriptor like any other: it is read, written, waited for and closed."""
    read_fd, write_fd = os.pipe()
    assert read_fd == 0
    end = ReadEnd(read_fd)
    os.write(write_fd, b"data")
    assert run(end.receive_flow(10)) == (b"data", [])
    end.close()
    drain = Drain(os.dup(write_fd))
    assert Streams(None, (drain, None)).interest() == {0: READ}
    assert Streams(None, (None, drain)).open_outputs == [0]
    drain.close()
    assert not is_open(0)
    os.close(write_fd)
    for make in (WriteEnd, lambda fd: Feed(fd, b"data")):
        read_fd, write_fd = os.pipe()
        other = os.dup(read_fd)
        os.close(read_fd)
        os.dup2(write_fd, 0)
        os.close(write_fd)
        end = make(0)
        if isinstance(end, Feed):
            assert Streams(end, (None, None)).interest() == {0: WRITE}
            assert not end.write()
        else:
            assert run(end.write_flow(memoryview(b"data"))) == (None, [])
            end.close()
        assert os.read(other, 10) == b"data"
        assert not is_open(0)
        os.close(other)


def test_a_forgotten_end_is_closed(pipe):
    """With its object."""
    end, other = ReadEnd(pipe[0]), WriteEnd(pipe[1])
    del end, other
    assert not any(map(is_open, pipe))


def test_a_write_waits_for_room(pipe):
    """All of it is written, in as many turns as it takes."""
    read_fd, write_fd = pipe
    end = WriteEnd(write_fd)
    data, got = os.urandom(150_000), []

    def read():
        got.append(os.read(read_fd, 65536))

    _, waits = run(end.write_flow(memoryview(data)), read, read)
    assert waits == [({write_fd: WRITE}, None)] * 2
    assert b"".join([*got, os.read(read_fd, 1 << 20)]) == data
    end.close()


# --- outputs of a command ---------------------------------------------------------------------------------------------
def test_a_drain_takes_many_chunks_in_a_turn_and_no_more(monkeypatch):
    """Sixteen full ones; then the other streams get their turn. A short one ends the turn."""
    chunks = []

    def read(_fd, size):
        chunks.append(size)
        return bytes(size)

    fds = null_fds(1)
    drain = Drain(fds[0])
    monkeypatch.setattr(transfer.os, "read", read)
    assert drain.read()
    assert chunks == [65536] + [1024 * 1024] * 15
    assert drain.total == sum(chunks)
    monkeypatch.setattr(transfer.os, "read", lambda _fd, _size: chunks.append(0) or b"x" * 65535)
    del chunks[:]
    assert drain.read()
    assert chunks == [0]
    monkeypatch.undo()
    drain.close()


def test_a_pipe_that_gives_much_is_made_wider(pipe):
    """After a full chunk it holds a mebibyte, where that is allowed."""
    drain = Drain(pipe[0])
    os.write(pipe[1], bytes(65535))
    drain.read()
    assert fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) == 65536
    os.write(pipe[1], bytes(65536))
    drain.read()
    assert fcntl.fcntl(pipe[0], fcntl.F_GETPIPE_SZ) == 1024 * 1024
    assert len(drain.result()) == 131_071
    drain.close()


def test_what_cannot_be_made_wider_works_as_it_is():
    """A descriptor that is no pipe is drained all the same."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        drain = Drain(os.dup(ours.fileno()))
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
        theirs.send(bytes(70_000))
        while drain.total < 70_000:
            assert drain.read()
        drain.close()


def test_a_stream_of_a_file_object(pipe):
    """It stays blocking, one chunk is taken in a turn, and it is closed as its owner wants, once."""
    closed = []
    os.write(pipe[1], bytes(65536))
    drain = Drain(pipe[0], close=lambda: closed.append(1), begun=b"before")
    assert os.get_blocking(pipe[0])
    assert drain.total == 6
    assert drain.result() == b"before"
    assert drain.read()
    assert drain.total == 6 + 65536
    os.close(pipe[1])
    assert not drain.read()
    drain.close()
    assert closed == [1]
    assert drain.result() == b"before" + bytes(65536)
    assert is_open(pipe[0])


def test_a_feed_of_a_file_object(pipe):
    """It is closed as its owner wants, once; and it is no write end of ours that a copy gives up."""
    closed = []
    feed = Feed(pipe[1], b"data", close=lambda: closed.append(1))
    assert pipe[1] not in connections._write_ends
    assert not os.get_blocking(pipe[1])
    assert not feed.write()
    feed.close()
    assert (closed, feed.fd) == ([1], -1)
    assert os.read(pipe[0], 10) == b"data"
    assert is_open(pipe[1])


def test_a_write_end_is_given_up_in_copies(pipe):
    """While it is open, and no longer."""
    feed = Feed(pipe[1], b"")
    assert pipe[1] in connections._write_ends
    feed.close()
    assert pipe[1] not in connections._write_ends
    assert not is_open(pipe[1])


def test_an_error_of_a_feed_is_told(monkeypatch, pipe):
    """Only that nobody reads is none."""
    feed = Feed(pipe[1], b"data")

    def refuse(_fd, _data):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(transfer.os, "write", refuse)
    with pytest.raises(OSError, match="broken"):
        feed.write()
    monkeypatch.undo()
    feed.close()


@pytest.mark.parametrize(
    ("limit", "kept"), [(3, b"012"), (9, b"012345678"), (10, b"0123456789"), (12, b"0123456789AB")]
)
def test_a_limit_counts_over_all_chunks(pipe, limit, kept):
    """What goes beyond it is cut there, also in a later chunk; the lines see no more either."""
    lines = []
    drain = Drain(pipe[0], limit=limit, on_line=lines.append)
    os.write(pipe[1], b"0123456789")
    with contextlib.suppress(LimitReached):
        drain.read()
        os.write(pipe[1], b"ABCDE")
        drain.read()
    assert drain.result() == kept
    drain._lines.end()
    assert lines == [kept]
    assert drain.total == (10 if limit < 10 else 15)
    drain.close()


def test_both_outputs_and_the_input_of_a_child():
    """Each is moved when it is ready, wanted while it is open, and closed with the others."""
    pipes = [os.pipe() for _ in range(3)]
    (out_r, out_w), (err_r, err_w), (in_r, in_w) = pipes
    streams = Streams(Feed(in_w, b"input"), (Drain(out_r), Drain(err_r)))
    assert streams.interest() == {out_r: READ, err_r: READ, in_w: WRITE}
    assert streams.open_outputs == [out_r, err_r]
    os.write(err_w, b"error")
    streams.turn({err_r: READ})
    assert streams.drains[1].result() == b"error"
    assert streams.interest() == {out_r: READ, err_r: READ, in_w: WRITE}
    streams.turn({in_w: WRITE})
    assert os.read(in_r, 10) == b"input"
    assert streams.interest() == {out_r: READ, err_r: READ}
    streams.close()
    assert streams.open_outputs == []
    assert not any(map(is_open, (out_r, err_r, in_w)))
    close_all([out_w, err_w, in_r])
    nothing = Streams(None, (None, None))
    nothing.turn({out_r: READ})
    nothing.close()
    assert (nothing.interest(), nothing.open_outputs) == ({}, [])


# --- a connection -----------------------------------------------------------------------------------------------------
@pytest.fixture
def ends():
    """A connection, and the zygote's end of it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made = Connection(ours, "zygote")
    yield made, theirs
    made.close()
    theirs.close()


def test_a_message_and_its_descriptors(ends):
    """They come out as they went in, CLOEXEC, and nothing is waited for."""
    connection, theirs = ends
    assert not connection.socket.getblocking()
    with pytest.raises(BlockingIOError):
        connection.receive()
    fds = null_fds(3)
    message = (wire.STARTED, 7, 3)
    socket.send_fds(theirs, [wire.encode(message)], fds)
    assert connection.receive(peek=True) == (message, [])
    got, received = connection.receive()
    assert got == message
    assert len(received) == 3
    assert not any(map(os.get_inheritable, received))
    close_all(received)
    assert received == []
    for size in (0, 1, 2):
        connection.send((wire.RELEASE,), tuple(fds[:size]))
        data, copies, _, _ = socket.recv_fds(theirs, 65536, 16)
        assert wire.decode(data) == (wire.RELEASE,)
        assert len(copies) == size
        close_all(copies)
    close_all(fds)


@pytest.mark.parametrize("size", [wire.INLINE_BYTES - 100, wire.INLINE_BYTES + 1])
def test_a_large_message_goes_in_a_memfd(ends, size):
    """Its body is then the first descriptor, before the others."""
    connection, theirs = ends
    fds = null_fds(2)
    message = (wire.REFUSED, "x" * size)
    before = len(os.listdir("/proc/self/fd"))
    connection.send(message, tuple(fds))
    assert len(os.listdir("/proc/self/fd")) == before
    data, copies, _, _ = socket.recv_fds(theirs, 1 << 20, 16)
    if size > wire.INLINE_BYTES:
        assert wire.is_in_memfd(data)
        data = wire.from_memfd(data, copies[0])
    assert len(copies) == 2 + (size > wire.INLINE_BYTES)
    assert wire.decode(data) == message
    close_all([*copies, *fds])


def test_a_message_beyond_all_bounds_is_refused(ends, monkeypatch):
    """E2BIG, as of an exec; nothing is sent."""
    monkeypatch.setattr(wire, "MEMFD_BYTES", wire.INLINE_BYTES + 10)
    with pytest.raises(OSError, match="too long") as caught:
        ends[0].send((wire.REFUSED, "x" * (wire.INLINE_BYTES + 20)))
    assert caught.value.errno == errno.E2BIG
    ends[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        ends[1].recv(10)


@pytest.mark.parametrize("limit", ["INLINE_BYTES", "MEMFD_BYTES"])
def test_the_limits_of_a_message(ends, monkeypatch, limit):
    """A message of just so many bytes is sent."""
    message = (wire.REFUSED, "x" * 1000)
    size = len(wire.encode(message))
    monkeypatch.setattr(wire, "INLINE_BYTES", 100)
    monkeypatch.setattr(wire, limit, size)
    ends[0].send(message)
    data, copies, _, _ = socket.recv_fds(ends[1], 65536, 16)
    assert len(copies) == (limit == "MEMFD_BYTES")
    assert wire.decode(wire.from_memfd(data, copies[0]) if copies else data) == message
    close_all(copies)


def test_a_dead_zygote_is_an_error_and_no_signal(ends):
    """Whatever the application does with SIGPIPE."""
    told = []
    before = signal.signal(signal.SIGPIPE, lambda *_: told.append("SIGPIPE"))
    fds = null_fds(1)
    ends[1].close()
    try:
        for message, sent in [((wire.RELEASE,), ()), ((wire.RELEASE,), tuple(fds)), ((wire.REFUSED, "x" * 70_000), ())]:
            with pytest.raises(BrokenPipeError):
                ends[0].send(message, sent)
    finally:
        signal.signal(signal.SIGPIPE, before)
    assert told == []
    close_all(fds)


def test_the_last_message_before_a_reset_is_whole(ends):
    """With its descriptors, CLOEXEC, however long it is."""
    connection, theirs = ends
    fds = null_fds(2)
    message = (wire.REFUSED, "x" * 3000)
    socket.send_fds(theirs, [wire.encode(message)], fds)
    connection.send((wire.RELEASE,))
    theirs.close()
    got, received = connection.receive()
    assert (got, len(received)) == (message, 2)
    assert not any(map(os.get_inheritable, received))
    close_all([*fds, *received])


def test_what_has_not_been_read_is_taken_back(ends):
    """The other side reads the end behind it. What has been read, or sent to nobody, is not taken back."""
    connection, theirs = ends
    assert not connection.retract()
    connection.send((wire.RELEASE,))
    theirs.recv(100)
    assert not connection.retract()
    connection.send((wire.CENSUS,))
    assert connection.retract()
    assert wire.decode(theirs.recv(100)) == (wire.CENSUS,)
    assert theirs.recv(100) == b""
    with pytest.raises(BrokenPipeError):
        connection.send((wire.RELEASE,))
    connection.socket.close()
    assert not connection.retract()


def test_what_is_read_in_that_moment_is_not_taken_back(ends, monkeypatch):
    """The second look decides."""
    connection, theirs = ends
    looks = []

    def look(fd, number, zeros):
        looks.append((fd, number, zeros))
        if len(looks) == 2:
            theirs.recv(100)
        return fcntl_ioctl(fd, number, zeros)

    fcntl_ioctl = fcntl.ioctl
    monkeypatch.setattr(fcntl, "ioctl", look)
    connection.send((wire.CENSUS,))
    assert not connection.retract()
    assert looks == [(connection.fileno(), termios.TIOCOUTQ, bytes(4))] * 2


def test_what_is_no_message_is_an_error(ends):
    """Its descriptors are closed."""
    fds = null_fds(2)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(ends[1], [b"nonsense"], fds)
    with pytest.raises(RemoteProtocolError, match="no safespawn message"):
        ends[0].receive()
    assert len(os.listdir("/proc/self/fd")) == before
    socket.send_fds(ends[1], [b""], fds)  # looks like the end
    assert ends[0].receive() == (None, [])
    assert len(os.listdir("/proc/self/fd")) == before
    close_all(fds)


def test_more_descriptors_than_fit_are_an_error(ends):
    """Those that came are closed."""
    fds = null_fds(connections.MOST_FDS + 2)
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(ends[1], [wire.encode((wire.STARTED, 7, 0))], fds)
    with pytest.raises(Truncated) as caught:
        ends[0].receive()
    assert (caught.value.errno, caught.value.strerror) == (errno.EMFILE, os.strerror(errno.EMFILE))
    assert len(os.listdir("/proc/self/fd")) == before
    socket.send_fds(ends[1], [wire.encode((wire.STARTED, 7, 0))], fds[: connections.MOST_FDS])
    _, received = ends[0].receive()
    assert len(received) == connections.MOST_FDS
    close_all([*fds, *received])


def test_a_shut_connection_reaches_a_copy(ends):
    """The other side reads the end though somebody else holds the descriptor; a copy of this process cuts nothing."""
    connection, theirs = ends
    theirs.setblocking(False)
    with socket.socket(fileno=os.dup(connection.fileno())):
        assert connection.owner_pid == os.getpid()
        connection.owner_pid = -1
        connection.shut()
        with pytest.raises(BlockingIOError):
            theirs.recv(10)
        connection.owner_pid = os.getpid()
        connection.close()
        assert connection.fileno() == -1
        assert theirs.recv(10) == b""
    connection.shut()
    connection.close()


def test_write_ends_in_a_copy(pipe):
    """/dev/null takes their place, under their numbers, and is not inherited; the pipe has ended then."""
    connections.track_write_end(pipe[1])
    before = len(os.listdir("/proc/self/fd"))
    connections.give_up_write_ends()
    assert os.readlink(f"/proc/self/fd/{pipe[1]}") == "/dev/null"
    assert not os.get_inheritable(pipe[1])
    assert os.read(pipe[0], 1) == b""
    assert os.write(pipe[1], b"for nobody") == 10
    assert len(os.listdir("/proc/self/fd")) == before
    assert connections._write_ends == set()
    connections.give_up_write_ends()


@pytest.mark.parametrize(
    ("deadlines", "expected"),
    [((), None), ((None,), None), ((1.0,), 1.0), ((None, 2.0, 1.0), 1.0), ((0.0, None, 5.0), 0.0)],
)
def test_the_earliest(deadlines, expected):
    """The least of those that there are."""
    assert earliest(*deadlines) == expected


def test_a_chunk_is_what_a_pipe_holds():
    """One read takes all of it."""
    assert stream._CHUNK_BYTES == transfer.CHUNK_BYTES == 65536
