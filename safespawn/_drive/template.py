"""
One template as the application sees it: a process with the preload done, from which workers are forked.

It is a child of the zygote's, exec'ed with the application's interpreter options, and speaks the zygote's protocol on a
control socket of its own. When it dies, the workers that it has started live on: they come to the zygote.

Runs in: application, any thread.
"""

import _socket
import marshal
import os
import sys
import time
from typing import Any

import attrs

from safespawn._core.child import Child, take_news
from safespawn._core.command import launch_flow
from safespawn._core.connection import close_all
from safespawn._core.flow import READ, DeadlinePassed, Flow, earliest
from safespawn._core.spec import SpawnSpec
from safespawn._drive.generation import LATE_SECONDS, SHARED_SECONDS, Generation
from safespawn._worker import elsewhere
from safespawn._worker.messages import write_long
from safespawn._zygote import wire
from safespawn.errors import BootError, RemoteProtocolError, SafespawnError

BOOT_SECONDS = 120.0  # for the imports of the preload; arbitrary, far above what the heaviest frameworks take
_DIRECTORY = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_worker")
# With more than one thread of theirs in the template nothing could be forked from it.
THREADS_OF_LIBRARIES = (
    b"OMP_NUM_THREADS", b"OPENBLAS_NUM_THREADS", b"MKL_NUM_THREADS", b"BLIS_NUM_THREADS", b"NUMEXPR_NUM_THREADS",
    b"VECLIB_MAXIMUM_THREADS",
)  # fmt: skip


@attrs.frozen
class TemplateKey:
    """
    What a template has been made of: pools that ask for the same share one.

    Attributes:
        preload: Modules, imported in this order.
        main: How the application's `__main__` can be loaded (`_worker.main_module.describe`).
        env: The environment of the imports, or None for the application's.
    """

    preload: tuple[str, ...] = ()
    main: tuple[str, str] | None = None
    env: tuple[tuple[bytes, bytes], ...] | None = None


class Template(Generation):
    """
    A running template.
    """

    idle_limit = 2
    usable: bool
    closed: bool
    is_busy: bool

    def __init__(self, control: _socket.socket, child: Child, facts: dict[str, object], connections: list[int]) -> None:
        super().__init__(control, pid=child.pid, facts=facts, connections=connections)
        self.child = child
        self.main_refusal: SafespawnError | None = None  # why it is not
        self.has_main: bool = False  # the application's `__main__` is loaded there

    @property
    def gone_fd(self) -> int:
        """
        Its connection at the zygote, which tells of its exit.
        """
        return self.child.connection.fileno()

    def death_flow(self) -> Flow[None]:
        """
        Nothing comes of its death: its workers live on.
        """
        self.usable = False
        yield from ()

    def exit_status(self) -> int | None:
        """
        As the zygote told it.
        """
        self.looks_alive()
        return self.child.returncode

    def load_main_flow(self, deadline: float | None) -> Flow[None]:
        """
        Have the application's `__main__` loaded, for the workers to come.

        Raises:
            PreloadError: It raises, or leaves a thread behind. This template is not usable any more.
            BootError: It is gone, or does not answer.
        """
        token = object()
        self._askers.add(token)
        try:
            self.control.send((wire.LOAD_MAIN,))
            self.is_busy = True
            watch = StopWatch(self)
            while not self.has_main:
                watch.look()
                look_again = time.monotonic() + SHARED_SECONDS
                ready = yield {self.control.fileno(): READ, self.gone_fd: READ}, earliest(deadline, look_again)
                if self.main_refusal is not None:
                    raise self.main_refusal
                if not ready:
                    if deadline is not None and time.monotonic() >= deadline:
                        raise BootError("the template does not answer", executable=sys.executable)
                    continue
                try:
                    message, fds = self.control.receive()
                except BlockingIOError:
                    if not self.looks_alive():
                        raise BootError("the template has gone", executable=sys.executable) from None
                    continue
                if message is None:
                    raise BootError("the template has gone", executable=sys.executable)
                if message[0] == wire.CONNECTED:  # of another asker
                    self.take_connections(fds)
                else:
                    self.on_stray(message)
        except OSError as error:
            self.usable = False
            raise BootError(f"the template has gone: {error.strerror}", executable=sys.executable) from None
        except BaseException:
            self.usable = False
            raise
        finally:  # still busy with it, if it was not waited for
            self._askers.discard(token)

    def on_stray(self, message: "tuple[Any, ...]") -> None:
        """
        What became of LOAD_MAIN; whoever hears it first takes note of it for all.
        """
        if message[0] == wire.LOADED:
            self.has_main, self.is_busy = True, False
        elif message[0] == wire.FAILED:
            self.usable = self.is_busy = False
            self.main_refusal = refusal(marshal.loads(message[3]))  # noqa: S302 - our own child's words

    def looks_alive(self) -> bool:
        """
        Whether nothing is known of its end; a dead one is not usable.
        """
        if self.closed:
            return False
        try:
            ended = take_news(self.child)
        except (EOFError, OSError, SafespawnError):
            ended = True
        if ended:
            self.usable = False
        return not ended

    def release_if_gone(self) -> None:
        """
        Close the descriptors when the last connection is closed. Closing its own at the zygote ends it, if it is not
        ending yet.
        """
        if self.leased or self._askers or self.closed:
            return
        self.closed = True
        self.trim()
        self.control.close()
        connection = self.child.connection
        connection.zygote.discard(connection)

    def forget_in_copy(self) -> None:
        """
        In a forked copy of the application: close the copies of our descriptors, and touch nothing else.
        """
        self.usable = False
        if not self.closed:
            self.closed = True
            self.control.close()
            while self._idle:
                self._idle.pop().close()
            self.child.connection.close()


class StopWatch:
    """
    Looks whether somebody has stopped a template, which is waited for longer than anybody can wait for a stopped one.
    """

    def __init__(self, template: Template) -> None:
        self.template = template
        self.due: float = time.monotonic() + LATE_SECONDS
        self.was_stopped = False

    def look(self) -> None:
        """
        Now and then, and twice: one that is stopped for a moment only is none.

        Raises:
            BootError: It is stopped.
        """
        now = time.monotonic()
        if now < self.due:
            return
        self.due = now + LATE_SECONDS
        before, self.was_stopped = self.was_stopped, self.template.is_stopped()
        if before and self.was_stopped:
            raise BootError("somebody has stopped it", executable=sys.executable)


def boot_template_flow(engine: Any, key: TemplateKey, *, connections: int, deadline: float | None) -> Flow[Template]:
    """
    Start a template and wait until its preload is done.

    Raises:
        PreloadError: A module raises at its import, or leaves a thread behind.
        BootError: It did not come up.
        DeadlinePassed: *deadline* came first.
    """
    started = time.monotonic()
    owned: list[int] = []
    control: _socket.socket | None = None
    child: Child | None = None
    try:
        control, far = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        owned.append(far.detach())
        owned.append(_config(key, connections))
        spec = _spec(key, engine.look().carried[0], tuple(owned))
        child, ends = yield from launch_flow(engine, spec, deadline, patient=True)
        close_all(ends)
        close_all(owned)
        child.close()  # its pidfd: what is asked of it goes by the zygote
        limit = started + BOOT_SECONDS
        template = Template(control, child, {}, [])
        control = None
        try:
            template.facts = yield from _hello_flow(template, earliest(deadline, limit))
        except DeadlinePassed:
            took = time.monotonic() - started
            if took < BOOT_SECONDS:
                raise
            raise BootError("its preload does not end", executable=sys.executable, seconds=took) from None
        except BaseException:
            template.usable = False
            template.release_if_gone()
            child = None
            raise
        child = None
        return template
    finally:
        close_all(owned)
        if control is not None:
            control.close()
        if child is not None:
            child.connection.zygote.discard(child.connection)


def _hello_flow(template: Template, deadline: float | None) -> Flow[dict[str, object]]:
    watch = StopWatch(template)
    while True:
        ready = yield {template.control.fileno(): READ, template.gone_fd: READ}, earliest(deadline, watch.due)
        if not ready:
            if deadline is not None and time.monotonic() >= deadline:
                raise DeadlinePassed
            watch.look()
            continue
        try:
            message, fds = template.control.receive()
        except BlockingIOError:
            if not template.looks_alive():
                raise BootError(
                    "the template ended at once", executable=sys.executable, exit_status=template.child.returncode
                ) from None
            continue
        if message is None:
            yield {template.gone_fd: READ}, time.monotonic() + 1.0
            raise BootError("the template ended", executable=sys.executable, exit_status=template.exit_status())
        if message[0] == wire.HELLO and len(fds) == message[5]:
            template.take_connections(fds)
            template.pid = message[3]
            return dict(message[6])
        close_all(fds)
        if message[0] == wire.FAILED:
            raise refusal(marshal.loads(message[3]))  # noqa: S302 - our own child's words
        raise RemoteProtocolError(f"a hello was expected, not kind {message[0]}")


def refusal(words: tuple[Any, ...]) -> SafespawnError:
    """
    The error for a template that could not be made.
    """
    from safespawn.pool_errors import PreloadError

    module, reason, place, threads, text = words
    return PreloadError(module=module, reason=reason, place=place, threads=threads, traceback_text=text)


def _config(key: TemplateKey, connections: int) -> int:
    config = {
        "path": list(map(str, sys.path)),
        "elsewhere": elsewhere.places(),
        "argv": list(map(str, sys.argv)),
        "main": key.main,
        "preload": list(key.preload),
        "connections": connections,
    }
    return write_long(marshal.dumps(config))


def _spec(key: TemplateKey, env: dict[bytes, bytes], fds: tuple[int, ...]) -> SpawnSpec:
    from subprocess import _args_from_interpreter_flags  # type: ignore[attr-defined]  # as multiprocessing does

    flags = [flag for flag in _args_from_interpreter_flags() if flag != "-i"]
    environment = dict(env if key.env is None else key.env)
    for name in THREADS_OF_LIBRARIES:
        environment.setdefault(name, b"1")
    argv = (sys.executable, *flags, _DIRECTORY, *map(str, fds), str(os.getpid()))
    return SpawnSpec(
        tuple(map(os.fsencode, argv)),
        env=environment,
        streams=(wire.NULL, 1, 2),
        pass_fds=fds,
        group=0,
    )
