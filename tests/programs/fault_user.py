"""
How a program of root becomes nobody and can still read a checkout that is root's alone.
"""

import ctypes
import os
import struct

NOBODY = 65534
_READ_ANYTHING = (1 << 1) | (1 << 2)  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
_KEEPCAPS, _AMBIENT, _AMBIENT_RAISE = 8, 47, 2  # prctl(2)
_VERSION = 0x20080522  # capset(2)


def become_nobody():
    """Give up root for good, but for the right to read; the right passes an exec."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_KEEPCAPS, 1, 0, 0, 0)
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    header = struct.pack("=Ii", _VERSION, 0)
    rights = struct.pack("=6I", _READ_ANYTHING, _READ_ANYTHING, _READ_ANYTHING, 0, 0, 0)
    if libc.capset(header, rights) != 0:
        raise OSError(ctypes.get_errno(), "capset")
    for number in (1, 2):
        if libc.prctl(_AMBIENT, _AMBIENT_RAISE, number, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "prctl")
