"""The third incident: a thread is about to start a command while another part of the program forks."""

import multiprocessing
import subprocess
import threading


class Watch:
    """Asks for the connections again and again, in a thread."""

    def __init__(self):
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def start(self):
        """Begin."""
        self._thread.start()

    def _ask(self):
        while True:
            subprocess.Popen(["ss", "-tn"], stdout=subprocess.PIPE).communicate()


def main():
    """A pool that is forked between pipe() and close() in the thread keeps the pipe's end."""
    watch = Watch()
    watch.start()
    while True:
        pool = multiprocessing.Pool(1)  # expect: SPN203 SPN301
        pool.close()
        pool.join()


if __name__ == "__main__":
    main()
