"""
A program of the drop-in modules that is in the midst of something when Ctrl-C comes.
"""

# ruff: noqa: D103 - the text above tells

import fcntl
import sys
import termios
import time

from safespawn import futures, multiprocessing, subprocess


def wait():
    print("ready", flush=True)
    time.sleep(60)


def main(what):
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if what == "command":
        subprocess.run("sleep 60 & echo ready; sleep 60", shell=True, capture_output=False, check=False)
    elif what == "pool":
        with multiprocessing.Pool(1) as pool:
            pool.apply_async(wait).get()
    elif what == "executor":
        with futures.ProcessPoolExecutor(1) as executor:
            executor.submit(wait).result()
    else:
        process = multiprocessing.Process(target=wait)
        process.start()
        process.join()


if __name__ == "__main__":
    main(sys.argv[1])
