"""
Threads that do random things, and a nemesis that kills, stops and starves: `race_nemesis.py SECONDS SEED`.

Every call must end with a right result or an error of ours, within a bound; then everything must be gone.
"""

import asyncio
import gc
import json
import os
import random
import signal
import sys
import threading
import time

import safespawn
from safespawn import errors, supervisor
from safespawn._core import child
from support.children import alive

SECONDS, SEED = float(sys.argv[1]), int(sys.argv[2])
THREADS = 6
CALL_SECONDS = 15.0
child.ANSWER_SECONDS = child.NEWS_SECONDS = 3.0


def run(chance):
    """A command whose outcome is known."""
    code = chance.randrange(200)
    done = safespawn.run(["sh", "-c", f"echo {code}; exit {code}"], capture_output=True)
    assert done.returncode in (code, -signal.SIGKILL, -signal.SIGSTOP), done
    if done.returncode == code:
        assert done.stdout == b"%d\n" % code, done


def quiet(chance):
    """A command without pipes."""
    done = safespawn.run(["true"], **chance.choice([{}, {"nice": 1}, {"start_new_session": True}]))
    assert done.returncode in (0, -signal.SIGKILL), done


def late(chance):
    """A tree that is ended by its timeout."""
    try:
        safespawn.run(["sh", "-c", "sleep 30 & sleep 30"], timeout=chance.uniform(0, 0.2), stdout=safespawn.PIPE)
    except safespawn.TimeoutExpired:
        pass


def talk(chance):
    """A process that is talked to."""
    data = b"x" * chance.choice([1, 1000, 300_000])
    process = safespawn.Popen(["cat"], stdin=-1, stdout=-1)
    try:
        out, _ = process.communicate(data, timeout=10)
        assert process.returncode in (0, -signal.SIGKILL), process
        assert process.returncode or out == data
    finally:
        for file in (process.stdin, process.stdout):
            file.close()
        process.stop()


def stop(chance):
    """A stubborn tree that is ended."""
    process = safespawn.Popen(["sh", "-c", "trap '' TERM; sleep 30 & wait"], start_new_session=chance.random() < 0.5)
    process.stop(grace=0.01)


def tasks(chance):
    """Commands in an event loop, some of which are cancelled."""

    async def one():
        try:
            await asyncio.wait_for(safespawn.arun(["sleep", chance.choice(["0", "30"])]), chance.uniform(0.01, 0.2))
        except (TimeoutError, errors.SafespawnError):
            pass

    async def main():
        await asyncio.gather(*[one() for _ in range(4)])

    asyncio.run(main())


def fork(chance):
    """A copy that runs a command."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            safespawn.run(["true"])
            supervisor.default_supervisor().close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def missing(chance):
    """A command that does not exist."""
    try:
        safespawn.run([f"/does/not/exist/{chance.random()}"])
    except FileNotFoundError:
        return
    except errors.SafespawnError:
        raise
    raise AssertionError("it ran")


CALLS = (run, run, run, quiet, quiet, late, talk, stop, tasks, fork, missing)


def below(pid):
    """Everybody below *pid*."""
    found = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(word) for word in file.read().split()]
    except OSError:
        return []
    return found + [other for each in found for other in below(each)]


def await_end(*pids):
    """Wait until none of them runs, ten seconds at most."""
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.005)


def nemesis(chance, over, deeds):
    """Hit somebody below this process: a zygote, a warden, a command."""
    while not over.wait(chance.uniform(0.05, 0.5)):
        engine = supervisor.default_supervisor()._engine
        deed = chance.choice(["zygote", "warden", "stop", "freeze", "command", "command", "command"])
        try:
            current = engine._current[False]
            if deed == "zygote":
                os.kill(current.pid, signal.SIGKILL)
            elif deed == "warden":
                os.kill(current.warden_pid, signal.SIGKILL)
            elif deed in ("stop", "freeze"):
                os.kill(current.pid, signal.SIGSTOP)
                over.wait(0.2 if deed == "stop" else 1.5)
                os.kill(current.pid, signal.SIGCONT)
            elif commands := below(current.pid):
                os.kill(chance.choice(commands), signal.SIGKILL)
            deeds[deed] = deeds.get(deed, 0) + 1
            if deed in ("zygote", "warden"):  # whoever is left cleans up; to kill both at once is a limit that is told
                await_end(current.pid, current.warden_pid)
        except (KeyError, ProcessLookupError):
            continue


def work(number, over, told):
    """Make one call after the other."""
    chance = random.Random(SEED * 1000 + number)
    while not over.is_set():
        call = chance.choice(CALLS)
        began = time.monotonic()
        try:
            call(chance)
            outcome = "right"
        except errors.SafespawnError as error:
            outcome = type(error).__name__
        except BaseException as error:  # noqa: BLE001 - told to the test
            outcome = f"WRONG {call.__name__}: {error!r}"
        seconds = time.monotonic() - began
        if seconds > CALL_SECONDS:
            outcome = f"WRONG late {call.__name__} {outcome}"
        told.append((call.__name__, outcome, seconds))


def targets():
    """What the descriptors point at."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:
            continue
    return sorted(found)


def main():
    """Let them loose, then count."""
    asyncio.run(asyncio.sleep(0))
    safespawn.run(["true"])
    supervisor.default_supervisor().close()
    supervisor._default.clear()
    before = targets()
    over, told, deeds = threading.Event(), [], {}
    threads = [threading.Thread(target=work, args=(number, over, told)) for number in range(THREADS)]
    enemy = threading.Thread(target=nemesis, args=(random.Random(SEED), over, deeds))
    for thread in (*threads, enemy):
        thread.start()
    time.sleep(SECONDS)  # the time that this program is asked to take
    over.set()
    for thread in (*threads, enemy):
        thread.join()
    after = safespawn.run(["sh", "-c", "exit 5"]).returncode
    began = time.monotonic()
    supervisor.default_supervisor().close()
    closed = time.monotonic() - began
    gc.collect()
    left = targets()
    for each in before:
        if each in left:
            left.remove(each)
    outcomes = {}
    for _, outcome, _ in told:
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    facts = {
        "calls": len(told), "outcomes": outcomes, "deeds": deeds, "slowest": round(max(each[2] for each in told), 2),
        "closed": round(closed, 2), "left": left, "below": len(below(os.getpid())), "after": after,
    }  # fmt: skip
    print(json.dumps(facts), flush=True)


main()
