"""
CPython's own test suites against the drop-in modules, on every Python found, by the harness beside the checkout.

    make conformance                 all of it, some three minutes a Python
    make conformance ARGS=--fast     a part, on one Python, in less than a minute
    make conformance ARGS=--ruler    the standard library by another name as well: what the harness itself can show

What may fail is written down in conformance.toml, test by test, with the reason. Anything else that fails, hangs or
leaves a process behind is an error; so is a test that passes though it is listed, and a suite that has not run enough.
"""

import argparse
import glob
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
import zlib
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parent.parent
EXPECTATIONS = ROOT / "tests" / "conformance.toml"
MINORS = (11, 12, 13, 14)
SUITE_SECONDS = 1800  # a harness that takes longer is itself at fault
GOOD = ("passed", "skipped", "excluded")


@attrs.frozen
class Suite:
    """
    One suite of the harness.

    Attributes:
        ours: The module under test.
        ruler: The standard library by another name, in the harness.
        needs: The module of CPython's that must be there.
        at_least: Tests that must have passed, or it has shown nothing.
        fast: Which of its tests are for ``--fast``, a regular expression; None for none.
    """

    ours: str
    ruler: str
    needs: str
    at_least: int
    fast: str | None = None


SUITES = {
    "subprocess": Suite(
        "safespawn.subprocess", "std_subprocess", "test.test_subprocess", 170,
        fast="POSIXProcessTestCase|RunFuncTestCase|MiscTests",
    ),
    "asyncio": Suite("safespawn.subprocess", "std_subprocess", "test.test_asyncio.test_subprocess", 25, fast=""),
    "mp-context": Suite("safespawn.multiprocessing", "std_context", "test._test_multiprocessing", 130),
    "mp-pool": Suite("safespawn.multiprocessing", "std_context", "test._test_multiprocessing", 25, fast=""),
    "futures": Suite("safespawn.futures", "std_context", "test.test_concurrent_futures.util", 40),
}  # fmt: skip


@attrs.frozen
class Run:
    """
    What came of one suite on one Python.

    Attributes:
        suite, version: Which.
        outcomes: Kind and last words of each test, by its name.
        left: Processes left over.
        seconds: How long it took.
    """

    suite: str
    version: str
    outcomes: dict[str, tuple[str, str]]
    left: int = 0
    seconds: int = 0

    def count(self, kind: str) -> int:
        """How many tests came out so."""
        return sum(each == kind for each, _ in self.outcomes.values())


def short(test):
    """The name of a test without its module: Class.test."""
    return ".".join(test.split(".")[-2:])


def judge(run, expected, at_least):
    """
    Hold *run* against what is expected.

    Args:
        run: The run.
        expected: Reasons, by `short` name, for which a test fails; one that begins with "sometimes: " may also pass.
        at_least: Tests that must have passed.

    Returns:
        What is wrong, a line each.
    """
    problems = []
    for test, (kind, words) in sorted(run.outcomes.items()):
        reason = expected.get(short(test))
        if kind == "failed" and reason is not None:
            continue
        if kind not in GOOD:
            problems.append(f"{kind.upper()} {test}: {(words.strip().splitlines() or [''])[-1][:150]}")
        elif kind == "passed" and reason is not None and not reason.startswith("sometimes: "):
            problems.append(f"PASSED {test}: it is listed as failing; take it off the list")
    if run.left:
        problems.append(f"LEFT {run.left} process(es)")
    if run.count("passed") < at_least:
        problems.append(f"TOO FEW {run.count('passed')} passed, {at_least} are expected: this has shown nothing")
    return problems


def table(rows):
    """
    Runs of ours, each with the ruler's or None, as a Markdown table.
    """
    lines = [
        "| suite | Python | passed | failed | hung | left over | standard library | skipped, excluded |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run, ruler in rows:
        standard = "" if ruler is None else str(ruler.count("passed"))
        lines.append(
            f"| {run.suite} | {run.version} | {run.count('passed')} | {run.count('failed')} | "
            f"{run.count('hung') + run.count('crashed')} | {run.left} | {standard} | "
            f"{run.count('skipped')}, {run.count('excluded')} |"
        )
    return "\n".join(lines)


# --- running ----------------------------------------------------------------------------------------------------------
def find_pythons():
    """The interpreters of this machine that really run, the newest patch of each minor version, the oldest first."""
    check = "import sys, venv, ensurepip; print(*sys.version_info[:2], sys.implementation.name, sys.executable)"
    home = os.environ.get("PYENV_ROOT") or os.path.expanduser("~/.pyenv")

    def patch(path):
        return [int(number) for number in re.findall(r"\d+", path.removeprefix(home))]

    found = {}
    for minor in MINORS:
        paths = sorted(glob.glob(f"{home}/versions/3.{minor}.*/bin/python"), key=patch, reverse=True)
        for path in [shutil.which(f"python3.{minor}"), *paths]:
            if path is None or minor in found:
                continue
            done = subprocess.run([path, "-c", check], capture_output=True, text=True, check=False, timeout=60)
            if done.returncode == 0 and done.stdout.split()[:3] == ["3", str(minor), "cpython"]:
                found[minor] = done.stdout.split(maxsplit=3)[3].strip()
    return list(found.values())


def environment(python, directory):
    """An environment of *python* with this checkout in it, and nothing that its tests would find by chance."""
    version = subprocess.run(
        [python, "-c", "import sys; print(sys.version.split()[0])"], capture_output=True, text=True, check=True
    ).stdout.strip()
    own = Path(directory).resolve() / version / "bin" / "python"
    what = os.fsencode(ROOT) + (ROOT / "pyproject.toml").read_bytes()
    stamp = own.parent.parent / f"installed-{zlib.crc32(what)}"
    if not stamp.exists():
        subprocess.run([python, "-m", "venv", "--clear", own.parent.parent], check=True)
        subprocess.run(
            [own, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", "--editable", ROOT], check=True
        )
        stamp.touch()
    return own, version


def has(python, module):
    """Whether *python* has this part of CPython's test suite; some builds leave it out."""
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def run_suite(harness, python, version, name, implementation, only):
    """Run one suite by the harness; None if it has not come to its end."""
    with tempfile.TemporaryDirectory() as scratch:
        results = Path(scratch) / "results.json"
        command = [python, harness / "harness.py", name, "--impl", implementation, "--json", results, "--only", only]
        done = subprocess.run(
            command, cwd=scratch, stdout=subprocess.PIPE, text=True, check=False, timeout=SUITE_SECONDS
        )
        found = re.search(r"; (\d+) processes left over; (\d+) s;", done.stdout)
        if found is None or not results.exists():
            print(done.stdout)
            return None
        outcomes = {test: tuple(each) for test, each in json.loads(results.read_text()).items()}
        return Run(name, version, outcomes, int(found[1]), int(found[2]))


def main():
    """Run what the command line says; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true", help="a part of it, on the Python that runs this")
    parser.add_argument("--ruler", action="store_true", help="run the standard library by another name beside it")
    parser.add_argument("--suite", action="append", choices=SUITES, help="only this one; may be repeated")
    parser.add_argument("--python", action="append", help="only this interpreter; may be repeated")
    parser.add_argument("--harness", type=Path, default=ROOT.parent / "shared" / "harness", help="where it lies")
    parser.add_argument("--if-there", action="store_true", help="without the harness: say so, and be content")
    parser.add_argument("--envs", default=ROOT / ".venv" / "conformance", help="where the environments are made")
    args = parser.parse_args()

    if not (args.harness / "harness.py").exists():
        print(f"conformance: NOT CHECKED, there is no {args.harness}/harness.py; --harness says where it is")
        return 0 if args.if_there else 2
    # A shell ignores SIGINT in what it runs in the background; so would the tests that send it to themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    expectations = tomllib.loads(EXPECTATIONS.read_text(encoding="utf-8"))
    pythons = args.python or ([sys.executable] if args.fast else find_pythons())
    rows, problems = [], []
    for python in pythons:
        own, version = environment(python, args.envs)
        for name in args.suite or SUITES:
            suite = SUITES[name]
            if args.fast and suite.fast is None:
                continue
            if not has(own, suite.needs):
                print(f"{name} on {version}: NOT CHECKED, this Python has no {suite.needs}", flush=True)
                continue
            only = (suite.fast or "") if args.fast else ""
            run = run_suite(args.harness.resolve(), own, version, name, suite.ours, only)
            if run is None:
                problems.append(f"{name} on {version}: the harness has not come to its end")
                continue
            ruler = None
            if args.ruler:
                ruler = run_suite(args.harness.resolve(), own, version, name, suite.ruler, only)
            rows.append((run, ruler))
            wrong = judge(run, expectations.get(name, {}), 1 if only else suite.at_least)
            problems += [f"{name} on {version}: {line}" for line in wrong]
            print(*[f"    {line}" for line in wrong], sep="\n", end="\n" if wrong else "")
            print(f"{name} on {version}: {run.count('passed')} passed, {run.count('failed')} failed, "
                  f"{run.seconds} s{f'; {len(wrong)} PROBLEM(S)' if wrong else ''}", flush=True)  # fmt: skip
    print(f"\n{table(rows)}\n")
    print("\n".join(problems) or "nothing unexpected, nothing hung, nothing left over")
    return 1 if problems or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
