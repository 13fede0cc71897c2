"""
A program of the standard library's only, with a thread beside. The test runs it again with other import lines, and
nothing else changed: it must say the same.
"""

# ruff: noqa: D103, PLW0603, PLW1510 - as programs are written

import asyncio
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from asyncio.subprocess import PIPE, create_subprocess_exec, create_subprocess_shell
from concurrent import futures
from multiprocessing import shared_memory
from multiprocessing.pool import ThreadPool


def say(*words):
    print(*words, flush=True)


def commands():
    say(subprocess.run(["tr", "a-z", "A-Z"], input="abc", capture_output=True, text=True))
    say(subprocess.getstatusoutput("echo x; exit 3"), subprocess.getoutput("echo y"))
    say(subprocess.call(["false"]), subprocess.check_call(args=["true"]), subprocess.check_output(["echo", "z"]))
    with subprocess.Popen("cat", -1, None, subprocess.PIPE, subprocess.PIPE) as process:
        say(process.communicate(b"in"), process.returncode, process.args)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as process:
        os.killpg(process.pid, signal.SIGTERM)
        say(process.wait(), process.poll())
    process = subprocess.Popen("exit 5", shell=True)
    say(os.waitstatus_to_exitcode(os.waitpid(process.pid, 0)[1]), process.returncode)
    process.wait()
    for arguments, options in (
        ("exit 7", {"shell": True, "check": True}),
        (["sleep", "60"], {"timeout": 0.05}),
        (["/no/such/program"], {}),
        (["true"], {"cwd": "/no/such/directory"}),
        (["true"], {"input": b"", "stdin": subprocess.PIPE}),
    ):
        try:
            subprocess.run(arguments, **options)
        except (subprocess.SubprocessError, OSError, ValueError) as error:
            error = pickle.loads(pickle.dumps(error))
            say([getattr(error, name, None) for name in ("returncode", "cmd", "errno", "filename")])
            say(re.sub(r"\n.*|\d\.\d+ s", "", str(error), flags=re.DOTALL))
    leads = "test $(cut -d' ' -f6 /proc/$$/stat) = $$ && echo leads"
    say(subprocess.check_output(leads, shell=True, preexec_fn=os.setsid, text=True))
    say(pickle.loads(pickle.dumps(subprocess.run)) is subprocess.run, subprocess.list2cmdline(["a b", "c"]))


class Counter(multiprocessing.Process):
    def __init__(self, queue, total, lock):
        super().__init__(name="counter")
        self.queue, self.total, self.lock = queue, total, lock

    def run(self):
        with self.lock:
            self.total.value += 1
        self.queue.put((self.name, multiprocessing.current_process().name))


def fill(name, connection, done):
    memory = shared_memory.SharedMemory(name)
    memory.buf[:5] = b"hello"
    memory.close()
    connection.send({"parent": multiprocessing.parent_process() is not None})
    done.set()


def processes():
    queue, total, lock = multiprocessing.Queue(), multiprocessing.Value("i", 0), multiprocessing.Lock()
    counters = [Counter(queue, total, lock) for _ in range(3)]
    for process in counters:
        process.start()
    say([queue.get() for _ in counters])
    for process in counters:
        process.join()
    say(total.value, [process.exitcode for process in counters], multiprocessing.active_children())
    memory = shared_memory.SharedMemory(create=True, size=16)
    here, there = multiprocessing.Pipe(duplex=False)
    done = multiprocessing.Event()
    process = multiprocessing.Process(target=fill, args=(memory.name, there, done), daemon=True)
    process.start()
    say(here.recv(), done.wait(30), bytes(memory.buf[:5]))
    process.join()
    memory.close()
    memory.unlink()
    for target, arguments in ((sys.exit, (3,)), (os.kill, (os.getpid(), 0)), (time.sleep, (60,))):
        process = multiprocessing.Process(target=target, args=arguments)
        process.start()
        if target is time.sleep:
            process.kill()
        process.join()
        say(process.exitcode)
    with multiprocessing.Manager() as manager:
        shared = manager.dict(a=1)
        process = multiprocessing.Process(target=shared.update, args=({"b": 2},))
        process.start()
        process.join()
        say(dict(shared))


def square(number):
    return number * number


def fail(number):
    raise KeyError(number)


gate = None


def set_gate(lock):
    global gate
    gate = lock


def pass_gate(number):
    with gate:
        return number


def pools():
    seen = []
    with multiprocessing.Pool(2) as pool:
        say(pool.map(square, range(5)), pool.starmap(pow, [(2, 3), (3, 2)]), pool.apply(square, (9,)))
        say(sorted(pool.imap_unordered(square, range(5), 2)), list(pool.imap(square, range(3))))
        pool.apply_async(square, (7,), callback=seen.append).wait()
        say(seen, len(pool._pool), {worker.is_alive() for worker in pool._pool})
        for call in (lambda: pool.map(fail, [1]), lambda: pool.apply_async(fail, (2,)).get(30)):
            try:
                call()
            except KeyError as error:
                say(repr(error), type(error.__cause__).__name__)
        pool.close()
        pool.join()
    with multiprocessing.get_context().Pool(1, set_gate, (multiprocessing.Lock(),)) as pool:
        say(pool.map(pass_gate, [1, 2]))
    with ThreadPool(2) as pool:
        say(pool.map(square, range(3)), pool.apply(os.getpid) == os.getpid())


def executors():
    with futures.ProcessPoolExecutor(2) as executor:
        say(list(executor.map(square, range(4), chunksize=2)), executor.submit(square, 5).result())
        say(repr(executor.submit(fail, 1).exception()), executor._max_workers, executor._broken)
        done, rest = futures.wait([executor.submit(square, number) for number in range(3)])
        say(sorted(future.result() for future in done), rest)
        say(sorted(future.result() for future in futures.as_completed(executor.submit(square, n) for n in range(3))))
    try:
        executor.submit(square, 1)
    except RuntimeError as error:
        say(str(error).partition("\n")[0])
    with futures.ThreadPoolExecutor(1) as executor:
        say(executor.submit(os.getpid).result() == os.getpid())


async def asynchronous():
    process = await create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    say(await process.communicate(b"async"), process.returncode)
    process = await create_subprocess_shell("exit 4")
    say(await process.wait())
    with futures.ProcessPoolExecutor(1) as executor:
        say(await asyncio.get_running_loop().run_in_executor(executor, square, 6))


def main():
    go = threading.Event()
    thread = threading.Thread(target=go.wait)
    thread.start()
    commands()
    processes()
    pools()
    executors()
    asyncio.run(asynchronous())
    go.set()
    thread.join()


if __name__ == "__main__":
    main()
