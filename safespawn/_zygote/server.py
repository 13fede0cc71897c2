"""
The zygote's loop: one thread, one epoll set, one session per connection.

Each turn takes what is ready (a request, an exit, the report of a forked child, the end of the application), looks up
the session's cell in `session.TABLE` and does the effects it names. A request that fails is answered; a peer that
breaks the protocol loses its connection, and its child. No error of one session reaches another one, and none ends
the loop but the end of the application.

Runs in: zygote.
Never: writes to a terminal, logs, starts a thread, waits for anything but the epoll set.
"""

import errno
import os
import select
import signal
import sys
import time

import _socket
import launch
import session as table
import system
import wire
from _struct import pack

GRACE_SECONDS = 0.5  # between SIGTERM and SIGKILL of an abandoned child; arbitrary, short enough for a stop in 2 s
MOMENT_SECONDS = 0.003  # a quiet start is announced when it lasts longer; a child that execs and ends takes 1 ms
ADOPTED_SECONDS = 0.05  # how often adopted orphans are looked at while children end
END_SECONDS = 5.0  # how long the last processes may take to go after SIGKILL (uninterruptible sleep)
MESSAGE_BYTES = wire.INLINE_BYTES + 1024  # a longer one would have come in a memfd, and is cut off
CONTROL_BYTES = _socket.CMSG_SPACE(12) + _socket.CMSG_SPACE(4 * wire.MAX_FDS)
GONE = select.EPOLLHUP | select.EPOLLRDHUP | select.EPOLLERR


class Session:
    """
    One connection and the child on it.
    """

    __slots__ = ("ambient", "announced", "connection", "ends", "group", "hold", "pid", "pidfd", "quiet", "report_fd",
                 "state", "timer", "tree", "usage")  # fmt: skip

    def __init__(self, connection) -> None:  # noqa: ANN001 - a socket
        self.connection = connection
        self.state = table.IDLE
        self.ambient: tuple | None = None
        self.pid = 0
        self.pidfd = -1
        self.report_fd = -1
        self.ends: launch.Ends | None = None
        self.group = 0  # the group that the child leads, or 0
        self.hold = self.quiet = self.tree = self.announced = False
        self.timer: float | None = None
        self.usage: tuple | None = None


class Server:
    """
    The whole of the zygote after its boot.
    """

    def __init__(self, control, application_pid: int, application_fd: int, warden_fd: int, *, keeps: bool) -> None:  # noqa: ANN001
        self.control = control
        self.application_pid = application_pid
        self.application_uid = os.getuid()
        self.application_fd = application_fd
        self.keeps = keeps  # the children outlive the application: detach=True
        self.launcher = launch.Launcher()
        self.epoll = select.epoll()
        self.sessions: set[Session] = set()
        self.by_pid: dict[int, Session] = {}
        self.timed: set[Session] = set()
        self.watched: dict[int, tuple] = {}  # fd -> (method, session)
        self.ending = False
        self.buffer = bytearray(MESSAGE_BYTES)  # a fresh one for each message would cost its page faults
        self.swept = 0
        self.started = self.failed = 0
        self.orphans_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.orphans_due: float | None = None
        self.orphans_told = False
        self.watch(control.fileno(), self.on_control, None)
        self.watch(application_fd, self.on_application_end, None)
        if warden_fd >= 0:
            self.watch(warden_fd, self.on_application_end, None)
        self.watch(self.orphans_fd, self.on_orphans, None)
        signal.signal(signal.SIGCHLD, self.on_sigchld)

    # --- the loop ----------------------------------------------------------------------------------------------------
    def serve(self) -> None:
        """
        Serve until the application has ended, then end everything that it started.
        """
        while not self.ending:
            self.turn(self.next_timer())
        if not self.keeps:
            self.end_all()

    def turn(self, timeout: float | None) -> None:
        """
        Wait once, and do what is ready.
        """
        for fd, events in self.epoll.poll(-1 if timeout is None else timeout):
            entry = self.watched.get(fd)
            if entry is None:
                continue  # unwatched by an earlier event of this turn
            method, session = entry
            try:
                method(session, events)
            except Exception as error:  # noqa: BLE001 - one session's trouble, even a bug of ours, stays that session's
                self.abandon(session, error)
        if self.timed or self.orphans_due is not None:
            self.run_timers(time.monotonic())

    def watch(self, fd: int, method, session) -> None:  # noqa: ANN001
        self.epoll.register(fd, select.EPOLLIN | select.EPOLLRDHUP)
        self.watched[fd] = (method, session)

    def forget_fd(self, fd: int) -> None:
        """
        Stop watching *fd* and close it.
        """
        if self.watched.pop(fd, None) is not None:
            self.epoll.unregister(fd)
        os.close(fd)

    def next_timer(self) -> float | None:
        if not self.timed and self.orphans_due is None:
            return None
        due = min([session.timer for session in self.timed if session.timer is not None], default=None)
        if self.orphans_due is not None:
            due = self.orphans_due if due is None else min(due, self.orphans_due)
        return None if due is None else max(0.0, due - time.monotonic())

    def run_timers(self, now: float) -> None:
        for session in [each for each in self.timed if each.timer is not None and each.timer <= now]:
            self.timed.discard(session)
            session.timer = None
            if session.state == table.RUNNING:
                self.announce_late(session)
            else:
                self.event(session, table.GRACE_OVER)
        if self.orphans_due is not None and self.orphans_due <= now:
            self.orphans_due = None
            self.orphans_told = False
            self.reap_adopted()

    def start_timer(self, session: Session, seconds: float) -> None:
        session.timer = time.monotonic() + seconds
        self.timed.add(session)

    def stop_timer(self, session: Session) -> None:
        session.timer = None
        self.timed.discard(session)

    # --- the table ---------------------------------------------------------------------------------------------------
    def event(self, session: Session, name: str, *details: object) -> None:
        """
        Go through the cell of *name*; an empty cell is the peer's mistake and is answered.
        """
        cell = table.TABLE.get((session.state, name))
        if cell is None:
            if name not in (table.CLOSED, table.HUNG_UP, table.GRACE_OVER):
                self.send(session, (wire.REFUSED, f"{name} is not possible while the session is {session.state}"))
            return
        session.state = cell[0]
        for effect in cell[1]:
            getattr(self, effect)(session, *details)

    def abandon(self, session: Session | None, error: Exception) -> None:
        """
        One session cannot go on: end it and its child, the others never notice. What is not the system's doing is
        kept for the application to read where it reads a boot error.
        """
        if not isinstance(error, (OSError, MemoryError)):
            sys.__excepthook__(type(error), error, error.__traceback__)
        if session is not None:
            self.close_session(session)

    def close_session(self, session: Session) -> None:
        """
        The connection is closed, by them or by us: its child shall end.
        """
        if session.connection is not None:
            self.watched.pop(session.connection.fileno(), None)
            session.connection.close()  # which takes it out of the epoll set: nobody else has this descriptor
            session.connection = None
        self.event(session, table.HUNG_UP if self.keeps else table.CLOSED)

    # --- what the descriptors say ------------------------------------------------------------------------------------
    def on_control(self, _session: None, events: int) -> None:
        """
        The control socket: connections are asked for here; its end is the application's.
        """
        if events & GONE:
            self.ending = True
            return
        message, fds = self.receive(self.control)
        for fd in fds:
            os.close(fd)
        if message is None:
            self.ending = True
        elif isinstance(message, str):
            self.answer((wire.REFUSED, message), ())
        elif message[0] == wire.CONNECT:
            try:
                near, far = self.new_connection()
            except OSError as error:
                self.answer((wire.REFUSED, f"no connection: {error.strerror}"), ())
                return
            self.answer((wire.CONNECTED,), (far,))
            os.close(far)
            self.adopt(near)
        elif message[0] == wire.CENSUS:
            self.answer((wire.COUNTED, self.statistics()), ())
        else:
            self.answer((wire.REFUSED, f"kind {message[0]} does not belong on the control socket"), ())

    def on_application_end(self, _session: None, _events: int) -> None:
        self.ending = True

    def on_message(self, session: Session, events: int) -> None:
        """
        A connection: a request, or the end of it. A request whose sender has gone is not begun.
        """
        if events & GONE:
            self.close_session(session)
            return
        message, fds = self.receive(session.connection)
        try:
            if message is None:
                self.close_session(session)
            elif message == "":
                self.send(session, (wire.FAILED, "receive", errno.EMFILE, None))
            elif isinstance(message, str):
                self.send(session, (wire.REFUSED, message))
                self.close_session(session)
            elif message[0] == wire.SPAWN:
                system.failpoint("zygote.got_spawn")
                self.event(session, table.SPAWN, message, fds)
            elif message[0] == wire.KILL:
                self.event(session, table.KILL, message)
            elif message[0] == wire.RELEASE:
                self.event(session, table.RELEASE)
            else:
                self.send(session, (wire.REFUSED, f"kind {message[0]} does not belong on a connection"))
        finally:
            for fd in fds:
                os.close(fd)

    def on_exit(self, session: Session, _events: int) -> None:
        self.event(session, table.EXITED_HOLD if session.hold else table.EXITED_AUTO)

    def on_report(self, session: Session, _events: int) -> None:
        """
        The forked child's report: nothing but the end of the pipe when exec has closed it.
        """
        data = os.read(session.report_fd, 4096 + 512)
        self.forget_fd(session.report_fd)
        session.report_fd = -1
        if not data:
            self.event(session, table.EXECED)
            return
        os.waitpid(session.pid, 0)  # it wrote its last word and is in _exit
        del self.by_pid[session.pid]
        self.close_pidfd(session)
        self.event(session, table.LAUNCH_FAILED, launch.read_report(data))

    def on_sigchld(self, _number: int, _frame: object) -> None:
        """
        Somebody ended: perhaps an orphan that came to us as the subreaper, which no pidfd tells of. Look, but seldom.
        """
        if not self.orphans_told:
            self.orphans_told = True
            os.eventfd_write(self.orphans_fd, 1)

    def on_orphans(self, _session: None, _events: int) -> None:
        os.eventfd_read(self.orphans_fd)
        self.orphans_due = time.monotonic() + ADOPTED_SECONDS

    # --- effects, named in the table ---------------------------------------------------------------------------------
    def start(self, session: Session, request: tuple, fds: list[int]) -> None:
        if request[3] is not None:
            session.ambient = request[3]
        ends = launch.Ends()
        try:
            self.check(session, request, fds)
            if self.launcher.needs_fork(request, session.ambient):
                session.pid, session.report_fd = self.launcher.fork(request, session.ambient, fds, ends)
            else:
                session.pid = self.launcher.spawn(request, session.ambient, fds, ends)
        except launch.LaunchError as error:
            ends.close_given()
            self.event(session, table.LAUNCH_FAILED, error)
            return
        finally:
            ends.close_child()
        system.failpoint("zygote.after_spawn")
        flags = request[9]
        session.ends = ends
        session.hold = bool(flags & wire.HOLD)
        session.quiet = bool(flags & wire.QUIET) and not ends.given
        session.tree = bool(flags & wire.TREE)
        session.announced = False
        leads = flags & wire.NEW_SESSION or self.launcher.group(request, session.ambient) == 0
        session.group = session.pid if leads else 0
        session.usage = None
        self.by_pid[session.pid] = session
        try:
            session.pidfd = os.pidfd_open(session.pid)
            self.event(session, table.LAUNCHED if session.report_fd >= 0 else table.EXECED)
        except OSError as error:  # EMFILE: a child that cannot be watched is none
            self.undo_launch(session)
            self.event(session, table.LAUNCH_FAILED, launch.LaunchError("watch", error.errno or errno.EIO))

    def undo_launch(self, session: Session) -> None:
        system.signal_quietly(session.pid, signal.SIGKILL)
        os.waitpid(session.pid, 0)
        del self.by_pid[session.pid]
        session.state = table.LAUNCHING
        if session.report_fd >= 0:
            self.forget_fd(session.report_fd)
            session.report_fd = -1
        self.close_pidfd(session)
        if session.ends is not None:
            session.ends.close_given()
            session.ends = None

    def check(self, session: Session, request: tuple, fds: list[int]) -> None:
        """
        What the codec cannot know: the message against this connection and its descriptors.
        """
        if session.ambient is None:
            raise launch.LaunchError("protocol", errno.EPROTO, b"no ambient state was sent on this connection")
        if not fds or not request[1]:
            raise launch.LaunchError("protocol", errno.EPROTO, b"no working directory, or no argv")
        passed = request[7]
        if max(request[6]) >= len(fds) or (passed and not all(fits(row, len(fds)) for row in passed)):
            raise launch.LaunchError("protocol", errno.EPROTO, b"a descriptor is missing")
        if wire.STDOUT in request[6][:2]:
            raise launch.LaunchError("protocol", errno.EPROTO, b"only stderr can go where stdout goes")

    def await_exec(self, session: Session) -> None:
        self.watch(session.report_fd, self.on_report, session)

    def watch_child(self, session: Session) -> None:
        if session.report_fd >= 0:
            self.forget_fd(session.report_fd)
            session.report_fd = -1
        if session.pidfd not in self.watched:
            self.watch(session.pidfd, self.on_exit, session)

    def announce(self, session: Session) -> None:
        self.started += 1
        if session.quiet:
            self.start_timer(session, MOMENT_SECONDS)
        else:
            self.announce_late(session)

    def announce_late(self, session: Session) -> None:
        """
        STARTED, with the pidfd and the application's pipe ends, which the zygote then no longer has.
        """
        ends, session.ends = session.ends, None
        system.failpoint("zygote.before_started")
        session.announced = True
        try:
            self.send(session, (wire.STARTED, session.pid, ends.mask), (session.pidfd, *ends.given))
        finally:
            ends.close_given()
        system.failpoint("zygote.after_started")

    def reply_failed(self, session: Session, error: launch.LaunchError) -> None:
        self.failed += 1
        if session.ends is not None:
            session.ends.close_given()
            session.ends = None
        self.send(session, (wire.FAILED, error.stage, error.errno, error.name))

    def unwatch(self, session: Session) -> None:
        """
        The child is a zombie. Its status is read without reaping, and its descriptor goes.
        """
        self.stop_timer(session)
        if session.ends is not None:
            session.ends.close_given()
            session.ends = None
        self.close_pidfd(session)

    def close_pidfd(self, session: Session) -> None:
        if session.pidfd >= 0:
            self.forget_fd(session.pidfd)
            session.pidfd = -1

    def reap(self, session: Session) -> None:
        system.failpoint("zygote.before_reap")
        _pid, status, usage = os.wait4(session.pid, 0)
        session.usage = (status, *usage)
        self.by_pid.pop(session.pid, None)
        system.failpoint("zygote.after_reap")

    def reply_exited(self, session: Session) -> None:
        system.failpoint("zygote.before_exited")
        if session.usage is None:
            status = raw_status(os.waitid(os.P_PID, session.pid, os.WEXITED | os.WNOWAIT))
            self.send(session, (wire.EXITED, session.pid, status, None))
        else:
            self.send(session, (wire.EXITED, session.pid, session.usage[0], session.usage[1:]))
        system.failpoint("zygote.after_exited")

    def reply_released(self, session: Session) -> None:
        self.send(session, (wire.RELEASED, session.usage[1:]))

    def reply_swept(self, session: Session, *_message: object) -> None:
        self.send(session, (wire.SWEPT, self.swept))

    def pass_signal(self, session: Session, message: tuple) -> None:
        """
        Signal the child, or its whole tree.
        """
        number, whole = message[1], message[2]
        if whole and number == signal.SIGKILL:
            system.kill_tree(session.pid)
            self.sweep(session)
        elif whole and session.group:
            system.signal_quietly(-session.group, number)
        else:
            system.signal_quietly(session.pid, number)

    def kill_tree(self, session: Session) -> None:
        if session.tree:
            system.kill_tree(session.pid)
        else:
            system.signal_quietly(session.pid, signal.SIGKILL)

    def terminate(self, session: Session) -> None:
        """
        Ask the child, and its group where it has one of its own, to end; a stopped one must wake to hear it.
        """
        target = -session.group if session.group and session.tree else session.pid
        system.signal_quietly(target, signal.SIGTERM)
        system.signal_quietly(target, signal.SIGCONT)

    def start_grace(self, session: Session) -> None:
        self.start_timer(session, GRACE_SECONDS)

    def sweep(self, session: Session, *_message: object) -> None:
        """
        SIGKILL what is left of an ended child's tree: orphans in its group or session, which came to the subreaper.
        """
        self.swept = 0
        if not session.group:
            return
        for pid in system.children(self.launcher.own_pid):
            facts = system.stat(pid) if pid not in self.by_pid else None
            if facts is not None and facts[0] != "Z" and session.group in (facts[2], facts[3]):
                self.swept += system.kill_tree(pid)

    def sweep_tree(self, session: Session) -> None:
        if session.tree:
            self.sweep(session)

    def forget(self, session: Session, *_details: object) -> None:
        self.stop_timer(session)
        if session.ends is not None:
            session.ends.close_given()
            session.ends = None
        self.sessions.discard(session)

    # --- messages ----------------------------------------------------------------------------------------------------
    def new_connection(self):  # noqa: ANN201 - (socket, fd)
        near, far = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET | _socket.SOCK_CLOEXEC, 0)
        near.setblocking(False)
        near.setsockopt(_socket.SOL_SOCKET, _socket.SO_PASSCRED, 1)
        return near, far.detach()

    def adopt(self, near) -> None:  # noqa: ANN001
        session = Session(near)
        self.sessions.add(session)
        self.watch(near.fileno(), self.on_message, session)

    def receive(self, connection):  # noqa: ANN001, ANN201 - (message | refusal | None at the end, fds)
        """
        One message and its descriptors; a refusal in words for one that must not be obeyed ("" when its descriptors
        did not fit); None at the end.
        """
        fds: list[int] = []
        try:
            size, ancillary, flags, _ = connection.recvmsg_into(
                (self.buffer,), CONTROL_BYTES, _socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return "nothing came", fds
        except ConnectionResetError:
            return None, fds
        data = self.buffer[:size]
        sender = uid = -1
        for level, kind, value in ancillary:
            if level == _socket.SOL_SOCKET and kind == _socket.SCM_RIGHTS:
                fds += memoryview(value[: len(value) // 4 * 4]).cast("i")
            elif level == _socket.SOL_SOCKET and kind == _socket.SCM_CREDENTIALS:
                sender, uid, _ = memoryview(value).cast("i")
        if not data and not fds and not flags:
            return None, fds
        if flags & (_socket.MSG_CTRUNC | _socket.MSG_TRUNC):
            return "", fds  # no descriptor numbers left here
        if sender != self.application_pid:
            return f"this connection belongs to process {self.application_pid}; {sender} is a copy of it", fds
        if uid != self.application_uid:
            return f"the application now runs as user {uid}, the zygote as {self.application_uid}", fds
        try:
            if wire.is_in_memfd(data) and fds:
                body_fd = fds.pop(0)
                try:
                    data = wire.from_memfd(data, body_fd)
                finally:
                    os.close(body_fd)
            return wire.decode(data), fds
        except wire.WireError as error:
            return str(error), fds

    def send(self, session: Session, message: tuple, fds: tuple = ()) -> None:
        """
        Send on a connection. A peer that does not read its two answers, or has gone, loses its child.
        """
        if session.connection is None:
            return
        try:
            send_message(session.connection, message, fds)
        except OSError:
            self.close_session(session)

    def answer(self, message: tuple, fds: tuple) -> None:
        """
        Send on the control socket.
        """
        try:
            send_message(self.control, message, fds)
        except BlockingIOError:  # more than two hundred unread answers: the asker's own limit ends its wait
            pass

    def statistics(self) -> dict:
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
            "children": len(system.children(self.launcher.own_pid)),
        }

    # --- the end -----------------------------------------------------------------------------------------------------
    def reap_adopted(self) -> None:
        """
        Reap the orphans among our children that have ended.
        """
        for pid in system.children(self.launcher.own_pid):
            if pid not in self.by_pid:
                os.waitpid(pid, os.WNOHANG)

    def end_all(self) -> None:
        """
        End every child: ask, wait the grace, kill whole trees, then whatever else is left below this process.
        """
        for fd in [fd for fd, (_, session) in self.watched.items() if session is None and fd != self.orphans_fd]:
            self.forget_fd(fd)  # the control socket and the pidfds stay readable for ever now
        self.control.detach()
        for session in list(self.sessions):
            self.close_session(session)
        deadline = time.monotonic() + GRACE_SECONDS + END_SECONDS
        while self.sessions and time.monotonic() < deadline:
            timer = self.next_timer()
            self.turn(min(0.1, timer) if timer is not None else 0.1)
        kill_all_children(self.launcher.own_pid, deadline)


def kill_all_children(own_pid: int, deadline: float) -> None:
    """
    SIGKILL and reap until nobody is left below *own_pid*, or *deadline* (monotonic) has passed.
    """
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while pids := system.children(own_pid):
        for pid in pids:
            system.kill_tree(pid)
        for pid in pids:
            while os.waitpid(pid, os.WNOHANG) == (0, 0):
                if time.monotonic() > deadline:
                    return
                time.sleep(0.001)  # SIGKILL takes effect within microseconds, or not at all


def fits(row: tuple, count: int) -> bool:
    """
    Whether a row of pass_fds names one of *count* descriptors, and a number for it.
    """
    return len(row) == 2 and 0 <= row[0] < count and row[1] >= 0


def send_message(connection, message: tuple, fds: tuple = ()) -> None:  # noqa: ANN001
    """
    One datagram, with descriptors.
    """
    data = wire.encode(message)
    if fds:
        rights = (_socket.SOL_SOCKET, _socket.SCM_RIGHTS, pack(f"{len(fds)}i", *fds))
        connection.sendmsg([data], [rights], _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)
    else:
        connection.send(data, _socket.MSG_NOSIGNAL | _socket.MSG_DONTWAIT)


def raw_status(result) -> int:  # noqa: ANN001 - os.waitid_result
    """
    The wait status that waitpid(2) would give, from what waitid(2) says.
    """
    if result.si_code == os.CLD_EXITED:
        return result.si_status << 8
    return result.si_status | (0x80 if result.si_code == os.CLD_DUMPED else 0)
