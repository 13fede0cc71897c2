"""How the outcome of CPython's own suites is held against what is expected."""

import tomllib

import conformance
from conformance import Run, judge, table

OUTCOMES = {
    "test.module.Class.test_good": ("passed", ""),
    "test.module.Class.test_listed": ("failed", "Traceback\nAssertionError: 1 != 2"),
    "test.module.Class.test_skipped": ("skipped", "Windows"),
}
EXPECTED = {"Class.test_listed": "pins something"}


def test_what_is_listed_may_fail():
    """A run in which only that fails has no problem."""
    assert judge(Run("asyncio", "3.13.0", OUTCOMES), EXPECTED, 1) == []


def test_what_is_not_listed_is_told():
    """A failure, a hang and a crash, with their last words, are problems."""
    for kind in ("failed", "hung", "crashed"):
        outcomes = {**OUTCOMES, "m.C.test_bad": (kind, "x\nwhy\n")}
        assert judge(Run("asyncio", "3.13.0", outcomes), EXPECTED, 1) == [f"{kind.upper()} m.C.test_bad: why"]


def test_a_hang_is_never_expected():
    """Also not of a test that may fail."""
    outcomes = {**OUTCOMES, "test.module.Class.test_listed": ("hung", "no progress")}
    assert judge(Run("asyncio", "3.13.0", outcomes), EXPECTED, 1) == ["HUNG test.module.Class.test_listed: no progress"]


def test_a_listed_test_that_passes_is_told():
    """Unless it is listed as one that may."""
    outcomes = {**OUTCOMES, "test.module.Class.test_listed": ("passed", "")}
    (line,) = judge(Run("asyncio", "3.13.0", outcomes), EXPECTED, 1)
    assert line.startswith("PASSED test.module.Class.test_listed")
    assert judge(Run("asyncio", "3.13.0", outcomes), {"Class.test_listed": "sometimes: pins something"}, 1) == []


def test_what_is_left_or_has_not_run_is_told():
    """Processes left over, and a suite of which too little has passed."""
    run = Run("asyncio", "3.13.0", OUTCOMES, left=2)
    assert [line.split()[0] for line in judge(run, EXPECTED, 2)] == ["LEFT", "TOO"]


def test_the_list_is_of_known_suites_with_reasons():
    """conformance.toml can be read, and every reason is a sentence."""
    expectations = tomllib.loads(conformance.EXPECTATIONS.read_text())
    assert set(expectations) <= set(conformance.SUITES)
    for tests in expectations.values():
        for name, reason in tests.items():
            assert name.count(".") == 1
            assert len(reason) > 20


def test_the_documentation_names_what_fails():
    """docs/dropin.md has every test of the list."""
    text = (conformance.ROOT / "docs" / "dropin.md").read_text()
    for tests in tomllib.loads(conformance.EXPECTATIONS.read_text()).values():
        for name in tests:
            assert f"`{name.partition('.')[2]}`" in text, name


def test_the_table():
    """A line a run, the ruler's figure where there is one."""
    run = Run("asyncio", "3.13.0", OUTCOMES)
    assert table([(run, run), (run, None)]).splitlines()[2:] == [
        "| asyncio | 3.13.0 | 1 | 1 | 0 | 0 | 1 | 1, 0 |",
        "| asyncio | 3.13.0 | 1 | 1 | 0 | 0 |  | 1, 0 |",
    ]
