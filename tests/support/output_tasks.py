"""
What workers of the tests print, and the context variables that they read.
"""

import contextvars
import ctypes
import os
import subprocess
import sys

request = contextvars.ContextVar("request")
user = contextvars.ContextVar("user", default="nobody")


def print_everywhere(word):
    """
    By Python, by C code with its buffer, by a system call, by a grandchild; and an error.
    """
    print("python", word)
    ctypes.CDLL(None).printf(b"c %s\n", word.encode())
    ctypes.CDLL(None).fflush(None)
    sys.stdout.flush()
    os.write(1, f"call {word}\n".encode())
    subprocess.run(["sh", "-c", f"echo child {word}; echo trouble {word} >&2"], check=True)
    sys.stderr.write(f"error {word}\n")
    return word


def print_in_c(word):
    """
    By C code, into its buffer.
    """
    ctypes.CDLL(None).printf(b"c %s\n", word.encode())
    return word


def print_and_fail(word):
    """
    Print, then raise.
    """
    print("before", word)
    raise ValueError(word)


def print_much(size):
    """
    So many bytes, with an end.
    """
    os.write(1, b"begin\n")
    left = size
    while left:
        left -= os.write(1, b"x" * min(left, 65536))
    os.write(1, b"end\n")
    return size


def print_lines(number, width=0):
    """
    Numbered lines.
    """
    for index in range(number):
        print(f"line {index}" + "x" * width)


def count_aloud(number):
    """
    A generator that prints, and reads a variable.
    """
    for index in range(number):
        print("item", index)
        yield index, request.get(None)


def read_variables(*_args):
    """
    The variables here; and they are set to something else, which nobody else shall see.
    """
    found = request.get(None), user.get()
    request.set("mine")
    user.set("mine")
    return found
