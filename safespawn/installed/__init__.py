"""
`install`: the safe implementations behind the standard library's names, for programs that cannot be edited.

The names are a table. Each is replaced in its module, and what stood there is kept, for `uninstall`. Nothing is started
by that, and no module of the program is touched: one that has taken a name before has the old one, and a warning says
which.

Runs in: application, any thread; best before anything else.
"""

import functools
import importlib
import sys
import threading
import warnings
from collections.abc import Iterable
from typing import Any

import attrs

from safespawn import _waitpid
from safespawn._start_method import forget_choice
from safespawn.errors import BadArgument, BadArgumentType

_TRANSPORT = "asyncio.SelectorEventLoop._make_subprocess_transport"
_CONTEXT = "multiprocessing.context._default_context._default_context"
_WAITPID = "os.waitpid"
_SUBPROCESS = ("Popen", "run", "call", "check_call", "check_output", "getoutput", "getstatusoutput")
_AIO = ("create_subprocess_exec", "create_subprocess_shell")


# By name: the module that it is in, and where what replaces it is.
_TABLE: dict[str, tuple[str, str, str]] = {
    **{f"subprocess.{name}": ("subprocess", "subprocess", name) for name in _SUBPROCESS},
    "os.system": ("os", "installed.shell", "system"),
    "os.popen": ("os", "installed.shell", "popen"),
    _WAITPID: ("os", "_waitpid", "waitpid"),
    **{f"asyncio.{name}": ("asyncio", "asyncio_subprocess", name) for name in _AIO},
    **{f"asyncio.subprocess.{name}": ("asyncio.subprocess", "asyncio_subprocess", name) for name in _AIO},
    _TRANSPORT: ("asyncio", "asyncio_subprocess", "make_transport"),
    "multiprocessing.Pool": ("multiprocessing", "multiprocessing.pool", "Pool"),
    "multiprocessing.pool.Pool": ("multiprocessing.pool", "multiprocessing.pool", "Pool"),
    "multiprocessing.Process": ("multiprocessing", "context", "Process"),
    _CONTEXT: ("multiprocessing.context", "context", "get_context"),
    "concurrent.futures.ProcessPoolExecutor": ("concurrent.futures", "futures", "ProcessPoolExecutor"),
    "concurrent.futures.process.ProcessPoolExecutor": ("concurrent.futures.process", "futures", "ProcessPoolExecutor"),
}
_WITH = {"subprocess.Popen": _TRANSPORT}  # asyncio would wait for the process as for a child of its own
_NO_NAMES = (_TRANSPORT, _CONTEXT)  # that a program takes from a module


@attrs.frozen
class _Replaced:
    """
    A name that has been replaced.
    """

    owner: Any
    attribute: str
    before: Any
    now: Any

    @property
    def stands(self) -> bool:
        """
        Whether nobody has replaced it after us.
        """
        return getattr(self.owner, self.attribute, None) is self.now

    def put_back(self) -> bool:
        """
        Make it what it was; False if it is somebody else's by now.
        """
        if getattr(self.owner, self.attribute, None) is self.before:
            return True
        if not self.stands:
            return False
        setattr(self.owner, self.attribute, self.before)
        return True


_replaced: dict[str, _Replaced] = {}
_told: set[tuple[str, str]] = set()
_lock = threading.Lock()


def install(*, names: Iterable[str] | None = None) -> tuple[str, ...]:
    """
    Put the safe implementations behind the standard library's names, in this process.

    Nothing is started. A second call changes nothing; a name that somebody has replaced since is left to them.

    Args:
        names: Which, as `install` returns them; None for all.

    Returns:
        Those of them that are this library's now, sorted.

    Raises:
        BadArgument: There is no such name.

    Warns:
        RuntimeWarning: Modules that have taken a name before keep the old one.
    """
    wanted = _chosen(names)
    with _lock:
        for name in wanted:
            if name not in _replaced:
                _replaced[name] = _replace(name)
        done = tuple([name for name in wanted if _replaced[name].stands])
        old = _old_references()
    if old:
        warnings.warn(
            "these were taken from their modules before safespawn.install(), and are still the standard library's: "
            f"{', '.join(old)}. Call install() before those modules are imported, or use `safespawn exec`.",
            RuntimeWarning,
            stacklevel=2,
        )
    return done


def uninstall() -> tuple[str, ...]:
    """
    Put back what `install` has replaced.

    Returns:
        The names that are left as they are, because somebody else has replaced them since; sorted.
    """
    with _lock:
        if _replaced:
            _waitpid.detach()
        for name in [name for name, each in _replaced.items() if each.put_back()]:
            del _replaced[name]
            if name == _CONTEXT:
                forget_choice("safespawn")
        return tuple(sorted(_replaced))


def _chosen(names: Any) -> list[str]:
    if names is None:
        return sorted(_TABLE)
    if isinstance(names, (str, bytes)):
        raise BadArgumentType("names is a list of names", parameter="names", value=names, help=f"give [{names!r}]")
    wanted = set(names)
    for name in wanted - _TABLE.keys():
        known = ", ".join(sorted(_TABLE))
        raise BadArgument(f"install() does not know {name!r}", parameter="names", value=name, help=f"one of {known}")
    return sorted(wanted | {also for name, also in _WITH.items() if name in wanted})


def _replace(name: str) -> _Replaced:
    module, home, attribute = _TABLE[name]
    path = name.removeprefix(f"{module}.").split(".")
    owner = functools.reduce(getattr, path[:-1], importlib.import_module(module))
    now = getattr(importlib.import_module(f"safespawn.{home}"), attribute)
    if name == _CONTEXT:
        now = now()
    elif name == _WAITPID:
        _waitpid.detach()  # a process that was started before has put it there already
    each = _Replaced(owner, path[-1], getattr(owner, path[-1]), now)
    setattr(owner, path[-1], now)
    if name == _CONTEXT:
        forget_choice("fork")
    return each


def _old_references() -> list[str]:
    """
    The names in modules of the program that are still what they were, each told once.
    """
    before = {id(each.before): name for name, each in _replaced.items() if name not in _NO_NAMES}
    found: list[str] = []
    for module, holder in list(sys.modules.items()):
        top = module.partition(".")[0]
        if top in sys.stdlib_module_names or top in ("safespawn", "__mp_main__"):
            continue
        for attribute, value in list(getattr(holder, "__dict__", {}).items()):
            name = before.get(id(value))
            if name is not None and (module, attribute) not in _told:
                _told.add((module, attribute))
                found.append(f"{module}.{attribute} ({name})")
    return sorted(found)


__all__ = ["install", "uninstall"]
