"""
The last steps before a program runs, which both ways of starting share: the directory, the file, the attempts.

Runs in: zygote, and its forked child before exec.
"""

import errno
import os
import time

TYPE_CHECKING = False  # known to the type checkers by its name; `typing` is not imported here
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

_UNTOLD = (0, errno.ENOENT, errno.ENOTDIR)  # of one candidate of several: look on
BUSY_PAUSES = (0.002, 0.004, 0.008, 0.0)  # seconds; somebody's fork has the file open for writing, about to exec
_DEFAULT_PATH = os.defpath.encode()


class LaunchError(Exception):
    """
    The program did not start: at which stage, with which errno, because of which name.
    """

    def __init__(self, stage: str, number: int, name: bytes | None = None) -> None:
        super().__init__(stage, number, name)
        self.stage, self.errno, self.name = stage, number, name


def start_from(request: "tuple[Any, ...]", fds: list[int]) -> None:
    """
    Take on the application's directory, unless the request names one from the root.
    """
    directory = request[5]
    if directory is None or not directory.startswith(b"/"):
        try:
            os.fchdir(fds[0])
        except OSError as error:
            raise LaunchError("cwd", error.errno or errno.EIO, b".") from None


def enter(request: "tuple[Any, ...]", env: dict[bytes, bytes]) -> list[bytes]:
    """
    Take on the directory asked for and the umask, and say which files may be the program, in order.
    """
    if request[5] is not None:
        try:
            os.chdir(request[5])
        except OSError as error:
            raise LaunchError("cwd", error.errno or errno.EIO, request[5]) from None
    os.umask(request[11])
    name = request[1][0] if request[2] is None else request[2]
    if b"/" in name:
        return [name]
    directories = env.get(b"PATH", _DEFAULT_PATH).split(b":")
    return [directory + b"/" + name if directory else name for directory in directories]


def step(stage: str, action: "Callable[..., object]", *arguments: object) -> None:
    """
    Do *action*; a failure is told with its *stage*.
    """
    try:
        action(*arguments)
    except OSError as error:
        raise LaunchError(stage, error.errno or errno.EIO) from None
    except (ValueError, OverflowError):  # setrlimit: soft above hard, or above what the kernel allows
        raise LaunchError(stage, errno.EINVAL) from None


def try_each(candidates: list[bytes], start: "Callable[[bytes], int]") -> int:
    """
    Start the first of *candidates* that can be; otherwise the first error that says more than "not there".

    A look is a fiftieth of a failing start. One that may not be looked at (EACCES) counts as not there until all have
    been tried, and then tells by failing.
    """
    telling = 0  # the number alone: a kept exception would keep its frame, and that the exception
    looked_at = filter(exists, candidates) if len(candidates) > 1 else ()
    for paths in (looked_at, candidates):
        for path in paths:
            for pause in BUSY_PAUSES:
                try:
                    return start(path)
                except OSError as error:
                    if telling in _UNTOLD:
                        telling = error.errno or errno.EIO
                    if error.errno != errno.ETXTBSY:
                        break
                    time.sleep(pause)
        if telling:
            raise OSError(telling, os.strerror(telling))
    raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))


def exists(path: bytes) -> bool:
    """
    Whether *path* is there and may be looked at.
    """
    return os.access(path, os.F_OK)
