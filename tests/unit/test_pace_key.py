"""What the pace of a function is remembered by holds nothing of the caller's."""

import functools
import gc
import math
import weakref
from collections import deque

import pytest

from safespawn._core.dispatch import describe
from safespawn._tasks import pace_key


class Adder:
    def __init__(self, amount):
        self.amount = amount

    def __call__(self, number):
        return number + self.amount

    def add(self, number):
        return number + self.amount


class Block(deque):
    """A C class, whose methods hold their object in a way of their own."""


def with_closure(block):
    """Make a closure."""
    return lambda: block


def wrapped(block):
    """Make a wrapper, as decorators do."""

    @functools.wraps(describe)
    def inner():
        return block

    return inner


MAKERS = {
    "an object that is called": Adder,
    "its method": lambda block: Adder(block).add,
    "a closure": with_closure,
    "a wrapper": wrapped,
    "a partial": lambda block: functools.partial(print, block),
    "a method of a C class": lambda block: block.copy,
}


@pytest.mark.parametrize("name", MAKERS)
def test_nothing_is_kept(name) -> None:
    """A function that is gone takes its data along, also when its pace is remembered."""
    block = Block([1.0])
    gone = weakref.ref(block)
    key = pace_key(MAKERS[name](block))
    del block
    gc.collect()
    assert gone() is None, key


@pytest.mark.parametrize("name", MAKERS)
def test_each_new_one_has_the_same_key(name) -> None:
    """What is made anew for each call has the pace of the ones before."""
    make = MAKERS[name]
    assert pace_key(make(Block([1.0]))) is pace_key(make(Block([2.0])))


@pytest.mark.parametrize("function", [describe, math.sqrt, "".join, str.upper, Adder, len], ids=repr)
def test_the_name_is_the_functions(function) -> None:
    """Messages name what was called."""
    assert describe(pace_key(function)).rpartition(".")[2] == function.__name__


def test_names_of_what_has_none() -> None:
    """An object is named by its class, a lambda and a method by where they stand."""
    assert describe(pace_key(Adder(1))) == f"{__name__}.Adder"
    assert describe(pace_key(Adder(1).add)) == f"{__name__}.Adder.add"
    assert describe(pace_key(with_closure(1))) == f"{__name__}.with_closure.<locals>.<lambda>"
    assert describe(pace_key(functools.lru_cache(with_closure))) == f"{__name__}.with_closure"
