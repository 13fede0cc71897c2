"""What bad luck gets in a pool: the right error for one task, soon; every other task unharmed, the pool whole."""

import json

import pytest

from support.applications import Application, Census

SECONDS = 60.0  # for a story; a hang ends as a failure that shows where
BOUND = 3.0  # for one fault and all that is checked around it; most take 0.2
DEATHS = {"vanish": 7, "crash": -11, "kill": -9}
DELIVERED = {"error": "ValueError", "exit": "SystemExit"}
WITH_AN_EXIT = {"run", "unpickle", "result_pickle", "large_result", "map", "imap", "stream", "apply"}
STRESS = pytest.mark.stress  # as the others of their kind, or slower


def rarely(*values):
    """Parameters of `make stress`."""
    return [pytest.param(value, marks=STRESS) for value in values]


WITH_A_LIMIT = {"run", "unpickle", "result_pickle", "large_result", "stream"}


def story(name, *arguments, stderr=b""):
    """The facts of a story of pool_faults.py, which has left nothing: no process, descriptor, thread or word."""
    census = Census()
    with Application("pool_faults", name, *arguments) as app:
        out, err = app.process.communicate(timeout=SECONDS)
        assert app.process.returncode == 0, (out[-2000:], err[-4000:].decode(errors="replace"))
    told = json.loads(out)
    assert told["left"] == []
    assert told["threads"] == 1
    assert census.gone(2.0) == {}
    assert stderr in err if stderr else err == b"", err.decode(errors="replace")
    return told["facts"]


# --- every fault at every place ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["error", "exit", "crash", "kill", "stop", *rarely("vanish", "spin")])
def test_a_fault_is_one_tasks_own(name):
    """Wherever a task meets its fault it gets the right error soon; innocents are delivered, and the pool is whole."""
    rows = story("matrix", name)
    for place, found, innocents, whole, seconds in rows:
        assert innocents, place
        assert whole, place
        assert seconds < BOUND, (place, seconds)
        if place == "callback":
            assert found == 1
        elif place == "error_callback":
            assert found["error"] == "ValueError"
        elif name in DEATHS:
            assert (found["error"], found["returncode"]) == ("WorkerDied", DEATHS[name]), place
        elif name in DELIVERED:
            wanted = {"result_unpickle": "UnpicklableResult"}
            if name == "error":
                wanted |= dict.fromkeys(("result_pickle", "large_result"), "UnpicklableResult")
                wanted["pickle"] = "UnpicklableTask"
            assert found["error"] == wanted.get(place, DELIVERED[name]), place
        else:
            assert (found["error"], found["ended_by"]) == ("TaskTimeout", "SIGTERM"), place
    places = {row[0] for row in rows}
    if name in DELIVERED:
        assert places == WITH_AN_EXIT | {"result_unpickle", "pickle", "callback", "error_callback"}
    else:
        assert places == (WITH_AN_EXIT if name in DEATHS else WITH_A_LIMIT)


@pytest.mark.parametrize("name", ["error", "kill", "stop", *rarely("exit", "vanish", "crash", "spin")])
def test_a_fault_of_the_initializer_breaks_the_pool_soon(name):
    """An initializer that raises or dies breaks the pool, with its reason; one that hangs is ended by terminate."""
    facts = story("initializer", name)
    assert facts["end"] < 1.0
    error = facts["task"]
    if name in ("stop", "spin"):
        assert error["error"] == "PoolClosed"
        return
    assert error == facts["later"]
    if name in DEATHS:
        assert error["error"] == "CrashLoop"
        assert f"return code {DEATHS[name]}" in error["text"]
    else:
        assert error["error"] == "InitializerFailed"
        assert {"error": "ValueError: on purpose", "exit": "SystemExit: 3"}[name] in error["text"]


@pytest.mark.parametrize("name", ["SIGKILL", *rarely("SIGSEGV")])
def test_idle_workers_that_are_killed_are_replaced(name):
    """All idle workers are killed, three times over: the next tasks are delivered."""
    assert story("idle", name) == {"found": [list(range(4))] * 3, "whole": True}


def test_an_idle_worker_that_is_stopped_costs_one_task_its_time():
    """The task that a stopped worker got has a TaskTimeout at its limit; the others, and the pool, are well."""
    facts = story("idle", "SIGSTOP")
    assert facts["whole"]
    for row in facts["found"]:
        errors = [each["error"] for each in row if isinstance(each, dict)]
        assert errors in ([], ["TaskTimeout"]), row


# --- what tasks do to their worker ------------------------------------------------------------------------------------
HOSTILE = {
    "close_descriptors": "closed", "new_session": "PermissionError", "change_handlers": "changed",
    "deleted_directory": "nowhere",
}  # fmt: skip


@pytest.mark.parametrize("name", [*HOSTILE, "leave_behind"])
def test_a_task_that_spoils_its_worker_harms_nobody(name):
    """Descriptors closed, handlers changed, nowhere to stand, threads and children left: nothing is lost or left."""
    facts = story("hostile", name)
    assert facts["innocents"]
    assert facts["large"] == [1 << 20] * 4
    assert facts["whole"]
    assert facts["end"] < 2.5  # the grace of that pool is a second
    if name == "leave_behind":
        assert len(facts["first"]) == 3
        assert facts["left"] == []
    else:
        first = facts["first"]
        assert (first["error"] if isinstance(first, dict) else first) == HOSTILE[name]


def test_a_worker_without_descriptors_fails_what_needs_one():
    """Small tasks work, large ones fail by themselves; with descriptors again all works, in the same worker."""
    facts = story("all_descriptors_of_a_worker")
    assert facts["small"] == 3
    assert [facts[name]["errno"] for name in ("argument", "result")] == [24, 24]
    assert facts["after"] == 1 << 20
    assert facts["same"]


def test_an_application_without_descriptors_fails_what_needs_one():
    """Small tasks work, a large argument and a large result are lost with PayloadLost, the pool lives on."""
    facts = story("application_without_descriptors")
    assert facts["small"] == 3
    assert [(facts[name]["error"], facts[name]["errno"]) for name in ("argument", "result")] == [
        ("PayloadLost", 24)
    ] * 2
    assert facts["after"] == 1 << 20
    assert facts["whole"]


def test_a_worker_that_cannot_be_replaced_yet_is_replaced_later():
    """Without a descriptor for a new worker the others do the work; with one the pool is whole again."""
    assert story("replacement_without_descriptors") == {"meanwhile": True, "whole": True}


def test_a_pool_that_cannot_start_says_so():
    """Without descriptors a pool fails where it is made, or its tasks fail, with EMFILE."""
    facts = story("start_without_descriptors")
    assert facts["made"] == "made" or facts["made"]["errno"] == 24
    assert facts["first"] == 3 or facts["first"]["errno"] == 24


@pytest.mark.parametrize("how", ["return", "raise"])
def test_a_fork_that_comes_back_from_a_task_is_no_worker(how):
    """A task forks and both return or raise: the original's result is the task's, the copy ends as a script would."""
    facts = story("copies", how, stderr=b"ValueError: in the copy" if how == "raise" else b"")
    assert facts == {"found": ["original"] * 4, "whole": True}


def test_memory_has_its_limit():
    """Over max_rss_bytes a task fails with WorkerMemoryExceeded; under RLIMIT_AS it gets MemoryError. Others go on."""
    facts = story("memory")
    assert facts["eaten"]["error"] == "WorkerMemoryExceeded"
    assert "over its limit of 200 MiB" in facts["eaten"]["text"]
    assert facts["limited"]["error"] == "MemoryError"
    assert facts["after"] == 3
    assert facts["innocents"]
    assert facts["whole"]


# --- logs and long words ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("size", [100_000, *rarely(10, 300_000)])
def test_a_workers_records_come_in_order_and_none_is_lost(size):
    """Records of any size come before the result; of a worker that kills itself after 200 all 200 come."""
    facts = story("logs", size)
    assert facts == {"value": 50, "order": True, "bytes": True, "killed": "WorkerDied", "kept": 200, "whole": True}


def test_a_record_that_cannot_be_made_is_told_as_logging_does():
    """A message that does not fit its arguments is told on stderr, and the task goes on."""
    assert story("log_wrongly", stderr=b"--- Logging error ---") == "said"


def test_long_words_arrive():
    """260 KB of sys.argv reach the worker, half a megabyte of an initializer's error the application."""
    facts = story("long_words")
    assert facts["value"] == 3
    assert facts["failed"]["error"] == "InitializerFailed"
    assert "ValueError: long long" in facts["failed"]["text"]


# --- the end of tasks -------------------------------------------------------------------------------------------------
def test_a_time_limit_holds_whatever_the_task_does():
    """Tasks that sleep, swallow, ignore signals, are stopped or keep the GIL end at their limit; nobody else does."""
    facts = story("timeouts")
    assert facts["whole"]
    ended = {}
    for name, found, seconds, fine in facts["rows"]:
        assert found["error"] == "TaskTimeout", name
        assert 0.3 <= seconds < 0.3 + 1.5, (name, seconds)
        assert fine, name
        ended[name] = found["ended_by"]
    assert ended == {
        "nap": "exception", "swallow": "SIGTERM", "stubborn": "SIGKILL", "stop": "SIGTERM", "spin": "SIGTERM"
    }  # fmt: skip


def test_limits_of_tasks_that_are_over_are_forgotten():
    """500 tasks with a limit of an hour leave one timer."""
    assert story("timer_memory")["timers"] <= 2


def test_cancel_ends_one_task_in_any_state():
    """Sent and not begun, running, deaf: cancel() takes that task and no other; what is over stays."""
    facts = story("cancels")
    assert facts["behind"] == [True, True]
    assert facts["told"] == ["TaskCancelled"] * 2
    assert facts["before"]
    assert facts["innocent"] == "innocent"
    assert facts["others"] == [1, 2, 3, 4]
    assert facts["over"] is False
    assert [facts[name] for name in ("nap", "swallow", "stubborn")] == [["TaskCancelled", True]] * 3
    assert facts["not_running"] == [False, None]
    assert facts["whole"]
    assert facts["unfinished"] == 0


def test_retries_run_the_poison_again_and_nothing_else(tmp_path):
    """A task that kills its worker is run 1 + retries times, each innocent once; one that succeeds later delivers."""
    path = tmp_path / "ran"
    facts = story("retries", path)
    assert facts["poison"]["error"] == "WorkerDied"
    assert facts["innocents"]
    assert facts["once"] == "done"
    assert facts["whole"]
    assert facts["retried"] == 3
    ran = path.read_text().splitlines()
    assert ran.count("poison") == 3
    assert sorted(ran) == sorted(["poison"] * 3 + [f"innocent {index}" for index in range(50)])


# --- iterators --------------------------------------------------------------------------------------------------------
def test_a_stream_that_nobody_reads_frees_its_worker():
    """Dropped, closed, or open at the end of the with block: an endless generator ends."""
    facts = story("streams")
    assert facts["first"]
    assert (facts["dropped"], facts["closed"]) == (1, 2)
    assert facts["end"] < 1.0
    assert facts["kept"] == "TaskCancelled"


def test_an_imap_that_nobody_reads_ends_and_one_that_is_open_at_close_is_read_to_its_end():
    """Dropped over an endless input: the pool ends. Open at close(): all 5,000 come, before or after join()."""
    facts = story("imaps")
    assert facts["dropped"] < 3.0
    assert facts["read"]
    assert facts["joined"]
    assert facts["before"] == 0
    assert facts["terminated"] in ("StopIteration", "PoolClosed")


def test_several_threads_may_read_one_iterator():
    """Four threads read one imap and one stream: each item comes to one of them, and all end."""
    assert story("readers") == {"imap": True, "stream": True}


def test_a_chunk_whose_worker_dies_while_it_is_pickled_goes_to_another_one():
    """A map's chunk that takes its time to pickle is not lost with the worker that it was meant for."""
    assert story("slow_draw") == {"value": [0], "whole": True}


def test_items_of_a_killed_worker_come_once():
    """A worker dies between sending items of a stream and crossing them out: each comes once."""
    facts = story("late_items")
    assert facts["got"] == sorted(set(facts["got"]))
    assert facts["error"] == "WorkerDied"


# --- the end of the pool ----------------------------------------------------------------------------------------------
def test_a_death_is_told_by_the_lifeline():
    """A worker dies and its child keeps the task socket: the caller hears within 0.1 s, far below any timeout."""
    facts = story("holders")
    assert facts["whole"]
    for error, seconds in facts["rows"]:
        assert error == "WorkerDied"
        assert seconds < 0.5


def test_a_pool_that_breaks_fails_everybody_at_once():
    """Who waits by get, apply or map, and who comes later, gets the reason; close and join go on to work."""
    facts = story("broken")
    assert facts["found"] == ["BrokenError"]
    assert facts["seconds"] < 1.0
    assert facts["lent"] == 1


def test_the_failure_of_the_pools_own_thread_is_told():
    """When the pool's thread ends by an error nobody waits for ever."""
    assert story("lost_engine") == ["BrokenError", "BrokenError"]


def test_terminate_tells_everybody_that_the_pool_is_closed():
    """apply, get, map, imap and stream end with PoolClosed within a second; nothing is counted as unfinished."""
    facts = story("terminated")
    assert facts["found"] == ["PoolClosed"] * 6
    assert facts["seconds"] < 1.0
    assert facts["left"] == 0
