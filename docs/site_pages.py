"""
A hook of mkdocs: what stands elsewhere in the project becomes a page of the site, and links follow.

The pages under docs/ are written to be read in the repository as well: they link to `../README.md` and
`../examples/pool.py`. Here the README is the front page, SECURITY.md and the like are pages, and each example is a page
with its source. A link to a file that is no page of the site is an error of the build; so is a page that would fetch a
script, a style or a picture from elsewhere.
"""

# ruff: noqa: INP001 - a script that mkdocs loads by path

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.structure.files import Files

ROOT = Path(__file__).parents[1]
ELSEWHERE = {  # by path in the project: path in the site
    "README.md": "index.md",
    "CHANGELOG.md": "changes.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "LICENSE": "licence.md",
}
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)(#[^)\s]+)?(?=\))")
CODE = re.compile(r"^(?P<fence>```+).*?^(?P=fence)$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
FETCHED = re.compile(
    r'<(?:script|img|iframe)[^>]+src=["\']?https?:|<link[^>]+rel=["\']?stylesheet[^>]+href=["\']?https?:'
)
log = logging.getLogger("mkdocs.plugins.site_pages")


def on_files(files: "Files", config: Any) -> "Files":
    """
    Add the pages that stand elsewhere.
    """
    from mkdocs.structure.files import File  # here, so that the rest can be tested without it

    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=text_of(ROOT / source)))
    for program in examples():
        page = in_site(program.relative_to(ROOT).as_posix())
        files.append(File.generated(config, page, content=listing(program)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """
    Lead links to the pages of the site, and tell the highlighter the language of what is run.
    """
    here = page.file.src_uri
    source = next((path for path, name in ELSEWHERE.items() if name == here), posixpath.join("docs", here))
    parts, at = [], 0
    for code in CODE.finditer(markdown):  # not in there
        parts += [led(markdown[at : code.start()], source, here), code[0].replace("```python run\n", "```python\n")]
        at = code.end()
    return "".join([*parts, led(markdown[at:], source, here)])


def on_post_page(output: str, *, page: Any, **_: Any) -> str:
    """
    See that the page can be read without a network.
    """
    for match in FETCHED.finditer(output):
        log.warning("%s: fetches from elsewhere: %s", page.file.src_uri, output[match.start() : match.end() + 60])
    return output


def led(text: str, source: str, here: str) -> str:
    """
    *text* of the file *source*, with its links as the page *here* needs them.
    """

    def target(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        name = in_site(path)
        if name is None:
            log.warning("%s: the link to %s leads to no page of the site", source, match[1])
            return match[0]
        return os.path.relpath(name, posixpath.dirname(here) or ".") + (match[2] or "")

    return LINK.sub(target, text)


def examples() -> list[Path]:
    """
    The programs that are shown.
    """
    return sorted((ROOT / "examples").rglob("*.py"))


def in_site(path: str) -> str | None:
    """
    The page of a file, both relative to their roots; None if it has none.
    """
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("examples/") and path.endswith(".py"):
        return path.removesuffix(".py") + ".md"
    return ELSEWHERE.get(path)


def text_of(path: Path) -> str:
    """
    A page's text; what is no Markdown stands there as it is.
    """
    text = path.read_text("utf-8")
    return text if path.suffix == ".md" else f"# {path.name.capitalize()}\n\n```text\n{text}```\n"


def listing(program: Path) -> str:
    """
    A page that shows a program.
    """
    return f"# {program.name}\n\n```python\n{program.read_text('utf-8')}```\n"
