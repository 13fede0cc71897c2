"""
`multiprocessing.synchronize`: the very module, by this name too.
"""

import sys
from multiprocessing import synchronize
from multiprocessing.synchronize import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = synchronize
