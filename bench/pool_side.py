"""
The process in which one pool is measured: `python -m bench.pool_side NAME`, asked by `bench.pool_rounds`.

Pools that spawn their workers import this module once more in each of them, so there is nothing here to import.
"""

import sys

if __name__ == "__main__":
    from bench import pool_measures

    pool_measures.serve(sys.argv[1])
