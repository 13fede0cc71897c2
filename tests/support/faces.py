"""
The four faces behind one interface: blocking, asyncio, uvloop, trio.

A contract test is an `async def` that takes the fixture `face` and awaits its methods. On the blocking face nothing
ever suspends, and the test runs through like any function; on the others it runs in a task of that event loop, next
to a ticker that says how long the loop stood still.

    async def test_it(face):
        result = await face.run(["echo", "hello"], capture_output=True)
        async with face.open(["cat"], stdin=PIPE, stdout=PIPE) as process: ...
        async with face.supervisor() as inner: await inner.run(["true"])
"""

import asyncio
import contextlib
import os
import time

import anyio
import trio
import uvloop

import safespawn

NAMES = ("blocking", "asyncio", "uvloop", "trio")
ASYNC_NAMES = NAMES[1:]
STALL_SECONDS = 0.5  # generous: only what really blocks is meant, such as a wait for a child that sleeps
_TICK_SECONDS = 0.02


class Stalled(AssertionError):
    """
    The event loop stood still.
    """


class Face:
    """
    One way to call the library.

    Args:
        name: One of `NAMES`.
        runner: The module or a Supervisor.
    """

    def __init__(self, name, runner=safespawn):
        self.name = name
        self.is_async = name != "blocking"
        self._runner = runner

    def __repr__(self):
        return f"<Face {self.name}>"

    async def run(self, args, **options):
        if self.is_async:
            return await self._runner.arun(args, **options)
        return self._runner.run(args, **options)

    async def check_output(self, args, **options):
        if self.is_async:
            return await self._runner.acheck_output(args, **options)
        return self._runner.check_output(args, **options)

    def open(self, args, **options):
        """
        A `Handle`: await it, or enter it with ``async with``.
        """
        return _Opening(self._open(args, options))

    async def _open(self, args, options):
        if self.is_async:
            return Handle(await self._runner.aopen_process(args, **options), is_async=True)
        return Handle(self._runner.open_process(args, **options), is_async=False)

    @contextlib.asynccontextmanager
    async def supervisor(self, **options):
        """
        Enter a Supervisor (guard="off": pytest's watchdog is a thread); gives the face over it.
        """
        owner = safespawn.Supervisor(**{"guard": "off", **options})
        if self.is_async:
            async with owner:
                yield Face(self.name, owner)
        else:
            with owner:
                yield Face(self.name, owner)

    @property
    def runner(self):
        """
        The module, or the Supervisor that was entered.
        """
        return self._runner

    def execute(self, function, arguments):
        """
        Run a test.
        """
        if not self.is_async:
            coroutine = function(**arguments)
            try:
                coroutine.send(None)
            except StopIteration:
                return
            coroutine.close()
            raise AssertionError("a blocking test awaited something that is not of its face")
        main = _watched(function, arguments)
        if self.name == "trio":
            trio.run(main)
        else:
            factory = uvloop.new_event_loop if self.name == "uvloop" else None
            with asyncio.Runner(debug=self.name == "asyncio", loop_factory=factory) as runner:
                runner.run(main())


class _Opening:
    def __init__(self, coroutine):
        self._coroutine = coroutine
        self._handle = None

    def __await__(self):
        return self._coroutine.__await__()

    async def __aenter__(self):
        self._handle = await self._coroutine
        return await self._handle.__aenter__()

    async def __aexit__(self, *error):
        return await self._handle.__aexit__(*error)


class Handle:
    """
    A `Popen` or an `AsyncProcess`; whatever it lacks is the process's own.
    """

    def __init__(self, process, *, is_async):
        self.process = process
        self._is_async = is_async

    def __getattr__(self, name):
        return getattr(self.process, name)

    async def _call(self, method, *args, **options):
        result = method(*args, **options)
        return await result if self._is_async else result

    async def wait(self, timeout=None):
        return await self._call(self.process.wait, timeout)

    async def communicate(self, input=None, timeout=None):
        return await self._call(self.process.communicate, input, timeout)

    async def stop(self, **options):
        return await self._call(self.process.stop, **options)

    async def readline(self):
        return await self._call(self.process.stdout.readline)

    async def read(self, size=-1):
        return await self._call(self.process.stdout.read, size)

    async def write(self, data):
        await self._call(self.process.stdin.write, data)
        if not self._is_async:
            self.process.stdin.flush()

    async def close_stdin(self):
        if self._is_async:
            await self.process.stdin.aclose()
        else:
            self.process.stdin.close()

    async def close_stdout(self):
        if self._is_async:
            await self.process.stdout.aclose()
        else:
            self.process.stdout.close()

    async def lines(self):
        if self._is_async:
            return [line async for line in self.process.stdout]
        return list(self.process.stdout)

    async def __aenter__(self):
        await self.process.__aenter__() if self._is_async else self.process.__enter__()
        return self

    async def __aexit__(self, *error):
        if self._is_async:
            return await self.process.__aexit__(*error)
        return self.process.__exit__(*error)


def _watched(function, arguments):
    """
    The main task of an async test: the test, beside a ticker.
    """

    async def main():
        failure = None
        ticker = Ticker()
        async with anyio.create_task_group() as group:
            await group.start(ticker.run)
            try:
                await function(**arguments)
            except BaseException as error:  # noqa: BLE001 - raised again outside, not wrapped in a group
                failure = error
            group.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if ticker.longest > STALL_SECONDS:
            raise Stalled(f"the event loop stood still for {ticker.longest:.2f} s")

    return main


class Ticker:
    """
    Measures the longest time in which its task was not run, less the time for which the kernel gave this thread no CPU.
    """

    def __init__(self):
        self.longest = 0.0

    async def run(self, *, task_status=anyio.TASK_STATUS_IGNORED):
        fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            task_status.started()
            last = _unhurried(fd)
            while True:
                try:
                    await anyio.sleep(_TICK_SECONDS)
                finally:
                    now = _unhurried(fd)
                    self.longest = max(self.longest, now - last - _TICK_SECONDS)
                    last = now
        finally:
            os.close(fd)


def _unhurried(fd):
    """
    Seconds, without those spent waiting for a CPU (proc(5), schedstat: time on a run queue).
    """
    waited = int(os.pread(fd, 100, 0).split()[1])
    return time.monotonic() - waited / 1e9
