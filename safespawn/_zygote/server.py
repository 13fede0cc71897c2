"""
The zygote's sessions: what a request, an exit, a hang-up do, by the table in `session`.

Each event looks up the session's cell and does the effects it names. A request that fails is answered; a peer that
breaks the protocol loses its connection, and its child. No error of one session reaches another one, and none ends
the loop but the end of the application.

Runs in: zygote.
Never: writes to a terminal, logs, starts a thread, waits for anything but the epoll set.
"""

import errno
import fcntl
import gc
import os
import select
import signal
import sys
import termios
import time

import channel
import launch
import session as table
import system
import wire
from become import REPORT_BYTES, read_report
from loop import HUNG_UP, Loop
from program import LaunchError

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from _socket import socket
    from typing import Any

GRACE_SECONDS = 0.5  # between SIGTERM and SIGKILL of an abandoned child; arbitrary, short enough for a stop in 2 s
MOMENT_SECONDS = 0.003  # a quiet start is announced when it lasts longer; a child that execs and ends takes 1 ms
OUTPUT_BYTES = 3072  # of a quiet child's outputs together that travel in EXITED, which is one short message
LASTING_PROGRAMS = 256  # names kept of programs that outlasted the moment; arbitrary
TIDY_SECONDS = 0.05  # from an exit to the look for adopted orphans that ended too: many exits share one look
WATCH_SECONDS = (1.0, 30.0)  # between such looks while children run and none exits, at first and at most
END_SECONDS = 5.0  # how long the last processes may take to go after SIGKILL (uninterruptible sleep)
_OUR_END_ONLY = "the zygote's own"
NAME_BYTES = 255  # of a name in an answer: the application knows the whole of it
_NO_SIZE = bytes(4)  # an int, to be filled in
CAPTURED = 6  # in the mask of ends: stdout and stderr
_TIDY = "tidy up"  # the subject of the timer that belongs to no session


class Session:
    """
    One connection and the child on it.
    """

    __slots__ = ("ambient", "connection", "ends", "family", "group", "hold", "mark", "pid", "pidfd", "piped", "quiet",
                 "report_fd", "since", "state", "tree", "usage")  # fmt: skip

    def __init__(self, connection: "socket") -> None:
        self.connection: socket | None = connection
        self.state = table.IDLE
        self.ambient: tuple[Any, ...] | None = None
        self.pid = 0
        self.pidfd = -1
        self.report_fd = -1
        self.ends: launch.Ends | None = None
        self.group = 0  # the group that the child leads, or 0
        self.family: dict[int, int] = {}  # its descendants when it was asked to end, and their times of birth
        self.mark = b""  # what all its descendants have in their environment, or nothing
        self.hold = self.quiet = self.tree = False
        self.piped: bytes | None = None  # the program's name, of a quiet start with outputs that are captured
        self.since = 0.0  # monotonic time of its exec
        self.usage: tuple[float, ...] | None = None


class Server(Loop):
    """
    The whole of the zygote after its boot.
    """

    def __init__(
        self, control: "socket", application_pid: int, application_fd: int, warden_fd: int, *, keeps: bool
    ) -> None:
        super().__init__()
        self.control = control
        self.receiver = channel.Receiver(application_pid)
        self.keeps = keeps  # the children outlive the application: detach=True
        self.launcher = launch.Launcher()
        self.own_pid = self.launcher.own_pid
        self.sessions: set[Session] = set()
        self.by_pid: dict[int, Session] = {}
        self.ending = False
        self.swept = self.started = self.failed = 0
        self.watch_seconds = WATCH_SECONDS[0]
        self.lasting: set[bytes] = set()  # programs whose captured run outlasted the moment the last time
        self.cells = {
            key: (state, tuple([getattr(self, effect) for effect in effects]))
            for key, (state, effects) in table.TABLE.items()
        }
        self.watch(control.fileno(), self.on_control, _OUR_END_ONLY)
        self.watch(application_fd, self.on_application_end, _OUR_END_ONLY)
        if warden_fd >= 0:
            self.watch(warden_fd, self.on_application_end, _OUR_END_ONLY)

    def serve(self) -> None:
        """
        Serve until the application has ended, then end everything that it started.
        """
        while not self.ending:
            self.turn()
        if not self.keeps:
            self.end_all()

    # --- the table ---------------------------------------------------------------------------------------------------
    def event(self, session: Session, name: str, *details: object) -> None:
        """
        Go through the cell of *name*; an empty cell is the peer's mistake and is answered.
        """
        cell = self.cells.get((session.state, name))
        if cell is None:
            if name in table.REQUESTS:
                self.send(session, (wire.REFUSED, f"{name} is not possible while the session is {session.state}"))
            return
        session.state = cell[0]
        for effect in cell[1]:
            effect(session, *details)

    def close_session(self, session: Session) -> None:
        """
        The connection is closed, by them or by us: its child shall end, or in a zygote that keeps them be left alone.
        """
        if session.connection is not None:
            self.close(session.connection.detach())
            session.connection = None
        self.event(session, table.HUNG_UP if self.keeps else table.CLOSED)

    def on_trouble(self, subject: object, error: Exception) -> None:
        """
        One session cannot go on: end it and its child; the others never notice.
        """
        super().on_trouble(subject, error)
        if not isinstance(subject, Session):
            return
        try:
            if subject.connection is not None:
                self.close_session(subject)
                if subject.state != table.GONE:
                    return  # its child ends by the table
        except Exception as another:  # noqa: BLE001 - what fails for the second time is not tried again
            super().on_trouble(subject, another)
        self.bury(subject)

    def bury(self, session: Session) -> None:
        """
        Let go of a session that the table cannot lead to its end, whatever an interrupted effect left: SIGKILL for the
        child, which is reaped with the orphans then.
        """
        if self.by_pid.get(session.pid) is session:
            system.kill_tree(session.pid)
            del self.by_pid[session.pid]
        session.state = table.GONE
        self.drop_report(session)
        self.unwatch(session)
        self.forget(session)

    # --- what the descriptors say ------------------------------------------------------------------------------------
    def on_control(self, _subject: object, events: int) -> None:
        """
        The control socket: connections are asked for here; its end is the application's.
        """
        if events & HUNG_UP:
            self.ending = True
            return
        fds: list[int] = []
        try:
            message = self.receiver.receive(self.control, fds)
            if message is None:
                self.ending = True
            elif message[0] == wire.CONNECT:
                self.connect()
            elif message[0] == wire.CENSUS:
                self.answer((wire.COUNTED, self.statistics()))
            else:
                self.on_other(message)
        except BlockingIOError:
            return
        except channel.NoRoom:
            self.answer((wire.REFUSED, "no descriptors left in the zygote"))
        except channel.Refusal as refusal:
            self.answer((wire.REFUSED, str(refusal)))
        finally:
            channel.close_all(fds)

    def on_other(self, message: "tuple[Any, ...]") -> None:
        """
        A message that only a template understands.
        """
        self.answer((wire.REFUSED, f"kind {message[0]} does not belong on the control socket"))

    def on_application_end(self, _subject: object, _events: int) -> None:
        """
        The application has died, or the warden: then nobody would be left to end what we start.
        """
        self.ending = True

    def on_message(self, session: Session, events: int) -> None:
        """
        A connection: a request, or the end of it. A request whose sender has gone is not begun.
        """
        if events & HUNG_UP:
            self.close_session(session)
            return
        fds: list[int] = []
        try:
            message = self.receiver.receive(session.connection, fds)  # type: ignore[arg-type]  # watched, so it is open
            kind = 0 if message is None else message[0]
            if kind == wire.SPAWN:
                if system.armed:
                    system.failpoint("zygote.got_spawn")
                if is_hung_up(session.connection):  # since `events`: taken back, and another zygote may have it by now
                    self.close_session(session)
                    return
                self.event(session, table.SPAWN, message, fds)
            elif kind == wire.RELEASE:
                self.event(session, table.RELEASE)
            elif kind == wire.KILL:
                self.event(session, table.KILL, message)
            elif kind == 0:
                self.close_session(session)
            else:
                self.send(session, (wire.REFUSED, f"kind {kind} does not belong on a connection"))
        except BlockingIOError:
            return
        except channel.NoRoom:
            self.send(session, (wire.FAILED, "receive", errno.EMFILE, None))
        except channel.Refusal as refusal:
            self.send(session, (wire.REFUSED, str(refusal)))
            self.close_session(session)
        finally:
            channel.close_all(fds)

    def on_exit(self, session: Session, _events: int) -> None:
        """
        The pidfd is readable. The kernel is asked for the status, without waiting: no status, no exit.
        """
        if session.hold and session.state == table.RUNNING:
            seen = os.waitid(os.P_PID, session.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
            if seen is not None:
                self.event(session, table.EXITED_HOLD, raw_status(seen))
            return
        if system.armed:
            system.failpoint("zygote.before_reap")
        pid, status, usage = os.wait4(session.pid, os.WNOHANG)
        if pid:
            del self.by_pid[pid]
            if system.armed:
                system.failpoint("zygote.after_reap")
            session.usage = tuple(usage)
            self.event(session, table.EXITED, status)

    def on_report(self, session: Session, _events: int) -> None:
        """
        The forked child's report: nothing but the end of the pipe when exec has closed it.
        """
        try:
            data = os.read(session.report_fd, REPORT_BYTES)
        except BlockingIOError:
            return
        self.drop_report(session)
        if not data:
            self.event(session, table.EXECED)
            return
        os.waitpid(session.pid, 0)  # it wrote its last word and is in _exit
        del self.by_pid[session.pid]
        self.unwatch(session)
        self.event(session, table.LAUNCH_FAILED, read_report(data))

    def on_due(self, subject: object) -> None:
        """
        A session's timer, or the one of the house.
        """
        if subject is _TIDY:
            self.tidy()
        elif isinstance(subject, Session):
            if subject.state == table.RUNNING:
                self.note_lasting(subject)
                self.say_started(subject)
            else:
                self.event(subject, table.GRACE_OVER)

    # --- effects, named in the table ---------------------------------------------------------------------------------
    def start(self, session: Session, request: "tuple[Any, ...]", fds: list[int]) -> None:
        """
        Launch what is asked, and say that it was launched or why not.
        """
        if request[3] is not None:
            session.ambient = self.launcher.known(request[3])
        ambient = session.ambient
        flags = request[9]
        ends = launch.Ends()
        try:
            if ambient is None:
                raise LaunchError("protocol", errno.EPROTO, b"no ambient state was sent on this connection")
            group, forks, identity, lends = self.launcher.way(request, ambient, fds)
            if forks:
                session.pid, session.report_fd = self.launcher.fork(request, ambient, fds, ends, group)
            else:
                session.pid = self.launcher.spawn(request, ambient, fds, ends, group, identity, lends=lends)
        except Exception as error:  # noqa: BLE001 - what nobody foresaw is an answer too, not the loss of a connection
            ends.close_given()
            self.event(session, table.LAUNCH_FAILED, failed(error))
            return
        finally:
            ends.close_child()
        session.ends = ends
        session.hold = flags & wire.HOLD != 0
        session.quiet = flags & wire.QUIET != 0 and not ends.mask & ~CAPTURED
        session.piped = request[1][0] if session.quiet and ends.given else None
        session.tree = flags & wire.TREE != 0
        session.group = session.pid if group == 0 or flags & wire.NEW_SESSION else 0
        session.usage = None
        session.family = {}
        session.mark = b"" if request[4] is None else request[4].get(wire.MARK, b"")
        self.by_pid[session.pid] = session
        try:
            if system.armed:
                system.failpoint("zygote.after_spawn")
            session.pidfd = os.pidfd_open(session.pid)
            self.event(session, table.LAUNCHED if session.report_fd >= 0 else table.EXECED)
        except OSError as error:  # EMFILE: a child that cannot be watched is none
            if session.ends is None:
                raise  # STARTED has been said
            self.undo_start(session)
            self.event(session, table.LAUNCH_FAILED, LaunchError("watch", error.errno or errno.EIO))

    def undo_start(self, session: Session) -> None:
        """
        Take a launch back.
        """
        system.signal_quietly(session.pid, signal.SIGKILL)
        os.waitpid(session.pid, 0)
        del self.by_pid[session.pid]
        session.state = table.LAUNCHING
        self.drop_report(session)
        self.unwatch(session)

    def await_exec(self, session: Session) -> None:
        """
        The forked child will report.
        """
        self.watch(session.report_fd, self.on_report, session)

    def drop_report(self, session: Session) -> None:
        """
        No report is awaited any more.
        """
        if session.report_fd >= 0:
            self.close(session.report_fd)
            session.report_fd = -1

    def watch_child(self, session: Session) -> None:
        """
        Wait for the child's exit.
        """
        self.drop_report(session)
        self.watch(session.pidfd, self.on_exit, session)

    def announce(self, session: Session) -> None:
        """
        Say STARTED; of a quiet start, only when it lasts.
        """
        self.started += 1
        now = time.monotonic()
        self.due.setdefault(_TIDY, now + self.watch_seconds)
        session.since = now
        if session.quiet and session.piped not in self.lasting:
            self.due[session] = now + MOMENT_SECONDS
        else:
            self.say_started(session)

    def say_started(self, session: Session) -> None:
        """
        STARTED, with the pidfd and the application's pipe ends, which the zygote then no longer has.
        """
        if system.armed:
            system.failpoint("zygote.before_started")
        ends: launch.Ends = session.ends  # type: ignore[assignment]  # a launch has them until STARTED is said
        session.ends = None
        try:
            self.send(session, (wire.STARTED, session.pid, ends.mask), (session.pidfd, *ends.given))
        finally:
            ends.close_given()
        if system.armed:
            system.failpoint("zygote.after_started")

    def reply_failed(self, session: Session, error: LaunchError) -> None:
        """
        Say FAILED.
        """
        self.failed += 1
        self.tidy_soon()
        name = error.name and error.name[:NAME_BYTES]
        self.send(session, (wire.FAILED, error.stage, error.errno, name))

    def reply_exited(self, session: Session, status: int) -> None:
        """
        Say EXITED; with the resources used where the child has been reaped.
        """
        outputs = None
        if session.piped is not None:
            outputs = self.captured(session)
        if system.armed:
            system.failpoint("zygote.before_exited")
        self.send(session, (wire.EXITED, session.pid, status, session.usage, outputs))
        if system.armed:
            system.failpoint("zygote.after_exited")

    def captured(self, session: Session) -> "tuple[bytes, ...] | None":
        """
        What a quiet child has printed, if it was over within the moment and that is short; otherwise STARTED has been
        said, or is said now, and the application reads for itself.
        """
        ends = session.ends
        if ends is None:
            if time.monotonic() - session.since < MOMENT_SECONDS:
                self.lasting.discard(session.piped)
            return None
        outputs = whole(ends.given)
        if outputs is None:
            self.say_started(session)
        return outputs

    def note_lasting(self, session: Session) -> None:
        """
        The moment is over for a quiet child. Its output may fill a pipe that nobody reads yet: the next run of that
        program is announced at once.
        """
        if session.piped is not None:
            if len(self.lasting) >= LASTING_PROGRAMS:
                self.lasting.clear()
            self.lasting.add(session.piped)

    def unwatch(self, session: Session, *_details: object) -> None:
        """
        The child has ended: nothing of it is waited for, and its descriptors go.
        """
        self.due.pop(session, None)
        if session.ends is not None:
            session.ends.close_given()
            session.ends = None
        if session.pidfd >= 0:
            self.close(session.pidfd)
            session.pidfd = -1
        self.tidy_soon()

    def tidy_soon(self) -> None:
        """
        Something has ended: tidy up in a moment, once for all that end until then.
        """
        soon = time.monotonic() + TIDY_SECONDS
        if self.due.get(_TIDY, soon + 1) > soon:
            self.due[_TIDY] = soon

    def reap(self, session: Session) -> None:
        """
        Reap a held child, which is a zombie.
        """
        if system.armed:
            system.failpoint("zygote.before_reap")
        _pid, _status, usage = os.wait4(session.pid, 0)
        session.usage = tuple(usage)
        del self.by_pid[session.pid]
        if system.armed:
            system.failpoint("zygote.after_reap")

    def reply_released(self, session: Session) -> None:
        """
        Say RELEASED.
        """
        self.send(session, (wire.RELEASED, session.usage))

    def reply_swept(self, session: Session, *message: "tuple[Any, ...]") -> None:
        """
        Say SWEPT, to whoever waits for it: a gentler signal than SIGKILL that came too late has no answer.
        """
        if message[0][1] == signal.SIGKILL:
            self.send(session, (wire.SWEPT, self.swept))

    def pass_signal(self, session: Session, message: "tuple[Any, ...]") -> None:
        """
        Signal the child, or its whole tree.
        """
        number, whole = message[1], message[2]
        if whole and number == signal.SIGKILL:
            system.kill_tree(session.pid)
            self.sweep(session)
        elif whole:
            self.tell_tree(session, number)
        else:
            system.signal_quietly(session.pid, number)

    def tell_tree(self, session: Session, number: int) -> None:
        """
        Signal the child's whole tree, which may outlive this: with the child its members lose what makes them such. So
        those who have left its group are remembered, for `sweep`.
        """
        session.family.update(system.descendants(session.pid))
        system.signal_quietly(-session.group if session.group else session.pid, number)
        for pid in session.family:
            facts = system.stat(pid)
            if facts is not None and facts[2] != session.group and session.family[pid] == facts[5]:
                system.signal_quietly(pid, number)

    def kill_tree(self, session: Session) -> None:
        """
        SIGKILL the child, with its tree if that was asked at its start.
        """
        if session.tree:
            system.kill_tree(session.pid)
        else:
            system.signal_quietly(session.pid, signal.SIGKILL)

    def terminate(self, session: Session) -> None:
        """
        Ask the child, and its group where it has one of its own, to end; a stopped one must wake to hear it.
        """
        for number in (signal.SIGTERM, signal.SIGCONT):
            if session.tree:
                self.tell_tree(session, number)
            else:
                system.signal_quietly(session.pid, number)

    def start_grace(self, session: Session) -> None:
        """
        Give SIGTERM its time.
        """
        self.due[session] = time.monotonic() + GRACE_SECONDS

    def sweep(self, session: Session, *message: "tuple[Any, ...]") -> None:
        """
        SIGKILL what is left of a child's tree beside it: orphans of its group or session, those of its family when it
        was asked to end, and daemons with its mark in their environment. They came to the subreaper.
        """
        self.swept = 0
        if message and message[0][1] != signal.SIGKILL:
            return
        for pid in system.children(self.own_pid):
            facts = system.stat(pid) if pid not in self.by_pid else None
            if facts is None or facts[0] == "Z":
                continue
            if (
                (session.group and session.group in (facts[2], facts[3]))
                or session.family.get(pid) == facts[5]
                or (session.mark and system.has_in_environment(pid, wire.MARK + b"=" + session.mark))
            ):
                self.swept += system.kill_tree(pid)

    def sweep_tree(self, session: Session, *_details: object) -> None:
        """
        `sweep`, if the tree was to end with the child.
        """
        if session.tree:
            self.sweep(session)

    def forget(self, session: Session, *_details: object) -> None:
        """
        Nothing is left to do for this session.
        """
        self.due.pop(session, None)
        self.sessions.discard(session)

    # --- messages ----------------------------------------------------------------------------------------------------
    def connect(self) -> None:
        """
        Make a connection and hand it over.
        """
        try:
            near, far_fd = channel.pair()
        except OSError as error:
            self.answer((wire.REFUSED, f"no connection: {error.strerror}"))
            return
        self.answer((wire.CONNECTED,), (far_fd,))
        os.close(far_fd)
        self.adopt(near)

    def adopt(self, near: "socket") -> None:
        """
        Begin a session on *near*.
        """
        session = Session(near)
        self.sessions.add(session)
        self.watch(near.fileno(), self.on_message, session)

    def send(self, session: Session, message: "tuple[Any, ...]", fds: tuple[int, ...] = ()) -> None:
        """
        Send on a connection. A peer that does not read its two answers, or has gone, loses its child.
        """
        if session.connection is not None:
            try:
                channel.send(session.connection, message, fds)
            except OSError:
                self.close_session(session)

    def answer(self, message: "tuple[Any, ...]", fds: tuple[int, ...] = ()) -> None:
        """
        Send on the control socket. Where two hundred answers lie unread, this one is lost: the asker's own limit ends
        its wait.
        """
        try:
            channel.send(self.control, message, fds)
        except OSError:
            return

    def statistics(self) -> dict[str, int]:
        """
        Facts for whoever asks: counts, and the sizes that must stay level.
        """
        states = [session.state for session in self.sessions]
        return {
            "connections": len(states),
            "running": sum(state in (table.LAUNCHING, table.RUNNING) for state in states),
            "ending": sum(state in (table.ENDING, table.KILLING) for state in states),
            "held": states.count(table.HELD),
            "started": self.started,
            "failed": self.failed,
            "threads": len(os.listdir("/proc/self/task")),
            "descriptors": len(os.listdir("/proc/self/fd")) - 1,
            "children": len(system.children(self.own_pid)),
        }

    # --- the house ---------------------------------------------------------------------------------------------------
    def tidy(self) -> None:
        """
        Pin no mount by a working directory, keep no garbage, and reap the orphans that came to us and have ended.

        An orphan appears when one of our children ends, or one of its descendants; no descriptor tells of it. So the
        look comes soon after each exit, and ever more seldom while children run on or orphans live.
        """
        os.chdir("/")
        gc.collect()  # what failed starts left: their errors refer to the frames that refer to them
        strays = False
        for pid in system.children(self.own_pid):
            if pid not in self.by_pid and os.waitpid(pid, os.WNOHANG) == (0, 0):
                strays = True
        if self.by_pid or strays:
            self.due[_TIDY] = time.monotonic() + self.watch_seconds
            self.watch_seconds = min(2 * self.watch_seconds, WATCH_SECONDS[1])
        else:
            self.watch_seconds = WATCH_SECONDS[0]

    def end_all(self) -> None:
        """
        End every child: ask, wait the grace, kill whole trees, then whatever else is left below this process.
        """
        self.control.detach()
        for fd in [fd for fd, (_, subject) in self.watched.items() if subject is _OUR_END_ONLY]:
            self.close(fd)  # they stay readable for ever now
        for session in list(self.sessions):
            self.close_session(session)
        deadline = time.monotonic() + GRACE_SECONDS + END_SECONDS
        while self.sessions and time.monotonic() < deadline:
            self.turn(0.1)
        system.kill_all_children(self.own_pid, deadline)


def is_hung_up(connection: "Any") -> bool:
    """
    Whether the other end of *connection* is closed, for writing at least.
    """
    look = select.poll()
    look.register(connection, HUNG_UP)
    return bool(look.poll(0))


def failed(error: Exception) -> LaunchError:
    """
    *error* as one of a launch: a number that no C type holds is an invalid argument.
    """
    if isinstance(error, LaunchError):
        return error
    if isinstance(error, MemoryError):
        return LaunchError("fork", errno.ENOMEM)
    number = errno.EINVAL if isinstance(error, (OverflowError, ValueError)) else errno.EPROTO
    return LaunchError("fork", getattr(error, "errno", None) or number)


def whole(fds: list[int]) -> tuple[bytes, ...] | None:
    """
    All that lies in pipes which nobody writes to any more, if it is short; else None, and nothing has been taken.
    """
    look = select.poll()
    for fd in fds:
        look.register(fd, 0)
    if len(look.poll(0)) < len(fds):  # no hang-up: a process in the background has it
        return None
    sizes = [int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, _NO_SIZE), sys.byteorder) for fd in fds]
    if sum(sizes) > OUTPUT_BYTES:
        return None
    return tuple([os.read(fd, size) if size else b"" for fd, size in zip(fds, sizes, strict=True)])


def raw_status(result: os.waitid_result) -> int:
    """
    The wait status that waitpid(2) would give, from what waitid(2) says.
    """
    if result.si_code == os.CLD_EXITED:
        return result.si_status << 8
    return result.si_status | (0x80 if result.si_code == os.CLD_DUMPED else 0)
