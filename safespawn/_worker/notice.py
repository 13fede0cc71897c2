"""
One message to whoever watches over this process from outside, by the protocol of sd_notify(3).

Runs in: application, supervised children; any thread.
Never: waits, or complains: a notice that cannot be sent is none.
"""

import _socket
import os

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # they are for this process, not for its children


def notify(message: str) -> bool:
    """
    Send *message*, "READY=1" say. Says whether there was somebody to send it to.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    place = "\0" + address[1:] if address[0] == "@" else address
    kind = _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC
    try:
        socket = _socket.socket(_socket.AF_UNIX, kind)
    except OSError:
        return False
    try:
        socket.sendto(message.encode(), _socket.MSG_DONTWAIT | _socket.MSG_NOSIGNAL, place)
    except OSError:
        return False
    finally:
        socket.close()
    return True


def watchdog_seconds() -> float | None:
    """
    How often this process is expected to say that it lives; None if it is not.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        seconds = int(os.environ.get("WATCHDOG_USEC", "")) / 1e6
    except ValueError:
        return None
    return seconds if seconds > 0 else None
