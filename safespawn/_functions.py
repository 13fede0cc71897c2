"""
The module's functions: each is the method of the same name of the current default supervisor.

Runs in: application, any thread; the async ones in a task.
"""

from typing import Any, Unpack

from safespawn._commands import RunOptions, arun_on, run_on
from safespawn._core.status import CompletedProcess
from safespawn.supervisor import Supervisor, current_engine, default_supervisor


def run(args: Any, **options: Unpack[RunOptions]) -> CompletedProcess:
    """
    `Supervisor.run` of the current supervisor.
    """
    return run_on(current_engine(), args, options)


def call(args: Any, **options: Unpack[RunOptions]) -> int:
    """
    `Supervisor.call` of the current supervisor.
    """
    return default_supervisor().call(args, **options)


def check_call(args: Any, **options: Unpack[RunOptions]) -> int:
    """
    `Supervisor.check_call` of the current supervisor.
    """
    return default_supervisor().check_call(args, **options)


def check_output(args: Any, **options: Unpack[RunOptions]) -> Any:
    """
    `Supervisor.check_output` of the current supervisor.
    """
    return default_supervisor().check_output(args, **options)


async def arun(args: Any, **options: Unpack[RunOptions]) -> CompletedProcess:
    """
    `Supervisor.arun` of the current supervisor.
    """
    return await arun_on(current_engine(), args, options)


async def acheck_output(args: Any, **options: Unpack[RunOptions]) -> Any:
    """
    `Supervisor.acheck_output` of the current supervisor.
    """
    return await default_supervisor().acheck_output(args, **options)


def statistics() -> dict[str, Any]:
    """
    `Supervisor.statistics` of the current supervisor.
    """
    return default_supervisor().statistics()


for _function in (run, call, check_call, check_output, arun, acheck_output, statistics):
    _function.__doc__ = getattr(Supervisor, _function.__name__).__doc__
    _function.__module__ = "safespawn"
