"""
`multiprocessing.dummy`: the very module, by this name too.
"""

import sys
from multiprocessing import dummy
from multiprocessing.dummy import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = dummy
