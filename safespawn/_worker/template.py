"""
The template: preload, proof of a single thread, forks on request.

Runs in: template, and in each worker until it is one.
"""

import gc
import importlib
import marshal
import os
import sys
import traceback
from typing import Any, NoReturn

from safespawn._worker import main_module
from safespawn._worker.stdio import flush_stdio

_TEXT_CHARS = 2500  # of a traceback in the refusal, which is one short message


class Refused(Exception):
    """
    This template will not do: which module, for what reason, with which words.
    """

    def __init__(self, module: str, reason: str, place: str, threads: tuple[str, ...], text: str) -> None:
        super().__init__(module, reason)
        self.words = (module, reason, place, threads, text)


def serve(control_fd: int, application_pid: int, config: dict[str, Any]) -> NoReturn:
    """
    Import what is asked, then fork workers until the application ends.
    """
    nursery = zygote_module("nursery")
    try:
        preload(config)
    except Refused as refused:
        nursery.refuse(control_fd, "preload", marshal.dumps(refused.words))
        _leave(0)
    import faulthandler  # noqa: F401 - every worker will want these
    import pickle  # noqa: F401

    from safespawn._worker import (
        logs,  # noqa: F401 - and that
        worker,
    )

    def load_main() -> bytes | None:
        try:
            step("__main__", main_module.load, config["main"])
        except Refused as refused:
            return marshal.dumps(refused.words)
        _settle_heap()
        return None

    server = nursery.open_nursery(control_fd, application_pid, load_main)
    _settle_heap()
    born: Any = None
    try:
        server.hello(config["connections"], {"modules": len(sys.modules)})
        server.serve()
    except nursery.Became as became:
        born = became.with_traceback(None)
    if born is None:
        _leave(0)
    server.leave()
    del server
    gc.enable()
    nursery.signals_of_python(interruptible=born.kind == b"process")
    worker.live(born, nursery.system)  # outside of the except clause: or every error to come would show this one


def preload(config: dict[str, Any]) -> None:
    """
    Import the modules; one thread afterwards.

    Raises:
        Refused: One of them raises, or leaves a thread behind.
    """
    main_module.install(config["main"])
    for module in config["preload"]:
        if module != "__main__":
            step(module, importlib.import_module, module)
        elif config["main"] is not None:
            step(module, main_module.load, config["main"])


def step(module: str, action: Any, argument: Any) -> None:
    """
    Do one import and look at what it left.
    """
    try:
        action(argument)
    except BaseException as error:  # noqa: BLE001 - SystemExit of an imported script as well
        text = "".join(traceback.format_exception(error))[-_TEXT_CHARS:]
        raise Refused(module, "raised", "", (), text) from None
    if len(os.listdir("/proc/self/task")) != 1:
        from safespawn import guard

        facts = guard.census()
        if not facts:
            return  # it has ended meanwhile
        places = [f"{file}:{line}" for file, line in (fact.started_at for fact in facts if fact.started_at is not None)]
        raise Refused(module, "threads", places[0] if places else "", tuple(str(fact) for fact in facts)[:5], "")


def zygote_module(name: str) -> Any:
    """
    A module of the zygote's, which know each other by plain names. Those names are the user's here: `server` must find
    the user's own module. So they are taken out of `sys.modules` again.
    """
    directory = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "_zygote")
    before = set(sys.modules)
    sys.path.insert(0, directory)
    try:
        module = importlib.import_module(name)
    finally:
        sys.path.remove(directory)
    for each in set(sys.modules) - before:
        if os.path.dirname(getattr(sys.modules[each], "__file__", None) or "") == directory:
            del sys.modules[each]
    sys.path_importer_cache.pop(directory, None)
    return module


def _settle_heap() -> None:
    """
    Keep what the workers will share out of the collector's reach: it would touch, and so copy, every page of it.
    """
    flush_stdio()
    gc.collect()
    gc.freeze()
    gc.disable()


def _leave(code: int) -> NoReturn:
    flush_stdio()
    os._exit(code)
