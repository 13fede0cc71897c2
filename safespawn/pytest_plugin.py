"""
A pytest plugin: the order guard over a whole test run, and a fixture that finds what a test leaves behind.

    pytest --safespawn-guard=error     every bare fork, preexec_fn, os.system, ... of the run is refused, at its line
    def test_it(safespawn_leaks):      fails if a process or a descriptor is left when the test has ended

Runs in: pytest's process, and each worker of xdist. Loads the library only when one of the two is used.
"""

import gc
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

SETTLE_SECONDS = 2.0  # for what ends by itself just after a test: a killed process, a socket's other side
_LOOK_SECONDS = 0.01  # between looks; arbitrary
_LAYER = pytest.StashKey[Any]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """
    The command line and the ini file.
    """
    group = parser.getgroup("safespawn")
    group.addoption(
        "--safespawn-guard",
        choices=("error", "warn", "off"),
        help="what to do when a process is started in a way that can hang: a bare fork, preexec_fn, os.system, "
        'os.popen, the start method "fork", any start while a module is being imported (default: as the ini file)',
    )
    parser.addini("safespawn_guard", "as --safespawn-guard", default="off")
    parser.addini("safespawn_guard_allow", "modules that may, as patterns, one a line", type="linelist")
    parser.addini("safespawn_leaks", "the fixture safespawn_leaks for every test", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    """
    Begin to watch. Threads that run already are no matter: pytest and its plugins have some.
    """
    setting = config.getoption("--safespawn-guard") or config.getini("safespawn_guard")
    if setting == "off":
        return
    from safespawn import _policy, _watch
    from safespawn.errors import BadArgument

    try:
        layer = _policy.make_layer(setting, config.getini("safespawn_guard_allow"))
    except BadArgument as error:
        raise pytest.UsageError(f"safespawn_guard: {error}") from None
    config.stash[_LAYER] = layer
    _watch.begin(layer, first=True)


def pytest_unconfigure(config: pytest.Config) -> None:
    """
    Watch no more.
    """
    layer = config.stash.get(_LAYER, None)
    if layer is not None:
        from safespawn import _watch

        _watch.end(layer)


def pytest_report_header(config: pytest.Config) -> str | None:
    """
    Say that the guard is on.
    """
    layer = config.stash.get(_LAYER, None)
    return None if layer is None else f"safespawn: guard {layer.policies['fork']}"


def pytest_itemcollected(item: pytest.Item) -> None:
    """
    With the ini value every test has the fixture, as its first one.
    """
    if isinstance(item, pytest.Function) and item.config.getini("safespawn_leaks"):
        item.fixturenames.insert(0, "safespawn_leaks")


@pytest.fixture
def safespawn_leaks() -> Iterator[None]:
    """
    After the test, whose process and descriptor is new here fails it; two seconds to settle.

    The helper processes of this library stay for the next test and do not count.
    """
    before = _holdings()
    yield
    deadline = time.monotonic() + SETTLE_SECONDS
    left = _holdings() - before
    if left:
        gc.collect()  # what only a cycle keeps is closed as soon as somebody looks
    while left and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
        left = _holdings() - before
    if left:
        words = "\n  ".join(f"{kind} {number}: {what}" for kind, number, what in sorted(left))
        pytest.fail(f"the test left something behind:\n  {words}", pytrace=False)


def _holdings() -> set[tuple[str, int, str]]:
    """
    The descriptors and the child processes of this process, but for the library's own.
    """
    from safespawn._drive import engine

    for each in list(engine._engines):  # noqa: SLF001 - the same library's  # pyright: ignore[reportPrivateUsage]
        each.prune()
    own_fds, own_pids = engine.infrastructure()
    found: set[tuple[str, int, str]] = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the one that listed the others
        if int(name) not in own_fds:
            found.add(("descriptor", int(name), target))
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                pids = file.read().split()
        except OSError:
            continue  # that thread has just ended
        found |= {("process", int(pid), _command(pid)) for pid in pids if int(pid) not in own_pids}
    return found


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().replace(b"\0", b" ").decode(errors="replace").strip()
        return words[:200] or "a zombie, that nobody has waited for"
    except OSError:
        return "gone"
