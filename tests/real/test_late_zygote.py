"""A zygote that hangs in one start takes no other one along."""

import subprocess
import sys

import pytest

from support.children import ENV

HANG_SECONDS = 7  # below the ten after which the first one fails
SOON_SECONDS = 5  # for the others, which take one; without what is tested they take as long as the first
OTHERS = 6
PROGRAM = """
import os, sys, threading, time
import safespawn

took = []

def start(argv):
    began = time.monotonic()
    safespawn.run(argv, check=True)
    took.append(time.monotonic() - began)

with safespawn.Supervisor("app", guard="off"):
    del os.environ["SAFESPAWN_FAILPOINTS"]  # the zygotes to come are well
    first = threading.Thread(target=start, args=(["true"],))
    first.start()
    while not os.path.exists(os.environ["SAFESPAWN_FAILPOINTS_LOG"]):  # until it is in the zygote, which hangs
        time.sleep(0.01)
    note = ["sh", "-c", "echo ran >> " + sys.argv[1]]
    others = [threading.Thread(target=start, args=(note,)) for _ in range(int(sys.argv[2]))]
    for thread in others:
        thread.start()
    for thread in (*others, first):
        thread.join()
    time.sleep(0.5)  # for what is started twice
    print(*took)
"""


@pytest.mark.parametrize("point", ["zygote.before_spawn", "zygote.got_spawn"])
def test_starts_behind_one_that_hangs_go_to_another_zygote(point, tmp_path):
    """They are done long before it, and each is done once; it has its result in the end."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "log"), str(OTHERS)],
        env={**ENV, "SAFESPAWN_FAILPOINTS": f"{point}=sleep:{HANG_SECONDS}#1",
             "SAFESPAWN_FAILPOINTS_LOG": str(tmp_path / "fired")},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *others, first = map(float, done.stdout.split())
    assert len(others) == OTHERS
    assert max(others) < SOON_SECONDS < HANG_SECONDS <= first
    assert (tmp_path / "log").read_text() == "ran\n" * OTHERS
