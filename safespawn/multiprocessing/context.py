"""
`multiprocessing.context`: the very module, by this name too.
"""

import sys
from multiprocessing import context  # pyright: ignore[reportAttributeAccessIssue]
from multiprocessing.context import *  # noqa: F403  # pyright: ignore[reportWildcardImportFromLibrary]

sys.modules[__name__] = context
