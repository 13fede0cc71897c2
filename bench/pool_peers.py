"""
The pools, all with two workers and one set of methods, so that each measure is written once.

What a pool cannot do it does not have: `call` is one task and its result; `submit` one task, `result` that of it;
`map`, `imap` and `imap_unordered` are those of multiprocessing. Anything that stands before a program's first pool is
in `prepare`. Peers are imported when they are asked for: one that is missing is left out, and named.
"""
# ruff: noqa: D101, D102 - the classes are the pools by name, and their methods those that the text above explains

import contextlib
import os
import pickle
import struct

WORKERS = 2


class NotBuiltError(Exception):
    """
    This version of safespawn does not have it yet.
    """


class Pool:
    """
    multiprocessing's methods, which ours has too.
    """

    def __init__(self, pool):
        self.pool = pool

    @staticmethod
    def prepare():
        pass

    def call(self, func, *args):
        return self.pool.apply(func, args)

    def submit(self, func, *args):
        return self.pool.apply_async(func, args)

    def result(self, handle):
        return handle.get()

    def map(self, func, items):
        return self.pool.map(func, items)

    def imap(self, func, items):
        return self.pool.imap(func, items)

    def imap_unordered(self, func, items, chunksize):
        return self.pool.imap_unordered(func, items, chunksize=chunksize)

    def close(self):
        self.pool.close()
        self.pool.join()


class Executor:
    """
    The methods of concurrent.futures.
    """

    def __init__(self, executor):
        self.executor = executor

    @staticmethod
    def prepare():
        pass

    def call(self, func, *args):
        return self.executor.submit(func, *args).result()

    def submit(self, func, *args):
        return self.executor.submit(func, *args)

    def result(self, handle):
        return handle.result()

    def close(self):
        self.executor.shutdown()


def ours(name):
    """
    What safespawn calls *name*, if it has it.
    """
    import safespawn

    if not hasattr(safespawn, name):
        raise NotBuiltError
    return getattr(safespawn, name)


class OurPool(Pool):
    def __init__(self, preload=(), workers=WORKERS):
        super().__init__(ours("Pool")(workers, **({"preload": list(preload)} if preload else {})))

    @staticmethod
    def prepare():
        import safespawn

        safespawn.init(guard="off", preload=[])


class OurExecutor(Executor):
    prepare = OurPool.prepare

    def __init__(self):
        super().__init__(ours("Executor")(WORKERS))


class StandardPool(Pool):
    """
    multiprocessing.Pool.
    """

    METHOD = ""

    def __init__(self, preload=(), workers=WORKERS):
        import multiprocessing

        context = multiprocessing.get_context(self.METHOD)
        if preload and self.METHOD == "forkserver":
            context.set_forkserver_preload(["__main__", *preload])
        super().__init__(context.Pool(workers))


class StandardPoolFork(StandardPool):
    METHOD = "fork"


class StandardPoolForkserver(StandardPool):
    METHOD = "forkserver"


class StandardPoolSpawn(StandardPool):
    METHOD = "spawn"


class StandardExecutor(Executor):
    """
    concurrent.futures.ProcessPoolExecutor, as it comes.
    """

    def __init__(self):
        from concurrent.futures import ProcessPoolExecutor

        super().__init__(ProcessPoolExecutor(WORKERS))


class Loky(Executor):
    def __init__(self):
        import loky

        super().__init__(loky.ProcessPoolExecutor(WORKERS))


class Deadpool(Executor):
    def __init__(self):
        import deadpool

        super().__init__(deadpool.Deadpool(max_workers=WORKERS))


class Pebble(Executor):
    def __init__(self):
        import pebble

        super().__init__(pebble.ProcessPool(max_workers=WORKERS))

    def call(self, func, *args):
        return self.submit(func, *args).result()

    def submit(self, func, *args):
        return self.executor.schedule(func, args=args)

    def close(self):
        self.executor.close()
        self.executor.join()


class Mpire(Pool):
    """
    With one pool for single tasks and another for many: workers that were called one way fail at another (2.10.2).
    """

    def __init__(self):
        import mpire

        super().__init__(mpire.WorkerPool(WORKERS, keep_alive=True))
        self.many = mpire.WorkerPool(WORKERS, keep_alive=True)

    def map(self, func, items):
        return self.many.map(func, items)

    def imap_unordered(self, func, items, chunksize):
        return self.many.imap_unordered(func, items, chunk_size=chunksize)

    def close(self):
        self.pool.stop_and_join()
        self.many.stop_and_join()


class Joblib:
    """
    Its default backend. One Parallel would be quicker to call, but takes an array that has changed for the old one.
    """

    def __init__(self):
        import joblib

        self.delayed, self.parallel = joblib.delayed, joblib.Parallel

    @staticmethod
    def prepare():
        pass

    def call(self, func, *args):
        return self.parallel(WORKERS)([self.delayed(func)(*args)])[0]

    def map(self, func, items):
        return self.parallel(WORKERS)(self.delayed(func)(item) for item in items)

    def close(self):
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor().shutdown()


class BarePipe:
    """
    No pool: one forked process and two pipes, with nothing but pickle. What the machine can do at this moment; it is
    also the one that is asked for a plain copy.
    """

    def __init__(self):
        task_read, self.task_write = os.pipe()
        self.result_read, result_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.task_write)
            with contextlib.suppress(EOFError):
                while True:
                    func, args = self.receive(task_read)
                    self.send(result_write, func(*args))
            os._exit(0)
        os.close(task_read)
        os.close(result_write)

    @staticmethod
    def prepare():
        pass

    @staticmethod
    def send(fd, value):
        data = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        data = struct.pack("=I", len(data)) + data
        while data:
            data = data[os.write(fd, data) :]

    @staticmethod
    def receive(fd):
        data = os.read(fd, 65536)
        if not data:
            raise EOFError
        (size,) = struct.unpack_from("=I", data)
        while len(data) < 4 + size:
            data += os.read(fd, 65536)
        return pickle.loads(memoryview(data)[4:])

    def call(self, func, *args):
        self.send(self.task_write, (func, args))
        return self.receive(self.result_read)

    def close(self):
        os.close(self.task_write)
        os.close(self.result_read)
        os.waitpid(self.pid, 0)


class AsyncPeer:
    """
    A pool of an event loop. It lives as long as the loop: `opened` gives an awaitable `call`.
    """

    def __init__(self, backend):
        self.backend = backend

    @staticmethod
    def prepare():
        pass

    def run(self, measure, *args):
        """
        In a new event loop: what `await measure(call, *args)` returns.
        """
        import anyio

        async def main():
            async with self.opened() as call:
                return await measure(call, *args)

        if self.backend == "uvloop":
            import uvloop  # noqa: F401 - missing is said here, not in the midst of it

            return anyio.run(main, backend="asyncio", backend_options={"use_uvloop": True})
        return anyio.run(main, backend=self.backend)

    def close(self):
        pass


class OurAsyncPool(AsyncPeer):
    prepare = OurPool.prepare

    @contextlib.asynccontextmanager
    async def opened(self):
        async with ours("AsyncPool")(WORKERS) as pool:
            yield pool.run


class TrioParallel(AsyncPeer):
    @contextlib.asynccontextmanager
    async def opened(self):
        import trio_parallel

        yield trio_parallel.run_sync


class AnyioToProcess(AsyncPeer):
    @contextlib.asynccontextmanager
    async def opened(self):
        import anyio.to_process

        yield anyio.to_process.run_sync


class RunInExecutor(AsyncPeer):
    @contextlib.asynccontextmanager
    async def opened(self):
        import asyncio
        import functools
        from concurrent.futures import ProcessPoolExecutor

        with ProcessPoolExecutor(WORKERS) as executor:
            yield functools.partial(asyncio.get_running_loop().run_in_executor, executor)


BLOCKING = {
    "safespawn.Pool": OurPool,
    "safespawn.Executor": OurExecutor,
    "multiprocessing fork": StandardPoolFork,
    "multiprocessing forkserver": StandardPoolForkserver,
    "multiprocessing spawn": StandardPoolSpawn,
    "ProcessPoolExecutor": StandardExecutor,
    "loky": Loky,
    "joblib": Joblib,
    "mpire": Mpire,
    "pebble": Pebble,
    "deadpool": Deadpool,
}
ASYNC = {
    "safespawn.AsyncPool": (OurAsyncPool, ("asyncio", "uvloop", "trio")),
    "run_in_executor": (RunInExecutor, ("asyncio", "uvloop")),
    "anyio.to_process": (AnyioToProcess, ("asyncio", "uvloop", "trio")),
    "trio-parallel": (TrioParallel, ("trio",)),
}
BARE = "no pool"
ASYNC_NAMES = tuple(f"{name} on {backend}" for name, (_, backends) in ASYNC.items() for backend in backends)


def peer_of(name):
    """
    What makes a pool of this name: a callable, with `prepare` beside it.
    """
    if name == BARE:
        return BarePipe, BarePipe.prepare
    if name in BLOCKING:
        return BLOCKING[name], BLOCKING[name].prepare
    kind, _, backend = name.rpartition(" on ")
    peer = ASYNC[kind][0]
    return (lambda: peer(backend)), peer.prepare
