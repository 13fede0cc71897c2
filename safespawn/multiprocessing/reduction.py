"""
`multiprocessing.reduction`: the very module, by this name too.
"""

import sys
from multiprocessing import reduction
from multiprocessing.reduction import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = reduction
