"""Each rule of `safespawn check`: what it must flag, and what looks alike and is right."""

import textwrap
from pathlib import Path

import pytest

from safespawn.check import config, run
from safespawn.check.rules import RULES

SHAPES = Path(__file__).parents[1] / "programs" / "incident_shapes"
DOCS = Path(__file__).parents[2] / "docs" / "check"

WORKER = """
    import threading
    import subprocess
    import multiprocessing

    def begin():
        t = threading.Thread(target=print)
        t.start()
        return t

    def wait_for_it():
        t = threading.Timer(1, print)
        t.start()
        t.join()

    def ask():
        return subprocess.run(["ss"])

    def crowd():
        return multiprocessing.get_context("spawn").Pool()

    def forks():
        p = multiprocessing.Process(target=print)  # noqa: SPN203
        p.start()

    class Monitor:
        def __init__(self):
            self._thread = threading.Thread(target=self.run)
            self._thread.start()

        def run(self):
            pass
"""

# Each line that must be hit ends in a remark with the codes.
HITS = {
    "SPN101 directly": "import threading as t\nt.Thread(target=print).start()  # SPN101",
    "SPN101 by a variable": "from threading import Timer as T\nx = T(1, print)\nx.daemon = True\nx.start()  # SPN101",
    "SPN101 by a constructor elsewhere": "from worker import Monitor as M\nm = M()  # SPN101",
    "SPN101 by a function elsewhere": "import worker\nworker.begin()  # SPN101",
    "SPN101 in a class body": "import worker\nclass A:\n    thread = worker.begin()  # SPN101",
    "SPN101 in a default value": "import worker\ndef f(t=worker.begin()):  # SPN101\n    return t",
    "SPN101 by a decorator": """
        import threading
        def service(f):
            threading.Thread(target=f).start()
            return f
        @service  # SPN101
        def work(): ...
    """,
    "SPN101 by an executor": """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor()
        pool.submit(print)  # SPN101
    """,
    "SPN101 by a listener": """
        from logging.handlers import QueueListener
        listener = QueueListener(queue)
        listener.start()  # SPN101
    """,
    "SPN101 by a function with a listener": """
        import logging.handlers as h
        from threading import Thread as T
        listener, other = h.QueueListener(queue), T(target=print)
        def go():
            listener.start()
        def come():
            other.start()
        go()  # SPN101
        come()  # SPN101
    """,
    "SPN101 by a subclass": """
        import threading
        class Beat(threading.Thread):
            def run(self): ...
        class Loud(Beat): ...
        Loud().start()  # SPN101
    """,
    "SPN101 by a method of a base class": """
        import threading
        class Base:
            def go(self):
                self._t = threading.Thread(target=print)
                self._t.start()
        class Derived(Base):
            def __init__(self):
                super().__init__()
                self.go()
        Derived()  # SPN101
    """,
    "SPN101 once only": """
        import threading
        _thread = None
        def ensure():
            global _thread
            if _thread is None:
                _thread = threading.Thread(target=print)
                _thread.start()
        ensure()  # SPN101
    """,
    "SPN101 in a list": """
        import threading
        threads = [threading.Thread(target=print) for _ in range(3)]
        for t in threads:
            t.start()  # SPN101
    """,
    "SPN102 directly": "import os\nif os.environ:\n    os.system('true')  # SPN102",
    "SPN102 elsewhere": "from worker import ask\nVERSION = ask()  # SPN102",
    "SPN103 pool": "from multiprocessing.pool import Pool as P\nwith P() as p:  # SPN103 SPN203\n    p.map(f, [])",
    "SPN103 context": "import multiprocessing as m\nc = m.get_context('spawn')\nc.Process().start()  # SPN103",
    "SPN103 elsewhere": "from worker import crowd\nPOOL = crowd()  # SPN103",
    "SPN103 executor": """
        from concurrent.futures import ProcessPoolExecutor
        import multiprocessing
        with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.map(print, [])  # SPN103
    """,
    "SPN103 of safespawn": "import safespawn\npool = safespawn.Pool()  # SPN103",
    "SPN103 in a script": "#!/usr/bin/env python3\nimport safespawn\nsafespawn.Process().start()  # SPN103",
    "SPN104 directly": "import threading\nt = threading.Thread()\nt.start()  # SPN101\nt.join()  # SPN104",
    "SPN104 elsewhere": "import worker\nworker.wait_for_it()  # SPN101 SPN104",
    "SPN104 result": """
        from concurrent.futures import ThreadPoolExecutor
        pool = ThreadPoolExecutor()
        future = pool.submit(print)  # SPN101
        future.result()  # SPN104
    """,
    "SPN201 fork": "import os\nimport worker\ndef f():\n    if os.fork() == 0:  # SPN201\n        work()",
    "SPN201 pty": "from pty import fork as split\nimport worker\ndef f():\n    return split()  # SPN201",
    "SPN201 in a thread": """
        import os, threading
        class Beat(threading.Thread):
            def run(self):
                beat()
        def beat():
            os.fork()  # SPN201
    """,
    "SPN201 by getattr": "import os, worker\ndef f():\n    return getattr(os, 'fork')()  # SPN201",
    "SPN201 before the fork": """
        import os, threading
        def f():
            t = threading.Thread(target=print)
            t.start()
            t.join()
            os.fork()  # SPN201
    """,
    "SPN202 set": "import multiprocessing\ndef f():\n    multiprocessing.set_start_method('fork')  # SPN202",
    "SPN202 get": "from multiprocessing import get_context\ndef f():\n    return get_context(method='fork')  # SPN202",
    "SPN203 process": "import multiprocessing as mp\ndef f():\n    return mp.Process(target=print)  # SPN203",
    "SPN203 manager": "from multiprocessing import Manager as M\ndef f():\n    return M()  # SPN203",
    "SPN203 executor": """
        import concurrent.futures
        def f():
            return concurrent.futures.ProcessPoolExecutor(4, mp_context=None)  # SPN203
    """,
    "SPN203 subclass elsewhere": """
        import multiprocessing
        class Worker(multiprocessing.Process): ...
        def f():
            return Worker()  # SPN203
    """,
    "SPN203 default context": "import multiprocessing as m\ndef f():\n    return m.get_context().Pool()  # SPN203",
    "SPN204 popen": "import subprocess, os\ndef f():\n    subprocess.run('x', preexec_fn=os.setsid)  # SPN204",
    "SPN204 asyncio": """
        import asyncio, os
        async def f():
            await asyncio.create_subprocess_exec("x", preexec_fn=lambda: os.nice(5))  # SPN204
    """,
    "SPN204 unknown callee": "def f(spawn):\n    spawn.start('x', preexec_fn=print)  # SPN204",
    "SPN205 close_fds": "import subprocess\ndef f():\n    subprocess.Popen('x', close_fds=False)  # SPN205",
    "SPN205 inheritable": "import os\ndef f(fd):\n    os.set_inheritable(fd, True)  # SPN205",
    "SPN205 pipe": """
        import os, subprocess
        def f():
            r, w = os.pipe2(0)
            subprocess.run("x", pass_fds=(r,))  # SPN205
    """,
    "SPN301 directly": """
        import threading, multiprocessing
        def main():
            threading.Thread(target=print).start()
            p = multiprocessing.Process(target=print)  # SPN203
            p.start()  # SPN301
    """,
    "SPN301 elsewhere": "import worker\ndef main():\n    m = worker.Monitor()\n    worker.forks()  # SPN301",
    "SPN301 preexec": """
        import worker, subprocess, os
        def main():
            worker.begin()
            subprocess.run("x", preexec_fn=os.setsid)  # SPN204 SPN301
    """,
    "SPN302 handler": """
        import signal, logging
        log = logging.getLogger("x")
        def stop(number, frame):
            log.info("stop")  # SPN302
        def main():
            signal.signal(signal.SIGTERM, stop)
    """,
    "SPN302 elsewhere": """
        import signal, helper
        def stop(number, frame):
            helper.say()  # SPN302
        def main():
            signal.signal(signal.SIGTERM, stop)
    """,
    "SPN302 del": """
        import threading
        class A:
            def __init__(self):
                self.lock = threading.Lock()
            def __del__(self):
                with self.lock:  # SPN302
                    pass
    """,
    "SPN302 after fork": """
        import os, logging
        def child():
            logging.warning("forked")  # SPN302
        os.register_at_fork(after_in_child=child)
    """,
    "SPN303 acquire": "import os, threading\nL = threading.Lock()\nos.register_at_fork(before=L.acquire)  # SPN303",
    "SPN303 elsewhere": "import os, helper\nos.register_at_fork(before=helper.hold)  # SPN303",
    "SPN401 wait": """
        import subprocess
        def f():
            p = subprocess.Popen("x", stdout=subprocess.PIPE)
            p.wait()  # SPN401
            return p.stdout.read()
    """,
    "SPN401 call": "from subprocess import call, PIPE\ndef f():\n    return call('x', stderr=PIPE)  # SPN401",
    "SPN401 queue": """
        import multiprocessing
        c = multiprocessing.get_context("spawn")
        def f():
            q = c.Queue()
            p = c.Process(target=print, args=(q,))
            p.start()
            p.join()  # SPN401
            return q.get()
    """,
}

# The same words, and nothing wrong.
NEAR_MISSES = {
    "SPN101 guarded": "import worker as w\nif __name__ == '__main__':\n    w.begin()\n    w.ask()\n    w.crowd()",
    "SPN101 not called": "import worker\ndef main():\n    worker.begin()\nlater = lambda: worker.begin()",
    "SPN101 types": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import worker\n    worker.begin()",
    "SPN101 not started": "import threading\nt = threading.Thread(target=print)\nlock = threading.Lock()",
    "SPN101 idle executor": "from concurrent.futures import ThreadPoolExecutor\npool = ThreadPoolExecutor(4)",
    "SPN101 other start": "class Thread:\n    def start(self): ...\nThread().start()",
    "SPN101 two meanings": """
        import threading
        def pick(quick):
            return object() if quick else threading.Thread(target=print)
        x = threading.Thread(target=print) if pick(1) else FakeThread()
        x.start()
    """,
    "SPN101 generator": "import worker\ndef each():\n    yield worker.begin()\nlater = each()",
    "SPN101 rare case": """
        import worker
        def check(answer):
            if answer == 42:
                worker.begin()
        check(1)
    """,
    "SPN101 script": "#!/usr/bin/env python3\nimport worker\nworker.begin()\nworker.ask()",
    "SPN102 another system": "import os, sys\nif sys.platform == 'win32':\n    os.system('ver')",
    "SPN102 kept for later": "import subprocess, functools\nrun = functools.partial(subprocess.run, ['ss'])",
    "SPN103 guarded": "import worker\ndef main():\n    worker.crowd()\nif __name__ == '__main__':\n    main()",
    "SPN103 only a class": "import multiprocessing\nclass P(multiprocessing.Process):\n    def run(self): ...",
    "SPN104 of another": "import queue\nq = queue.Queue()\nq.join()\n', '.join([])",
    "SPN104 limit": "def f(thread):\n    thread.start()\n    thread.join()",
    "SPN201 daemon": """
        import os, worker
        def daemonise():
            if os.fork():
                os._exit(0)
            pid = os.fork()
            if pid > 0:
                os._exit(0)
    """,
    "SPN201 waits for the daemon": """
        import os, worker
        def daemonise():
            pid = os.fork()
            if pid > 0:
                worker.ask()
                os._exit(0)
    """,
    "SPN201 the child's own": """
        import os, threading
        def serve():
            threading.Thread(target=print).start()
        def f():
            if os.fork() == 0:
                serve()
                threading.Thread(target=print).start()
    """,
    "SPN201 another fork": "import worker\nclass os:\n    def fork(self): ...\ndef f():\n    os().fork()",
    "SPN202 spawn": "import multiprocessing\ndef f():\n    multiprocessing.set_start_method('spawn')",
    "SPN202 unknown": "import multiprocessing\ndef f(how):\n    return multiprocessing.get_context(how).Pool()",
    "SPN203 set": """
        import multiprocessing
        def f():
            multiprocessing.set_start_method("forkserver")
            return multiprocessing.Pool()
    """,
    "SPN203 context": """
        import multiprocessing.pool
        from concurrent.futures import ProcessPoolExecutor
        def f(options, context):
            ProcessPoolExecutor(mp_context=context)
            ProcessPoolExecutor(**options)
            multiprocessing.pool.Pool(context=context)
            return multiprocessing.Queue()
    """,
    "SPN203 safespawn": "import safespawn\ndef f():\n    safespawn.Pool()\n    safespawn.get_context().Pool()",
    "SPN203 threads": "import multiprocessing.dummy as d\nfrom multiprocessing.pool import ThreadPool\ndef f():\n"
    "    return d.Pool(), ThreadPool()",
    "SPN204 none": "import subprocess\ndef f():\n    subprocess.run('x', preexec_fn=None)",
    "SPN204 handed on": "import subprocess\ndef f(preexec_fn=None):\n    subprocess.run('x', preexec_fn=preexec_fn)",
    "SPN205 shut": """
        import subprocess, os
        def f(fd):
            subprocess.run("x", close_fds=True)
            os.set_inheritable(fd, False)
    """,
    "SPN205 null": """
        import os
        def f():
            fd = os.open(getattr(os, "devnull", "/dev/null"), os.O_RDWR)
            os.set_inheritable(fd, True)
    """,
    "SPN205 pipe": "import os, subprocess\ndef f():\n    r, w = os.pipe()\n    subprocess.run('x', pass_fds=(r,))",
    "SPN301 right order": """
        import worker
        def main():
            worker.forks()
            worker.begin()
    """,
    "SPN301 joined": """
        import threading, worker
        def main():
            t = threading.Thread(target=print)
            t.start()
            t.join()
            worker.forks()
    """,
    "SPN301 block ended": """
        from concurrent.futures import ThreadPoolExecutor
        import worker
        def main():
            with ThreadPoolExecutor() as pool:
                pool.map(print, [])
            worker.forks()
    """,
    "SPN301 either": """
        import worker
        def main(threads):
            if threads:
                worker.begin()
            else:
                worker.forks()
    """,
    "SPN301 returned": """
        import worker
        def main(threads):
            if threads:
                worker.begin()
                return
            worker.forks()
    """,
    "SPN301 rare case": """
        import worker
        def sometimes(answer):
            if answer == 42:
                worker.forks()
        def main():
            worker.begin()
            sometimes(1)
    """,
    "SPN301 safe": """
        import worker, safespawn, subprocess, multiprocessing
        def main():
            worker.begin()
            worker.crowd()
            safespawn.Pool()
            subprocess.run("x")
    """,
    "SPN302 flag": """
        import signal, logging
        stopped = False
        def stop(number, frame):
            global stopped
            stopped = True
        def main():
            signal.signal(signal.SIGTERM, stop)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            logging.info("set")
    """,
    "SPN302 own lock": """
        import threading
        class A:
            def __init__(self):
                self.lock = threading.RLock()
                self.other = threading.Lock()
            def __del__(self):
                with self.lock:
                    self.other.acquire(False)
    """,
    "SPN302 a coroutine": """
        import threading
        class A:
            def __init__(self):
                self.lock = threading.Lock()
            async def __del__(self):
                with self.lock:
                    pass
    """,
    "SPN303 anew": """
        import os, threading
        lock = threading.Lock()
        def anew():
            global lock
            lock = threading.Lock()
        os.register_at_fork(after_in_child=anew)
    """,
    "SPN303 other": "import os, gc\nos.register_at_fork(before=gc.freeze)",
    "SPN401 read": """
        import subprocess
        def f():
            p = subprocess.Popen("x", stdout=subprocess.PIPE)
            for line in p.stdout:
                print(line)
            return p.wait()
    """,
    "SPN401 handed on": """
        import subprocess
        def f(reader):
            p = subprocess.Popen("x", stdout=subprocess.PIPE)
            reader(p)
            p.wait()
    """,
    "SPN401 limit": """
        import subprocess
        def f():
            p = subprocess.Popen("x", stdout=subprocess.PIPE)
            p.wait(timeout=5)
            q = subprocess.Popen("x", stdin=subprocess.PIPE)
            q.wait()
    """,
    "SPN401 queue": """
        import multiprocessing
        c = multiprocessing.get_context("spawn")
        def f():
            q = c.Queue()
            p = c.Process(target=print, args=(q,))
            p.start()
            result = q.get()
            p.join()
            return result
    """,
}

HELPER = """
    import logging
    import threading
    _lock = threading.Lock()
    def say():
        logging.getLogger(__name__).warning("said")
    def hold():
        _lock.acquire()
"""


def check(folder: Path, source: str, *, name: str = "app.py") -> set[tuple[int, str]]:
    """The lines and codes of the hits in one file, that has two others beside it."""
    (folder / name).write_text(textwrap.dedent(source).lstrip("\n"))
    (folder / "worker.py").write_text(textwrap.dedent(WORKER))
    (folder / "helper.py").write_text(textwrap.dedent(HELPER))
    result = run.check([str(folder)], config.Config())
    assert not result.failures
    return {(found.line, found.code) for found, _ in result.findings if found.path.endswith(f"/{name}")}


def expected(source: str, mark: str) -> set[tuple[int, str]]:
    """What the remarks of a source demand."""
    lines = textwrap.dedent(source).lstrip("\n").splitlines()
    return {
        (number, code) for number, line in enumerate(lines, 1) if mark in line for code in line.split(mark)[1].split()
    }


@pytest.mark.parametrize("source", HITS.values(), ids=HITS)
def test_a_mistake_is_found(tmp_path: Path, source: str) -> None:
    """The checker flags exactly the lines that the remarks name, with exactly those codes."""
    wanted = {(line, code if code.startswith("SPN") else f"SPN{code}") for line, code in expected(source, "  # ")}
    assert wanted
    assert check(tmp_path, source) == wanted


@pytest.mark.parametrize("source", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_what_looks_alike_is_let_pass(tmp_path: Path, source: str) -> None:
    """The checker has nothing to say of it."""
    assert check(tmp_path, source) == set()


def test_every_rule_has_hits_and_near_misses() -> None:
    """No rule stands in the table without two sources of each kind, one of them by way of another file where it can."""
    for code in (rule.code for rule in RULES.values() if rule.default):  # the others have tests of their own
        assert sum(name.startswith(code) for name in HITS) >= 2
        assert sum(name.startswith(code) for name in NEAR_MISSES) >= 2


@pytest.mark.parametrize("shape", sorted(SHAPES.glob("*.py")), ids=lambda path: path.stem)
def test_an_incident_would_have_been_found(shape: Path) -> None:
    """The checker flags exactly the lines of the incident that are marked, with exactly those codes."""
    result = run.check([str(shape)], config.Config())
    found = {(each.line, each.code) for each, _ in result.findings}
    assert found == expected(shape.read_text(), "# expect: ")
    assert found


def test_the_message_tells_the_way(tmp_path: Path) -> None:
    """The chain names each function on the way with its file and line, down to the call that does it."""
    (tmp_path / "plugin.py").write_text(
        "import threading\n\n\nclass Monitor:\n    def __init__(self):\n"
        "        self.thread = threading.Thread(target=print)\n        self.thread.start()\n"
    )
    (tmp_path / "app.py").write_text("import plugin\n\ndef start():\n    return plugin.Monitor()\n\nstart()\n")
    ((found, column),) = run.check([str(tmp_path)], config.Config()).findings
    assert (found.line, column) == (6, 1)
    assert found.message.endswith(
        "app.start() at app.py:6 -> plugin.Monitor.__init__ at plugin.py:5 -> threading.Thread.start at plugin.py:7"
    )


def test_a_package_is_followed_through_its_door(tmp_path: Path) -> None:
    """A function is found behind relative imports, a star import and a second name, in files without any other word."""
    package = tmp_path / "src" / "pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("from .inner import *\n")
    (package / "inner.py").write_text("from . import deep as d\n\ndef go():\n    return d.start_it()\n")
    (package / "deep.py").write_text("import threading\n\ndef start_it():\n    threading.Timer(1, print).start()\n")
    (tmp_path / "use.py").write_text("from pkg import go as run_it\n\nrun_it()\n")
    ((found, _),) = run.check([str(tmp_path)], config.Config()).findings
    assert (Path(found.path).name, found.line, found.code) == ("use.py", 3, "SPN101")
    assert found.message.endswith("threading.Timer.start at deep.py:4")


ARBITER = "import os\n\n\ndef spawn():\n    return os.fork()\n"
LATE = "import threading\n\n\ndef serve():\n    threading.Thread(target=print).start()\n"


def hits(folder: Path, *select: str, **files: str) -> set[tuple[str, int, str]]:
    """The files, lines and codes of the hits in these files."""
    for name, source in files.items():
        (folder / f"{name}.py").write_text(textwrap.dedent(source).lstrip("\n"))
    wanted = config.load([str(folder)], select=select or None)
    return {(Path(each.path).stem, each.line, each.code) for each, _ in run.check([str(folder)], wanted).findings}


def test_a_fork_far_from_the_threads_is_a_note_on_request(tmp_path: Path) -> None:
    """A fork without a sign of threads near it is SPN206, which only its whole code selects."""
    assert hits(tmp_path, "SPN206", arbiter=ARBITER) == set()
    assert hits(tmp_path, worker=LATE) == set()
    assert hits(tmp_path, "SPN2") == set()
    assert hits(tmp_path, "SPN206") == {("arbiter", 5, "SPN206")}
    assert hits(tmp_path, "SPN206", worker="import arbiter\n" + LATE) == set()
    assert hits(tmp_path) == {("arbiter", 5, "SPN201")}


def test_a_fork_that_a_thread_comes_to_is_found(tmp_path: Path) -> None:
    """A function handed to a thread is followed to the fork, through a file that starts no thread."""
    middle = "import arbiter\n\n\ndef again():\n    return arbiter.spawn()\n"
    app = "import threading\nimport middle\n\n\ndef main():\n    threading.Thread(target=middle.again).start()\n"
    assert hits(tmp_path, arbiter=ARBITER, middle=middle, app=app) == {("arbiter", 5, "SPN201")}
    (tmp_path / "middle.py").write_text("")
    assert hits(tmp_path, app=app.replace("middle.again", "print")) == set()


def test_a_file_named_as_a_standard_module_is_not_what_others_import(tmp_path: Path) -> None:
    """`import signal` beside a package's own signal.py, which forks, is no sign that threads and that fork meet."""
    (tmp_path / "__init__.py").touch()
    assert hits(tmp_path, signal=ARBITER, worker="import signal\n" + LATE) == set()
    assert hits(tmp_path, worker="from . import signal\n" + LATE) == {("signal", 5, "SPN201")}


SPAWN = """
    import multiprocessing
    import shared

    def main():
        shared.pool()

    if __name__ == "__main__":
        multiprocessing.set_start_method("spawn")
        main()
"""
POOL = "import multiprocessing\n\n\ndef pool():\n    return multiprocessing.Pool()\n"


def test_a_safe_start_method_counts_for_its_program(tmp_path: Path) -> None:
    """It silences SPN203 in the file that sets it and in what that imports, not in another program beside it."""
    assert hits(tmp_path, shared=POOL, other=POOL, program=SPAWN) == {("other", 5, "SPN203")}


def test_a_safe_start_method_set_by_a_function_counts_for_who_imports_it(tmp_path: Path) -> None:
    """Set in a helper, it silences SPN203 in the programs that import the helper, and in what these import."""
    helper = 'import multiprocessing\n\n\ndef prepare():\n    multiprocessing.set_start_method("spawn")\n'
    program = "import helper\nimport shared\n\n\ndef main():\n    helper.prepare()\n    shared.pool()\n"
    assert hits(tmp_path, helper=helper, program=program, shared=POOL, other=POOL) == {("other", 5, "SPN203")}


def test_every_rule_has_its_page_and_every_page_its_rule() -> None:
    """The pages are those that the table links to, and each says its code and how bad a hit is."""
    assert {page.stem for page in DOCS.glob("SPN*.md")} == set(RULES)
    index = (DOCS / "index.md").read_text()
    for rule in RULES.values():
        page = (DOCS.parents[1] / rule.page).read_text()
        assert page.startswith(f"# {rule.code}: {rule.title}\n")
        assert f"Severity: {rule.severity}." in page
        assert f"[{rule.code}]({rule.code}.md)" in index
        assert rule.title in index
