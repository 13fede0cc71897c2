"""
Texts of objects that are strangers: of what class one is, what it says of itself, how it looks.

Their code may raise anything, return subclasses of str, or write a novel; none of that reaches the caller.

Runs in: application and workers, any thread.
Never: raises, but for MemoryError and KeyboardInterrupt.
"""

from __future__ import annotations

# Exceptions that are a matter of the process, not of the value at hand.
NOT_OURS = (MemoryError, KeyboardInterrupt)


def class_name(cls: type) -> str:
    """
    Return the name of *cls* with its module, which is left out for the built-in ones.
    """
    try:
        module, name = cls.__module__, cls.__qualname__
        return exact(name) if module == "builtins" else f"{module}.{name}"
    except NOT_OURS:
        raise
    except BaseException:  # noqa: BLE001 - a stranger's metaclass
        return "a class without a name"


def text_of(error: BaseException) -> str:
    """
    Return `str(error)`, or a word on why there is none.
    """
    try:
        return exact(str(error))
    except NOT_OURS:
        raise
    except BaseException as reason:  # noqa: BLE001 - a stranger's `__str__`
        return f"<its __str__ raised {class_name(type(reason))}>"


def short(value: object) -> str:
    """
    Return a bounded repr of *value*, which survives a class whose `__repr__` raises.
    """
    from safespawn import errors

    return errors._short(value)  # noqa: SLF001 - how every error of the package shortens a value


def exact(text: str) -> str:
    """
    Return *text* as a str and not a subclass, which marshal would refuse.
    """
    return str.__str__(text)


def clip(text: str, limit: int) -> str:
    """
    Return *text*, without its middle if it is longer than *limit*.
    """
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]}\n... {len(text) - limit} characters left out ...\n{text[-limit // 2 :]}"
