"""
The application's supply of zygotes: one of the present world at a time, the earlier ones until their children are over.

Any number of threads and event loops use one engine at once. Whoever needs a zygote and finds none starts one; all
others wait for that start, on an eventfd, so no lock is held while anybody waits. Who starts it is decided by a single
atomic `dict.setdefault`.

One zygote starts one command at a time. Where many starts wait for it at once, again and again, a second one is
started, the relief, and each start goes to the one before which fewer wait. It takes nothing over, and is dismissed
when nobody has been crowded for a while.

Why not simply a lock: the start may be interrupted by a signal handler, or by a finaliser, that itself runs a command.
It then finds a start under way in its own thread, which cannot go on before it returns. Such a caller starts a zygote
of its own instead of waiting for ever.

Runs in: application, any thread.
"""

import os
import threading
import time
import weakref
from collections import deque
from typing import Any

from safespawn._core.connection import Connection, give_up_write_ends
from safespawn._core.flow import READ, DeadlinePassed, Flow, earliest
from safespawn._drive.ambient import Ambient, Observer
from safespawn._drive.blocking import is_readable
from safespawn._drive.boot import boot_flow
from safespawn._drive.interrupts import forget_in_copy
from safespawn._drive.template import Template, TemplateKey, boot_template_flow
from safespawn._drive.zygote import Zygote
from safespawn.errors import BootError, ClosedError

_engines: "weakref.WeakSet[Engine]" = weakref.WeakSet()
_hooked: list[int] = []
_held: "dict[weakref.ref[Any], Any]" = {}  # processes, by the object that a user holds
_forgotten: "deque[weakref.ref[Any]]" = deque()  # those of these objects that are gone
LATE_SECONDS = 1.0  # for somebody else's start of a zygote; fifty times the usual
CROWD = 3  # starts that wait for one zygote: the next may go to another
CROWDED_STARTS = 200  # so many in a second that found it so, and a second zygote is worth its 10 MiB; arbitrary
CROWDED_SECONDS = 1.0
RELIEF_SECONDS = 60.0  # without a crowd, and it is dismissed; arbitrary
BOOT_SECONDS = 1.0  # a caller with less time than that does not start the relief; fifty times what it takes
RELIEF = "relief"
POOL_SECONDS = 2.0  # at the end, for the threads of pools, whose workers have gone
LOOK_SECONDS = 0.002  # between looks at these; arbitrary
PATIENCE_SECONDS = 5.0  # for somebody else's start of a template, with its imports; arbitrary


class Boot:
    """
    A start under way: who does it, and the eventfd that says when it is over.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.event_fd = -1  # no descriptors left: the exception says so, and __del__ comes all the same
        self.event_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def over(self) -> None:
        """
        Wake everybody who waits; the event stays set.
        """
        os.eventfd_write(self.event_fd, 1)

    def __del__(self) -> None:
        if self.event_fd >= 0:
            os.close(self.event_fd)  # only now: while somebody waits for it, somebody refers to it


class Engine:
    """
    Supplies connections; owns the zygotes.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed: bool = False
        self._reset()
        _engines.add(self)
        if not _hooked:
            _hooked.append(os.getpid())
            os.register_at_fork(after_in_child=_forget_in_copy)

    def _reset(self) -> None:
        self.pid: int = os.getpid()
        self.boots: int = 0
        self._observers: dict[str, Observer] = {}  # one; a dict, because its setdefault is atomic
        self._current: dict[bool | str, Zygote] = {}  # by whether it keeps its children; and the relief
        self._crowded = (
            0  # starts that found a crowd since the next; a lost update makes the relief come a little later
        )
        self._crowded_since = self._crowded_at = 0.0  # monotonic
        self._earlier: list[Zygote] = []
        self._adopted: set[Any] = set()
        self._starting: dict[bool | str, Boot] = {}
        self._templates: dict[TemplateKey, Template] = {}
        self._preparing: dict[TemplateKey, Boot] = {}
        self._retired: list[Template] = []
        self.crews: weakref.WeakSet[Any] = weakref.WeakSet()  # of its pools

    # --- what flows use -----------------------------------------------------------------------------------------------
    def look(self) -> Ambient:
        """
        The application's present state.
        """
        observer = self._observers.get("")
        if observer is None:
            observer = self._observers.setdefault("", Observer())
        return observer.look()

    def lease_nowait(self, *, detached: bool = False) -> tuple[Connection, Ambient] | None:
        """
        As `lease_flow`, if the zygote is there, fits, and has an idle connection: as nearly always.
        """
        zygote = self._current.get(detached)
        if zygote is None or not zygote.usable or self.pid != os.getpid():
            return None
        if self._adopted or _forgotten or self._earlier:
            self.prune()
        ambient = self.look()
        if zygote.world is not ambient.world and zygote.world != ambient.world:
            return None
        if len(zygote.starting) >= CROWD or RELIEF in self._current:
            chosen = zygote if detached else self._choose(zygote, ambient)
            if chosen is None:
                return None
            zygote = chosen
        connection = zygote.lease_nowait()
        return None if connection is None else (connection, ambient)

    def _choose(self, zygote: Zygote, ambient: Ambient) -> Zygote | None:
        """
        *zygote* or its relief, whichever has the shorter queue; None if there shall be a relief, which must be waited
        for.
        """
        now = time.monotonic()
        relief = self._current.get(RELIEF)
        if relief is not None and (not relief.usable or relief.world != zygote.world):
            self._dismiss()
            relief = None
        if len(zygote.starting) < CROWD:
            if relief is not None and now - self._crowded_at > RELIEF_SECONDS:
                self._dismiss()
            return zygote
        self._crowded_at = now
        if relief is not None:
            return relief if len(relief.starting) < len(zygote.starting) else zygote
        if now - self._crowded_since > CROWDED_SECONDS:
            self._crowded_since, self._crowded = now, 0
        self._crowded += 1
        return None if self._crowded > CROWDED_STARTS and len(ambient.carried[2]) > 1 else zygote

    def _dismiss(self) -> None:
        """
        Give the relief no new children; it ends with its last one.
        """
        relief = self._current.pop(RELIEF, None)
        if relief is not None:
            self._earlier.append(relief)
            relief.retire()

    def lease_flow(
        self, *, detached: bool = False, deadline: float | None = None, patient: bool = False
    ) -> Flow[tuple[Connection, Ambient]]:
        """
        A connection to a zygote of the application's present world, and what was seen of that.

        Args:
            detached: For a child that outlives the application.
            deadline: Monotonic seconds, or None.
            patient: An event loop drives this flow: while it waits, the other tasks of its thread go on.

        Raises:
            BootError: No zygote can be started.
            ClosedError: The owner has closed this engine.
            DeadlinePassed: *deadline* has passed.
        """
        wants_relief = self._crowded > CROWDED_STARTS and not detached
        if wants_relief:
            self._crowded = 0  # nobody else does it as well
        while True:
            limit = time.monotonic() + BOOT_SECONDS
            role: bool | str = detached
            if wants_relief and (deadline is None or deadline > limit):
                role = RELIEF
            wants_relief = False
            try:
                until = limit if role is RELIEF else deadline
                zygote, ambient = yield from self.zygote_flow(role=role, deadline=until, patient=patient)
            except (BootError, OSError, DeadlinePassed):
                if role is not RELIEF:
                    raise
                continue  # nothing is wrong with the one there is
            if role is False and RELIEF in self._current:
                zygote = self._choose(zygote, ambient) or zygote
            connection = zygote.lease_nowait()
            if connection is None:
                connection = yield from zygote.lease_flow(deadline)
            if connection is not None:
                return connection, ambient

    def give_back(self, connection: Connection) -> None:
        """
        Return a connection whose child is over.
        """
        connection.zygote.give_back(connection)

    def discard(self, connection: Connection) -> None:
        """
        Close a connection, which ends what is on it.
        """
        if connection.zygote.owner_pid == os.getpid():
            connection.zygote.discard(connection)
        else:
            connection.close()

    def is_readable(self, fd: int) -> bool:
        """
        Whether *fd* is readable now.
        """
        return is_readable(fd)

    def track(self, process: Any, owner: object) -> None:
        """
        Remember a process for as long as *owner*, its object, lives: it is settled when this engine closes, and told
        when it is forgotten. What is called then runs no Python, so that no Ctrl-C comes in it: that would be lost, or
        the process.
        """
        _held[weakref.ref(owner, _forgotten.append)] = process

    def adopt(self, process: Any) -> None:
        """
        Keep a process that its owner forgot while it runs: it ends with the application, or has, with this engine.
        """
        if self.closed:
            process.abandon()
        else:
            self._adopted.add(process)

    def census_flow(self, deadline: float) -> Flow[dict[str, Any]]:
        """
        The figures of the zygote for new children; empty when there is none, or no answer by *deadline*.
        """
        zygote = self._current.get(False)
        if zygote is None or not zygote.usable:
            return {}
        return (yield from zygote.census_flow(deadline))

    # --- zygotes ------------------------------------------------------------------------------------------------------
    def zygote_flow(
        self, *, role: bool | str = False, deadline: float | None = None, patient: bool = False
    ) -> Flow[tuple[Zygote, Ambient]]:
        """
        The zygote for new children, the one there is if it is of this world or a new one; and the look at the world.

        Args:
            role: False; True for one that keeps its children; `RELIEF` for one beside another.
            deadline: Monotonic seconds, or None.
            patient: As in `lease_flow`.
        """
        while True:
            if self.pid != os.getpid():  # a fork that skipped Python's hooks
                self.forget_in_copy()
            if self.closed:
                raise ClosedError(self.name)
            zygote = self._current.get(role)
            ambient = self.look()
            world = ambient.world
            if zygote is not None and zygote.usable:
                if zygote.world == world:
                    return zygote, ambient
                zygote.retire()
            boot = Boot()
            first = self._starting.setdefault(role, boot)
            if first is boot:
                try:
                    return (yield from self._boot_flow(world, role=role, deadline=deadline)), ambient
                finally:
                    self._starting.pop(role, None)
                    boot.over()
                    del boot, first  # an error's traceback would keep the descriptor
            if first.thread == boot.thread and not patient:
                return (yield from self._boot_flow(world, role=role, deadline=deadline)), ambient
            patience = time.monotonic() + LATE_SECONDS
            ready = yield {first.event_fd: READ}, earliest(deadline, patience)
            if not ready:
                if deadline is not None and time.monotonic() >= deadline:
                    raise DeadlinePassed
                # Whoever began it is late; or its event loop is not run any more, and it will never be over.
                return (yield from self._boot_flow(world, role=role, deadline=deadline)), ambient

    def _boot_flow(self, world: tuple[object, ...], *, role: bool | str, deadline: float | None = None) -> Flow[Zygote]:
        zygote = self._current.get(role)
        if zygote is not None and zygote.usable and zygote.world == world:
            return zygote  # started between our look and our turn
        zygote = yield from boot_flow(keeps=role is True, deadline=deadline)
        zygote.world = world
        self.boots += 1
        while self._current.setdefault(role, zygote) is not zygote:
            before = self._current.pop(role, None)  # each step is atomic: another thread or handler may have come in
            if before is not None:
                self._earlier.append(before)
                before.retire()
        self.prune()
        if self.closed:  # while we were at it
            yield from zygote.close_flow(0.0)
            raise ClosedError(self.name)
        return zygote

    # --- templates ----------------------------------------------------------------------------------------------------
    def template_flow(
        self, key: TemplateKey, *, connections: int = 1, deadline: float | None = None
    ) -> Flow[tuple[Template, Ambient]]:
        """
        A template made of *key*, the one there is or a new one; and the look at this process.

        Raises:
            PreloadError, BootError: It cannot be made.
            ClosedError: The owner has closed this engine.
            DeadlinePassed: *deadline* has passed.
        """
        while True:
            if self.pid != os.getpid():
                self.forget_in_copy()
            if self.closed:
                raise ClosedError(self.name)
            if _forgotten:
                self.prune()
            ambient = self.look()
            template = self._templates.get(key)
            if template is not None:
                if template.usable and template.world == ambient.world and template.looks_alive():
                    return template, ambient
                self.retire(key, template)
                continue
            boot = Boot()
            first = self._preparing.setdefault(key, boot)
            if first is not boot and first.thread != boot.thread:
                patience = time.monotonic() + PATIENCE_SECONDS
                if (yield {first.event_fd: READ}, earliest(deadline, patience)):
                    continue
                if deadline is not None and time.monotonic() >= deadline:
                    raise DeadlinePassed
            try:
                template = yield from boot_template_flow(self, key, connections=connections, deadline=deadline)
                template.world = ambient.world
                closed: bool = self.closed  # meanwhile
                if closed or self._templates.setdefault(key, template) is not template:
                    template.retire()  # another thread was quicker
            finally:
                if first is boot:
                    self._preparing.pop(key, None)
                    boot.over()
                del boot, first  # an error's traceback would keep the descriptor

    def retire(self, key: TemplateKey, template: Template) -> None:
        """
        Take no more workers from *template*: those that it has live on, and it ends with the last of them.
        """
        if self._templates.get(key) is template:
            del self._templates[key]
            self._retired.append(template)
        template.retire()
        self._retired = [each for each in self._retired if not each.closed]

    def shun_stopped(self) -> None:
        """
        Give no new children to a zygote or a template that somebody has stopped, nor to a template whose zygote is
        given up: a look for those who would wait ten seconds for an answer, and start seldom.
        """
        for zygote in list(self._current.values()):
            if zygote.usable and zygote.is_stopped():
                zygote.suspect()
        for key, template in list(self._templates.items()):
            if template.usable and (template.is_stopped() or not template.child.connection.zygote.usable):
                self.retire(key, template)

    @property
    def templates(self) -> list[Template]:
        """
        All that are not known to be gone, the present ones first.
        """
        return [*self._templates.values(), *self._retired]

    def prune(self) -> None:
        """
        Collect the forgotten processes that have ended, and forget the earlier zygotes that are gone.
        """
        while _forgotten:
            try:
                process = _held.pop(_forgotten.popleft(), None)
            except IndexError:
                break  # another thread was quicker
            if process is not None:
                process.be_forgotten()
        for process in list(self._adopted):
            if process.looks_ended():
                self._adopted.discard(process)
                process.abandon()
        for zygote in list(self._earlier):
            zygote.release_if_gone()
            if zygote.closed:
                try:
                    self._earlier.remove(zygote)
                except ValueError:
                    continue  # another thread did

    @property
    def zygotes(self) -> list[Zygote]:
        """
        All that are not known to be gone, the present ones first.
        """
        return [*self._current.values(), *self._earlier]

    def close_flow(self, deadline: float) -> Flow[bool]:
        """
        End every zygote with all that it started, by *deadline* or by force soon after.

        Returns:
            Whether everything was seen to end.
        """
        self.closed = True
        if self.pid != os.getpid():
            return True
        crews = [crew for crew in list(self.crews) if crew.disband(ClosedError(self.name))]  # before its workers die
        for template in self.templates:
            template.usable = False
            template.hang_up()
        zygotes, self._current, self._earlier = self.zygotes, {}, []
        for zygote in zygotes:
            zygote.usable = False
            zygote.hang_up()
        gone = True
        interruption: BaseException | None = None
        for zygote in zygotes:
            try:
                gone = (yield from zygote.close_flow(deadline)) and gone
            except GeneratorExit:
                raise
            except BaseException as error:  # noqa: BLE001 - raised below: what was started ends before that, by force
                interruption, deadline = error, 0.0
                gone = (yield from zygote.close_flow(deadline)) and gone
        for process in list(_held.values()):  # one atomic copy: other threads may start and forget meanwhile
            if process.engine is self:
                yield from process.settle_flow()
        for process in list(self._adopted):
            process.abandon()
        self._adopted.clear()
        for template in self.templates:
            template.trim()
            template.release_if_gone()
        for zygote in zygotes:
            zygote.release_if_gone()
        self._observers.clear()
        limit = time.monotonic() + POOL_SECONDS
        while not all(crew.is_gone() for crew in crews) and time.monotonic() < limit:
            yield {}, time.monotonic() + LOOK_SECONDS
        if interruption is not None:
            raise interruption
        return gone

    def forget_in_copy(self) -> None:
        """
        In a forked copy: what there is belongs to the original. Close the copies, and begin anew.
        """
        for crew in list(self.crews):
            if crew.pid != os.getpid():  # after a fork that skipped Python's hooks it may be the copy's own
                crew.forget_in_copy()
        for generation in (*self.zygotes, *self.templates):
            generation.forget_in_copy()
        self._reset()

    def descriptors(self) -> set[int]:
        """
        What is open here for this engine, and belongs to no child.
        """
        owners: list[Any] = [*self.zygotes, *self.templates, *self._observers.values()]
        return set().union(*(owner.descriptors() for owner in owners))

    def statistics(self) -> dict[str, Any]:
        """
        Figures of this side.
        """
        self.prune()
        return {
            "boots": self.boots,
            "zygotes": [zygote.pid for zygote in self.zygotes if not zygote.closed],
            "leased": sum(len(zygote.leased) for zygote in self.zygotes),
            "idle_connections": sum(zygote.idle for zygote in self.zygotes),
        }


def infrastructure() -> tuple[set[int], set[int]]:
    """
    The descriptors and the child processes of this process that all engines keep for later: no leak, whoever counts.
    """
    engines = [engine for engine in list(_engines) if engine.pid == os.getpid()]
    fds = set().union(*(engine.descriptors() for engine in engines))
    return fds, {zygote.warden_pid for engine in engines for zygote in engine.zygotes}


def _forget_in_copy() -> None:
    """
    After os.fork() in the child.
    """
    forget_in_copy()
    give_up_write_ends()
    _held.clear()
    _forgotten.clear()
    for engine in list(_engines):
        engine.forget_in_copy()
