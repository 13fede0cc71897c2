"""
Every figure that the README quotes, against the peers, in one run: `python -m bench [--quick] [subject ...]`.

Each subject is measured in a process of its own. A figure stands with its target, from the project's issues, and
whether it is met; a miss is printed, not hidden, and makes the exit code 1 only with --strict. No test depends on it.
"""

import argparse
import dataclasses
import importlib
import json
import os
import platform
import subprocess
import sys

from bench import report
from bench.harness import Figure

POOL_SUBJECTS = ("pool_latency", "pool_rate", "pool_arrays", "pool_start", "pool_level")
SUBJECTS = (
    "latency", "threads", "forked", "loop", "volume", "boot", "storm", "guard", "children", "logging", *POOL_SUBJECTS,
)  # fmt: skip


def main() -> int:
    options = parse()
    if options.in_own_process:
        figures = importlib.import_module(f"bench.{options.subjects[0]}").measure(
            quick=options.quick, resident_mib=options.resident
        )
        os.write(options.in_own_process, json.dumps([dataclasses.asdict(each) for each in figures]).encode())
        return 0
    print(f"Python {platform.python_version()}, Linux {platform.release()}, {len(os.sched_getaffinity(0))} cores")
    found: dict[str, list[dict]] = {}
    missed = failed = 0
    for subject in options.subjects or SUBJECTS:
        print(f"\n{importlib.import_module(f'bench.{subject}').TITLE}", flush=True)
        about = report.facts(quick=options.quick)
        figures = measured(subject, options)
        if figures is None:
            failed += 1
            print("  FAILED, see above")
            continue
        for figure in figures:
            print(line(figure), flush=True)
            missed += figure.met is False
        if options.report:
            report.add(options.report, subject, about, figures)
        found[subject] = [{**dataclasses.asdict(figure), "met": figure.met} for figure in figures]
    print(f"\n{missed} targets missed" + (f", {failed} subjects failed" if failed else ""))
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump({"python": sys.version, "cores": len(os.sched_getaffinity(0)), "figures": found}, file, indent=2)
    if options.report:
        report.write(options.report)
    return 1 if failed or (options.strict and missed) else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Ratios against the peers, in one run.")
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=f"of {', '.join(SUBJECTS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller sizes: a look, not a figure")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--report", metavar="DIR", help="write them there as a page with tables and plots")
    parser.add_argument("--resident", type=int, default=2048, metavar="MIB", help="memory for 'forked' (default: 2048)")
    parser.add_argument("--strict", action="store_true", help="exit code 1 when a target is missed")
    parser.add_argument("--in-own-process", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = [name for name in options.subjects if name not in SUBJECTS]
    if unknown:
        parser.error(f"no subject {unknown[0]!r}; there are {', '.join(SUBJECTS)}")
    return options


def measured(subject: str, options: argparse.Namespace) -> list[Figure] | None:
    """
    The figures of one subject, from a process of its own; None when that one failed.
    """
    read_fd, write_fd = os.pipe()
    argv = [sys.executable, "-m", "bench", subject, "--resident", str(options.resident)]
    argv += ["--in-own-process", str(write_fd), *(["--quick"] if options.quick else [])]
    process = subprocess.Popen(argv, pass_fds=(write_fd,), stdin=subprocess.DEVNULL)
    os.close(write_fd)
    with open(read_fd, "rb") as file:
        data = file.read()
    if process.wait() or not data:
        return None
    return [Figure(**each) for each in json.loads(data)]


def line(figure: Figure) -> str:
    digits = 0 if abs(figure.value) >= 100 or figure.value == int(figure.value) else 2 if figure.unit == "x" else 1
    value = f"{figure.value:,.{digits}f} {figure.unit}"
    verdict = {None: "", True: "met", False: "MISSED"}[figure.met]
    return f"  {figure.name:<52} {value:>19}  {figure.target:>8} {verdict:<6}  {figure.detail}"


if __name__ == "__main__":
    sys.exit(main())
