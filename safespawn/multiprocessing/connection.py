"""
`multiprocessing.connection`: the very module, by this name too.
"""

import sys
from multiprocessing import connection
from multiprocessing.connection import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = connection
