"""Shared memory segments: placed, received, released and used again, never two payloads in one place."""

import array
import errno
import gc
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from safespawn._worker import arena as arena_module
from safespawn._worker.arena import ALIGNMENT, Arena, receive

MIB = 1024 * 1024


def open_fds():
    """Return how many descriptors of segments are open."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
        except OSError:  # that of the listing itself
            continue
    return sum("memfd:safespawn-arena" in link for link in links)


def shared_bytes():
    """Return how much shared memory this process has mapped and touched."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("RssShmem"))


@pytest.fixture
def arena():
    """An arena that leaves no descriptor and no lease behind."""
    before, leases = open_fds(), len(arena_module._leases)
    own = Arena()
    yield own
    own.close()
    gc.collect()
    assert open_fds() == before
    assert len(arena_module._leases) == leases


def bring(arena, *parts):
    """Place and receive *parts*; return the views and the list where the number is put at the end."""
    segment = arena.place(parts)
    ended = []
    views = receive(segment.fd, segment.number, segment.size, segment.spans, ended.append)
    arena.sent(segment)
    return views, ended


def test_parts_arrive_aligned_and_equal(arena):
    """Each part is at a multiple of 64 bytes, in order, and is what was sent; an empty one is empty."""
    parts = [b"a" * 100, memoryview(bytearray(b"b" * 5000)), b"", memoryview(array.array("d", [1.5] * 10))]
    segment = arena.place(parts)
    assert [size for _, size in segment.spans] == [100, 5000, 0, 80]
    assert all(offset % ALIGNMENT == 0 for offset, _ in segment.spans)
    assert segment.size == sum(segment.spans[-1])
    views = receive(segment.fd, segment.number, segment.size, segment.spans, int)
    assert [v.tobytes() for v in views] == [memoryview(p).tobytes() for p in parts]
    assert not any(v.readonly for v in views)


def test_nothing_at_all_is_a_payload_too(arena):
    """No parts, and only empty parts, are placed and received; with no view left the segment is free at once."""
    assert bring(arena) == ([], [1])
    views, ended = bring(arena, b"", b"")
    assert [v.nbytes for v in views] == [0, 0]
    assert ended == []


def test_writes_of_the_receiver_stay_with_it(arena):
    """The receiver may write to its views; the sender's memory is what it was."""
    segment = arena.place([b"x" * 10_000])
    one, other = (receive(segment.fd, 1, segment.size, segment.spans, int)[0] for _ in range(2))
    one[:] = b"y" * 10_000
    assert bytes(other) == b"x" * 10_000
    assert os.pread(segment.fd, 3, 0) == b"xxx"


def test_released_memory_is_used_again(arena):
    """After `released` the same descriptor carries the next payload, under a new number."""
    first = arena.place([b"1" * MIB])
    arena.sent(first)
    second = arena.place([b"2" * MIB])
    arena.sent(second)
    assert second.fd != first.fd
    arena.released([first.number, 999])
    third = arena.place([b"3" * (MIB - 5)])
    assert third.fd == first.fd
    assert third.number not in (first.number, second.number)
    assert bytes(receive(third.fd, 0, third.size, third.spans, int)[0]) == b"3" * (MIB - 5)
    assert bytes(receive(second.fd, 0, second.size, second.spans, int)[0]) == b"2" * MIB
    assert arena.statistics() == {"segments": 2, "bytes": 2 * MIB, "busy": 2, "recycled": 1, "created": 2}


def test_the_second_and_third_life_of_a_segment_hold_the_right_bytes(arena):
    """A recycled segment that grows beyond its written pages, and shrinks again, has what was placed last."""
    for size in (700_000, 1_000_000, 600_000, 1_048_576, 1_048_576, 9_000_000, 8_500_000):
        payload = os.urandom(size)
        views, ended = bring(arena, payload[:1000], payload)
        assert [bytes(v) for v in views] == [payload[:1000], payload]
        del views
        arena.released(ended)
    assert arena.statistics()["created"] == 4  # 700 kB, 1 MB, 1 MiB and a little, 9 MB


def test_the_end_of_the_last_view_is_told_once(arena):
    """The segment is reported when nothing made from its views is left, and not before."""
    (one, two), ended = bring(arena, b"a" * 5000, b"b" * 5000)
    part = one[10:20]
    del one
    copy = memoryview(two)
    del two
    assert ended == []
    part.release()
    del part
    assert ended == []
    del copy
    assert ended == [1]


def test_arrays_on_the_views_hold_the_segment(arena):
    """An array built on a view, or a slice of one, keeps the memory; its end is the segment's."""
    numpy = pytest.importorskip("numpy", reason="optional: its arrays are the payloads that matter most")
    buffers = []
    data = pickle.dumps([numpy.arange(50_000.0), numpy.ones(9)], 5, buffer_callback=buffers.append)
    views, ended = bring(arena, *[b.raw() for b in buffers])
    first, second = pickle.loads(data, buffers=views)
    del views
    tail = first[::-2]
    del first, second
    assert ended == []
    assert tail[0] == 49_999
    tail[0] = 3
    assert tail.flags.writeable
    del tail
    assert ended == [1]


class Revenant:
    """Puts its view back into the world when the garbage collector comes for it."""

    saved = None

    def __del__(self):
        Revenant.saved = self.view


def test_a_view_that_comes_back_from_the_dead_holds_the_segment(arena):
    """A view in a dead cycle, saved by a `__del__`, still counts; so does one that `__del__` only reads."""
    gc.disable()
    try:
        views, ended = bring(arena, b"a" * 5000)
        revenant = Revenant()
        revenant.view, revenant.me = views.pop(), revenant
        del views, revenant
        gc.collect()
        assert ended == []
        assert bytes(Revenant.saved[:3]) == b"aaa"
        Revenant.saved = None
        gc.collect()
        assert ended == [1]
    finally:
        gc.enable()


def test_the_end_may_come_in_any_thread(arena):
    """Views may die in another thread; the number is told there, once each."""
    told = []
    for _ in range(20):
        segment = arena.place([b"x" * 5000, b"y" * 5000])
        views = receive(segment.fd, segment.number, segment.size, segment.spans, told.append)
        arena.sent(segment)
        threads = [threading.Thread(target=views.pop) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        arena.released(told)
    assert told == sorted(set(told))
    assert len(told) == 20
    assert arena.statistics()["created"] == 1


def test_what_on_release_raises_goes_to_the_hook(arena, monkeypatch):
    """An on_release that raises disturbs nobody: sys.unraisablehook has it."""
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: seen.append(unraisable.exc_value))
    segment = arena.place([b"x"])
    error = ValueError("no")

    def refuse(number):
        raise error

    receive(segment.fd, 1, segment.size, segment.spans, refuse)
    assert seen == [error]
    seen.clear()


@pytest.mark.parametrize(
    ("size", "spans"), [(10, [(0, 11)]), (10, [(-1, 5)]), (10, [(5, -1)]), (0, []), (100 * MIB, [(0, 1)])]
)
def test_spans_outside_of_the_segment_are_refused(arena, size, spans):
    """Wrong numbers are a ValueError, before any view could end in SIGBUS."""
    segment = arena.place([b"x" * 10])
    before = open_fds()
    with pytest.raises(ValueError, match=r"segment|length"):
        receive(segment.fd, 1, size, spans, pytest.fail)
    assert open_fds() == before


def test_a_segment_cannot_be_cut_under_its_reader(arena):
    """The memfd is sealed against shrinking, so that a mapping stays readable."""
    segment = arena.place([b"x" * 10_000])
    with pytest.raises(PermissionError):
        os.ftruncate(segment.fd, 0)
    assert not os.get_inheritable(segment.fd)


# --- the budget


def test_what_is_over_the_budget_is_given_away():
    """Beyond keep_bytes the sender's side is closed after sending, and the receiver keeps its memory."""
    before = open_fds()
    arena = Arena(keep_bytes=MIB)
    views, ended = bring(arena, b"x" * 3 * MIB)
    assert arena.statistics() == {"segments": 0, "bytes": 0, "busy": 0, "recycled": 0, "created": 1}
    assert bytes(views[0][-3:]) == b"xxx"
    del views
    arena.released(ended)
    assert open_fds() == before


def test_old_memory_makes_room_for_new():
    """Free segments are given up, the longest unused first, before a busy one is."""
    arena = Arena(keep_bytes=3 * MIB)
    small = [arena.place([b"x" * MIB]) for _ in range(3)]
    for segment in small:
        arena.sent(segment)
    arena.released(s.number for s in small[:2])
    arena.sent(arena.place([b"y" * 2 * MIB]))
    assert arena.statistics() == {"segments": 2, "bytes": 3 * MIB, "busy": 2, "recycled": 0, "created": 4}
    arena.close()


def test_many_small_segments_are_bounded_too():
    """However small they are, no more than a fixed number is kept open."""
    before = open_fds()
    arena = Arena()
    for _ in range(500):
        arena.sent(arena.place([b"x"]))
    assert arena.statistics()["segments"] <= 64
    assert open_fds() - before <= 64
    arena.close()
    assert open_fds() == before


def test_a_thousand_rounds_stay_level(arena):
    """Statistics, descriptors and memory after 1,000 rounds are what they were after ten."""

    def rounds(count):
        for number in range(count):
            views, ended = bring(arena, os.urandom(70_000 + number % 7), b"x" * 100_000)
            del views
            arena.released(ended)
        return {k: v for k, v in arena.statistics().items() if k != "recycled"}, open_fds(), shared_bytes()

    figures = rounds(10)
    assert rounds(1000) == figures
    assert arena.statistics()["recycled"] == 1009


def test_close_gives_everything_up_and_the_arena_can_go_on():
    """After close() nothing is held; late numbers are passed over; another payload is a new start."""
    before = open_fds()
    arena = Arena()
    busy = arena.place([b"x" * MIB])
    arena.close()
    assert open_fds() == before
    arena.sent(busy)
    arena.released([busy.number])
    arena.close()
    assert arena.statistics()["bytes"] == 0
    segment = arena.place([b"y"])
    arena.released([segment.number])
    assert arena.statistics()["segments"] == 1
    arena.close()
    assert open_fds() == before


# --- failures of the system


@pytest.mark.parametrize("call", ["memfd_create", "ftruncate", "pwrite"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOMEM])
def test_a_system_that_refuses_leaves_nothing_behind(arena, monkeypatch, call, number):
    """ENOSPC and ENOMEM come out as OSError, and the arena is as it was before."""

    def refuse(*args):
        raise OSError(number, os.strerror(number))

    arena.released([arena.place([b"x" * 5000]).number])
    figures, fds = arena.statistics(), open_fds()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        with pytest.raises(OSError, match=os.strerror(number)):
            arena.place([b"x" * MIB])
    assert (arena.statistics() | {"created": 1}, open_fds()) == (figures, fds)
    assert bytes(bring(arena, b"z")[0][0]) == b"z"


def test_short_writes_are_continued(arena, monkeypatch):
    """A pwrite that takes only a part of it, as beyond 2 GiB, is followed by another."""
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: real(fd, data[:1000], offset))
    payload = os.urandom(12_345)
    assert bytes(bring(arena, payload, payload)[0][1]) == payload


def test_without_descriptors_the_payload_is_copied(arena):
    """At the limit of descriptors, or of mappings, receive() copies: equal, writable, and released at once."""
    segment = arena.place([b"x" * 10_000, b"y" * 5])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    ended = []
    fd = os.dup(segment.fd)
    held = []
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (fd + 2, limits[1]))
        try:
            while True:
                held.append(os.dup(0))
        except OSError:
            pass
        views = receive(fd, segment.number, segment.size, segment.spans, ended.append)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for each in (*held, fd):
            os.close(each)
    assert [bytes(v) for v in views] == [b"x" * 10_000, b"y" * 5]
    views[0][:1] = b"z"
    if sys.version_info < (3, 13):
        assert ended == [segment.number]
    del views
    assert ended == [segment.number]


def test_too_many_mappings_are_not_made(arena, monkeypatch):
    """Beyond the bound of live mappings a payload is copied, and the mappings there are stay."""
    monkeypatch.setattr(arena_module, "_MAPPINGS", len(arena_module._leases) + 2)
    three = [bring(arena, bytes([65 + i]) * 5000) for i in range(3)]
    assert [ended for _, ended in three] == [[], [], [3]]
    assert [bytes(views[0][:2]) for views, _ in three] == [b"AA", b"BB", b"CC"]


def test_a_cut_segment_is_an_error_of_the_copy_too(arena, monkeypatch):
    """A size beyond the segment is a ValueError also where it would be copied."""
    monkeypatch.setattr(arena_module, "_MAPPINGS", 0)
    segment = arena.place([b"x"])
    with pytest.raises(ValueError, match="the segment has"):
        receive(segment.fd, 1, 50 * MIB, [(0, 1)], pytest.fail)


# --- several processes

RECEIVER = """
import os, signal, socket, sys
from safespawn._worker.arena import receive
channel = socket.socket(fileno=int(sys.argv[1]))
ended = []
while True:
    data, fds, _, _ = socket.recv_fds(channel, 100_000, 1)
    if not data:
        break
    number, size, spans, deed = eval(data)
    views = receive(fds[0], number, size, spans, ended.append)
    os.close(fds[0])
    if deed == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    total = sum(map(sum, views))
    for view in views:
        view[:] = bytes(len(view))
    del views, view
    channel.send(repr((total, ended)).encode())
    ended.clear()
"""


class Receiver:
    """Another process that receives, sums, overwrites and releases."""

    def __init__(self):
        self.channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            argv = [sys.executable, "-c", RECEIVER, str(theirs.fileno())]
            self.process = subprocess.Popen(argv, pass_fds=[theirs.fileno()])

    def send(self, segment, deed="sum"):
        """Send *segment* to it."""
        message = repr((segment.number, segment.size, segment.spans, deed)).encode()
        socket.send_fds(self.channel, [message], [segment.fd])

    def answer(self):
        """Return the sum of all bytes, and the numbers that it has released."""
        data = self.channel.recv(1000)
        return eval(data) if data else None

    def close(self):
        """End it."""
        self.channel.close()
        return self.process.wait(30)


def test_another_process_reads_and_releases():
    """By SCM_RIGHTS to another process: it sees the bytes, its writes stay there, and the memory comes back."""
    arena, receiver = Arena(), Receiver()
    try:
        for number in range(1, 11):
            segment = arena.place([bytes([number]) * 100_000, b"\1"])
            receiver.send(segment)
            arena.sent(segment)
            assert receiver.answer() == (number * 100_000 + 1, [segment.number])
            assert os.pread(segment.fd, 1, 0) == bytes([number])
            arena.released([segment.number])
        assert arena.statistics() == {"segments": 1, "bytes": 114_688, "busy": 0, "recycled": 9, "created": 1}
    finally:
        arena.close()
        assert receiver.close() == 0


def test_a_receiver_that_is_killed_holds_no_memory():
    """After SIGKILL of the receiver the number can be released, and what the arena had given away is freed."""
    before = open_fds()
    arena, receiver = Arena(), Receiver()
    segment = arena.place([b"x" * MIB])
    receiver.send(segment, "die")
    arena.sent(segment)
    assert receiver.answer() is None
    assert receiver.close() == -signal.SIGKILL
    arena.released([segment.number])
    again = arena.place([b"y" * MIB])
    assert again.fd == segment.fd
    arena.close()
    assert open_fds() == before


def test_a_forked_copy_starts_anew():
    """In a forked copy the arena is empty, touches nothing of its owner's, and says no release of the owner's views."""
    arena = Arena()
    views, ended = bring(arena, b"a" * MIB)
    arena.released([arena.place([b"b" * MIB]).number])
    arena.sent(arena.place([b"c" * MIB]))  # recycled, and mapped by now
    figures = arena.statistics()
    arena._holdings.lock.acquire()  # as if another thread had been in the middle of something
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            del views
            fresh = arena.statistics()
            segment = arena.place([b"d" * MIB])
            arena.sent(segment)
            arena.released([1, 2, 3, segment.number])
            arena.place([b"e" * MIB])
            arena.close()
            if ended == [] and not any(fresh.values()):
                status = 0
        finally:
            os._exit(status)
    arena._holdings.lock.release()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert bytes(views[0][:3]) == b"aaa"
    assert arena.statistics() == figures
    for block in arena._holdings.busy.values():
        assert os.pread(block.fd, 1, 0) in (b"a", b"c")
    del views
    arena.close()


AT_EXIT = """
import os
from safespawn._worker.arena import Arena, receive
arena = Arena()
segment = arena.place([b"x" * 5000])
def tell(number):
    os.path.join("x")
    print("told", number)
views = receive(segment.fd, segment.number, segment.size, segment.spans, tell)
cycle = [views]
cycle.append(cycle)
class Keeper:
    def __del__(self):
        assert bytes(self.views[0][:1]) == b"x"
keeper = Keeper()
keeper.views = views
"""


def test_the_end_of_the_interpreter_is_quiet():
    """Views that live to the end of the interpreter disturb nothing there."""
    done = subprocess.run([sys.executable, "-c", AT_EXIT], check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout in ("", "told 1\n")


# --- any order of things


@given(sizes=st.lists(st.integers(0, 200_000), max_size=8))
@settings(max_examples=50, deadline=None)
def test_any_parts_arrive(sizes):
    """Whatever the sizes, spans are aligned, apart from each other, and hold what was given."""
    own = Arena()
    parts = [os.urandom(size) for size in sizes]
    segment = own.place(parts)
    end = 0
    for offset, size in segment.spans:
        assert offset % ALIGNMENT == 0
        assert offset >= end
        end = offset + size
    assert max(end, 1) == segment.size
    assert [bytes(v) for v in receive(segment.fd, 1, segment.size, segment.spans, int)] == parts
    own.close()


class Traffic(RuleBasedStateMachine):
    """Payloads on their way, in use, and over, in any order, with a small budget."""

    def __init__(self):
        super().__init__()
        self.fds = open_fds()
        self.arena = Arena(keep_bytes=MIB)
        self.placed = []  # (segment, bytes)
        self.used = []  # (views, bytes)
        self.ended = []
        self.numbers = set()

    @rule(
        sizes=st.lists(st.sampled_from([0, 1, 63, 4096, 65_536, 100_000, 300_000]), max_size=3),
        byte=st.binary(min_size=1, max_size=3),
    )
    def place(self, sizes, byte):
        parts = [(byte * size)[:size] for size in sizes]
        segment = self.arena.place(parts)
        assert segment.number not in self.numbers
        self.numbers.add(segment.number)
        self.placed.append((segment, parts))

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def send(self, data):
        segment, parts = self.placed.pop(data.draw(st.integers(0, len(self.placed) - 1)))
        views = receive(segment.fd, segment.number, segment.size, segment.spans, self.ended.append)
        self.arena.sent(segment)
        self.used.append((views, parts))

    @precondition(lambda self: self.placed)
    @rule(data=st.data())
    def give_up(self, data):
        segment, _ = self.placed.pop(data.draw(st.integers(0, len(self.placed) - 1)))
        self.arena.released([segment.number])

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def drop(self, data):
        self.used.pop(data.draw(st.integers(0, len(self.used) - 1)))

    @precondition(lambda self: self.used)
    @rule(data=st.data())
    def write(self, data):
        views, parts = self.used[data.draw(st.integers(0, len(self.used) - 1))]
        for index, view in enumerate(views):
            view[:] = parts[index] = bytes(len(view))

    @rule()
    def release(self):
        self.arena.released(self.ended)
        self.ended.clear()

    @invariant()
    def the_living_are_untouched(self):
        for views, parts in self.used:
            assert [bytes(v) for v in views] == parts
        for segment, parts in self.placed:
            assert [os.pread(segment.fd, size, offset) for offset, size in segment.spans] == parts
        figures = self.arena.statistics()
        assert figures["busy"] >= len(self.placed)
        assert figures["recycled"] + figures["created"] == len(self.numbers)

    def teardown(self):
        self.placed.clear()
        self.used.clear()
        self.arena.released(self.ended)
        self.arena.close()
        assert self.arena.statistics()["bytes"] == 0
        assert open_fds() == self.fds


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_threads_do_not_meet():
    """Four threads that place, check and release share one arena and never one segment."""
    arena = Arena()
    wrong = []

    def work(byte):
        for number in range(200):
            size = 70_000 + number % 5 * 20_000
            segment = arena.place([bytes([byte]) * size])
            ended = []
            (view,) = receive(segment.fd, segment.number, segment.size, segment.spans, ended.append)
            arena.sent(segment)
            if view != bytes([byte]) * size:
                wrong.append((byte, number))
            del view
            arena.released(ended)

    threads = [threading.Thread(target=work, args=(byte,)) for byte in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert arena.statistics()["busy"] == 0
    assert arena.statistics()["created"] + arena.statistics()["recycled"] == 800
    arena.close()
