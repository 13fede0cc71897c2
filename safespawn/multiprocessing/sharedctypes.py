"""
`multiprocessing.sharedctypes`: the very module, by this name too.
"""

import sys
from multiprocessing import sharedctypes
from multiprocessing.sharedctypes import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = sharedctypes
