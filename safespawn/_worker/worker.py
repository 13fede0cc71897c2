"""
A worker: a Python process that runs one task after the other, and says what became of each.

Its life: `live` has a fresh fork of the template settle as a process of its own, `Worker.serve` reads messages, one by
one, until STOP or the end of the application. There is one thread, this one; what a task starts is the task's.

Results are written into the journal before the next task begins, and sent when the batch is through or a millisecond
has passed. So a worker that dies loses the task that it runs, and no other.

Runs in: worker.
Never: uses stdin, stdout or stderr for anything of its own; waits for anybody but the application.
"""

import _socket
import array
import errno
import marshal
import os
import select
import sys
import time
from collections import deque
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any, NoReturn

from safespawn._core.dispatch import CALL, EACH, EACH_STAR, describe
from safespawn._worker import current, journal, process, settling
from safespawn._worker.arena import Arena, receive
from safespawn._worker.journal import Journal
from safespawn._worker.messages import (
    BATCH_BYTES,
    BIG_RESULT,
    BIG_TASK,
    CREDIT,
    DONE,
    FREED,
    INLINE_BYTES,
    ITEM,
    JOURNAL,
    LEVELS,
    LOG,
    LONG,
    RAISED,
    READY,
    RECEIVE_BYTES,
    RECORD,
    RELEASED,
    SETUP,
    SETUP_FAILED,
    STOP,
    TASKS,
    read_long,
    write_long,
)
from safespawn._worker.payload import pack, unpack
from safespawn._worker.raised import pack_error
from safespawn._worker.stdio import flush_stdio

FLUSH_SECONDS = 0.001
BRISK_SECONDS = 0.00015  # from one message to the next
LOOKS = 40  # before a wait, about a microsecond each
_FDS_BYTES = _socket.CMSG_SPACE(2 * 4)
_GONE = frozenset((errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.EBADF, errno.ENOTSOCK))
_KEEP_TEXT_BYTES = 32 * 1024  # of old dumps: then the next one is written over the first


class TaskInterrupted(BaseException):
    """
    Raised in a running task that was cancelled or has passed its time limit, so that its `finally` clauses run.
    """


class Gone(Exception):
    """
    The application has closed the task socket, or a task has.
    """


def live(born: Any, system: Any) -> NoReturn:
    """
    Be a worker until the end of this process.

    Args:
        born: Name, kind, environment and descriptors (`nursery.Became`).
        system: The zygote's module of system calls, for its failpoints.
    """
    code = 1
    try:
        settling.settle(born)
        if born.kind == b"process":
            code = process.main(born.task_fd)
        else:
            connection = _socket.socket(fileno=born.task_fd)
            kind: type[Worker] = Worker
            if born.kind == b"child":
                from safespawn._worker.supervised import Supervised

                kind = Supervised
            code = kind(connection, system.failpoint if system.armed else None).serve()
    except Gone:
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - the last word of a process that ends here
        sys.__excepthook__(type(error), error, error.__traceback__)
    finally:
        flush_stdio()
        os._exit(code)


class Worker:
    """
    The loop.
    """

    def __init__(self, connection: _socket.socket, failpoint: Callable[[str], None] | None) -> None:
        self.connection = connection
        self.brisk = False  # messages follow one another closely
        connection.setblocking(True)
        self.failpoint = failpoint
        self.wake_fd = -1  # the application's eventfd for log records
        kind, body, fd = self.receive()
        if kind != JOURNAL:
            raise Gone
        slot, inherits = body
        if inherits and not process.inherit(connection):
            raise Gone
        self.journal, self.text_fd = Journal.open(fd, slot)
        self.text_at = os.lseek(self.text_fd, 0, os.SEEK_CUR)
        self.cells = self.journal.cells
        self.arena = Arena()
        self.freed: list[int] = []  # the application's segments that no task uses any more
        self.queued: deque[tuple[Any, ...]] = deque()
        self.used = 0  # bytes of the journal's records
        self.flushed = 0.0
        self.stopping = False
        self.credit = 0
        self.named: Any = None  # code of the function whose name is in the journal
        self.finalizer: Callable[[], object] | None = None
        self.inside = False  # a task's own code runs, in which an exception may be raised
        self.is_copy = False  # this process is a fork that a task has made of its worker
        os.register_at_fork(after_in_child=self.note_copy)

    # --- messages ----------------------------------------------------------------------------------------------------
    def receive(self) -> tuple[int, Any, int]:
        """
        The next message: kind, body, and its descriptor or -1.

        Raises:
            Gone: The application has hung up.
        """
        try:
            data, ancillary, _, _ = self.quick_words()
        except OSError as error:
            if error.errno in _GONE:
                raise Gone from None
            raise
        if not data:
            raise Gone
        fd = -1
        if ancillary:
            fds = array.array("i", ancillary[0][2])
            fd = fds[0]
            if data[0] == LONG:
                data, fd = read_long(fd), fds[1] if len(fds) > 1 else -1
            elif data[0] == JOURNAL and len(fds) > 1:
                self.wake_fd = fds[1]
        return data[0], marshal.loads(memoryview(data)[1:]), fd  # noqa: S302 - the application's own words

    def quick_words(self) -> Any:
        """
        The next message. If the last one came within the blink of an eye, and the application thinks that it pays, look
        for it before sleeping: to be woken takes longer than a short task.
        """
        began = time.monotonic()
        if self.brisk and self.cells[journal.AWAKE]:
            flags = _socket.MSG_CMSG_CLOEXEC | _socket.MSG_DONTWAIT
            for _ in range(LOOKS):
                try:
                    return self.connection.recvmsg(RECEIVE_BYTES, _FDS_BYTES, flags)
                except BlockingIOError:
                    os.sched_yield()
        words = self.connection.recvmsg(RECEIVE_BYTES, _FDS_BYTES, _socket.MSG_CMSG_CLOEXEC)
        self.brisk = time.monotonic() - began < BRISK_SECONDS
        return words

    def send(self, kind: int, body: Any, fd: int = -1) -> None:
        """
        Send one message; waits while the application does not read.
        """
        data = bytes((kind,)) + (body if type(body) is bytes else marshal.dumps(body))
        self.send_bytes(data, fd)

    def send_bytes(self, data: Any, fd: int = -1) -> None:
        long_fd = -1
        try:
            if len(data) > RECEIVE_BYTES:
                long_fd = write_long(data)
                data, fds = bytes((LONG,)), [long_fd] if fd < 0 else [long_fd, fd]
            else:
                fds = [fd]
            if fds[0] < 0:
                self.connection.send(data, _socket.MSG_NOSIGNAL)
            else:
                rights = array.array("i", fds)
                self.connection.sendmsg(
                    (data,), ((_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights),), _socket.MSG_NOSIGNAL
                )
        except OSError as error:
            if error.errno in _GONE:
                raise Gone from None
            raise
        finally:
            if long_fd >= 0:
                os.close(long_fd)

    # --- the life ----------------------------------------------------------------------------------------------------
    def serve(self) -> int:
        """
        From the first message to the last; returns the exit code.
        """
        kind, body, fd = self.receive()
        if kind != SETUP:
            return 2
        try:
            settling.set_up(self, body, fd)
        except Gone:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever an initializer raises is told
            self.cells[journal.RUNNING] = 0
            self.send(SETUP_FAILED, pack_error(error))
            return 1
        if self.failpoint is not None:
            self.failpoint("worker.before_ready")
        self.send(READY, None)
        if self.failpoint is not None:
            self.failpoint("worker.after_ready")
        self.flushed = time.monotonic()
        while not self.stopping:
            if self.queued:
                self.dispatch(*self.queued.popleft())
            else:
                self.dispatch(*self.receive())
        self.finish()
        return 0

    def unpack(self, payload: Any, buffers: Any) -> Any:
        """
        What the application has sent. A module that is imported for that must not use pools: the workers of those would
        import it as well, and so on without end.
        """
        current.unpacking = True
        try:
            return unpack(payload, buffers)
        finally:
            current.unpacking = False

    def unpack_each(self, payload: Any, buffers: Any, head: bytes) -> Any:
        """
        A function and the items for it.
        """
        if head:
            return self.unpack(head, ()), self.unpack(payload, buffers)
        return self.unpack(payload, buffers)

    def views(self, fd: int, where: tuple[int, int, Any]) -> list[memoryview]:
        """
        What is in the segment *fd*.
        """
        number, size, spans = where
        if fd < 0:  # there was no room for it in this process's table of descriptors
            self.freed.append(number)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        try:
            return receive(fd, number, size, spans, self.freed.append)
        finally:
            os.close(fd)

    def send_log(self, record: bytes) -> None:
        """
        In a forked copy of this process: send a log record, if there is room.
        """
        try:
            self.connection.send(bytes((LOG,)) + record, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)
        except OSError:
            return

    def finish(self) -> None:
        """
        The end in order.
        """
        if self.finalizer is not None:
            try:
                self.finalizer()
            except Exception as error:  # noqa: BLE001 - the exit functions have their turn all the same
                sys.excepthook(type(error), error, error.__traceback__)
        self.flush()
        import atexit
        import threading

        threading._shutdown()  # type: ignore[attr-defined]  # noqa: SLF001  # waits for the threads that are no daemons
        atexit._run_exitfuncs()  # noqa: SLF001
        flush_stdio()
        if self.failpoint is not None:
            self.failpoint("worker.before_exit")

    # --- tasks -------------------------------------------------------------------------------------------------------
    def dispatch(self, kind: int, body: Any, fd: int) -> None:
        """
        Do what a message says.
        """
        if kind == TASKS:
            if self.failpoint is not None:
                self.failpoint("worker.got_tasks")
            for number, mode, payload, head in body:
                self.run(number, mode, payload, (), head)
        elif kind == BIG_TASK:
            number, mode, head, where = body
            try:
                views = self.views(fd, where)
            except OSError as error:
                self.refuse(number, error)
            else:
                data, buffers = views[0], views[1:]
                del views
                self.run(number, mode, data, buffers, head)
                del data, buffers
        elif kind == RELEASED:
            self.arena.released(body)
            return
        elif kind == STOP:
            self.stopping = True
            return
        elif kind == LEVELS:
            from safespawn._worker import logs

            logs.set_levels(body)
            return
        else:
            return
        if self.used:
            self.flush()
        written = os.lseek(self.text_fd, 0, os.SEEK_CUR) - self.text_at
        if written > _KEEP_TEXT_BYTES:
            self.journal.text[:] = bytes(len(self.journal.text))
            os.lseek(self.text_fd, self.text_at, os.SEEK_SET)
        if self.freed:
            freed, self.freed[:] = self.freed[:], []
            self.send(FREED, freed)
        try:
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError):
            return  # closed by the task, or nobody reads it

    def run(self, number: int, mode: int, payload: Any, buffers: Any, head: bytes) -> None:
        """
        Run one task and note the result.
        """
        cells = self.cells
        started = time.monotonic_ns()
        cells[journal.SINCE_NS] = started
        cells[journal.RUNNING] = number
        try:
            try:
                if self.failpoint is not None:
                    self.failpoint("worker.before_run")
                self.enter(number)
                if mode == CALL:
                    call = self.unpack(payload, buffers)
                    function, arguments, keywords = call
                    self.name_task(number, function)
                    payload = buffers = None
                    value = function(*arguments, **keywords)
                    arguments = keywords = None
                elif mode == EACH:
                    function, items = self.unpack_each(payload, buffers, head)
                    self.name_task(number, function)
                    value = [function(item) for item in items]
                elif mode == EACH_STAR:
                    function, items = self.unpack_each(payload, buffers, head)
                    self.name_task(number, function)
                    value = [function(*item) for item in items]
                else:
                    self.stream(number, *self.unpack(payload, buffers))
                    value = None
                outcome = DONE
                if self.is_copy:
                    self.leave_copy(None)
                data, parts = pack(value, what="result")
                self.inside = False
            except Gone:
                raise
            except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt of a task are its result too
                outcome = RAISED
                data, parts = self.take_error(error), None
        except (TaskInterrupted, MemoryError) as error:  # just as the task ended; or no room for its own error
            self.inside = False
            error.__traceback__ = error.__context__ = None
            outcome = RAISED
            data, parts = pack_error(error), None
        value = function = items = None
        if self.failpoint is not None:
            self.failpoint("worker.after_run")
        self.note(number, outcome, data, parts, (time.monotonic_ns() - started) * 1e-9)
        cells[journal.RUNNING] = 0

    def name_task(self, number: int, function: Any) -> None:
        """
        Write down what runs, for whoever looks from outside.
        """
        key: Any = getattr(function, "__code__", None)
        if key is None and type(getattr(function, "__self__", None)) is ModuleType:
            key = function  # of a C module
        if key is not None and key is self.named:
            self.cells[journal.NAMED] = number
        else:
            self.named = key
            self.journal.note_label(number, describe(function).replace("__mp_main__.", "__main__.", 1))

    def take_error(self, error: BaseException) -> bytes:
        """
        Pack what a task raised, and let go of the task.
        """
        self.inside = False
        if self.is_copy:
            self.leave_copy(error)
        data = pack_error(error)
        if error.__traceback__ is not None:
            error.__traceback__ = None  # it would keep the task's arguments alive
        return data

    def stream(self, number: int, credit: int, function: Any, arguments: Any, keywords: Any) -> None:
        """
        Send the items of an iterator one by one, never more than the application has asked for.
        """
        self.credit = credit
        self.name_task(number, function)
        iterator = function(*arguments, **keywords)
        iterator = iter(iterator) if hasattr(iterator, "__iter__") else _synchronous(iterator)
        for item in iterator:
            if self.is_copy:
                return
            data, parts = pack(item, what="result")
            while self.credit <= 0:
                self.inside = False
                self.flush()
                self.enter(number)
                self.await_words()
                self.inside = False  # a message that was taken is kept
                kind, body, fd = self.receive()
                if kind == CREDIT:
                    self.credit += body
                else:
                    self.queued.append((kind, body, fd))
                self.enter(number)
            self.credit -= 1
            self.inside = False
            self.note(number, ITEM, data, parts, 0.0)
            self.enter(number)

    def await_words(self) -> None:
        """
        Wait until there is something to receive.
        """
        look = select.poll()
        look.register(self.connection.fileno(), select.POLLIN)
        look.poll()

    def note(self, number: int, outcome: int, data: bytes, parts: "list[memoryview] | None", seconds: float) -> None:
        """
        Write a result into the journal, and send what is there when it is time. A large one goes by itself.
        """
        size = len(data)
        if parts or size > INLINE_BYTES:
            self.flush()
            self.send_large(number, outcome, [data, *(parts or ())], seconds)
            return
        used = self.used
        if used + RECORD.size + size > BATCH_BYTES:
            self.flush()
            used = 0
        results = self.journal.results
        RECORD.pack_into(results, used, number, outcome, size, seconds)
        used += RECORD.size
        end = used + size
        results[used:end] = data
        if outcome == ITEM:
            self.cells[journal.ITEM] += 1
        self.cells[journal.COMMITTED] = self.used = end
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """
        Send the journal's records.
        """
        if not self.used:
            return
        if self.failpoint is not None:
            self.failpoint("worker.before_flush")
        self.send_bytes(b"C" + self.journal.results[: self.used])
        self.cells[journal.COMMITTED] = self.used = 0
        self.flushed = time.monotonic()
        if self.failpoint is not None:
            self.failpoint("worker.after_flush")

    def send_large(self, number: int, outcome: int, parts: list[Any], seconds: float) -> None:
        """
        Send a result through shared memory.
        """
        try:
            segment = self.arena.place(parts)
        except OSError as error:
            self.lose(number, error, seconds)
            return
        where = (number, outcome, seconds, segment.number, segment.size, segment.spans)
        try:
            self.send(BIG_RESULT, where, segment.fd)
        except OSError as error:  # ETOOMANYREFS: too many descriptors on their way
            self.arena.sent(segment)
            self.arena.released([segment.number])
            self.lose(number, error, seconds)
            return
        except Gone:
            self.arena.sent(segment)
            raise
        self.arena.sent(segment)

    def lose(self, number: int, error: OSError, seconds: float, what: str = "result") -> None:
        """
        Say that a payload could not be brought over.
        """
        lost: Exception = error
        try:
            from safespawn.pool_errors import PayloadLost

            lost = PayloadLost(what=what, errno=error.errno)
        except (OSError, ImportError):
            pass  # no descriptor is left to read that module with
        self.note(number, RAISED, pack_error(lost), None, seconds)

    def refuse(self, number: int, error: OSError) -> None:
        """
        Say that a task did not arrive.
        """
        self.lose(number, error, 0.0, "task")

    def interrupt(self, _number: int, frame: FrameType | None) -> None:
        """
        The handler of INTERRUPT_SIGNAL: raise in the task that is meant, if it still runs. Not in an import, which
        would leave halves of packages to the tasks after it: the signal is sent again until it was heard.
        """
        cells = self.cells
        wanted = cells[journal.INTERRUPT]
        if self.inside and wanted and wanted == cells[journal.RUNNING] and not _imports(frame):
            cells[journal.INTERRUPT] = 0
            raise TaskInterrupted

    def enter(self, number: int) -> None:
        """
        From here on the code is a task's own. What came before for it is not lost.
        """
        self.inside = True
        if self.cells[journal.INTERRUPT] == number:
            self.cells[journal.INTERRUPT] = 0
            raise TaskInterrupted

    def note_copy(self) -> None:
        """
        In a process that a task has forked.
        """
        self.is_copy = True

    def leave_copy(self, error: BaseException | None) -> NoReturn:
        """
        A fork that a task has made came back from the task: it is not a worker, and ends as a script would.
        """
        code = 0
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 1
        flush_stdio()
        os._exit(code)


_IMPORTERS = ("<frozen importlib._bootstrap>", "<frozen runpy>")


def _imports(frame: FrameType | None) -> bool:
    """
    Whether *frame* is within an import, or within the loading of the application's `__main__`, of the task.
    """
    while frame is not None and frame.f_code is not _RUN:
        if frame.f_code.co_filename in _IMPORTERS:
            return True
        frame = frame.f_back
    return False


_RUN = Worker.run.__code__  # below it are the worker's own frames, which runpy has started


def _synchronous(iterator: Any) -> Any:
    """
    The items of an asynchronous iterator.

    All of it runs in one task of the loop: what it opens before one item, a time limit or a span, it may close after
    another. The loop stands still between the items.
    """
    import asyncio

    loop = asyncio.new_event_loop()
    handed: list[tuple[Any, asyncio.Future[None]]] = []

    async def hand_over() -> None:
        try:
            async for item in iterator:
                wanted = loop.create_future()
                handed.append((item, wanted))
                loop.stop()
                await wanted
        finally:
            if hasattr(iterator, "aclose"):
                await iterator.aclose()

    task = loop.create_task(hand_over())
    task.add_done_callback(lambda _: loop.stop())
    try:
        while True:
            loop.run_forever()
            if not handed:
                task.result()
                return
            item, wanted = handed.pop()
            yield item
            wanted.set_result(None)
    finally:
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        loop.close()
