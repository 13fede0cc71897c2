"""
`multiprocessing.queues`: the very module, by this name too.
"""

import sys
from multiprocessing import queues
from multiprocessing.queues import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = queues
