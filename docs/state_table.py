"""
The tables of `safespawn/_zygote/session.py` and `safespawn/_core/upkeep.py` as Markdown, for docs/design.md.

`python docs/state_table.py` prints it, `python docs/state_table.py --write` puts each between its two marks
in docs/design.md. A test fails while the page and the code differ.
"""

# ruff: noqa: INP001, T201 - a script, run by path; printing is its job

import re
import sys
from pathlib import Path

from safespawn._core import upkeep
from safespawn._zygote import session

PAGE = Path(__file__).with_name("design.md")
# By name: states, events, cells, and who does it.
TABLES = {
    "session": (session.STATES, session.EVENTS, session.TABLE, "what the zygote does, in order"),
    "run": (upkeep.RUN_STATES, upkeep.RUN_EVENTS, upkeep.RUN_TABLE, "what is done, in order"),
    "child": (upkeep.CHILD_STATES, upkeep.CHILD_EVENTS, upkeep.CHILD_TABLE, "what is done, in order"),
}


def marks(name: str) -> tuple[str, str]:
    """
    What stands before and behind the table *name* in the page.
    """
    return f"<!-- {name} table -->", f"<!-- end of the {name} table -->"


def table(name: str) -> str:
    """
    One row per cell, in the order of states and events; states without a row are final.
    """
    states, events, cells, head = TABLES[name]
    rows = [f"| state | event | next state | {head} |", "|---|---|---|---|"]
    for state in states:
        for event in events:
            if (state, event) in cells:
                after, effects = cells[state, event]
                rows.append(f"| {state} | {event} | {after} | {', '.join(effects) or 'nothing'} |")
    return "\n".join(rows)


def in_page(text: str, name: str) -> str:
    """
    The table *name* as *text*, a page, has it.
    """
    begin, end = marks(name)
    return text.partition(begin)[2].partition(end)[0].strip()


def main() -> None:
    """
    Print the tables, or write them into the page.
    """
    if "--write" in sys.argv[1:]:
        text = PAGE.read_text(encoding="utf-8")
        for name in TABLES:
            begin, end = marks(name)
            new = f"{begin}\n{table(name)}\n{end}"
            text = re.sub(f"{begin}.*?{end}", lambda _, new=new: new, text, flags=re.DOTALL)
        PAGE.write_text(text, encoding="utf-8")
    else:
        print("\n\n".join(table(name) for name in TABLES))


if __name__ == "__main__":
    main()
