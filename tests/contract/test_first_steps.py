"""
The library as somebody meets it who has just installed it: in every place from which Python code is run.
"""

import os
import pty
import select
import subprocess
import sys
import time

import pytest

from support.children import ENV, complaints, reap_orphans

PREAMBLE = "import os, sys, safespawn\n"
PLAIN = [sys.executable, "-W", "error"]


def run(args, **options):
    """
    Run a program that loads the package.
    """
    return subprocess.run(args, env=ENV, capture_output=True, text=True, timeout=60, **options, check=False)


def test_dash_c():
    """`python -c` runs commands, blocking and async."""
    code = (
        "import safespawn, asyncio; print(safespawn.run(['echo', 'x'], stdout=-1, text=True).stdout,"
        " asyncio.run(safespawn.arun(['echo', 'y'], stdout=-1)).stdout)"
    )
    result = run([*PLAIN, "-c", code])
    assert (result.stdout, result.stderr) == ("x\n b'y\\n'\n", "")


def test_a_script_from_stdin():
    """A script that Python reads from stdin runs commands, which do not eat the rest of it unless they read."""
    script = (
        "import safespawn\nsafespawn.run(['true'])\nprint('next')\nsafespawn.run(['echo', 'child'])\nprint('last')\n"
    )
    result = run([*PLAIN, "-u", "-"], input=script)
    assert (result.stdout, result.stderr) == ("next\nchild\nlast\n", "")


def test_a_module_and_a_script(tmp_path):
    """`python -m` and python FILE run commands; a run at import time of a module works as well."""
    (tmp_path / "early.py").write_text(
        "import safespawn\nRESULT = safespawn.check_output(['echo', 'at import'], text=True)\n"
    )
    (tmp_path / "main.py").write_text("import early\nprint(early.RESULT)\n")
    for args in (["-m", "main"], ["main.py"]):
        result = run([*PLAIN, *args], cwd=tmp_path)
        assert (result.stdout, result.stderr) == ("at import\n\n", "")


def test_a_main_without_a_file():
    """As in a notebook: __main__ has no __file__, a loop runs in this thread already, others run beside it."""
    code = PREAMBLE + (
        "import __main__, asyncio, threading\n"
        "__main__.__dict__.pop('__file__', None)\n"
        "beside = threading.Thread(target=threading.Event().wait, daemon=True); beside.start()\n"
        "async def cell():\n"
        "    a = safespawn.run(['echo', 'blocking'], stdout=-1).stdout\n"
        "    b = (await safespawn.arun(['echo', 'async'], stdout=-1)).stdout\n"
        "    async with await safespawn.aopen_process(['cat'], stdin=-1, stdout=-1) as p:\n"
        "        await p.stdin.write(b'line\\n'); c = await p.stdout.readline()\n"
        "    print(a, b, c)\n"
        "exec(compile('asyncio.run(cell())', '<cell>', 'exec'))\n"
    )
    result = run([*PLAIN, "-"], input=code)
    assert (result.stdout, result.stderr) == ("b'blocking\\n' b'async\\n' b'line\\n'\n", "")


def test_the_interactive_interpreter():
    """In python -i on a terminal commands run, have the terminal, answer Ctrl-C, and leave the prompt usable."""
    pid, terminal = pty.fork() if sys.version_info < (3, 12) else _fork_on_terminal()
    if pid == 0:
        os.execve(sys.executable, [sys.executable, "-q", "-i"], {**ENV, "TERM": "dumb", "PYTHON_BASIC_REPL": "1"})
    talk = Terminal(terminal)
    try:
        talk.expect(">>> ")
        talk.say("import safespawn")
        talk.expect(">>> ")
        talk.say("safespawn.run(['sh', '-c', 'test -t 0 && test -t 1 && echo ter''minal'])")
        talk.expect("terminal\r\n")
        talk.expect("CompletedProcess(args=['sh'")
        talk.expect(">>> ")
        talk.say("safespawn.run(['sh', '-c', 'read line; echo \"got <$line>\"'])")
        talk.say("my answer")
        talk.expect("got <my answer>")
        talk.expect(">>> ")
        talk.say("safespawn.run(['sh', '-c', 'echo wai''ting; exec sleep 1000'])")
        talk.expect("waiting\r\n")
        os.write(terminal, b"\x03")
        talk.expect("KeyboardInterrupt")
        talk.expect(">>> ")
        talk.say("safespawn.run(['nothing-of-this-name'])")
        talk.expect("CommandNotFound: [Errno 2] No such file or directory: 'nothing-of-this-name'")
        talk.expect(">>> ")
        talk.say("exit()")
        talk.expect_end()
    finally:
        os.close(terminal)
        assert os.waitpid(pid, 0)[1] == 0


def _fork_on_terminal():
    """
    pty.fork() without its warning about threads: pytest's watchdog is one.
    """
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return pty.fork()


class Terminal:
    def __init__(self, fd):
        self.fd = fd
        self.text = ""

    def say(self, line):
        os.write(self.fd, line.encode() + b"\n")

    def more(self):
        deadline = time.monotonic() + 30
        if not select.select([self.fd], [], [], deadline - time.monotonic())[0]:
            raise AssertionError(f"nothing came; so far: {self.text!r}")
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # EIO: the other side has closed
            data = b""
        self.text += data.decode(errors="replace")
        return bool(data)

    def expect(self, text):
        while text not in self.text:
            assert self.more(), f"the end came before {text!r}: {self.text!r}"
        self.text = self.text.partition(text)[2]

    def expect_end(self):
        while self.more():
            pass


@pytest.mark.parametrize("option", ["--capture=fd", "--capture=sys", "--capture=no", "--capture=tee-sys"])
def test_in_pytest(option, tmp_path):
    """In somebody's tests output of commands is captured by capfd under each kind of capture, and nothing warns."""
    (tmp_path / "test_theirs.py").write_text(
        "import safespawn\n"
        "def test_it(capfd):\n"
        "    assert safespawn.run(['echo', 'x']).returncode == 0\n"
        "    assert capfd.readouterr().out == 'x\\n'\n"
        "    with safespawn.Supervisor(guard='off') as sup:\n"
        "        assert sup.check_output(['echo', 'y']) == b'y\\n'\n"
        "def test_again():\n"
        "    assert safespawn.check_output(['echo', 'z'], text=True) == 'z\\n'\n"
    )
    result = run(
        [*PLAIN, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", option, str(tmp_path)], cwd=tmp_path
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "2 passed" in result.stdout


def test_with_a_redirected_sys_stdout():
    """Replacing sys.stdout changes nothing for commands; replacing descriptor 1 does, as for every program."""
    code = PREAMBLE + (
        "import io, contextlib\n"
        "with contextlib.redirect_stdout(io.StringIO()) as text:\n"
        "    safespawn.run(['echo', 'to the descriptor'])\n"
        "print(repr(text.getvalue()))"
    )
    result = run([*PLAIN, "-u", "-c", code])
    assert (result.stdout, result.stderr) == ("to the descriptor\n''\n", "")


def test_in_development_mode():
    """Python's development mode, which watches descriptors and loops, finds nothing to say."""
    code = PREAMBLE + (
        "import asyncio\n"
        "async def main():\n"
        "    await asyncio.gather(*[safespawn.arun(['cat'], input=b'x' * 100_000, stdout=-1) for _ in range(10)])\n"
        "    async with await safespawn.aopen_process(['cat'], stdin=-1, stdout=-1) as p:\n"
        "        await p.communicate(b'x')\n"
        "asyncio.run(main())\n"
        "with safespawn.Popen(['cat'], stdin=-1, stdout=-1, text=True) as p:\n"
        "    p.communicate('x')\n"
        "with safespawn.Supervisor() as sup:\n"
        "    sup.run(['true'])\n"
    )
    result = run([sys.executable, "-X", "dev", "-W", "error", "-c", code])
    assert (result.returncode, result.stdout, complaints(result.stderr)) == (0, "", "")


def test_at_exit_and_in_threads():
    """Commands run in an atexit function, in a daemon thread while the main thread ends, and in __del__ at the end."""
    code = PREAMBLE + (
        "import atexit, threading\n"
        "class Last:\n"
        "    def __del__(self): print('del', safespawn.run(['true']).returncode, flush=True)\n"
        "keep = Last()\n"
        "atexit.register(lambda: print('atexit', safespawn.check_output(['echo', 'x']), flush=True))\n"
        "def work(): print('thread', safespawn.run(['sleep', '0.2']).returncode, flush=True)\n"
        "threading.Thread(target=work).start()\n"
    )
    result = run([*PLAIN, "-c", code])
    reap_orphans()  # the warden of the zygote for the very last command
    assert result.stdout.splitlines()[:2] == ["thread 0", "atexit b'x\\n'"]
    assert "Fatal" not in result.stderr


def test_a_program_with_no_descriptor_to_spare():
    """An application at its descriptor limit gets an OSError that says so, and runs commands again when it has some."""
    code = PREAMBLE + (
        "import resource\n"
        "calls = safespawn.run, safespawn.Popen  # loaded while there are descriptors\n"
        "safespawn.run(['true']); resource.setrlimit(resource.RLIMIT_NOFILE, (60, 60)); held = []\n"
        "try:\n"
        "    while True: held.append(os.open('/dev/null', os.O_RDONLY))\n"
        "except OSError: pass\n"
        "for call in calls:\n"
        "    try: call(['cat'], stdin=-1, stdout=-1)\n"
        "    except OSError as error: print(error.errno)\n"
        "for fd in held: os.close(fd)\n"
        "print(safespawn.run(['echo', 'x'], capture_output=True).stdout)\n"
    )
    result = run([*PLAIN, "-c", code])
    assert (result.stdout, result.stderr) == ("24\n24\nb'x\\n'\n", "")


def test_a_process_that_is_kept_to_the_very_end():
    """An object that outlives the names of its module is silent, and its process has ended with the program."""
    code = PREAMBLE + (
        "import builtins\n"
        "builtins.kept = safespawn.Popen(['sleep', '60'])\n"
        "sys.modules['safespawn.process'].os = None  # as the interpreter leaves a module that it has cleared\n"
    )
    result = run([*PLAIN, "-c", code])
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
