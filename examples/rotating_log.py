"""
Ten workers and the program itself log into one file that is rotated by size. Nothing is set up for the workers: what
they log is handled here, by the one handler that there is, so no two processes rotate the same file. At the end the
program reads what it has written: every record is there once, and each process's are in order.

Run it with `python examples/rotating_log.py [RECORDS]`.
"""

import logging
import logging.handlers
import pathlib
import re
import sys
import tempfile

import safespawn

WORKERS = 10
log = logging.getLogger("agent")


def work(number, records):
    for at in range(records):
        log.info("task %d record %d", number, at)


def read_back(directory):
    """
    The records of each task, in the order of the file and its rotated parts.
    """
    parts = sorted(directory.glob("agent.log*"), key=lambda path: int(path.suffix[1:]) if path.suffix != ".log" else 0)
    found = {}
    for part in reversed(parts):
        for line in part.read_text().splitlines():
            task, record = re.fullmatch(r".* task (-?\d+) record (\d+)", line).groups()
            found.setdefault(int(task), []).append(int(record))
    return found, len(parts)


def main(records):
    with tempfile.TemporaryDirectory() as name:
        directory = pathlib.Path(name)
        handler = logging.handlers.RotatingFileHandler(directory / "agent.log", maxBytes=20_000, backupCount=10_000)
        handler.setFormatter(logging.Formatter("%(asctime)s %(processName)s %(message)s"))
        logging.getLogger().addHandler(handler)
        logging.getLogger().setLevel(logging.INFO)
        with safespawn.Pool(WORKERS) as pool:
            results = [pool.apply_async(work, (number, records)) for number in range(4 * WORKERS)]
            work(-1, records)  # the program logs, too
            for result in results:
                result.get()
        logging.getLogger().removeHandler(handler)
        handler.close()
        found, parts = read_back(directory)
    complete = sum(numbers == list(range(records)) for numbers in found.values())
    print(f"{sum(map(len, found.values()))} records in {'one file' if parts == 1 else 'rotated files'}")
    print(f"complete and in order: {complete} of {4 * WORKERS + 1} tasks")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
