"""
Logging in a worker: every record that reaches the root logger goes into a ring of shared memory, from where the
application gives it to its own handlers.

A record is one message of plain data, marshalled: nothing is pickled, so there is no record that cannot be sent, and
none that runs code when it is read. The levels are the application's, so what it would not show costs no message.

    room      the record is written; if the worker is killed now, it arrives
    no room   the application is behind. As long as it reads, the worker waits for it; if it has not read anything for
              a second, this record is dropped and counted, and so are all that come before it reads again

Also sent: warnings, and the exceptions that threads and finalizers end with.

Runs in: worker, any thread; a process that a task has forked sends its records through the task socket.
Never: waits for ever; is silent about what it dropped: the application tells the count.
"""

import logging
import marshal
import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from safespawn._worker.ring import READ, Ring

RECORD_BYTES = 60 * 1024  # of one record; a longer one is cut. It fits a datagram of the task socket
CUT_BYTES = 12 * 1024  # what is left of each of its texts
REPR_CHARS = 1024
DEPTH = 4  # of lists and dicts in `extra`
SLOW_SECONDS = 1.0  # without any progress of the reader, until records are dropped
LOOK_SECONDS = 0.001
LOGGER = "safespawn.worker"  # for what nobody has logged: exceptions of threads and finalizers
_SCALARS = frozenset((str, int, float, bool, bytes, type(None)))
_dumps = marshal.dumps
_VERSION = 2  # of marshal: without the search for what occurs twice


class Relay(logging.Handler):
    """
    The root logger's handler in a worker.

    Args:
        ring: For the records.
        wake_fd: An eventfd that tells the application of them.
        running: Says which task runs, as a number; 0: none.
        send: Sends a record from a forked copy of the worker.
        note: Keeps the end of what would have gone to stderr, for whoever asks why the worker ended.
    """

    def __init__(
        self,
        ring: Ring,
        wake_fd: int,
        running: Callable[[], int],
        send: Callable[[bytes], None],
        note: Callable[[bytes], None],
    ) -> None:
        super().__init__()
        self.note = note
        self.ring = ring
        self.wake_fd = wake_fd
        self.running = running
        self.send = send
        self.pid = os.getpid()
        self.is_copy = False
        self.is_writing = False
        self.late: deque[bytes] = deque()  # written by a signal's handler while this thread was writing
        self.stalled = False  # the application has not read for a second, and records were dropped
        os.register_at_fork(after_in_child=self._note_copy)

    def _note_copy(self) -> None:
        self.is_copy = True

    def handle(self, record: logging.LogRecord) -> bool:
        """
        Send *record*. There are no filters here, so none is asked.
        """
        try:
            message = pack_record(record, self.running())
        except Exception:  # noqa: BLE001 - as in every handler of logging
            self.handleError(record)
            return True
        lock: Any = self.lock
        with lock:
            self.put(message)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """
        As `handle`.
        """
        self.handle(record)

    def put(self, message: bytes) -> None:
        """
        Bring *message* to the application.
        """
        if self.is_copy:
            self.send(message)
            return
        if self.is_writing:
            self.late.append(message)
            return
        self.is_writing = True
        try:
            if self.ring.put(message):
                self.stalled = False
            elif not self._wait_and_put(message):
                self.ring.drop()
            while self.late:
                if not self.ring.put(self.late.popleft()):
                    self.ring.drop()
        finally:
            self.is_writing = False
        os.eventfd_write(self.wake_fd, 1)

    def _wait_and_put(self, message: bytes) -> bool:
        """
        There is no room. Says whether there was some in the end.
        """
        if self.stalled:
            return False
        os.eventfd_write(self.wake_fd, 1)
        cells = self.ring.cells
        seen, deadline = cells[READ], time.monotonic() + SLOW_SECONDS
        while time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
            if self.ring.put(message):
                return True
            if cells[READ] != seen:
                seen, deadline = cells[READ], time.monotonic() + SLOW_SECONDS
        self.stalled = True
        return False

    # --- what the worker's logging is made of ------------------------------------------------------------------------
    def install(self) -> None:
        """
        Be the root logger's handler, and see to warnings and to exceptions that nobody catches.
        """
        logging.getLogger().addHandler(self)
        logging.captureWarnings(True)
        logger = logging.getLogger(LOGGER)

        def uncaught(kind: Any, error: Any, trace: Any) -> None:
            logger.critical("uncaught exception", exc_info=(kind, error, trace))
            self.note("".join(traceback.format_exception(kind, error, trace)).encode(errors="replace"))

        def in_thread(args: Any) -> None:
            if args.exc_type is not SystemExit:
                name = getattr(args.thread, "name", "a thread")
                logger.error(
                    "exception in thread %s", name, exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
                )

        def unraisable(args: Any) -> None:
            what = args.err_msg or "exception ignored in"
            logger.error(
                "%s: %s", what, _repr(args.object), exc_info=(args.exc_type, args.exc_value, args.exc_traceback)
            )

        sys.excepthook = uncaught
        threading.excepthook = in_thread
        sys.unraisablehook = unraisable


_pushed: set[str] = set()


def set_levels(levels: tuple[int, dict[str, int]]) -> None:
    """
    Take the application's levels.

    Args:
        levels: What `logging.disable` was called with, and the levels of loggers, by name.
    """
    disabled, by_name = levels
    for name in _pushed - set(by_name):
        logging.getLogger(name).setLevel(logging.NOTSET)
    _pushed.clear()
    _pushed.update(by_name)
    for name, level in by_name.items():
        logging.getLogger(name).setLevel(level)
    logging.disable(disabled)


# --- records as plain data -------------------------------------------------------------------------------------------
_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}
_COUNT = len(logging.makeLogRecord({}).__dict__)
_EXCEPTIONS = logging.Formatter()


def pack_record(record: logging.LogRecord, task: int) -> bytes:
    """
    *record* as bytes. The message is put together here, where its arguments are.
    """
    values = record.__dict__
    text = record.msg if type(record.msg) is str and not record.args else record.getMessage()
    extra = None
    if len(values) != _COUNT:
        extra = {str(name): plain(value) for name, value in values.items() if name not in _STANDARD} or None
    error = None
    exc_info = record.exc_info
    if exc_info or record.exc_text or record.stack_info:
        error = _pack_error(record)
    flat = (
        record.name, record.levelno, record.levelname, text, record.pathname, record.lineno, record.funcName,
        record.created, record.msecs, record.thread, record.threadName, values.get("taskName"), task, extra, error,
    )  # fmt: skip
    try:
        data = _dumps(flat, _VERSION)
    except ValueError:  # somebody has put an object where a record has a name
        data = _dumps(tuple(plain(each) for each in flat), _VERSION)
    return data if len(data) <= RECORD_BYTES else _cut(flat)


def _pack_error(record: logging.LogRecord) -> tuple[Any, ...]:
    """
    The text of the exception, its class, its notes; and the stack.
    """
    kind: str | None = None
    notes: tuple[str, ...] = ()
    text = record.exc_text
    if record.exc_info:
        exc_type, error, _ = record.exc_info
        if exc_type is not None:
            text = text or _EXCEPTIONS.formatException(record.exc_info)
            kind = f"{exc_type.__module__}.{exc_type.__qualname__}".removeprefix("builtins.")
            found = getattr(error, "__notes__", None) or ()
            notes = tuple(str(note)[:REPR_CHARS] for note in list(found)[:20])
    return text, kind, notes, record.stack_info


def _cut(flat: tuple[Any, ...]) -> bytes:
    """
    A record that is too long, with its long texts cut.
    """
    limit = CUT_BYTES
    while True:
        rows = [_shorter(each, limit) for each in flat]
        extra, error = flat[13], flat[14]
        if isinstance(error, tuple):
            text, kind, _, stack = (_shorter(each, limit) for each in error)
            rows[14] = (text, kind, (), stack)
        if isinstance(extra, dict):
            rows[13] = _fewer(extra, limit)
        data = _dumps(tuple(rows), _VERSION)
        if len(data) <= RECORD_BYTES:
            return data
        limit //= 4


def _fewer(extra: dict[str, Any], room: int) -> dict[str, Any]:
    """
    What of *extra* fits into *room* bytes; and how many are missing.
    """
    found: dict[str, Any] = {}
    for name, value in extra.items():
        size = len(_dumps(value, _VERSION))
        room -= min(size, REPR_CHARS) + len(name)
        if room < 0:
            found["safespawn_cut"] = len(extra) - len(found)
            break
        found[name] = value if size <= REPR_CHARS else _repr(value)
    return found


def _shorter(value: Any, limit: int) -> Any:
    if type(value) is not str or len(data := value.encode("utf-8", "surrogatepass")) <= limit:
        return value
    kept = data[:limit].decode("utf-8", "ignore")
    return f"{kept} [cut by safespawn: {len(value) - len(kept)} characters more]"


def plain(value: Any, depth: int = DEPTH) -> Any:
    """
    *value* if it is plain data: scalars, and lists, tuples and dicts of plain data. Else its `repr`, cut.
    """
    kind = type(value)
    if kind in _SCALARS:
        return value
    if depth:
        if kind is list:
            return [plain(each, depth - 1) for each in value]
        if kind is tuple:
            return tuple(plain(each, depth - 1) for each in value)
        if kind is dict:
            return {key if type(key) in _SCALARS else _repr(key): plain(each, depth - 1) for key, each in value.items()}
    return _repr(value)


def _repr(value: Any) -> str:
    try:
        return repr(value)[:REPR_CHARS]
    except Exception as error:  # noqa: BLE001 - the user's own __repr__
        return f"<a {type(value).__name__} whose repr raises {type(error).__name__}>"
