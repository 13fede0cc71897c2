"""
What workers print, wherever it comes from: with a prefix, in the log, in a file, in the result. And what travels along.
"""

import asyncio
import contextvars
import logging
import os
import re
import subprocess
import sys
import time

import pytest

import safespawn
from safespawn import AsyncPool, Executor
from support import log_tasks
from support import output_tasks as tasks

BOUND = 60.0
EVERYTHING = "python {0}\nc {0}\ncall {0}\nchild {0}\n"


# --- in the result ----------------------------------------------------------------------------------------------------
@pytest.fixture
def returning():
    """A pool whose results have their output with them."""
    with safespawn.Pool(2, output="return", name="returning") as pool:
        yield pool


def test_a_result_has_what_its_call_printed(returning):
    """By Python, C code, system calls and grandchildren: to each call its own, in order, by stream."""
    results = [returning.apply_async(tasks.print_everywhere, (str(number),)) for number in range(10)]
    for number, result in enumerate(results):
        assert result.get(BOUND) == (
            str(number), EVERYTHING.format(number), f"trouble {number}\nerror {number}\n",
        )  # fmt: skip
    assert returning.apply(tasks.print_in_c, ("unflushed",)).stdout == "c unflushed\n"


def test_the_calls_of_a_map_have_each_their_own(returning):
    """A chunk of many calls: the output is told apart."""
    results = returning.map(tasks.print_in_c, map(str, range(50)), chunksize=10)
    assert [each.stdout for each in results] == [f"c {number}\n" for number in range(50)]
    assert [each.value for each in returning.imap(abs, [-1, -2])] == [1, 2]


def test_a_stream_gives_its_items_as_they_are(returning):
    """The items of a generator have no output with them, and harm the next call's as little as its own."""
    with returning.stream(tasks.count_aloud, (2,)) as stream:
        assert list(stream) == [(0, None), (1, None)]
    assert returning.apply(abs, (-1,)).value == 1


def test_an_exception_has_the_output_of_its_call(returning):
    """What was printed before the exception is an attribute of it."""
    with pytest.raises(ValueError, match="why") as caught:
        returning.apply(tasks.print_and_fail, ("why",))
    assert caught.value.returned.stdout == "before why\n"


def test_much_output_is_cut_and_harms_nobody(returning):
    """Fifty megabytes: the end of them comes, with how much is missing; the worker was never held up."""
    size = 50_000_000
    result = returning.apply_async(tasks.print_much, (size,)).get(BOUND)
    assert result.value == size
    assert result.stdout.endswith("xxxend\n")
    head, _, rest = result.stdout.partition("\n")
    cut = int(re.fullmatch(r"\[cut by safespawn: (\d+) bytes before this\]", head).group(1))
    assert cut + len(rest) == size + len("begin\nend\n")
    assert returning.apply(tasks.print_in_c, ("after",)).stdout == "c after\n"


def test_a_death_loses_only_its_own_output(returning):
    """A worker that is killed: the next call's output, by its successor, is whole."""
    with pytest.raises(safespawn.WorkerDied):
        returning.apply(log_tasks.count, (0, "kill"))
    assert returning.apply(tasks.print_in_c, ("next",)) == ("next", "c next\n", "")


def test_an_async_pool_and_an_executor_return_output_too():
    """The other faces do the same."""

    async def ask():
        async with AsyncPool(1, output="return") as pool:
            return await pool.run(tasks.print_in_c, "a")

    assert asyncio.run(ask()) == ("a", "c a\n", "")
    with Executor(1, output="return") as executor:
        assert executor.submit(tasks.print_in_c, "b").result(BOUND).stdout == "c b\n"
        assert [each.stdout for each in executor.map(tasks.print_in_c, "cd")] == ["c c\n", "c d\n"]


# --- elsewhere --------------------------------------------------------------------------------------------------------
def wait_for(check):
    """Wait until *check* is true."""
    deadline = time.monotonic() + BOUND
    while not (found := check()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def test_lines_with_a_prefix(capsys):
    """Each line has the worker's name before it, and goes to the stream of the same name here."""
    out, err = "", ""
    with safespawn.Pool(1, output="prefix", name="loud") as pool:
        pool.apply(tasks.print_everywhere, ("p",))
        pool.apply(tasks.print_lines, (1000,))

        def more():
            nonlocal out, err
            read = capsys.readouterr()
            out, err = out + read.out, err + read.err
            return "line 999\n" in out and "error p\n" in err

        wait_for(more)
    lines = out.splitlines()
    assert lines[:4] == [f"[loud-0] {line}" for line in EVERYTHING.format("p").splitlines()]
    assert lines[4:] == [f"[loud-0] line {number}" for number in range(1000)]
    assert err.splitlines() == ["[loud-0] trouble p", "[loud-0] error p"]


def test_lines_in_the_log():
    """Each line is a record of a logger that names the stream and the worker; a last one without an end comes too."""
    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("safespawn")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        with safespawn.Pool(1, output="log", logging="off", name="logged") as pool:
            pool.apply(tasks.print_everywhere, ("l",))
            pool.apply(os.write, (1, b"no end"))
        wait_for(lambda: any(record.getMessage() == "no end" for record in records))
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    told = [(record.name, record.levelname, record.getMessage()) for record in records]
    out = [text for name, level, text in told if (name, level) == ("safespawn.stdout.logged-0", "INFO")]
    err = [text for name, level, text in told if (name, level) == ("safespawn.stderr.logged-0", "WARNING")]
    assert out == [*EVERYTHING.format("l").splitlines(), "no end"]
    assert err == ["trouble l", "error l"]


def test_a_file_for_each_worker(tmp_path):
    """A path with the worker's number: both streams go there, behind what is there."""
    (tmp_path / "worker-0.txt").write_text("earlier\n")
    with safespawn.Pool(1, output=tmp_path / "worker-{worker}.txt") as pool:
        pool.apply(tasks.print_everywhere, ("f",))
    text = (tmp_path / "worker-0.txt").read_text()
    assert text.startswith("earlier\npython f\n")
    assert sorted(text.splitlines()[1:]) == sorted([*EVERYTHING.format("f").splitlines(), "trouble f", "error f"])


def test_a_file_that_cannot_be_opened_is_told(tmp_path):
    """The pool fails with the reason, as by an initializer."""
    with safespawn.Pool(1, output=tmp_path / "missing" / "file.txt") as pool:
        with pytest.raises(safespawn.errors.BrokenError) as caught:
            pool.apply_async(abs, (-1,)).get(BOUND)
        assert isinstance(caught.value.__cause__, FileNotFoundError)
        pool.terminate()


@pytest.mark.parametrize("output", ["retrun", "", 7, None])
def test_an_output_that_there_is_not_is_refused(output):
    """A mode with a typing mistake is not taken for the name of a file."""
    with pytest.raises(safespawn.errors.BadArgument, match="'inherit', 'prefix', 'log', 'return', or a path"):
        safespawn.Pool(1, output=output)


def test_an_output_that_nobody_reads_holds_nobody_up(tmp_path):
    """The program's own stdout is a full pipe: tasks that print megabytes end all the same, and lost lines are told."""
    program = tmp_path / "app.py"
    program.write_text(
        "import sys\n"
        "import safespawn\n"
        "from support import output_tasks\n"
        "if __name__ == '__main__':\n"
        "    with safespawn.Pool(1, output='prefix') as pool:\n"
        "        result = pool.apply_async(output_tasks.print_lines, (30_000, 150))\n"
        "        result.get(60)\n"
        "        sys.stderr.write('done\\n')\n"
        "        sys.stderr.flush()\n"
        "        sys.stdin.readline()\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as app:
        assert app.stderr.readline() == b"done\n"
        out, err = app.communicate(b"\n", timeout=BOUND)
    assert app.returncode == 0
    assert err == b""
    lines = out.decode().splitlines()
    lost = sum(int(found.group(1)) for line in lines if (found := re.search(r"\[(\d+) lines lost", line)))
    assert 0 < lost < 30_000
    assert lines[0].startswith("[pool-1-0] line 0x")


# --- context variables ------------------------------------------------------------------------------------------------
def test_context_variables_go_along():
    """What the variables are where a task is submitted they are in it; what it makes of them stays there."""
    variables = [tasks.request, tasks.user]

    def ask(pool):
        return pool.apply(tasks.read_variables)

    with safespawn.Pool(1, contextvars=variables) as pool:
        assert ask(pool) == (None, "nobody")
        context = contextvars.copy_context()
        context.run(tasks.request.set, "r1")
        context.run(tasks.user.set, "ada")
        assert context.run(ask, pool) == ("r1", "ada")
        assert ask(pool) == (None, "nobody")
        assert context.run(pool.map, tasks.read_variables, [1, 2]) == [("r1", "ada")] * 2
        assert context.run(pool.apply_async, tasks.read_variables).get(BOUND) == ("r1", "ada")
        with context.run(pool.stream, tasks.count_aloud, (2,)) as stream:
            assert list(stream) == [(0, "r1"), (1, "r1")]
        assert pool.submit(tasks.read_variables).result(BOUND) == (None, "nobody")


def test_context_variables_of_tasks_that_run_at_once():
    """In an event loop each task's calls have that task's values."""

    async def ask(pool, name):
        tasks.request.set(name)
        return [(await pool.run(tasks.read_variables))[0] for _ in range(5)] + await pool.map(
            tasks.read_variables, range(2)
        )

    async def main():
        async with AsyncPool(2, contextvars=[tasks.request]) as pool:
            return await asyncio.gather(*(ask(pool, f"task {number}") for number in range(5)))

    for number, found in enumerate(asyncio.run(main())):
        name = f"task {number}"
        assert found == [name] * 5 + [(name, "nobody")] * 2


def test_a_task_keeps_its_name_and_its_error():
    """A carried call is told as what it calls, in errors and statistics."""
    with safespawn.Pool(1, contextvars=[tasks.request]) as pool, pytest.raises(safespawn.WorkerDied) as caught:
        pool.apply(log_tasks.count, (0, "kill"))
    assert caught.value.task == "support.log_tasks.count"


def test_variables_that_cannot_be_found_are_refused():
    """One that is in no module, and what is none, are told where the pool is made."""
    with pytest.raises(safespawn.errors.BadArgument, match="in no module"):
        safespawn.Pool(1, contextvars=[contextvars.ContextVar("local")])
    with pytest.raises(safespawn.errors.BadArgumentType):
        safespawn.Pool(1, contextvars=["request"])
