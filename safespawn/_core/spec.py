"""
What to start, checked once: from here on a command is a record of bytes, numbers and descriptors.

Runs in: application, any thread.
"""

import attrs

from safespawn._zygote import wire


@attrs.define(slots=True)  # never changed; frozen, each of its attributes would cost a call
class SpawnSpec:
    """
    One command, as the zygote wants it.

    Attributes:
        argv: The command, as bytes.
        executable: The program, if it is not ``argv[0]``.
        env: The whole environment, or None for the application's current one.
        cwd: Where to run, relative to the application's current directory, or None for that.
        streams: For 0, 1 and 2: a borrowed descriptor, or `wire.PIPE`, `wire.NULL`, `wire.STDOUT`.
        pass_fds: Further descriptors, with the number that they have in the child: their own.
        input: What a short pipe to stdin shall hold from the start, or None.
        flags: Of `wire`: HOLD, QUIET, NEW_SESSION, TREE, NO_NEW_PRIVS.
        group: The process group to join, 0 for one of its own, or `wire.GROUP_AUTO`.
        umask: Or None for the application's current one.
        ignore: Signals to ignore, beside those that the application ignores.
        credentials: uid, gid, groups, rows of (limit, soft, hard), nice increment, CPUs, death signal; None for none.
        detached: Outlives the application.
    """

    argv: tuple[bytes, ...]
    executable: bytes | None = None
    env: dict[bytes, bytes] | None = None
    cwd: bytes | None = None
    streams: tuple[int, int, int] = (0, 1, 2)
    pass_fds: tuple[int, ...] = ()
    input: bytes | None = None
    flags: int = 0
    group: int = wire.GROUP_AUTO
    umask: int | None = None
    ignore: tuple[int, ...] = ()
    credentials: tuple[object, ...] | None = None
    detached: bool = False

    @property
    def name(self) -> str:
        """
        What to call the program in a message.
        """
        return (self.executable or self.argv[0]).decode(errors="backslashreplace")
