"""
Whole programs as subjects of a test: started here, killed here, and what they leave behind is counted here.

The test process is a subreaper, so whoever loses his parent below it becomes its child: a program has left nothing
when this process has no child that it did not have before.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time

from support import leaks
from support.children import ENV, PROGRAMS

LINE_SECONDS = 20.0  # for a ready line on a busy machine; a hang ends as a failure that says so


class Application:
    """
    A program of tests/programs with its stdout as lines.

    Args:
        name: The file, without ``.py``.
        *arguments: Made str.
        env: Beside the usual environment.
        popen: Further options of subprocess.Popen.
    """

    def __init__(self, name, *arguments, env=None, **popen):
        argv = [sys.executable, os.path.join(PROGRAMS, f"{name}.py"), *map(str, arguments)]
        popen = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
        self.process = subprocess.Popen(argv, env={**ENV, **(env or {})}, **popen)
        self.pid = self.process.pid
        self._buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.process.kill()
        self.process.wait()
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            if file is not None:
                file.close()

    def line(self, seconds=LINE_SECONDS):
        """
        The next line; the program's stderr is in the failure if there is none.
        """
        deadline = time.monotonic() + seconds
        fd = self.process.stdout.fileno()
        while b"\n" not in self._buffer:
            ready = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]
            chunk = os.read(fd, 65536) if ready else b""
            if not chunk:
                self.process.kill()
                trouble = self.process.stderr.read().decode(errors="replace") if self.process.stderr else ""
                reason = "ended" if ready else f"said nothing for {seconds} s"
                raise AssertionError(f"{self.process.args[1:]} {reason}; before: {self._buffer!r}\n{trouble}")
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    def facts(self, seconds=LINE_SECONDS):
        """
        The next line, which is JSON.
        """
        return json.loads(self.line(seconds))

    def finish(self, seconds=LINE_SECONDS):
        """
        Wait for the end; the rest of stdout, after a return code of 0 and an empty stderr.
        """
        out, err = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, (self.process.returncode, err.decode(errors="replace"))
        assert err in (b"", None), err.decode(errors="replace")
        return (self._buffer + out).decode()

    def signal(self, number=signal.SIGKILL):
        """
        Send a signal, with no look at whether it is still there.
        """
        self.process.send_signal(number)


def descendants(pid):
    """
    Everybody below *pid*, zombies included.
    """
    found, frontier = [], [pid]
    while frontier:
        try:
            below = list(leaks.children(frontier.pop()))
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += below
        frontier += below
    return found


class Census:
    """
    The children of this process at one time; everybody who comes later is a stranger.
    """

    def __init__(self):
        self.known = set(leaks.children())

    def strangers(self):
        """
        Who is below this process now and was not: pid and description. The zombies among the children are reaped.
        """
        for pid, what in leaks.children().items():
            if pid not in self.known and "[Z]" in what:
                os.waitpid(pid, 0)
        return {
            pid: leaks.describe(pid)
            for child in leaks.children()
            if child not in self.known
            for pid in (child, *descendants(child))
        }

    def gone(self, seconds):
        """
        Wait until no stranger is left; those who are left after *seconds*, none if all is well.
        """
        deadline = time.monotonic() + seconds
        while (left := self.strangers()) and time.monotonic() < deadline:
            time.sleep(0.002)
        return left


def kill_many_times(rounds, seconds, name, *arguments, crowd=0, says=None):
    """
    Kill the program *name* when it says its first line, over and over: whoever it has started is gone *seconds* later.

    Args:
        rounds: How often.
        seconds: For them to be gone.
        name: As for `Application`.
        *arguments: As for `Application`.
        crowd: So many processes at least that it has started.
        says: What that first line is; None for anything.
    """
    took = []
    for _ in range(rounds):
        census = Census()
        with Application(name, *arguments, stdin=subprocess.PIPE) as app:
            line = app.line(60)
            assert says in (None, line)
            assert len(census.strangers()) > crowd
            began = time.monotonic()
            app.signal()
            app.process.wait()
            assert census.gone(seconds) == {}
            took.append(time.monotonic() - began)
    took.sort()
    print(f"{rounds} rounds: gone after {took[len(took) // 2]:.2f} s (median), {took[-1]:.2f} s (slowest)")
