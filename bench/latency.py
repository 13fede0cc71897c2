"""
One command after another in one thread: how much longer than `subprocess.run` is the call?
"""

import shutil
import subprocess

import safespawn
from bench.harness import Figure, in_turns, median_call, milliseconds

TITLE = "latency of one call, against subprocess.run"


def measure(*, quick: bool, resident_mib: int) -> list[Figure]:
    del resident_mib
    path = shutil.which("true")
    subjects = [
        ("run(['true'])", ["true"], {}, "<= 1.15"),
        ("run(['true'], capture_output=True)", ["true"], {"capture_output": True}, "<= 1.05"),
        (f"run(['{path}'])", [path], {}, "<= 1.15"),
        (f"run(['{path}'], capture_output=True)", [path], {"capture_output": True}, "<= 1.05"),
        ("run(['ss', '-tn'], capture_output=True)", ["ss", "-tn"], {"capture_output": True}, ""),
        ("run(['cat'], input=1 KiB, capture_output=True)", ["cat"], {"capture_output": True, "input": bytes(1024)}, ""),
    ]
    if shutil.which("ss") is None:
        subjects = [each for each in subjects if each[1] != ["ss", "-tn"]]
    figures = []
    with safespawn.Supervisor("bench", guard="off") as supervisor:
        for name, argv, options, target in subjects:
            pairs = in_turns(
                median_call(lambda a=argv, o=options: supervisor.run(a, **o), 40),
                median_call(lambda a=argv, o=options: subprocess.run(a, **o, check=False), 40),
                6 if quick else 30,
            )
            detail = f"{pairs.both(milliseconds)}; middle half of the rounds {pairs.spread}"
            figures.append(Figure(name, pairs.ratio, "x", target, detail))
    return figures
