"""
The application's failpoints: steps that a test makes fail by SAFESPAWN_FAILPOINTS. The zygote's are in its `system`.

Loaded only when that variable is set, and wraps the two methods of `Connection` that talk to the zygote, so that a
program without it pays nothing. What an action is stands once, in the zygote's `system`, which is loaded by its path:
the application has no other use for it.

Runs in: application, any thread.
"""

import importlib.util
import os
from typing import Any

_SYSTEM = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_zygote", "system.py")


def arm(connection: Any) -> None:
    """
    Make *connection*, the class, pass the points named in SAFESPAWN_FAILPOINTS.

    Raises:
        ValueError: A name that neither side has.
    """
    spec = importlib.util.spec_from_file_location("safespawn_failpoints", _SYSTEM)
    assert spec is not None  # noqa: S101 - the zygote could not be started without that file either
    assert spec.loader is not None  # noqa: S101
    system = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(system)
    system.arm_failpoints(os.environ["SAFESPAWN_FAILPOINTS"], system.CLIENT_FAILPOINTS)
    if not system.armed:
        return
    plain_send, plain_receive = connection.send, connection.receive

    def send(self: Any, message: tuple[Any, ...], fds: tuple[int, ...] = ()) -> None:
        system.failpoint("client.before_send")
        plain_send(self, message, fds)
        system.failpoint("client.after_send")

    def receive(self: Any, *, peek: bool = False) -> tuple[tuple[Any, ...] | None, list[int]]:
        system.failpoint("client.before_recv")
        message, fds = plain_receive(self, peek=peek)
        try:
            system.failpoint("client.after_recv")
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return message, fds

    connection.send, connection.receive = send, receive
