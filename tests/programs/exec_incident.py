"""
The incidents in one program that knows nothing of safespawn: threads log, threads run commands, something forks all the
time, and processes are started that log as well. `exec_incident.py ROUNDS` prints a line for each round.
"""

import concurrent.futures
import logging
import multiprocessing
import os
import subprocess
import sys
import threading
import time
import warnings

warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12, which is right: a fork beside threads
log = logging.getLogger("app")


def configure():
    """Log into a file, through a buffer with a lock."""
    if not log.handlers:
        log.propagate = False
        log.addHandler(logging.FileHandler(os.devnull))


def job(number):
    """The task of a worker and the target of a process."""
    configure()
    log.warning("a process has something to say")
    return number * number


def talk(stop):
    """Hold the lock of the log file as often as can be."""
    while not stop.is_set():
        log.warning("a thread has something to say, %s", "again " * 20)


def fork(stop):
    """Be a library that forks; its copies hold what they were born with for a while."""
    while not stop.wait(0.02):
        pid = os.fork()
        if pid == 0:
            time.sleep(0.5)
            os._exit(0)
        threading.Thread(target=os.waitpid, args=(pid, 0)).start()


def ask(number):
    """A command."""
    return int(subprocess.check_output(f"echo {number}", shell=True, timeout=60))


def main(rounds):
    """Do all of it at once."""
    configure()
    stop = threading.Event()
    threads = [threading.Thread(target=target, args=(stop,)) for target in (talk, talk, fork)]
    for thread in threads:
        thread.start()
    with concurrent.futures.ThreadPoolExecutor(4) as asking, multiprocessing.Pool(2) as pool:
        for number in range(rounds):
            answers = asking.map(ask, range(8))
            process = multiprocessing.Process(target=job, args=(number,))
            process.start()
            squares = pool.map(job, range(10))
            process.join()
            with os.popen("echo popen") as stream:
                words = stream.read()
            print(f"round {number}: {sum(squares)} {process.exitcode} {sum(answers)} {words}", end="", flush=True)
    stop.set()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main(int(sys.argv[1]))
