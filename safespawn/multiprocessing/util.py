"""
`multiprocessing.util`: the very module, by this name too.
"""

import sys
from multiprocessing import util
from multiprocessing.util import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = util
