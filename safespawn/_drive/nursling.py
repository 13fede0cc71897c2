"""
A Python child comes: a fork of a template, told who it is and what it is to call.

Runs in: application, where the pump runs.
"""

import time
import warnings
from typing import TYPE_CHECKING, Any

from safespawn._core.flow import Flow
from safespawn._core.terms import Function, Terms
from safespawn._drive.levels import current_levels
from safespawn._drive.muster import program_facts
from safespawn._drive.relay import relay
from safespawn._drive.template import BOOT_SECONDS, Template, TemplateKey
from safespawn._drive.worker import Worker, start_worker_flow, worker_spec
from safespawn._worker.messages import SETUP
from safespawn._worker.notice import VARIABLES
from safespawn._zygote import wire
from safespawn.errors import BootError, BrokenError, SpawnError, SpawnLost

if TYPE_CHECKING:
    from safespawn._drive.keeper import Keeper
    from safespawn._drive.run import Run

START_ATTEMPTS = 3  # with a new template each
_refused: set[tuple[str, str]] = set()  # programs that cannot be loaded in a template


def start_function_flow(run: "Run", what: Function) -> Flow[Worker]:
    """
    Fork a child, and tell it all.

    Raises:
        PreloadError, BootError, SpawnError: It cannot be.
    """
    keeper, terms = run.keeper, run.terms
    key = TemplateKey(
        preload=what.preload, main=what.main, env=None if what.env is None else tuple(what.env.items())
    )  # fmt: skip
    for attempt in range(1, START_ATTEMPTS + 1):
        keeper.engine.shun_stopped()
        template, ambient = yield from _template_flow(keeper.engine, key, wants_main=what.wants_main)
        env = {**(ambient.carried[0] if what.env is None else what.env), wire.MARK: run.mark}
        for variable in VARIABLES if what.env is None else ():
            env.pop(variable.encode(), None)
        name = terms.name.encode(errors="replace")
        spec = worker_spec(name, b"child", env=env, cwd=what.cwd, cpus=None)
        try:
            worker = yield from start_worker_flow(keeper.engine, template, spec, None, keep_pidfd=True)
        except (BootError, SpawnError, SpawnLost) as error:
            if attempt == START_ATTEMPTS or (isinstance(error, SpawnError) and error.stage != "threads"):
                raise
            keeper.engine.retire(key, template)  # it has gone, or has a second thread by now: the next one may do
            continue
        break
    else:
        raise AssertionError("the last attempt raises")
    try:
        _introduce(run, keeper, worker, terms, what)
    except (BrokenPipeError, ConnectionResetError):
        pass  # it has died: its pidfd tells
    except BaseException:
        worker.close()
        keeper.engine.discard(worker.child.connection)
        worker.child.close()
        raise
    return worker


def _introduce(run: "Run", keeper: "Keeper", worker: Worker, terms: Terms, what: Function) -> None:
    ledger = keeper.ledger()
    slot, worker.journal = ledger.take()
    worker.place = (ledger, slot)
    wake_fd = keeper.hold_relay()
    if wake_fd >= 0:
        run.source = relay.open(worker.journal.ring, terms.name, f"child {terms.name!r}", worker.pid)
    worker.send_journal(slot, ledger.fd, what.inheritance, wake_fd)
    run.levels = current_levels()
    body = {
        "pool": terms.name,
        "index": 0,
        "cpus": None,
        "is_spare": False,
        **program_facts(what.main),
        "logging": "relay" if wake_fd >= 0 else "inherit",
        "levels": run.levels,
        "output": None,
        "finalizer": None,
        "initializer": None,
        "target": what.payload,
        "ready": terms.ready.kind,
    }
    worker.send(SETUP, body)
    if run.source is not None:
        keeper.follow_levels()


def _template_flow(engine: Any, key: TemplateKey, *, wants_main: bool) -> Flow[tuple[Template, Any]]:
    """
    A template, with the program's own file loaded if that is wanted and can be.
    """
    while True:
        template, ambient = yield from engine.template_flow(key, connections=2)
        if not wants_main or template.has_main or key.main is None or key.main in _refused:
            return template, ambient
        try:
            yield from template.load_main_flow(time.monotonic() + BOOT_SECONDS)
        except BrokenError as error:
            engine.retire(key, template)
            if not isinstance(error, ImportError):
                raise
            _refused.add(key.main)  # each child that needs it will load it for itself, or say why it cannot
            if getattr(error, "reason", "") == "threads":
                warnings.warn(
                    "the program's own file starts a thread when it is imported, so each child loads it for itself. "
                    f"{error}",
                    RuntimeWarning,
                    stacklevel=2,
                )
