"""What a second look at the pools found: imports that use pools, and signal handlers that end them."""

import os
import subprocess
import sys

import pytest

BOMB = """
import safespawn

def square(number):
    return number * number

{use}
"""

USES = {
    "pool": "with safespawn.Pool(2) as pool:\n    values = pool.map(square, range(20))",
    "apply": "with safespawn.Pool(2) as pool:\n    values = pool.apply(square, (2,))",
    "imap": "with safespawn.Pool(2) as pool:\n    values = list(pool.imap(square, range(20)))",
    "executor": "with safespawn.Executor(2) as executor:\n    values = list(executor.map(square, range(20)))",
}


def run(program, tmp_path, *options):
    """Run *program*, whose end is waited for within a bound."""
    file = tmp_path / "program.py"
    file.write_text(program, "utf-8")
    argv = [sys.executable, *options, str(file)]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("use", USES)
def test_a_module_that_maps_its_own_function_as_it_is_imported_makes_no_pools_without_end(use, tmp_path):
    """The worker that imports the module for its task is refused a pool, with file and line, and nobody waits."""
    (tmp_path / "bomb.py").write_text(BOMB.format(use=USES[use]), "utf-8")
    code, _, error = run("if __name__ == '__main__':\n    import bomb\n", tmp_path)
    assert code == 1
    assert "MainReentered" in error
    assert "importing module 'bomb'" in error
    assert "bomb.py:8" in error


def test_a_module_may_map_its_own_function_as_it_is_imported_by_the_application(tmp_path):
    """The chunks of a map are pickled by the thread that imports, which has the lock that pickle asks for."""
    use = "if safespawn.current_worker() is None:\n    with safespawn.Pool(2) as pool:\n        "
    use += "values = pool.map(square, range(20))"
    (tmp_path / "bomb.py").write_text(BOMB.format(use=use), "utf-8")
    code, out, error = run("if __name__ == '__main__':\n    import bomb\n    print(bomb.values[3])\n", tmp_path)
    assert (code, out, error) == (0, "9\n", "")


OWN_POOL = """
import safespawn

pool = safespawn.Executor(1)

def inner(number):
    return number + 1

def use(number):
    return pool.submit(inner, number).result(20)
"""


def test_a_pool_that_a_module_makes_for_itself_works_in_a_worker(tmp_path):
    """It starts when it has its first task, wherever the module was imported, and ends."""
    (tmp_path / "own.py").write_text(OWN_POOL, "utf-8")
    program = (
        "import safespawn, own\nif __name__ == '__main__':\n    with safespawn.Pool(1) as pool:\n"
        "        print(pool.apply(own.use, (1,)))\n    own.pool.shutdown()\n"
    )
    assert run(program, tmp_path) == (0, "2\n", "")


HANDLER = """
import os, signal, sys, threading, time
import safespawn

def end(*_):
    began = time.monotonic()
    pool.terminate()
    print(time.monotonic() - began < 5)
    raise SystemExit(0)

if __name__ == "__main__":
    pool = safespawn.Pool(2)
    pool.map(abs, range(10))
    signal.signal(signal.SIGTERM, end)
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
    while True:
        {call}
"""


@pytest.mark.parametrize(
    "call", ["pool.apply(time.sleep, (60,))", "pool.apply(abs, (1,))", "pool.apply_async(abs, (1,))"]
)
def test_a_signal_handler_may_terminate_the_pool_that_it_has_interrupted(call, tmp_path):
    """Whatever the main thread is doing with the pool, `terminate` in a handler returns soon, and the program ends."""
    assert run(HANDLER.format(call=call), tmp_path) == (0, "True\n", "")


LATE = """
import threading, time
import safespawn

def work():
    while threading.main_thread().is_alive():
        time.sleep(0.01)
    with safespawn.Pool(1) as pool:
        print(pool.apply(abs, (-3,)))

if __name__ == "__main__":
    threading.Thread(target=work).start()
"""


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="a thread cannot be started any more by then")
def test_a_thread_that_outlives_the_main_thread_may_make_a_pool(tmp_path):
    """What the standard library refuses to import by then is not needed."""
    assert run(LATE, tmp_path) == (0, "3\n", "")


def test_a_pool_at_the_top_of_a_module_that_the_program_imports(tmp_path):
    """A worker that loads the program for its task is refused that pool, and told where to put the call."""
    (tmp_path / "shop.py").write_text("import safespawn\nPOOL = safespawn.Pool(1)\n", "utf-8")
    program = "import shop\ndef mine(x):\n    return x\nif __name__ == '__main__':\n    shop.POOL.map(mine, [1])\n"
    code, _, error = run(program, tmp_path)
    assert code == 1
    assert "importing module 'shop'" in error
    assert "put the call into a function" in error


def test_whoever_imports_multiprocessing_before_us_is_no_main_module(tmp_path):
    """A sitecustomize does that in every Python process; a coverage tool's .pth file, too."""
    (tmp_path / "sitecustomize.py").write_text("import multiprocessing\n", "utf-8")
    program = """
import safespawn

def mine(number):
    return number + 1

if __name__ == "__main__":
    process = safespawn.Process(target=mine, args=(1,))
    process.start()
    process.join()
    with safespawn.Pool(1) as pool:
        print(process.exitcode, pool.map(mine, [1]))
"""
    file = tmp_path / "program.py"
    file.write_text(program, "utf-8")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path), *filter(None, sys.path)))}
    done = subprocess.run(
        [sys.executable, str(file)], env=env, capture_output=True, text=True, timeout=60, check=False
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("0 [2]\n", "")
