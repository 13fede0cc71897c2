"""
SPN301: in one function, a thread is started and then, while it may run, this process is forked.

Steps are taken in the order of the text. Two branches of one `if` do not follow each other, and what stands after a
branch that returned does not follow that branch. A thread that was joined before, or whose `with` block has ended, is
gone. Threads that a pool of multiprocessing starts for itself are not counted, nor what a function that is called does
only under a condition, other than "if not yet".

Runs in: the checker, any thread. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from safespawn.check.known import Effect
from safespawn.check.rules import finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safespawn.check.graph import Project, Step
    from safespawn.check.rules import Finding
    from safespawn.check.summary import Event, Function


def check(project: Project, function: Function) -> Iterator[Finding]:
    """
    The hits in one function.
    """
    facts = project.facts[function]
    if Effect.THREAD not in facts.witness or Effect.FORKS not in facts.witness:
        return
    for index, later in enumerate(facts.steps):
        if not project.surely(later, Effect.FORKS):
            continue
        start = _running_thread(project, function, facts.steps, index)
        if start is not None:
            text = (
                f"forks while a thread runs: {project.chain(later, Effect.FORKS, function)}; "
                f"started before: {project.chain(start, Effect.THREAD, function)}"
            )
            yield finding("SPN301", function, later.event, text)


def _running_thread(project: Project, function: Function, steps: list[Step], index: int) -> Step | None:
    later = steps[index]
    for position, start in enumerate(steps[:index]):
        sure = project.starts_lasting(start) and project.surely(start, Effect.THREAD)
        if not sure or not follows(function, start.event, later.event):
            continue
        if not any(project.ends(start, between) for between in steps[position + 1 : index]):
            return start
    return None


def follows(function: Function, first: Event, second: Event) -> bool:
    """
    Whether the second event can come after the first, in one run of the function.
    """
    other = dict(second.arms)
    for number, arm in first.arms:
        if number in other:
            if other[number] != arm:
                return False
        elif (number, arm) in function.ended:
            return False
    return True
