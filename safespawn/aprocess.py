"""
`aopen_process`: a process to talk to from an event loop, asyncio, uvloop or trio.

Runs in: application, a task. Starts no thread; never blocks the loop.
"""

# What is private is ruff's to watch (SLF001), with a reason at each exception.
# pyright: reportPrivateUsage=false

import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from types import TracebackType
from typing import Any, Self, Unpack

from safespawn._commands import audit
from safespawn._core.child import GRACE_SECONDS
from safespawn._core.connection import close_all
from safespawn._core.options import SpawnOptions, Text, build_spec, deadline_after, input_bytes, text_mode
from safespawn._core.process import Process
from safespawn._core.status import struct_rusage
from safespawn._core.stream import ReadEnd, WriteEnd
from safespawn._core.transfer import Drain, Feed, Streams
from safespawn._drive.async_driver import adrive, adrive_stream, shielded, wake_waiter
from safespawn._drive.engine import Engine
from safespawn._zygote import wire
from safespawn.errors import BadArgument
from safespawn.supervisor import current_engine


def close_end(end: ReadEnd | WriteEnd) -> None:
    """
    Close *end* after waking the task that waits at it, which nothing else would wake.
    """
    if end.fd >= 0:
        wake_waiter(end.fd)
    end.close()


class AsyncReader:
    """
    A child's output as an async stream; ``async for line in reader`` gives its lines, with their ends.

    One task reads at a time.
    """

    def __init__(self, end: ReadEnd, text: Text | None) -> None:
        self._end = end
        self._text = text

    async def receive(self, max_bytes: int = 65536) -> bytes:
        """
        The next bytes, at least one; ``b""`` at the end. Always bytes, in text mode too.
        """
        return await adrive_stream(self._end.receive_flow(max_bytes))

    async def read(self, size: int = -1) -> Any:
        """
        Exactly *size* bytes, fewer at the end; all that comes until the end for -1. Text when the process is: then ask
        for everything or for lines, since *size* bytes may end within a character.
        """
        return self._decode(await adrive_stream(self._end.read_flow(size)))

    async def readline(self) -> Any:
        """
        The next line with its end; empty at the end of the stream. Lines are found as bytes: in UTF-16 or UTF-32 they
        cannot be; `communicate` and ``read()`` can.
        """
        return self._decode(await adrive_stream(self._end.line_flow()))

    def __aiter__(self) -> AsyncIterator[Any]:
        return self._lines()

    async def _lines(self) -> AsyncIterator[Any]:
        while line := await self.readline():
            yield line

    def _decode(self, data: bytes) -> Any:
        return data if self._text is None else self._text.decode(data)

    async def aclose(self) -> None:
        """
        Close it; the child gets SIGPIPE or EPIPE at its next write, and a task that reads here ClosedError.
        """
        close_end(self._end)


class AsyncWriter:
    """
    A child's stdin as an async stream.
    """

    def __init__(self, end: WriteEnd, text: Text | None) -> None:
        self._end = end
        self._text = text

    async def write(self, data: Any) -> None:
        """
        Write all of *data*: bytes, or str in text mode.

        Raises:
            BrokenPipeError: The child does not read any more.
        """
        await adrive_stream(self._end.write_flow(input_bytes(data, self._text)))

    async def aclose(self) -> None:
        """
        Close it: the child reads the end of its input, and a task that writes here gets ClosedError.
        """
        close_end(self._end)


class AsyncProcess:
    """
    A running process; made by `aopen_process`.

    Attributes:
        args: The command as given.
        pid: Its process id, reserved for it until its exit has been seen by `wait` or `communicate`.
        returncode: Its exit code, -N when signal N ended it, None while that is not known.
        stdin: An `AsyncWriter`, or None.
        stdout, stderr: `AsyncReader`, or None.
        rusage, duration, held_by: As `Popen`'s.

    Leaving ``async with`` normally closes the pipes and waits; by an exception or a cancellation it ends the process.
    """

    def __init__(self, process: Process, ends: list[int], text: Text | None, *, wait_eof: bool) -> None:
        self._process = process
        self._text = text
        self._wait_eof = wait_eof
        self._streams: Streams | None = None
        self.args: Any = process.args
        self.held_by: tuple[int, ...] = ()
        self.stdin: AsyncWriter | None = None
        self.stdout: AsyncReader | None = None
        self.stderr: AsyncReader | None = None
        wanted = [number for number, stream in enumerate(process.spec.streams) if stream == wire.PIPE]
        for number, fd in zip(wanted, list(ends), strict=True):
            ends.remove(fd)
            if number == 0:
                self.stdin = AsyncWriter(WriteEnd(fd), text)
            elif number == 1:
                self.stdout = AsyncReader(ReadEnd(fd), text)
            else:
                self.stderr = AsyncReader(ReadEnd(fd), text)

    @property
    def pid(self) -> int:
        """
        The process id.
        """
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """
        The exit code; None while it is not known.
        """
        return self._process.returncode

    @property
    def rusage(self) -> Any:
        """
        Resources used; None while it runs.
        """
        return struct_rusage(self._process.usage)

    @property
    def duration(self) -> float | None:
        """
        Seconds from the request to the exit; None while it runs.
        """
        return self._process.duration

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: returncode: {self.returncode} args: {self.args!r}>"

    async def wait(self, timeout: float | None = None) -> int:
        """
        Wait until it has ended; returns the exit code. A cancellation ends the wait, not the process.

        Raises:
            TimeoutExpired: *timeout* seconds have passed; it runs on.
            SpawnLost: Its zygote was lost, and nobody can say how it ended.
        """
        self._process.check()
        return await adrive(self._process.wait_flow(timeout, deadline_after(timeout, time.monotonic())))

    async def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """
        Feed stdin, collect stdout and stderr, and wait for the end; as `Popen.communicate`.
        """
        self._process.check()
        deadline = deadline_after(timeout, time.monotonic())
        if self._streams is None:
            self._streams = self._connect(input)
        elif input:
            raise BadArgument("Cannot send input after starting communication", parameter="input", value=input)
        streams = self._streams
        self.held_by = await adrive(
            self._process.communicate_flow(streams, timeout=timeout, deadline=deadline, wait_eof=self._wait_eof)
        )
        streams.close()
        first, second = (None if drain is None else drain.result() for drain in streams.drains)
        if self._text is None:
            return first, second
        return self._text.decode(first), self._text.decode(second)

    def _connect(self, given: Any) -> Streams:
        data = input_bytes(given, self._text)
        feed: Feed | None = None
        if self.stdin is not None:
            end = self.stdin._end  # noqa: SLF001 - the same module's class
            if data and end.fd >= 0:
                feed = Feed(end.fd, data, close=end.close)
            else:
                end.close()
        elif data:
            raise BadArgument("stdin is not a pipe", parameter="input", value=given, help="give stdin=PIPE")
        drains: list[Drain | None] = []
        for reader in (self.stdout, self.stderr):
            read_end = None if reader is None else reader._end  # noqa: SLF001
            if read_end is None or read_end.fd < 0:
                drains.append(None)
            else:
                drains.append(Drain(read_end.fd, close=read_end.close, begun=read_end.read_ahead()))
        return Streams(feed, (drains[0], drains[1]))

    def send_signal(self, sig: int) -> None:
        """
        Signal the process; nothing happens when it has ended, and no other process can be hit.
        """
        self._process.send_signal(sig)

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

    async def stop(self, grace: float = GRACE_SECONDS) -> int | None:
        """
        End the process with its whole tree: SIGTERM, *grace* seconds, SIGKILL; as `Popen.stop`.
        """
        self._process.check()
        await adrive(self._process.stop_flow(whole=bool(self._process.spec.flags & wire.TREE), grace=grace))
        return self.returncode

    async def aclose(self) -> None:
        """
        Close the pipes, end the process if it still runs, and wait for it.
        """
        self._close_pipes()
        await self.stop()

    def _close_pipes(self) -> None:
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                close_end(stream._end)  # noqa: SLF001 - the same module's class

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_pipes()
        try:
            if kind is None:
                await self.wait()
        finally:
            if self.returncode is None:
                with shielded():
                    await self.stop()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        if _is_finalizing():
            return  # all was ended at the exit, and the modules are being taken apart
        process = getattr(self, "_process", None)
        if process is None or process.owner_pid != os.getpid():
            return
        process.forget(self, self.args)


async def aopen_process(
    args: Any,
    *,
    text: bool | None = None,
    encoding: str | None = None,
    errors: str | None = None,
    wait_eof: bool = False,
    engine: Engine | None = None,
    **options: Unpack[SpawnOptions],
) -> AsyncProcess:
    """
    Start a process. Arguments and errors as `Popen`, without ``bufsize``.

    A cancellation while it starts ends it.

    Runs in: application, a task of asyncio, uvloop or trio.
    """
    decoder = text_mode(text, encoding, errors)
    spec = build_spec(args, options, hold=True)
    audit(args, options)
    engine = current_engine() if engine is None else engine
    process = Process(engine, spec, args)
    ends = await adrive(process.start_flow(patient=True))
    try:
        held = AsyncProcess(process, ends, decoder, wait_eof=wait_eof)
        engine.track(process, held)
        return held
    except BaseException:
        close_all(ends)
        process.abandon()
        raise
