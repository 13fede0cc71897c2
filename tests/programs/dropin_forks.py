"""
Commands from four threads by the drop-in module while two others fork copies of the program, which hold all that was
open at that moment until every command has ended.
"""

# ruff: noqa: D103 - the text above tells

import os
import threading

from safespawn import subprocess

COMMANDS, COPIES = 20, 40

release_r, release_w = os.pipe()
copies = []
ended = []
over = threading.Event()


def fork():
    for _ in range(COPIES):
        if over.is_set():
            return
        pid = os.fork()
        if pid == 0:
            os.close(release_w)
            os.read(release_r, 1)
            os._exit(0)
        copies.append(pid)


def run(index):
    for number in range(COMMANDS):
        text = f"{index} {number}"
        ended.append(subprocess.check_output(["echo", text], text=True) == text + "\n")


runners = [threading.Thread(target=run, args=(index,)) for index in range(4)]
forkers = [threading.Thread(target=fork) for _ in range(2)]
for thread in (*runners, *forkers):
    thread.start()
for thread in runners:
    thread.join()
over.set()
for thread in forkers:
    thread.join()
alive = [os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in copies]
os.close(release_w)
for pid in copies:
    os.waitpid(pid, 0)
print(len(ended), all(ended), len(copies) > 5, all(alive))
