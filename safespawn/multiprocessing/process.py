"""
`multiprocessing.process`: the very module, by this name too.
"""

import sys
from multiprocessing import process
from multiprocessing.process import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = process
