"""What the pages say is so: their code runs, their links lead somewhere, their lists are complete."""

import importlib.util
import json
import platform
import posixpath
import re
import subprocess
import sys
from pathlib import Path

import pytest

from safespawn._commands import RunOptions
from safespawn._core.options import SpawnOptions
from safespawn._zygote import session, wire
from support.applications import Census
from support.children import complaints

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def relative(path: Path) -> str:
    """*path* as the pages and the test's name have it."""
    return path.relative_to(ROOT).as_posix()


def blocks() -> list:
    """Every code block that is marked to be run: ```python run."""
    found = []
    for page in PAGES:
        for match in re.finditer(r"^```python run\n(.*?)^```$", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
            line = page.read_text("utf-8").count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{relative(page)}:{line}"))
    return found


@pytest.mark.parametrize("code", blocks())
def test_code_runs(code, tmp_path) -> None:
    """The block runs as a program of its own, without a warning, and leaves nobody."""
    program = tmp_path / "program.py"
    program.write_text(code, "utf-8")
    argv = [sys.executable, "-X", "dev", "-W", "error", program]
    census = Census()
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert not complaints(done.stderr)
    assert census.gone(5.0) == {}


def test_readme_has_code_that_is_run() -> None:
    """The first code of the README is among the blocks that are run."""
    assert any(param.id.startswith("README.md:") for param in blocks())


def anchors(page: Path) -> set[str]:
    """What a link may point to in *page*: its headings, as the usual hosts name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_somewhere(page) -> None:
    """Each link to a file of the project names one that exists, and a heading that it has."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    assert not wrong


def documented() -> set[str]:
    """The names in the first column of the tables in docs/commands.md."""
    names: set[str] = set()
    for cell in re.findall(r"^\|([^|]+)\|", (ROOT / "docs/commands.md").read_text("utf-8"), re.MULTILINE):
        names.update(re.findall(r"`(\w+)`", cell))
    return names


@pytest.mark.parametrize("options", [SpawnOptions, RunOptions], ids=lambda each: each.__name__)
def test_every_option_is_documented(options) -> None:
    """docs/commands.md has a row for each option."""
    assert set(options.__annotations__) - documented() == set()


def test_popen_options_are_documented() -> None:
    """docs/commands.md has a row for each parameter of Popen's own."""
    from safespawn.process import Popen

    assert set(Popen.__init__.__kwdefaults__) - documented() == set()


def script(path):
    """The module in the file *path* of the project."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["session", "run", "child"])
def test_tables_are_the_codes(name) -> None:
    """docs/design.md shows the tables that the code goes by (`python docs/state_table.py --write`)."""
    module = script("docs/state_table.py")
    assert module.in_page(module.PAGE.read_text("utf-8"), name) == module.table(name)


def test_session_picture_is_the_codes() -> None:
    """The picture is the one that is drawn of the table (`python docs/state_table.py --write`), with every state."""
    module = script("docs/state_table.py")
    assert module.PICTURE.read_text("utf-8") == module.picture()
    assert {*module.PLACES, "gone"} == set(session.STATES)


def test_table_is_complete() -> None:
    """The generated table has a row for each cell."""
    page = (ROOT / "docs/design.md").read_text("utf-8")
    for (state, event), (after, _) in session.TABLE.items():
        assert f"| {state} | {event} | {after} |" in page


def test_every_message_is_documented() -> None:
    """docs/design.md has a row for each kind of message."""
    page = (ROOT / "docs/design.md").read_text("utf-8")
    rows = set(re.findall(r"^\| ([A-Z_]+) \|", page, re.MULTILINE))
    assert {getattr(wire, name) for name in rows} == set(wire.SHAPES)


def test_supervisor_statistics_are_documented() -> None:
    """docs/supervisor.md names each key of `statistics()`."""
    import safespawn

    with safespawn.Supervisor("docs", guard="off") as supervisor:
        figures = supervisor.statistics()
    page = (ROOT / "docs/supervisor.md").read_text("utf-8")
    assert {key for key in [*figures, *figures["zygote"]] if f"`{key}`" not in page} == set()


def first_columns(page: str) -> set[str]:
    """The names in the first column of the tables of *page*."""
    cells = re.findall(r"^\|([^|]+)\|", (ROOT / page).read_text("utf-8"), re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_every_option_of_a_pool_is_documented() -> None:
    """docs/pools.md has a row for each parameter of a pool and each option of a task."""
    import inspect

    from safespawn._tasks import _OPTIONS
    from safespawn.pool import Pool, PoolBase

    options = {*inspect.signature(PoolBase).parameters, *Pool.imap.__kwdefaults__, *_OPTIONS}
    assert options - first_columns("docs/pools.md") == set()


def test_pool_statistics_are_documented() -> None:
    """docs/pools.md names each key of a pool's `statistics()`, and each of its workers'."""
    import safespawn

    with safespawn.Pool(1) as pool:
        pool.apply(abs, (-1,))
        figures = pool.statistics()
    page = (ROOT / "docs/pools.md").read_text("utf-8")
    assert {key for key in [*figures, *figures["workers"][0]] if f"`{key}`" not in page} == set()


def test_every_public_name_is_in_the_api() -> None:
    """docs/api.md has an entry for each name of the door; errors come with their modules."""
    import safespawn

    page = (ROOT / "docs/api.md").read_text("utf-8")
    entries = set(re.findall(r"^::: safespawn\.(\w+)$", page, re.MULTILINE))
    homes = {f"safespawn.{name}": name for name in ("errors", "pool_errors", "child_errors")}
    for name in safespawn.__all__:
        home = homes.get(getattr(getattr(safespawn, name), "__module__", ""), name)
        assert home in entries or f"`{name}`" in page, name


def test_every_page_is_in_the_site() -> None:
    """mkdocs.yml leads to each page under docs/, each example, and what it names exists."""
    here = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    hook = script("docs/site_pages.py")
    here |= {hook.in_site(relative(program)) for program in hook.examples()}
    here |= set(hook.ELSEWHERE.values())
    assert in_the_site() == here


def in_the_site() -> set[str]:
    """The pages that mkdocs.yml names."""
    return set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=relative)
def test_links_lead_to_pages_of_the_site(page) -> None:
    """In the site, too, each link leads to a page, from wherever the page stands there."""
    hook = script("docs/site_pages.py")
    source = relative(page)
    here = hook.in_site(source)
    assert here in in_the_site()
    text = page.read_text("utf-8")
    for before, after in zip(hook.LINK.findall(text), hook.LINK.findall(hook.led(text, source, here)), strict=True):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(here), after[0]))
        assert target in in_the_site() or target.endswith(".svg"), before


def test_every_decision_is_in_the_index() -> None:
    """docs/adr/index.md names each decision by its heading."""
    index = (ROOT / "docs/adr/index.md").read_text("utf-8")
    for page in sorted((ROOT / "docs/adr").glob("0*.md")):
        number, _, title = page.read_text("utf-8").splitlines()[0].removeprefix("# ").partition(". ")
        assert f"| [{number}]({page.name}) | {title} |" in index


def bench(*arguments):
    """Run `python -m ...` in the checkout."""
    argv = [sys.executable, "-m", *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True).stdout


def test_performance_is_what_was_measured() -> None:
    """docs/performance is written from its report.json alone (`python -m bench.report docs/performance`)."""
    assert bench("bench.report", "docs/performance", "--page") == (ROOT / "docs/performance/index.md").read_text(
        "utf-8"
    )


def test_a_report_is_a_page_with_its_machine(tmp_path) -> None:
    """`python -m bench SUBJECT --report DIR` leaves the figures, and a page that says where, when and how."""
    bench("bench", "guard", "--quick", "--report", tmp_path)
    page = (tmp_path / "index.md").read_text("utf-8")
    entry = json.loads((tmp_path / "report.json").read_text("utf-8"))["guard"]
    assert f"*{entry['when']}, CPython {platform.python_version()}, Linux " in page
    assert ", quick*" in page
    for figure in entry["figures"]:
        verdict = {True: "met", False: "**missed**"}[figure["met"]]
        assert f"| {figure['name']} | " in page
        assert f" | {figure['target']} | {verdict} | " in page


def test_what_becomes_of_tasks_is_as_told() -> None:
    """`python -m bench.outcomes` finds of a pool of ours what docs/peers.md and the README say."""
    said = dict(re.findall(r"^  (.+?)  +(.+)$", bench("bench.outcomes", "safespawn.Pool"), re.MULTILINE))
    assert said == {
        "a worker is killed: its task": "WorkerDied",
        "the other task": "its result",
        "the next task": "its result",
        "an exception that pickle cannot make again": "OddError",
        "a worker's log record": "comes to the program's handler",
        "kill -9 of the program: a busy worker": "ends",
    }
