"""
`multiprocessing.managers`: the very module, by this name too.
"""

import sys
from multiprocessing import managers
from multiprocessing.managers import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = managers
