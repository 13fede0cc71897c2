"""
`concurrent.futures.thread`: the very module, by this name too.
"""

import sys
from concurrent.futures import thread
from concurrent.futures.thread import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = thread
