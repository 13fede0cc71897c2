"""
SPN101 to SPN104: what happens because a module is imported, and not because somebody asked for it.

Import time is the body of a module, class bodies, decorators and default values, and whatever these call. What stands
below `if __name__ == "__main__":` is not, nor is a `__main__.py`, which multiprocessing never imports again. A file
that says it is a script, by `#!`, and that no other file imports may start threads and commands, but no processes:
under spawn its children import it.

Runs in: the checker, any thread. Pure.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from safespawn.check.known import Effect
from safespawn.check.rules import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safespawn.check.graph import Project, Step
    from safespawn.check.rules import Finding
    from safespawn.check.summary import Module


def check(project: Project, module: Module) -> Iterator[Finding]:
    """
    The hits in one module's body.
    """
    body = module.body
    if body not in project.facts or os.path.basename(module.source.path) == "__main__.py":
        return
    only_script = module.source.is_script and not _is_imported(project, module)
    steps = [step for step in project.facts[body].steps if not step.event.guarded]
    for step in steps:
        if project.surely(step, Effect.PROCESS) or _forks_barely(project, step):
            effect = Effect.PROCESS if project.surely(step, Effect.PROCESS) else Effect.FORKS
            yield finding(
                "SPN103", body, step.event,
                "importing this module starts a process (in a script: no `__main__` guard): "
                + project.chain(step, effect, body),
            )  # fmt: skip
        if only_script:
            continue
        if project.surely(step, Effect.THREAD):
            text = f"importing this module starts a thread: {project.chain(step, Effect.THREAD, body)}"
            yield finding("SPN101", body, step.event, text)
        if project.surely(step, Effect.COMMAND):
            text = f"importing this module runs a command: {project.chain(step, Effect.COMMAND, body)}"
            yield finding("SPN102", body, step.event, text)
    if only_script:
        return
    direct = {id(later): start for start, later in project.waits(body)}
    for step in steps:
        if id(step) in direct:
            text = f"importing this module waits for what it started on line {direct[id(step)].event.line}"
            yield finding("SPN104", body, step.event, text)
        elif project.surely(step, Effect.WAITS):
            text = f"importing this module waits for what it started: {project.chain(step, Effect.WAITS, body)}"
            yield finding("SPN104", body, step.event, text)


def _forks_barely(project: Project, step: Step) -> bool:
    return project.surely(step, Effect.FORKS) and not project.surely(step, Effect.COMMAND)


def _is_imported(project: Project, module: Module) -> bool:
    return any(module.name in source.imports for source in project.sources if source is not module.source)
