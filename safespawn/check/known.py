"""
What the functions and classes of others do: the standard library's, safespawn's, and a few that start threads quietly.

Names are brought to one form first. Whatever starts processes the way of `multiprocessing` becomes `mp:KIND.Name`, by
how it starts them: "default" (fork on Linux, up to Python 3.13), "fork", "safe" (spawn, forkserver), "safespawn", or
"unknown". An instance is its class with brackets: `threading.Thread().start` is the method of an object.

Runs in: the checker, any thread. Pure: tables, and look-ups in them.
"""

from __future__ import annotations

import enum
import functools
from typing import TYPE_CHECKING

from safespawn.check.names import Const

if TYPE_CHECKING:
    from safespawn.check.names import Made


class Effect(enum.Enum):
    """
    What a call can do.
    """

    THREAD = "starts a thread"
    COMMAND = "runs a command"
    PROCESS = "starts a process or pool"
    FORKS = "forks this process"
    ENDS = "waits for what was started, or ends it"
    LOGS = "logs"
    LOCKS = "takes a lock"
    WAITS = "waits for what it started itself"


NONE: frozenset[Effect] = frozenset()
_THREAD = frozenset({Effect.THREAD})
_COMMAND = frozenset({Effect.COMMAND})
_ENDS = frozenset({Effect.ENDS})
_LOGS = frozenset({Effect.LOGS})
_LOCKS = frozenset({Effect.LOCKS})
_ACTS = frozenset({Effect.THREAD, Effect.COMMAND, Effect.PROCESS, Effect.FORKS, Effect.ENDS})

# The packages that any of the tables below has a name of.
PACKAGES = frozenset(
    "_thread anyio apscheduler asyncio billiard concurrent logging multiprocess multiprocessing os posix pty "
    "prometheus_client safespawn signal six socket subprocess subprocess32 thread threading torch trio watchdog".split()
)

# A function without any of these words does nothing of what the rules are about, unless it calls one that does.
WORDS = frozenset(
    word.encode()
    for word in (
        "Thread Timer start_new_thread start_new start_joinable_thread ThreadPool to_thread "
        "ThreadPoolExecutor ProcessPoolExecutor QueueListener BackgroundScheduler Observer "
        "start_http_server multiprocessing multiprocess billiard subprocess subprocess32 Popen popen system "
        "fork forkpty pty posix_spawn posix_spawnp spawnl spawnle spawnlp spawnlpe spawnv spawnve spawnvp spawnvpe "
        "open_process run_process create_subprocess_exec create_subprocess_shell "
        "preexec_fn pass_fds close_fds set_inheritable register_at_fork signal safespawn global"
    ).split()
)

# --- one name for each thing ------------------------------------------------------------------------------------------
_MODULES = {
    "billiard": "multiprocessing",
    "multiprocess": "multiprocessing",
    "torch.multiprocessing": "multiprocessing",
    "concurrent.futures.thread": "concurrent.futures",
    "concurrent.futures.process": "concurrent.futures",
    "asyncio.subprocess": "asyncio",
    "six.moves._thread": "_thread",
    "subprocess32": "subprocess",
    "posix": "os",
    "watchdog.observers.api": "watchdog.observers",
    "safespawn.pool": "safespawn",
    "safespawn.apool": "safespawn",
    "safespawn.context": "safespawn",
    "safespawn.executor": "safespawn",
    "safespawn.process": "safespawn",
    "safespawn.supervisor": "safespawn",
}
_NAMES = {
    "multiprocessing.pool.Pool": "mp:default.Pool",
    "multiprocessing.pool.ThreadPool": "multiprocessing.ThreadPool",
    "multiprocessing.dummy.Pool": "multiprocessing.ThreadPool",
    "multiprocessing.dummy.Process": "threading.Thread",
    "multiprocessing.process.Process": "mp:default.Process",
    "multiprocessing.process.BaseProcess": "mp:default.Process",
    "multiprocessing.context.Process": "mp:default.Process",
    "multiprocessing.context.ForkProcess": "mp:fork.Process",
    "multiprocessing.context.SpawnProcess": "mp:safe.Process",
    "multiprocessing.context.ForkServerProcess": "mp:safe.Process",
    "multiprocessing.context.ForkContext": "mp:fork.Context",
    "multiprocessing.context.SpawnContext": "mp:safe.Context",
    "multiprocessing.context.ForkServerContext": "mp:safe.Context",
    "multiprocessing.managers.BaseManager": "mp:default.BaseManager",
    "multiprocessing.managers.SyncManager": "mp:default.BaseManager",
    "multiprocessing.managers.SharedMemoryManager": "mp:default.BaseManager",
    "multiprocessing.queues.Queue": "mp:default.Queue",
    "multiprocessing.queues.JoinableQueue": "mp:default.JoinableQueue",
    "safespawn.Process": "mp:safespawn.Process",
    "safespawn.get_context": "mp:safespawn.get_context",
    "threading._Timer": "threading.Timer",
    "_thread.start_new": "_thread.start_new_thread",
    "_thread.start_joinable_thread": "_thread.start_new_thread",
    "thread.start_new_thread": "_thread.start_new_thread",
}
_MP_NAMES = frozenset(
    "Pool Process Manager Queue JoinableQueue SimpleQueue get_context set_start_method Context BaseManager".split()
)


@functools.lru_cache(maxsize=8192)
def canonical(path: str) -> str:
    """
    The one name that the tables know a thing by.
    """
    words = path.split(".")
    for count in (2, 1):
        other = _MODULES.get(".".join(words[:count])) if len(words) > count - 1 else None
        if other is not None:
            return canonical(".".join([other, *words[count:]]))
    for count in range(2, min(len(words), 4) + 1):
        name = _NAMES.get(".".join(words[:count]))
        if name is not None:
            return ".".join([name, *words[count:]])
    if words[0] == "multiprocessing" and len(words) > 1 and words[1] in _MP_NAMES:
        return ".".join(["mp:default", *words[1:]])
    return path


# Of these packages only what the tables name is of interest; of the others everything.
_WIDE = frozenset(
    "_thread anyio asyncio concurrent logging os posix signal six socket thread threading torch trio".split()
)
_HOOKS = frozenset({"os.register_at_fork", "os.set_inheritable", "signal.signal"})


def is_of_interest(path: str) -> bool:
    """
    Whether a function that has a name for *path* can do anything of what the rules are about.
    """
    top = path.partition(".")[0]
    if top not in PACKAGES:
        return False
    path = canonical(path)
    if top not in _WIDE or path.startswith("mp:") or path in _HOOKS:
        return True
    return path.partition("()")[0] in _MAKERS or not effects_of(path).isdisjoint(_ACTS)


def display(path: str) -> str:
    """
    A name of the tables, for people.
    """
    if path.startswith("mp:"):
        kind, _, rest = path.partition(".")
        home = "safespawn" if kind == "mp:safespawn" else "multiprocessing"
        return f"{home}.{rest}".replace("()", "")
    return path.replace("()", "")


def kind_of(path: str) -> str:
    """
    How a thing of multiprocessing's starts processes: "default", "fork", "safe", "safespawn", "unknown"; "" for others.
    """
    return path[3:].partition(".")[0] if path.startswith("mp:") else ""


# --- what a call returns ----------------------------------------------------------------------------------------------
_METHODS_OF_CONTEXT = {"fork": "fork", "spawn": "safe", "forkserver": "safe", "safespawn": "safespawn"}
_LOGGERS = frozenset({"logging.getLogger", "logging.LoggerAdapter", "multiprocessing.get_logger"})
_ASYNC_PROCESSES = frozenset({"asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"})
_THREADS = frozenset({"threading.Thread", "threading.Timer", "watchdog.observers.Observer"})
_EXECUTORS = frozenset({"concurrent.futures.ThreadPoolExecutor", "concurrent.futures.ProcessPoolExecutor"})


def result_of(path: str, made: Made) -> str:
    """
    What a call of *path* gives, in the tables' words.
    """
    if path.startswith("mp:") and path.endswith(".get_context"):
        given, value = made.argument(0, "method")
        if kind_of(path) == "safespawn":
            return "mp:safespawn"
        if not given or value == Const(None):
            return path.removesuffix(".get_context")
        word = value.value if isinstance(value, Const) else None
        return f"mp:{_METHODS_OF_CONTEXT.get(word, 'unknown')}" if isinstance(word, str) else "mp:unknown"
    if path.startswith("mp:") and path.endswith(".Context"):
        return path.removesuffix(".Context")
    if path in _LOGGERS or path == "logging.Logger().getChild":
        return "logging.Logger()"
    if path in _ASYNC_PROCESSES:
        return "asyncio.Process()"
    if path.startswith("concurrent.futures.") and path.endswith("Executor().submit"):
        return "concurrent.futures.Future()"
    return f"{path}()"


# --- what a call does -------------------------------------------------------------------------------------------------
_SUBPROCESS = "Popen run call check_call check_output getoutput getstatusoutput".split()
STARTS_COMMAND = frozenset(
    {
        *(f"subprocess.{name}" for name in _SUBPROCESS), *_ASYNC_PROCESSES,
        "os.system", "os.popen", "os.posix_spawn", "os.posix_spawnp", "pty.spawn",
        "anyio.run_process", "anyio.open_process", "trio.run_process",
        *(f"os.spawn{ending}" for ending in "l le lp lpe v ve vp vpe".split()),
        *(f"safespawn.{name}" for name in
          "run arun call check_call check_output acheck_output Popen open_process aopen_process".split()),
    }
)  # fmt: skip
FORKS = frozenset({"os.fork", "os.forkpty", "pty.fork"})

_TABLE: dict[str, frozenset[Effect]] = {
    **dict.fromkeys(STARTS_COMMAND, _COMMAND),
    **dict.fromkeys(FORKS, frozenset({Effect.FORKS})),
    "_thread.start_new_thread": _THREAD,
    "logging.handlers.QueueListener().start": _THREAD,
    "logging.handlers.QueueListener().stop": _ENDS,
    "multiprocessing.ThreadPool": _THREAD,
    "multiprocessing.ThreadPool().join": _ENDS,
    "asyncio.to_thread": _THREAD,
    "anyio.to_thread.run_sync": _THREAD,
    "trio.to_thread.run_sync": _THREAD,
    "apscheduler.schedulers.background.BackgroundScheduler().start": _THREAD,
    "apscheduler.schedulers.background.BackgroundScheduler().shutdown": _ENDS,
    "prometheus_client.start_http_server": _THREAD,
    "concurrent.futures.ThreadPoolExecutor().submit": _THREAD,
    "concurrent.futures.ThreadPoolExecutor().map": _THREAD,
    "concurrent.futures.Future().result": _ENDS,
    "concurrent.futures.Future().exception": _ENDS,
    **{f"{name}().start": _THREAD for name in _THREADS},
    **{f"{name}().join": _ENDS for name in _THREADS},
    **{f"{name}().shutdown": _ENDS for name in _EXECUTORS},
    **{f"logging.{name}": _LOGS for name in "debug info warning error exception critical log".split()},
    **{f"logging.Logger().{name}": _LOGS for name in "debug info warning warn error exception critical log".split()},
    **{f"threading.{name}().acquire": _LOCKS for name in "Lock Semaphore BoundedSemaphore".split()},
    **{f"threading.{name}().__enter__": _LOCKS for name in "Lock Semaphore BoundedSemaphore".split()},
    "_thread.allocate_lock().acquire": _LOCKS,
    "_thread.allocate_lock().__enter__": _LOCKS,
    "safespawn.Pool": frozenset({Effect.PROCESS}),
    "safespawn.Executor().submit": frozenset({Effect.PROCESS}),
    "safespawn.Executor().map": frozenset({Effect.PROCESS}),
    "safespawn.Supervisor().__enter__": NONE,
}
_PROCESS_CALLS = frozenset({"Pool", "Manager", "Process().start", "BaseManager().start"})
_PROCESS_ENDS = frozenset({"Process().join", "Pool().join", "Pool().terminate", "BaseManager().shutdown"})


def effects_of(path: str) -> frozenset[Effect]:
    """
    What a call of *path* does.
    """
    kind, _, rest = path.partition(".")
    if kind.startswith("mp:"):
        if rest in _PROCESS_CALLS:
            forks = kind in ("mp:default", "mp:fork")
            return frozenset({Effect.PROCESS, Effect.FORKS} if forks else {Effect.PROCESS})
        return _ENDS if rest in _PROCESS_ENDS else NONE
    return _TABLE.get(path, NONE)


_MAKERS = frozenset(path.partition("()")[0] for path, what in _TABLE.items() if "()" in path and what & _ACTS)


def is_started(path: str) -> bool:
    """
    Whether the objects of a class are threads or processes, which have a method `start`.
    """
    return path in _THREADS or (path.startswith("mp:") and path.endswith((".Process", ".BaseManager")))


def is_relevant(path: str) -> bool:
    """
    Whether any rule cares about a call of *path*.
    """
    return path.startswith("mp:") or path in _TABLE or path.startswith(_RELEVANT_STARTS)


_RELEVANT_STARTS = (
    "concurrent.futures.ProcessPoolExecutor",
    "os.",
    "signal.signal",
    "subprocess.",
    "asyncio.",
    "multiprocessing.",
    "socket.socket().set_inheritable",
)
