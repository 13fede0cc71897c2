"""
`python -m safespawn`: the command line.
"""

import sys

from safespawn.cli import main

if __name__ == "__main__":
    sys.exit(main())
