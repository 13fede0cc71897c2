"""
The application's `__main__` in a worker: loaded when something of it is needed, under the name `__mp_main__`.

Pickle names a function of the program's own file ``__main__.f``. In a worker `sys.modules` has a stand-in under that
name; the first attribute that is asked of it loads the file, as a module that is not `__main__`, so that what stands
behind ``if __name__ == "__main__"`` does not run.

Runs in: template and worker; `describe` in the application.
"""

import os
import sys
from types import ModuleType
from typing import Any

from safespawn._worker import current

NAME = "__mp_main__"  # the name that multiprocessing gives it: programs ask for it


def describe() -> "tuple[str, str] | None":
    """
    How a worker can load this program: ("module", name) or ("path", file); None if it cannot (REPL, notebook, -c).
    """
    main = sys.modules.get("__main__")
    if main is None:
        return None
    if isinstance(main, LazyMain):  # in a worker, which starts workers of its own
        return main.__dict__["_safespawn_how"]  # type: ignore[no-any-return]
    spec = getattr(main, "__spec__", None)
    name = getattr(spec, "name", None)
    if name is not None and name != "__main__":
        return "module", name
    file = getattr(main, "__file__", None)
    if (
        not isinstance(file, str)
        or hasattr(main, "__IPYTHON__")
        or ("ipykernel" in sys.modules and name is None and not os.path.exists(file))
    ):
        return None
    path = os.path.join(current_directory(), file)
    if os.path.exists(path):
        return "path", os.path.normpath(path)
    holder = os.path.dirname(path)  # __main__.py in a zip file
    return ("path", os.path.normpath(holder)) if os.path.isfile(holder) else None


_started_in: list[str] = []


def current_directory() -> str:
    """
    The directory that the program was started in, as far as is known.
    """
    if not _started_in:
        try:
            _started_in.append(os.getcwd())
        except OSError:
            return ""
    return _started_in[0]


class LazyMain(ModuleType):
    """
    The stand-in.
    """

    def __init__(self, how: "tuple[str, str] | None") -> None:
        super().__init__("__main__")
        self.__dict__["_safespawn_how"] = how

    def __getattr__(self, name: str) -> Any:
        how = self.__dict__["_safespawn_how"]
        if (name.startswith("__") and name.endswith("__")) or how is None:
            raise AttributeError(f"module '__main__' has no attribute {name!r}")
        return getattr(load(how), name)


def load(how: "tuple[str, str]") -> ModuleType:
    """
    Load it, once.
    """
    loaded = sys.modules.get(NAME)
    if loaded is not None and not isinstance(loaded, LazyMain):
        return loaded
    import runpy

    kind, what = how
    module = ModuleType(NAME)
    current.loading_main = what
    stand_in = sys.modules.get("__main__")
    sys.modules[NAME] = sys.modules["__main__"] = module  # as the module itself finds it while it runs
    try:
        if kind == "module":
            content = runpy.run_module(what, run_name=NAME, alter_sys=True)
        else:
            content = runpy.run_path(what, run_name=NAME)
    except BaseException:
        del sys.modules[NAME]
        if stand_in is not None:
            sys.modules["__main__"] = stand_in
        if loaded is not None:
            sys.modules[NAME] = loaded
        raise
    finally:
        current.loading_main = None
    module.__dict__.update(content)
    sys.modules[NAME] = sys.modules["__main__"] = module  # alter_sys has put back what was there before
    return module


def install(how: "tuple[str, str] | None") -> None:
    """
    Put the stand-in where `__main__` is looked for, and under the name that a process which is a worker itself has for
    it.
    """
    known = sys.modules.get(NAME)
    # Or multiprocessing, which a .pth file or a sitecustomize may have imported here, has put this process's own there.
    if known is None or getattr(known, "__name__", None) == "__main__":
        sys.modules["__main__"] = sys.modules[NAME] = LazyMain(how)
