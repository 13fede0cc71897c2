"""
What a worker knows of itself: `safespawn.current_worker()`.

Runs in: worker; in the application everything is empty.
"""


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


def current_worker() -> CurrentWorker | None:
    """
    The worker that runs this code; None in the application.
    """
    return worker
