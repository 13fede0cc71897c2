"""
`subprocess.Popen` for programs that know nothing of this library: its interface, and a process of the zygote behind it.

The standard class checks the arguments, reads and writes the pipes, and knows what to do at a Ctrl-C; replaced is what
starts a process, waits for it and signals it. No pipe end that only the child needs exists in the application, so
nobody's fork can hold one, and nothing is forked here.

The one thing that cannot be done elsewhere is a preexec_fn. The usual ones are recognised and become options; with any
other, the standard class does it all, and the guard has been asked.

Runs in: application, any thread.
"""

# What is overridden here is what the standard class keeps private: the same in CPython 3.11 to 3.14.
# ruff: noqa: SLF001
# pyright: reportPrivateUsage=false

import fcntl
import os
import signal
import subprocess
import threading
import warnings
from typing import IO, Any

from safespawn import _policy, _waitpid
from safespawn._core.child import is_inheritable
from safespawn._preexec import recognise
from safespawn.errors import ClosedError, SpawnLost
from safespawn.installed import again
from safespawn.process import Popen as Held

Standard: Any = subprocess.Popen
_RESTORED = (signal.SIGPIPE, signal.SIGXFSZ)  # what Python ignores, and restore_signals gives back
_MOST_ID = 2**32 - 1
_PREEXEC_PLACE = 4  # of preexec_fn, behind args and bufsize


class Popen(subprocess.Popen[Any]):
    """
    A process, as `subprocess.Popen`: arguments, attributes and errors are the same.
    """

    pid: int
    stdin: IO[Any] | None
    stdout: IO[Any] | None
    stderr: IO[Any] | None
    returncode: int | Any
    _held: Held | None = None  # None: the standard class does it
    _options: dict[str, Any] | None = None
    _bufsize: Any = -1
    _reaped = False
    _wanted: tuple[Any, ...] = (None, None, None)

    def __init__(self, args: Any, bufsize: Any = -1, *rest: Any, **options: Any) -> None:
        self._bufsize = bufsize
        preexec = rest[_PREEXEC_PLACE] if len(rest) > _PREEXEC_PLACE else options.get("preexec_fn")
        self._options = {} if preexec is None else recognise(preexec)
        if self._options is None and not _policy.layers and len(os.listdir("/proc/self/task")) > 1:
            _policy.meet("preexec", f"subprocess.Popen(preexec_fn={_name(preexec)})", default="warn")
        super().__init__(args, bufsize, *rest, **options)

    def _get_handles(self, *streams: Any) -> tuple[int, ...]:
        """
        The zygote makes the pipes.
        """
        if self._options is None:
            standard: Any = super()
            handles: tuple[int, ...] = standard._get_handles(*streams)
            return handles
        self._wanted = streams
        if subprocess.PIPE in streams and getattr(self, "pipesize", -1) > 0:
            _try_size(self.pipesize)  # type: ignore[attr-defined]
        return (-1,) * 6

    def _execute_child(  # noqa: PLR0917 - the standard class's
        self, args: Any, executable: Any, preexec_fn: Any, close_fds: Any, pass_fds: Any, cwd: Any, env: Any,
        startupinfo: Any, creationflags: Any, shell: Any, *rest: Any,
    ) -> None:  # fmt: skip
        if self._options is None:
            standard: Any = super()
            standard._execute_child(
                args, executable, preexec_fn, close_fds, pass_fds, cwd, env, startupinfo, creationflags, shell, *rest
            )
            return
        restore_signals, gid, gids, uid, umask, start_new_session, process_group = rest[6:]
        command, options = self._command(args, shell=bool(shell)), self._options
        if not shell and executable is None:
            command = again.command(command, cwd, env)
        for name, value in zip(("stdin", "stdout", "stderr"), self._wanted, strict=True):
            options[name] = value
        options.update(
            executable=executable, cwd=cwd, env=env, shell=bool(shell), pass_fds=_passed(pass_fds, close_fds)
        )
        for name, value in (("user", uid), ("group", gid), ("extra_groups", gids)):
            if value is not None:
                options[name] = value
            if name != "extra_groups" and value is not None and value >= _MOST_ID:
                raise OverflowError(f"{name} is greater than maximum")
        if umask >= 0:
            options["umask"] = umask & 0o777  # as the kernel takes it
        if start_new_session:
            options["start_new_session"] = True
        if process_group >= 0:
            options["process_group"] = process_group
        elif not options.get("start_new_session"):
            options.setdefault("process_group", os.getpgrp())  # os.killpg(0, ...) reaches it, as it always has
        if not restore_signals:
            ignored = {number for number in _RESTORED if signal.getsignal(number) is signal.SIG_IGN}
            options["ignore_signals"] = ignored | set(options.get("ignore_signals", ()))
        self._start(command, options)

    def _command(self, args: Any, *, shell: bool) -> Any:
        if isinstance(args, os.PathLike):
            if shell:
                raise TypeError("path-like args is not allowed when shell is true")
            return [args]
        if isinstance(args, (str, bytes)):
            return args if shell else [args]
        return list(args)

    def _start(self, command: Any, options: dict[str, Any]) -> None:
        text = getattr(self, "text_mode", None)
        if self._bufsize == 1 and not text and subprocess.PIPE in self._wanted:
            warnings.warn(
                "line buffering (buffering=1) isn't supported in binary mode, the default buffer size will be used",
                RuntimeWarning,
                stacklevel=5,
            )
        try:
            held = Held(
                command,
                bufsize=-1 if self._bufsize is None else self._bufsize,
                text=bool(text) or None,
                encoding=self.encoding if text else None,  # type: ignore[attr-defined]
                errors=self.errors if text else None,  # type: ignore[attr-defined]
                **options,
            )
        except (ClosedError, SpawnLost):
            _stop_at_exit()
            raise
        self._held = held
        self.pid = held.pid
        _waitpid.know(self)
        self._child_created = True  # forgotten while it runs, it is kept by the standard class till it has ended
        self.stdin, self.stdout, self.stderr = held.stdin, held.stdout, held.stderr
        pipesize = getattr(self, "pipesize", -1)
        try:
            for file in (self.stdin, self.stdout, self.stderr):
                if pipesize > 0 and file is not None:
                    fcntl.fcntl(file, fcntl.F_SETPIPE_SZ, pipesize)
        except OSError:  # one pipe of that size was possible, three are not
            self._end_tree()
            raise

    def _internal_poll(self, *args: Any, **options: Any) -> int | None:
        if self._held is None:
            standard: Any = super()
            code: int | None = standard._internal_poll(*args, **options)
            return code
        if self.returncode is None:
            self.returncode = self._held.poll()
        return self.returncode

    def _wait(self, timeout: float | None) -> int:
        if self._held is None:
            standard: Any = super()
            code: int = standard._wait(timeout=timeout)
            return code
        if self.returncode is None:
            try:
                self.returncode = self._held.wait(timeout)
            except subprocess.TimeoutExpired as error:
                error.cmd = self.args
                raise
            finally:
                _stop_at_exit()
        return self.returncode

    def send_signal(self, sig: int) -> None:
        """
        Signal the process; nothing happens when it has ended, and no other process can be hit.
        """
        if self._held is None:
            super().send_signal(sig)
        elif self.poll() is None:
            self._held.send_signal(sig)

    def is_unreaped(self) -> bool:
        """
        Whether it is a process of the zygote's that this program has started, and whose end nobody has been told.
        """
        held = self._held
        return (
            held is not None and not self._reaped and self.returncode is None and held._started.owner_pid == os.getpid()
        )

    def reap(self, *, wait: bool) -> int | None:
        """
        Tell its exit code to `os.waitpid`, once; None if it runs, and *wait* is false. As with the standard class,
        `returncode` is set by whoever asks the object itself; other than there, it is the true one even then.
        """
        held = self._held
        assert held is not None  # noqa: S101 - it is unreaped
        code = held.wait() if wait else held.poll()
        self._reaped = code is not None
        return code

    def _end_tree(self) -> None:
        """
        It took too long, or nobody wants it any more: end it and all that it has started.
        """
        if self._held is None:
            self.kill()
            self.wait()
        elif self.returncode is None:
            self.returncode = self._held.stop(grace=0.0)


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__qualname__)}"


Popen.__init__.__wrapped__ = Standard.__init__  # type: ignore[attr-defined]  # its signature, for inspect


def _passed(pass_fds: Any, close_fds: Any) -> list[int]:
    """
    The descriptors that go along: with ``close_fds=False`` all that can be inherited, the standard streams aside.
    """
    wanted = list(pass_fds) if close_fds else [fd for fd in _open_fds() if is_inheritable(fd)]
    return [fd for fd in wanted if fd not in (0, 1, 2)]


def _open_fds() -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd")]


def _try_size(size: int) -> None:
    """
    Fail as the standard class does, before anything runs, where a pipe cannot hold *size* bytes.
    """
    read_fd, write_fd = os.pipe()
    try:
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, size)
    finally:
        os.close(read_fd)
        os.close(write_fd)


def _stop_at_exit() -> None:
    """
    The program is ending, and its commands with it: a daemon thread learns nothing of that any more, and goes no
    further, as the interpreter has it a moment later.
    """
    if threading.current_thread().daemon and not threading.main_thread().is_alive():
        threading.Event().wait()


def end_tree(process: Any) -> None:
    """
    `Popen._end_tree`, also of somebody else's class.
    """
    if isinstance(process, Popen):
        process._end_tree()
    else:
        process.kill()
