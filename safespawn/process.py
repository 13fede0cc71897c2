"""
`Popen`: a process to talk to while it runs, with the interface of `subprocess.Popen`.

Runs in: application, any thread; several threads may wait for one process.
"""

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self, Unpack

from safespawn._commands import audit
from safespawn._core.child import GRACE_SECONDS
from safespawn._core.connection import close_all, track_write_end, untrack_write_end
from safespawn._core.options import SpawnOptions, build_spec, deadline_after, input_bytes, text_mode
from safespawn._core.process import Process
from safespawn._core.status import struct_rusage
from safespawn._core.transfer import Drain, Feed, Streams
from safespawn._drive.blocking import drive
from safespawn._drive.engine import Engine
from safespawn._drive.interrupts import hold
from safespawn._zygote import wire
from safespawn.errors import BadArgument, BadArgumentType
from safespawn.supervisor import current_engine


class Popen:
    """
    A running process.

    Args:
        args: The program and its arguments; with ``shell=True`` one string.
        bufsize: Of the pipes' file objects: -1 the default, 0 unbuffered, 1 by line (text only), else bytes.
        text, encoding, errors, universal_newlines: Text streams, as in `subprocess`.
        wait_eof: `communicate` waits for the end of the output however long somebody else holds it.
        engine: Where it is started from; by default the current supervisor's.
        **options: As in `SpawnOptions`; docs/commands.md tells each.

    Attributes:
        args: The command as given.
        pid: Its process id, reserved for it until its exit has been seen by `wait`, `poll` or `communicate`.
        returncode: Its exit code, -N when signal N ended it, None while that is not known.
        stdin, stdout, stderr: File objects of the pipes, or None.
        rusage: Resources used (`resource.struct_rusage`), once it has ended.
        duration: Seconds from the request to the exit, once it has ended.
        held_by: As in `CompletedProcess`, after `communicate`.

    Raises:
        SpawnError, SpawnLost, BadArgument, BadArgumentType, UnsupportedOption: As `run`; nothing runs then.

    A process that is still running when its `Popen` is forgotten runs on, with a ResourceWarning, until the
    application ends. Leaving a ``with`` block by an exception ends it.
    """

    def __init__(
        self,
        args: Any,
        *,
        bufsize: int = -1,
        text: bool | None = None,
        encoding: str | None = None,
        errors: str | None = None,
        universal_newlines: bool | None = None,
        wait_eof: bool = False,
        engine: Engine | None = None,
        **options: Unpack[SpawnOptions],
    ) -> None:
        self._process: Process | None = None
        self._streams: Streams | None = None
        self._text = text_mode(text, encoding, errors, universal_newlines)
        if not isinstance(bufsize, int):  # pyright: ignore[reportUnnecessaryIsInstance] - of what callers really give
            raise BadArgumentType("bufsize must be an integer", parameter="bufsize", value=bufsize)
        self._wait_eof = wait_eof
        self.args = args
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self.held_by: tuple[int, ...] = ()
        self._output: tuple[Any, Any] | None = None
        spec = build_spec(args, options, hold=True)
        audit(args, options)
        engine = current_engine() if engine is None else engine
        process = Process(engine, spec, args)
        with hold():
            engine.track(process, self)
            ends = drive(process.start_flow(patient=False))
            self._process = process
            try:
                for number, stream in enumerate(spec.streams):
                    if stream == wire.PIPE:
                        setattr(self, ("stdin", "stdout", "stderr")[number], self._open(number, ends, bufsize))
            except BaseException:
                close_all(ends)
                process.abandon()
                raise

    def _open(self, number: int, ends: list[int], bufsize: int) -> IO[Any]:
        """
        The file object for the next of *ends*.
        """
        fd = ends[0]
        raw: io.FileIO = _WriteEnd(fd) if number == 0 else _ReadEnd(fd, "rb")
        del ends[0]
        line_buffering = bufsize == 1 and self._text is not None
        size = io.DEFAULT_BUFFER_SIZE if bufsize < 0 or bufsize == 1 else bufsize
        if size == 0 and self._text is None:
            return raw
        file: Any = raw if size == 0 else io.BufferedWriter(raw, size) if number == 0 else io.BufferedReader(raw, size)
        if self._text is None:
            return file  # type: ignore[no-any-return]
        return io.TextIOWrapper(
            file, self._text.encoding, self._text.errors,
            write_through=number == 0, line_buffering=line_buffering and number == 0,
        )  # fmt: skip

    @property
    def _started(self) -> Process:
        assert self._process is not None  # noqa: S101 - __init__ has raised otherwise
        return self._process

    @property
    def pid(self) -> int:
        """
        The process id.
        """
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """
        The exit code; None while it is not known.
        """
        return self._started.returncode

    @property
    def rusage(self) -> Any:
        """
        Resources used; None while it runs.
        """
        return struct_rusage(self._started.usage)

    @property
    def duration(self) -> float | None:
        """
        Seconds from the request to the exit; None while it runs.
        """
        return self._started.duration

    def __repr__(self) -> str:
        state = "None" if self._process is None else self.returncode
        return f"<{type(self).__name__}: returncode: {state} args: {self.args!r}>"

    def poll(self) -> int | None:
        """
        Look whether it has ended, without waiting; returns the exit code or None.
        """
        self._started.check()
        return drive(self._started.poll_flow())

    def wait(self, timeout: float | None = None) -> int:
        """
        Wait until it has ended.

        Args:
            timeout: Seconds, or None for no limit.

        Returns:
            The exit code, -N when signal N ended it.

        Raises:
            TimeoutExpired: It runs on.
            SpawnLost: Its zygote was lost, and nobody can say how it ended.
            ForeignCopy: This is a forked copy of the process that started it.
        """
        self._started.check()
        return drive(self._started.wait_flow(timeout, deadline_after(timeout, time.monotonic())))

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """
        Feed stdin, collect stdout and stderr, and wait for the end.

        Args:
            input: Bytes, or str in text mode, for a stdin that is a pipe.
            timeout: Seconds, or None for no limit.

        Returns:
            stdout and stderr, each None where it is no pipe.

        Raises:
            TimeoutExpired: It runs on; nothing that it printed is lost, the next call goes on from here.
        """
        process = self._started
        process.check()
        deadline = deadline_after(timeout, time.monotonic())
        if self._streams is None:
            self._streams = self._connect(input)
        elif input:
            raise BadArgument("Cannot send input after starting communication", parameter="input", value=input)
        streams = self._streams
        self.held_by = drive(
            process.communicate_flow(streams, timeout=timeout, deadline=deadline, wait_eof=self._wait_eof)
        )
        if self._output is None:
            first, second = streams.drains
            self._output = self._collected(self.stdout, first), self._collected(self.stderr, second)
        return self._output

    def _collected(self, file: IO[Any] | None, drain: Drain | None) -> Any:
        """
        All of an output, what had been read ahead of the user's own reading first; and its file is closed.
        """
        if file is None or drain is None:
            return None
        with file:
            layer: Any = file
            while not isinstance(layer, _ReadEnd):
                layer = layer.raw if hasattr(layer, "raw") else layer.buffer
            layer.put_back(drain.result())
            return file.read()

    def _connect(self, given: Any) -> Streams:
        data = input_bytes(given, self._text)
        feed: Feed | None = None
        if self.stdin is not None and not self.stdin.closed:
            try:
                self.stdin.flush()
            except BrokenPipeError:
                data = None
            if data:
                feed = Feed(self.stdin.fileno(), data, close=_closer(self.stdin))
            else:
                _closer(self.stdin)()
        elif data:
            raise BadArgument("stdin is not a pipe", parameter="input", value=given, help="give stdin=PIPE")
        drains = [
            None if file is None or file.closed else Drain(file.fileno(), close=_not_yet)
            for file in (self.stdout, self.stderr)
        ]
        return Streams(feed, (drains[0], drains[1]))

    def send_signal(self, sig: int) -> None:
        """
        Signal the process; nothing happens when it has ended, and no other process can be hit.
        """
        self._started.send_signal(sig)

    def terminate(self) -> None:
        """
        Send SIGTERM.
        """
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """
        Send SIGKILL to the process; its children are not touched: `stop` ends them too.
        """
        self.send_signal(signal.SIGKILL)

    def stop(self, grace: float = GRACE_SECONDS) -> int | None:
        """
        End the process with its whole tree (``kill_tree=False``: alone): SIGTERM, then SIGKILL; and wait for it.

        Args:
            grace: Seconds between the two.

        Returns:
            The exit code.

        Raises:
            Unkillable: It sleeps in the kernel and outlived SIGKILL for some seconds.
            SpawnLost: Nobody can say how it ended.
        """
        self._started.check()
        drive(self._started.stop_flow(whole=bool(self._started.spec.flags & wire.TREE), grace=grace))
        return self.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for file in (self.stdout, self.stderr):
                if file is not None:
                    file.close()
            if self.stdin is not None:
                _closer(self.stdin)()
        finally:
            if self._started.owner_pid == os.getpid():
                with hold():  # a second Ctrl-C comes while something is waited for, not in between
                    self._leave(stop=kind is not None)

    def _leave(self, *, stop: bool) -> None:
        try:
            if not stop:
                self.wait()
        finally:
            if self._started.returncode is None and self._started.failure is None:
                self.stop()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if _is_finalizing():
            return  # all was ended at the exit, and the modules are being taken apart
        process = getattr(self, "_process", None)
        if process is not None and process.owner_pid == os.getpid():
            process.forget(self, self.args)


class _ReadEnd(io.FileIO):
    """
    The read end of an output. What `communicate` drained is put back, to come out behind what the layers above had
    read ahead, decoded by the decoder that had begun.
    """

    _rest: io.BytesIO | None = None

    def put_back(self, data: bytes) -> None:
        self._rest = io.BytesIO(data)

    def readinto(self, buffer: Any) -> int | None:
        return super().readinto(buffer) if self._rest is None else self._rest.readinto(buffer)

    def readall(self) -> bytes | None:  # type: ignore[override]  # None: not blocking, and nothing there yet
        return super().readall() if self._rest is None else self._rest.read()

    def read(self, size: int | None = -1) -> Any:
        return super().read(-1 if size is None else size) if self._rest is None else self._rest.read(size)


def _not_yet() -> None:
    """
    The output has ended; its file is closed when its layers have been read to the end as well.
    """


class _WriteEnd(io.FileIO):
    """
    The write end of a child's stdin, which forked copies of this process give up.
    """

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "wb")
        track_write_end(fd)

    def close(self) -> None:
        if not self.closed:
            untrack_write_end(self.fileno())
        super().close()


def _closer(file: IO[Any]) -> Any:
    """
    Closes a stdin, whatever its child thinks of what is still buffered.
    """

    def close() -> None:
        try:
            file.close()
        except (BrokenPipeError, BlockingIOError):
            return  # nobody reads it any more

    return close


def open_process(args: Any, **options: Any) -> Popen:
    """
    Start a process; the twin of `aopen_process`. Arguments and errors as `Popen`.
    """
    return Popen(args, **options)
