"""
What a worker knows of itself: `safespawn.current_worker()`.

Runs in: worker; in the application everything is empty.
"""

import sys


class CurrentWorker:
    """
    The worker that this code runs in.

    Attributes:
        pool: Name of its pool.
        index: Its place there, from 0 up to the size of the pool less one. A worker that replaces another has the
            other's index.
        pid: Its process id.
    """

    __slots__ = ("index", "pid", "pool")

    def __init__(self, pool: str, index: int, pid: int) -> None:
        self.pool: str = pool
        self.index: int = index
        self.pid: int = pid

    def __repr__(self) -> str:
        return f"<worker {self.index} of pool {self.pool!r}, pid {self.pid}>"


worker: CurrentWorker | None = None
loading_main: str | None = None  # the file, while the application's __main__ is being loaded
unpacking = False  # the main thread unpickles what it was sent: a module that is imported now is imported for that


def refuse_reentry(what: str) -> None:
    """
    Refuse *what*, which starts processes, while this process loads the program's own file for a task.

    Raises:
        MainReentered: It does. The processes would load that file too, and theirs, without end.
    """
    if loading_main is None:
        return
    from safespawn.pool_errors import MainReentered

    frame = sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(("safespawn", "multiprocessing")):
        frame = frame.f_back
    name = frame.f_globals.get("__name__", "")
    at_top = frame.f_code.co_name == "<module>" and name not in ("__main__", "__mp_main__")
    raise MainReentered(
        what, filename=frame.f_code.co_filename, lineno=frame.f_lineno, module=name if at_top else ""
    )  # fmt: skip


def current_worker() -> CurrentWorker | None:
    """
    The worker that runs this code; None in the application.
    """
    return worker
