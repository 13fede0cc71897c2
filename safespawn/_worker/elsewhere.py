"""
Modules that the program has and that nothing in `sys.path` would give: workers are told where they lie.

A program may have changed `sys.path` since: Celery and others put the working directory there while they import the
application, and take it out again; pytest imports test files by their place. A fork of the program would have these
modules. A worker finds just these, by a finder before all others.

Runs in: `places` in the application, or in a worker that starts workers of its own; the rest in template and worker.
"""

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

_seen: list[Any] = [None, {}]  # for how many modules and which path; what was found


def places() -> dict[str, str]:
    """
    The top-level modules and packages that `sys.path` does not lead to: name, and the directory that they lie in.
    """
    path = list(map(str, sys.path))
    state = (len(sys.modules), path)
    if _seen[0] != state:
        known = {entry or os.curdir for entry in path}
        found = dict(_finder.places)
        for name, module in list(sys.modules.items()):
            if "." not in name:
                place = _place(name, module)
                if place and place not in known:
                    found[name] = place
        _seen[:] = state, found
    return dict(_seen[1])


def _place(name: str, module: Any) -> str:
    """
    The directory in which *module* is found by its name; empty if there is none.
    """
    spec = getattr(module, "__dict__", {}).get("__spec__")
    if type(spec) is not ModuleSpec or spec.name != name:
        return ""
    try:
        if spec.submodule_search_locations is not None:
            file = next(iter(spec.submodule_search_locations), "")
        else:
            file = (spec.origin or "") if spec.has_location else ""
        directory, base = os.path.split(file)
    except Exception:  # noqa: BLE001 - a loader of somebody's own; then the worker's import tells
        return ""
    return directory if base.partition(".")[0] == name and os.path.isabs(directory) else ""


class _Finder:
    """
    The first finder in `sys.meta_path`: what the program has by a name is what a worker finds by it, even if `sys.path`
    has something else of that name.
    """

    def __init__(self) -> None:
        self.places: dict[str, str] = {}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """
        As the import system asks.
        """
        del target
        place = self.places.get(name) if path is None else None
        return None if place is None else PathFinder.find_spec(name, [place])


_finder = _Finder()


def install(found: dict[str, str]) -> None:
    """
    Find the modules of `places` from now on.
    """
    _finder.places = found
    if found and _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)
