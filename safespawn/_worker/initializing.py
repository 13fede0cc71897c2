"""
The initializer of an executor that stands in for the standard one: its failure is logged where it happens.

Runs in: workers.
"""

from collections.abc import Callable


def call_logged(initializer: Callable[..., object], *arguments: object) -> None:
    """
    Call *initializer*; log what it raises, as concurrent.futures does, and raise it.
    """
    try:
        initializer(*arguments)
    except BaseException:
        import logging

        logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)
        raise
