"""
What a log record costs: in the worker that makes it, and in the program that handles it.
"""

import importlib.util
import logging
import multiprocessing
import os
import tempfile
import time

import safespawn
from bench.harness import Figure, Pairs

TITLE = "log records of workers"
MICRO = 1e6
FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"
log = logging.getLogger("bench.records")


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    rounds, number = (3, 3_000) if quick else (11, 10_000)
    with tempfile.TemporaryDirectory() as directory:
        handler = logging.FileHandler(os.path.join(directory, "here.log"))
        handler.setFormatter(logging.Formatter(FORMAT))
        log.addHandler(handler)
        log.propagate = False
        log.setLevel(logging.INFO)
        with safespawn.Pool(1) as pool:
            pool.apply(relayed, (number,))
            pairs = Pairs([], [])
            for _ in range(rounds):
                pairs.ours.append(pool.apply(relayed, (number,)))
                pairs.theirs.append(pool.apply(to_file, (number, os.path.join(directory, "there.log"))))
            suppressed = min(pool.apply(suppressed_calls, (number,)) for _ in range(rounds))
            bare = min(pool.apply(to_nobody, (number,)) for _ in range(rounds))
        figures = [
            Figure(
                "CPU of a record in the worker, to FileHandler's", pairs.ratio, "x", "<= 1.0",
                f"{min(pairs.ours) * MICRO:.1f} us to {min(pairs.theirs) * MICRO:.1f}; made and thrown away: "
                f"{bare * MICRO:.1f}",
            ),
            loguru_figure(number, rounds, min(pairs.ours), directory),
            Figure("a call below the level", suppressed * MICRO, "us", "", "no record is made"),
            rate_figure(4 * number, rounds),
        ]  # fmt: skip
        log.removeHandler(handler)
        handler.close()
    return [figure for figure in figures if figure is not None]


def relayed(number: int) -> float:
    """
    In a worker: CPU seconds for a record that goes to the program.
    """
    return cpu_of(log, number)


def to_file(number: int, path: str) -> float:
    """
    In a worker: for one that goes into a file of its own.
    """
    logger = logging.getLogger("bench.file")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter(FORMAT))
    logger.addHandler(handler)
    try:
        return cpu_of(logger, number)
    finally:
        logger.removeHandler(handler)
        handler.close()


def to_nobody(number: int) -> float:
    """
    In a worker: for one that is made, and no more.
    """
    logger = logging.getLogger("bench.nobody")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(logging.NullHandler())
    return cpu_of(logger, number)


def suppressed_calls(number: int) -> float:
    """
    In a worker: for a call that makes none.
    """
    began = time.process_time()
    for index in range(number):
        log.debug("record %d of %s", index, "many")
    return (time.process_time() - began) / number


def cpu_of(logger: logging.Logger, number: int) -> float:
    began = time.process_time()
    for index in range(number):
        logger.info("record %d of %s", index, "many")
    return (time.process_time() - began) / number


# --- the program's side ----------------------------------------------------------------------------------------------
def rate_figure(number: int, rounds: int) -> Figure:
    """
    Two workers log as fast as they can; the program writes what comes into one file.
    """
    best = cpu = 0.0
    with safespawn.Pool(2) as pool:
        pool.map(relayed, [100, 100], 1)
        for _ in range(rounds):
            began, spent = time.perf_counter(), time.process_time()
            pool.map(relayed, [number // 2] * 2, 1)
            best = max(best, number / (time.perf_counter() - began))
            cpu = max(cpu, number / (time.process_time() - spent))
    return Figure("records the program handles, with a FileHandler", best, "/s", ">= 50000", f"{cpu:,.0f} a CPU second")


# --- loguru ----------------------------------------------------------------------------------------------------------
def loguru_figure(number: int, rounds: int, ours: float, directory: str) -> Figure | None:
    """
    The same record by loguru's queue: its CPU in the child that logs.
    """
    if importlib.util.find_spec("loguru") is None:
        return None
    from loguru import logger

    logger.remove()
    logger.add(os.path.join(directory, "loguru.log"), enqueue=True, context="spawn")
    context = multiprocessing.get_context("spawn")
    reader, writer = context.Pipe(duplex=False)
    child = context.Process(target=log_by_loguru, args=(logger, number, rounds, writer))
    child.start()
    theirs = reader.recv()
    child.join()
    logger.remove()
    return Figure(
        "CPU of a record in the worker, to loguru's (enqueue)", ours / theirs, "x", "<= 0.3",
        f"{ours * MICRO:.1f} us to {theirs * MICRO:.1f}",
    )  # fmt: skip


def log_by_loguru(logger, number: int, rounds: int, writer) -> None:
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for index in range(number):
            logger.info("record {} of {}", index, "many")  # noqa: PLE1205 - loguru's own form
        found.append((time.process_time() - began) / number)
    writer.send(min(found))
