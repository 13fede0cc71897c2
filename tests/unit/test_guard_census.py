"""The order guard without processes: the recorder, the comparison of the three lists, the policies."""

import functools
import inspect
import itertools
import re
import sys
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from safespawn import _recorder, errors, guard

HERE = __file__


def line():
    """The caller's line number."""
    return sys._getframe(1).f_lineno


# --- the recorder -------------------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch):
    """`Thread.start` as Python made it, and a recorder that was never installed; afterwards all as it was."""
    original = inspect.unwrap(threading.Thread.start)
    monkeypatch.setattr(threading.Thread, "start", original)
    monkeypatch.setattr(_recorder, "_recorder", _recorder._Recorder())
    return original


@pytest.fixture
def recorder(bare):
    """The recorder, installed."""
    _recorder.install()
    return _recorder


def refuse(thread):
    """Fail as a start does where no more threads are allowed."""
    raise RuntimeError("can't start new thread")


def test_start_is_recorded_at_the_callers_line(recorder):
    """The line that called start() is the thread's place."""
    thread = threading.Thread(target=int)
    thread.start()
    assert recorder.started_at(thread) == (HERE, line() - 1)
    thread.join()


def test_submit_is_the_place_of_a_pools_worker(recorder):
    """The line that called submit() is the place of the worker that this made necessary."""
    with ThreadPoolExecutor(1) as executor:
        thread = executor.submit(threading.current_thread).result()
    assert recorder.started_at(thread) == (HERE, line() - 1)


def test_not_recorded_is_none(bare):
    """A thread that was started while nobody recorded has no place."""
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert _recorder.started_at(thread) is None


def test_install_twice_wraps_once(recorder, bare):
    """A second install() changes nothing."""
    first = threading.Thread.start
    recorder.install()
    assert threading.Thread.start is first
    assert first.__wrapped__ is bare


def test_the_wrapper_looks_like_start(recorder, bare):
    """Name, module, text and signature of Thread.start are what they were."""
    wrapper = threading.Thread.start
    for name in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(wrapper, name) == getattr(bare, name)
    assert inspect.signature(wrapper) == inspect.signature(bare)


def test_uninstall_restores(recorder, bare):
    """After uninstall() Thread.start is Python's own function, and install() works again."""
    assert recorder.uninstall()
    assert threading.Thread.start is bare
    recorder.install()
    assert threading.Thread.start is not bare


def test_uninstall_leaves_others_alone(recorder, bare):
    """Where somebody has wrapped us, uninstall() says no and the wrapper stays, and so does the recording."""
    ours = threading.Thread.start

    @functools.wraps(ours)
    def theirs(thread):
        return ours(thread)

    threading.Thread.start = theirs
    assert not recorder.uninstall()
    recorder.install()
    assert threading.Thread.start is theirs
    thread = threading.Thread(target=int)
    thread.start()
    assert recorder.started_at(thread) == (HERE, line() - 1)
    thread.join()


def test_two_wrappers_above_are_not_the_place(recorder):
    """However many have wrapped Thread.start after us, the place is the line that called the outermost."""

    def wrap(inner):
        @functools.wraps(inner)
        def wrapper(thread):
            return inner(thread)

        return wrapper

    def wrap_again(inner):
        @functools.wraps(inner)
        def wrapper(thread):
            return inner(thread)

        return wrapper

    threading.Thread.start = wrap_again(wrap(threading.Thread.start))
    thread = threading.Thread(target=int)
    thread.start()
    assert recorder.started_at(thread) == (HERE, line() - 1)
    thread.join()


def test_a_wrapper_below_is_called(bare):
    """What somebody had put in the place of Thread.start before us is still called."""
    called = []

    def theirs(thread):
        called.append(thread)
        bare(thread)

    threading.Thread.start = theirs
    _recorder.install()
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    assert called == [thread]


def test_install_after_a_restore_records_again(recorder, bare):
    """When somebody has put back what we had wrapped, install() wraps it again."""
    threading.Thread.start = bare
    recorder.install()
    assert threading.Thread.start.__wrapped__ is bare
    threading.Thread.start = bare
    assert recorder.uninstall()
    assert threading.Thread.start is bare


def test_a_failing_start_fails_the_same(bare):
    """A start that fails raises what it raised without us; the next one, elsewhere, is recorded elsewhere."""
    thread = threading.Thread(target=int)
    threading.Thread.start = refuse
    _recorder.install()
    with pytest.raises(RuntimeError, match="can't start new thread"):
        thread.start()
    _recorder.uninstall()
    threading.Thread.start = bare
    _recorder.install()
    thread.start()
    assert _recorder.started_at(thread) == (HERE, line() - 1)
    thread.join()


def test_a_second_start_keeps_the_first_place(recorder):
    """Starting a thread twice is the RuntimeError that it always was, and the place stays the first one."""
    thread = threading.Thread(target=int)
    thread.start()
    first = (HERE, line() - 1)
    with pytest.raises(RuntimeError, match="threads can only be started once"):
        thread.start()
    assert recorder.started_at(thread) == first
    thread.join()


def test_a_thread_without_init_fails_the_same(recorder):
    """A subclass that forgot Thread.__init__ gets Python's own message."""

    class Forgetful(threading.Thread):
        def __init__(self):
            pass

    with pytest.raises(RuntimeError, match=re.escape("thread.__init__() not called")):
        Forgetful().start()


def frame_in(file, back=None, name="module"):
    """What of a frame the recorder looks at."""
    return SimpleNamespace(
        f_code=SimpleNamespace(co_filename=file), f_lineno=7, f_back=back, f_globals={"__name__": name}
    )


def test_user_place_passes_over_the_library():
    """Frames of the standard library and of ours are passed over; those in site-packages are a user's."""
    user = frame_in("/app/main.py")
    library = frame_in(threading.__file__, back=user)
    ours = frame_in(_recorder.__file__, back=library)
    assert _recorder.user_place(ours) == ("/app/main.py", 7)
    package = _recorder._STDLIB + "site-packages/grpc/_channel.py"
    assert _recorder.user_place(frame_in(package, back=user)) == (package, 7)


def test_user_place_without_a_user():
    """Among nothing but library code its innermost line outside `threading` must do; without frames, None."""
    server = frame_in(_recorder._STDLIB + "socketserver.py", name="socketserver")
    assert _recorder.user_place(frame_in(threading.__file__, back=server, name="threading")) == (
        server.f_code.co_filename,
        7,
    )
    assert _recorder.user_place(frame_in(threading.__file__, name="threading")) is None
    assert _recorder.user_place(None) is None


# --- the comparison -----------------------------------------------------------------------------------------

MAIN = 1 << 40
STACK = 8 << 20


def task(comm="python3", *, asleep=True, stack=None):
    """A thread as the kernel lists it."""
    return guard._Task(comm, asleep=asleep, stack=stack)


def thread_with(native_id, ident, name="worker"):
    """A Thread that was never started and yet has ids."""
    thread = threading.Thread(target=line, name=name)
    thread._native_id, thread._ident = native_id, ident
    return thread


def compare(threads=(), idents=(), tasks=None):
    """Compare lists in which every handle, and the main thread's, is at this line."""
    frame = sys._getframe()
    return guard.compare(threads, dict.fromkeys((MAIN, *idents), frame), tasks, main_ident=MAIN)


def test_compare_matches_by_kernel_id():
    """A thread, its frame and its task are one fact, and nothing is in doubt."""
    look = compare([thread_with(12, 500)], [500], {12: task("renamed")})
    (fact,) = look.facts
    assert (fact.name, fact.kind, fact.native_id, fact.comm) == ("worker", "python", 12, "renamed")
    assert fact.running_at[0] == HERE
    assert look.settled


def test_compare_drops_a_thread_that_ended():
    """A thread that the kernel no longer has is not counted."""
    assert compare([thread_with(12, 500)], [500], {}).facts == ()


def test_compare_without_proc_keeps_python_threads():
    """Where the kernel's list cannot be read, what runs Python is still counted, at the first look."""
    look = compare([thread_with(12, 500)], [500, 600], None)
    assert [(fact.name, fact.native_id) for fact in look.facts] == [("worker", 12), ("?", None)]
    assert look.settled


@pytest.mark.parametrize("order", list(itertools.permutations([21, 22, 23])))
def test_compare_finds_raw_threads_by_their_stacks(order):
    """A handle belongs to the task whose stack pointer lies closest below it, in whatever order they are."""
    one, two = MAIN + STACK, MAIN + STACK + STACK // 2
    tasks = {
        21: task("two", stack=two - 4000),
        22: task("one", stack=one - 9000),
        23: task("c", stack=one - STACK // 2),
    }
    look = compare(idents=[one, two], tasks={native_id: tasks[native_id] for native_id in order})
    assert [(fact.native_id, fact.kind, fact.comm) for fact in look.facts] == [
        (22, "python", "one"),
        (21, "python", "two"),
        (23, "native", "c"),
    ]


def test_compare_takes_the_last_one_left():
    """One handle and one task with no known stack pointer belong together; one elsewhere does not."""
    look = compare(idents=[MAIN + STACK], tasks={21: task("blas", stack=MAIN), 22: task("python3")})
    assert [(fact.native_id, fact.kind) for fact in look.facts] == [(22, "python"), (21, "native")]


def test_compare_does_not_guess():
    """A handle that no task fits stays without an id, which is a doubt that asks for another look."""
    look = compare(idents=[MAIN + STACK], tasks={21: task("blas", stack=MAIN - STACK)})
    assert [(fact.native_id, fact.kind) for fact in look.facts] == [(None, "python"), (21, "native")]
    assert not look.settled
    assert not look.calm


def test_compare_doubts_a_thread_that_is_just_starting():
    """A thread between start() and its first step has no id yet, and asks for another look."""
    look = compare([thread_with(None, None)], [], {12: task(asleep=False)})
    assert not look.settled
    assert not look.calm


@pytest.mark.parametrize("asleep", [True, False])
def test_compare_doubts_native_threads(asleep):
    """A task without Python may be a thread that is ending: it asks for another look, calm only if asleep."""
    look = compare(tasks={12: task(asleep=asleep)})
    assert not look.settled
    assert look.calm is asleep


# --- looking at the kernel's list ---------------------------------------------------------------------------


@pytest.fixture
def task_dir(tmp_path):
    """A directory like /proc/self/task that has this process's main thread."""
    main = threading.main_thread().native_id
    add_task(tmp_path, main, "pytest")
    return tmp_path


def add_task(folder, native_id, comm, state="S", syscall="202 0x1 0x2 0x3 0x4 0x5 0x6 0x7f00 0x7e00\n"):
    """Write the files of one thread, as proc_pid_stat(5) and proc_pid_syscall(5) have them."""
    (folder / str(native_id)).mkdir()
    (folder / str(native_id) / "stat").write_text(f"{native_id} ({comm}) {state} 1 2 3\n")
    (folder / str(native_id) / "syscall").write_text(syscall)


def natives(folder):
    """The native threads that a census finds in *folder*."""
    return [(fact.native_id, fact.comm) for fact in guard.census(str(folder)) if fact.kind == "native"]


def test_census_reads_names_with_brackets(task_dir):
    """A kernel's name may hold spaces and brackets."""
    add_task(task_dir, 1 << 30, "a) S (b")
    assert natives(task_dir) == [(1 << 30, "a) S (b")]


def test_census_leaves_out_a_thread_that_ended_meanwhile(task_dir):
    """A thread that is listed but can no longer be read is not counted."""
    (task_dir / str(1 << 30)).mkdir()
    assert natives(task_dir) == []


def test_census_does_not_believe_one_look(task_dir, monkeypatch):
    """A task that is gone at the next look, as a joined thread is, is not counted."""
    add_task(task_dir, 1 << 30, "joined")
    folder = task_dir / str(1 << 30)
    monkeypatch.setattr(guard.time, "sleep", lambda _: folder.exists() and folder.rename(task_dir.parent / "gone"))
    assert natives(task_dir) == []


def test_census_gives_up_on_a_thread_that_never_sleeps(task_dir, monkeypatch):
    """A native thread that runs all the time is counted in the end, after 0.1 s."""
    clock = [5.0]
    monkeypatch.setattr(guard.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(guard.time, "sleep", lambda seconds: clock.append(clock.pop() + 20 * seconds))
    add_task(task_dir, 1 << 30, "blas", state="R", syscall="running\n")
    assert natives(task_dir) == [(1 << 30, "blas")]
    assert 5.1 <= clock[0] < 5.13


@pytest.mark.parametrize("case", ["missing", "foreign", "empty"])
def test_census_without_a_usable_proc(tmp_path, case):
    """Without /proc, or with that of another pid namespace, Python threads are counted and no others."""
    if case == "foreign":
        add_task(tmp_path, 1 << 30, "somebody")
    hold = threading.Event()
    thread = threading.Thread(target=hold.wait, name="worker")
    thread.start()
    try:
        facts = guard.census(str(tmp_path / "no" if case == "missing" else tmp_path))
    finally:
        hold.set()
        thread.join()
    (fact,) = [fact for fact in facts if fact.name == "worker"]
    assert fact.native_id == thread.native_id
    assert fact.comm is None
    assert fact.target == "threading.Event.wait"
    assert not [fact for fact in facts if fact.kind == "native"]


# --- what a thread was made to run --------------------------------------------------------------------------


class Job:
    def __call__(self):
        pass

    def method(self):
        pass


def place_of(function):
    """Where *function* is defined."""
    return (HERE, function.__code__.co_firstlineno)


@pytest.mark.parametrize(
    ("target", "name", "place"),
    [
        (line, "line", place_of(line)),
        (functools.partial(functools.partial(line)), "line", place_of(line)),
        (Job().method, "Job.method", place_of(Job.method)),
        (Job(), "Job.__call__", place_of(Job.__call__)),
        (Job, "Job", None),
    ],
)
def test_target_is_named(target, name, place):
    """Whatever can be called is told by its qualified name, and by its place if it is written in Python."""
    assert guard._function(target) == (f"{__name__}.{name}", place)


@pytest.mark.parametrize("target", [len, "".join, object().__repr__, threading.Lock().acquire])
def test_target_in_c_has_a_name(target):
    """A C function has a name and no place."""
    name, place = guard._function(target)
    assert name.endswith(f".{target.__name__}")
    assert place is None


# --- the policies -------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread(monkeypatch):
    """A census that finds one thread, which is at another line each time."""
    moving = iter(range(1, 100))

    def census():
        return (guard.ThreadFact(name="w", kind="python", in_threading=True, running_at=("/app.py", next(moving))),)

    monkeypatch.setattr(guard, "census", census)


def declare(policy="warn", stacklevel=2):
    """What `init()` does."""
    return guard.check_order(policy, what="init() is called", stacklevel=stacklevel)


@pytest.mark.parametrize("stacklevel", [1, 2])
def test_warning_stands_at_the_line_of_its_level(one_thread, stacklevel):
    """Level 1 is the caller of check_order(), level 2 its caller."""
    with pytest.warns(errors.ThreadOrderWarning, match="while 1 other thread") as caught:
        declare(stacklevel=stacklevel)
    assert caught[0].filename == HERE
    assert caught[0].lineno == (line() - 2 if stacklevel == 2 else declare.__code__.co_firstlineno + 2)


def test_warning_level_beyond_the_stack_is_survived(one_thread):
    """A level that the stack does not have still warns."""
    with pytest.warns(errors.ThreadOrderWarning):
        declare(stacklevel=10_000)


def test_warning_once_per_line_and_filter(one_thread):
    """By the default filter a line warns once, another for itself, and again when filters were set anew."""
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("default")
            for _ in range(3):
                declare()
            declare()
        assert len(caught) == 2


def test_warning_as_error_is_raised_each_time(one_thread):
    """Under the filter "error" each call raises."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(errors.ThreadOrderWarning):
                declare()


def test_error_has_the_threads_as_facts(one_thread):
    """OrderError carries one text per thread."""
    with pytest.raises(errors.OrderError) as caught:
        declare("error")
    assert caught.value.what == "init() is called"
    assert caught.value.threads == ("'w', now at /app.py:1; started before 'import safespawn': place unknown",)


def test_off_does_not_look(monkeypatch):
    """Under "off" no census is taken."""
    monkeypatch.delattr(guard, "census")
    assert declare("off") == ()


@pytest.mark.parametrize("policy", ["strict", "", None, True, ["warn"]])
def test_bad_policy_is_refused(policy):
    """What is no policy is a BadArgument that names the parameter."""
    with pytest.raises(errors.BadArgument) as caught:
        declare(policy)
    assert caught.value.parameter == "guard"


def test_nothing_runs_nothing_is_said(monkeypatch):
    """Without threads the strictest policy is content."""
    monkeypatch.setattr(guard, "census", tuple)
    assert declare("error") == ()
