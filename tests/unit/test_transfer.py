"""Output taken and input fed, without a process: pipes that the test itself fills and empties."""

import itertools
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safespawn._core.transfer import Drain, Feed, LimitReached, LineSplitter, Streams


def cut(data, places):
    """*data* in pieces."""
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def lines_of(chunks, codec):
    """What a splitter says of *chunks*."""
    said = []
    splitter = LineSplitter(said.append, codec)
    for chunk in chunks:
        splitter.feed(chunk)
    splitter.end()
    return said


@settings(deadline=None)
@given(st.binary(max_size=200).map(lambda data: data.replace(b"\x00", b"\n")), st.lists(st.integers(0, 300)))
def test_bytes_come_in_the_lines_that_they_have_however_they_are_cut(data, places):
    """Lines of bytes are those between the newlines, whatever pieces they came in; an empty last one is none."""
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert lines_of(cut(data, places), None) == expected


@settings(deadline=None)
@given(st.text("aé€😀\n\r", max_size=60), st.lists(st.integers(0, 300)))
def test_text_comes_in_lines_even_if_a_character_is_cut(text, places):
    """Lines of text are those of universal newlines, with a character or a CR LF cut in two as well."""
    expected = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not expected[-1]:
        expected.pop()
    assert lines_of(cut(text.encode(), places), ("utf-8", "strict")) == expected


def test_a_character_that_never_ends_is_an_error_or_a_mark():
    """A last character that is cut off raises under strict and is replaced under replace."""
    with pytest.raises(UnicodeDecodeError):
        lines_of([b"ok\n\xe2\x82"], ("utf-8", "strict"))
    assert lines_of([b"ok\n\xe2\x82"], ("utf-8", "replace")) == ["ok", "�"]


@pytest.fixture
def pipe():
    """A pipe; the test's objects own both ends."""
    return os.pipe()


def test_a_drain_takes_what_is_there_and_closes_at_the_end(pipe):
    """A drain returns True while the stream is open and False at its end, with all bytes kept."""
    read_fd, write_fd = pipe
    drain = Drain(read_fd)
    assert drain.read()
    os.write(write_fd, b"one ")
    assert drain.read()
    os.write(write_fd, b"two")
    os.close(write_fd)
    while drain.read():
        pass
    assert drain.result() == b"one two"
    assert drain.result() == b"one two"
    assert drain.fd == -1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(read_fd)
    drain.close()


@pytest.mark.parametrize("limit", [0, 1, 5, 10, 11])
def test_a_drain_keeps_no_more_than_its_limit(pipe, limit):
    """What goes beyond the limit raises LimitReached, and what is kept has the limit's length."""
    read_fd, write_fd = pipe
    drain = Drain(read_fd, limit=limit)
    os.write(write_fd, b"0123456789")
    os.close(write_fd)
    if limit < 10:
        with pytest.raises(LimitReached):
            drain.read()
    else:
        while drain.read():
            pass
    assert drain.result() == b"0123456789"[:limit]
    drain.close()


def test_a_drain_for_lines_keeps_bytes_only_when_asked(pipe):
    """With keep=False the lines are told and nothing else is kept."""
    read_fd, write_fd = pipe
    said = []
    drain = Drain(read_fd, on_line=said.append, keep=False)
    os.write(write_fd, b"one\ntwo")
    os.close(write_fd)
    while drain.read():
        pass
    assert said == [b"one", b"two"]
    assert drain.result() == b""


def test_a_feed_writes_as_much_as_fits_and_closes_when_it_is_through(pipe):
    """A feed returns True while something is left and False when all is written and the end closed."""
    read_fd, write_fd = pipe
    data = os.urandom(300_000)
    feed = Feed(write_fd, data)
    got = b""
    while feed.write():
        got += os.read(read_fd, 1 << 20)
    while chunk := os.read(read_fd, 1 << 20):
        got += chunk
    assert got == data
    assert feed.fd == -1
    os.close(read_fd)


def test_a_feed_that_nobody_reads_ends_quietly(pipe):
    """A child that does not read its input is no error."""
    read_fd, write_fd = pipe
    os.close(read_fd)
    feed = Feed(write_fd, b"unread")
    assert not feed.write()
    assert feed.fd == -1


def test_a_feed_of_wide_elements_counts_bytes(pipe):
    """Input may be any buffer; it is written byte for byte."""
    read_fd, write_fd = pipe
    feed = Feed(write_fd, memoryview(bytes(range(16))).cast("I"))
    assert not feed.write()
    assert os.read(read_fd, 100) == bytes(range(16))
    os.close(read_fd)


def test_streams_want_what_is_open():
    """The interest of several streams shrinks as they end, and closing closes the rest once."""
    (out_r, out_w), (in_r, in_w) = os.pipe(), os.pipe()
    streams = Streams(Feed(in_w, b"x"), (Drain(out_r), None))
    assert set(streams.interest()) == {out_r, in_w}
    os.close(out_w)
    streams.turn(dict.fromkeys([out_r, in_w], 1))
    assert streams.interest() == {}
    assert streams.open_outputs == []
    streams.close()
    streams.close()
    os.close(in_r)
