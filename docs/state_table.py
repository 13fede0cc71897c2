"""
The session table of `safespawn/_zygote/session.py` as Markdown, for docs/design.md.

`python docs/state_table.py` prints it, `python docs/state_table.py --write` puts it between the two marks in
docs/design.md. A test fails while the page and the code differ.
"""

# ruff: noqa: INP001, T201 - a script, run by path; printing is its job

import re
import sys
from pathlib import Path

from safespawn._zygote import session

PAGE = Path(__file__).with_name("design.md")
BEGIN, END = "<!-- session table -->", "<!-- end of the session table -->"


def table() -> str:
    """
    One row per cell, in the order of states and events; states without a row are final.
    """
    rows = ["| state | event | next state | what the zygote does, in order |", "|---|---|---|---|"]
    for state in session.STATES:
        for event in session.EVENTS:
            if (state, event) in session.TABLE:
                after, effects = session.TABLE[state, event]
                rows.append(f"| {state} | {event} | {after} | {', '.join(effects) or 'nothing'} |")
    return "\n".join(rows)


def in_page(text: str) -> str:
    """
    The table as *text*, a page, has it.
    """
    return text.partition(BEGIN)[2].partition(END)[0].strip()


def main() -> None:
    """
    Print the table, or write it into the page.
    """
    if "--write" in sys.argv[1:]:
        text = PAGE.read_text(encoding="utf-8")
        new = re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table()}\n{END}", text, flags=re.DOTALL)
        PAGE.write_text(new, encoding="utf-8")
    else:
        print(table())


if __name__ == "__main__":
    main()
