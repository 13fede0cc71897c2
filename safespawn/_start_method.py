"""
Forces multiprocessing's default start method to a safe one, and keeps it.

What is replaced is the fallback, so a program may still call `multiprocessing.set_start_method` once, for "spawn" or
"forkserver". "fork" stays possible by name, since other code may have asked for it: asking is met by the policy for
the kind "start-method".

Runs in: application, any thread.
"""

# ruff: noqa: SLF001 - what multiprocessing keeps private is what decides this

from typing import Any

from safespawn import _policy, errors

METHODS = ("safespawn", "forkserver", "spawn")


def check(method: str | None) -> None:
    """
    Refuse what is no safe start method.

    Raises:
        BadArgument: It is not.
    """
    if method is not None and method not in METHODS:
        allowed = ", ".join(map(repr, METHODS))
        raise errors.BadArgument(
            f"start_method must be one of {allowed}, or None", parameter="start_method", value=method,
            help="to fork all the same, ask for it where it is done: multiprocessing.get_context('fork')",
        )  # fmt: skip


def force(method: str | None, *, quietly: bool) -> "tuple[Any, Any] | None":
    """
    Make *method* multiprocessing's default, if the program has not chosen a safe one itself; None leaves it alone.

    Returns:
        What was the default, and what is it now, for `restore`.

    Warns:
        UnsafeStartWarning: "fork" had been chosen, or had come about by a first use: locks that were made with it do
            not go to processes of the new default. Not *quietly*.
    """
    if method is None:
        return None
    import multiprocessing.context

    from safespawn.context import get_context

    contexts: Any = multiprocessing.context  # there is no public way
    known, default = contexts._concrete_contexts, contexts._default_context
    before = default._default_context
    default._default_context = get_context() if method == "safespawn" else known[method]
    if forget_choice("fork") and not quietly:
        _policy.tell(
            f'multiprocessing\'s start method was "fork", chosen or used before this line; it is {method!r} now. '
            "Locks and queues that were made before do not go to its processes: make them after this line"
        )
    watch_fork()
    return before, default._default_context


def restore(change: "tuple[Any, Any] | None") -> None:
    """
    Undo what `force` did, if nobody has changed it since.
    """
    if change is None:
        return
    import multiprocessing.context

    contexts: Any = multiprocessing.context
    default = contexts._default_context
    if default._default_context is change[1]:
        default._default_context = change[0]
        forget_choice(change[1]._name)


def forget_choice(method: str) -> bool:
    """
    If multiprocessing goes by *method*, because that was chosen or was its default at its first use, have it look at
    its default again. Says whether it did.
    """
    import multiprocessing.context

    contexts: Any = multiprocessing.context
    default = contexts._default_context
    if default._actual_context is None or default._actual_context._name != method:
        return False
    default._actual_context = None
    return True


def watch_fork() -> None:
    """
    Have whoever asks for the start method "fork" met by the policy.
    """
    import multiprocessing.context

    contexts: Any = multiprocessing.context
    # get_context("fork") and set_start_method("fork") both call it:
    contexts._concrete_contexts["fork"]._check_available = _fork_is_asked_for


def _fork_is_asked_for() -> None:
    _policy.meet("start-method", 'multiprocessing\'s start method "fork" is asked for')
