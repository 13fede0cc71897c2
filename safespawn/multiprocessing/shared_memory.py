"""
`multiprocessing.shared_memory`: the very module, by this name too.
"""

import sys
from multiprocessing import shared_memory
from multiprocessing.shared_memory import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = shared_memory
