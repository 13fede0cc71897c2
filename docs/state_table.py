"""
The tables of `safespawn/_zygote/session.py` and `safespawn/_core/upkeep.py` as Markdown, and the first one as a
picture, for docs/design.md.

`python docs/state_table.py` prints the tables; with `--write` it puts each between its two marks in docs/design.md, and
draws docs/pictures/sessions.svg. A test fails while the page or the picture and the code differ.
"""

# ruff: noqa: INP001, T201 - a script, run by path; printing is its job

import re
import sys
from pathlib import Path

from safespawn._core import upkeep
from safespawn._zygote import session

PAGE = Path(__file__).with_name("design.md")
PICTURE = Path(__file__).parent / "pictures" / "sessions.svg"
# By name: states, events, cells, and who does it.
TABLES = {
    "session": (session.STATES, session.EVENTS, session.TABLE, "what the zygote does, in order"),
    "run": (upkeep.RUN_STATES, upkeep.RUN_EVENTS, upkeep.RUN_TABLE, "what is done, in order"),
    "child": (upkeep.CHILD_STATES, upkeep.CHILD_EVENTS, upkeep.CHILD_TABLE, "what is done, in order"),
}

# Where the states stand in the picture; the arrows are the table's. An arrow to the final state "gone" ends at a mark
# of its own beside the state that it comes from: seven long arrows less.
PLACES = {
    "idle": (110, 270), "launching": (390, 270), "running": (730, 270), "reaped": (390, 430), "held": (730, 430),
    "left": (565, 180), "ending": (1010, 270), "killing": (1010, 50),
}  # fmt: skip
BENDS = {  # how far an arrow's middle is moved to its left, in pixels
    ("idle", "launching"): 22, ("launching", "idle"): 22, ("launching", "killing"): 95,
}  # fmt: skip
SIDES = {  # where the loop stands, and where the mark of "gone": a direction from the state
    "idle": ((0, -1), (0, 1)), "launching": ((-1, 1), (0, 1)), "running": ((1, -1), (0, 1)),
    "reaped": ((0, 1), (-1, 0)), "held": ((0, 1), (1, 0)), "left": ((0, 1), (1, 0)),
    "ending": ((1, 1), (0, 1)), "killing": ((1, 1), (1, 0)),
}  # fmt: skip
WIDTH, HEIGHT, HALF_WIDTH, HALF_HEIGHT, WAY, DROP = 1230, 530, 58, 21, 92, 56  # pixels


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


def arrows() -> dict[tuple[str, str], list[str]]:
    """
    The events that lead from one state to another one, by both.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for state in session.STATES:
        for event in session.EVENTS:
            if (state, event) in session.TABLE:
                found.setdefault((state, session.TABLE[state, event][0]), []).append(event)
    return found


def picture() -> str:
    """
    The table as an SVG; what the zygote does is left to the table.
    """
    lines, words = [], []
    for (state, after), events in arrows().items():
        (x, y), bend = PLACES[state], BENDS.get((state, after), 0)
        loop, end = SIDES[state]
        if after == state:
            shape, at = looped(x, y, *loop)
        elif after == "gone":
            shape, at = ended(x, y, *end)
            words.append(
                text(x + end[0] * (HALF_WIDTH + WAY + 20), y + end[1] * (HALF_HEIGHT + DROP + 12) + 5, "gone", "gone")
            )
        else:
            shape, at = led(x, y, *PLACES[after], bend)
        lines.append(f'<path class="arrow" d="{shape}"/>')
        words += [text(at[0], at[1] + 14 * number, event) for number, event in enumerate(events)]
    boxes = []
    for state, (x, y) in PLACES.items():
        corner = f'x="{x - HALF_WIDTH}" y="{y - HALF_HEIGHT}" width="{2 * HALF_WIDTH}" height="{2 * HALF_HEIGHT}"'
        boxes += [f'<rect class="state" {corner} rx="10"/>', text(x, y + 5, state, "name")]
    return "\n".join([HEAD, *lines, *boxes, *words, "</svg>", ""])


HEAD = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" role="img">
<title>The states of a session, and the events that lead from one to the next</title>
<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0 L10 5 L0 10 z" fill="#456"/></marker><style>
.arrow {{ fill: none; stroke: #456; stroke-width: 1.4; marker-end: url(#tip) }}
.state {{ fill: #e8f0f4; stroke: #456; stroke-width: 1.4 }}
.name {{ font-size: 16px; font-weight: bold; fill: #123 }}
.gone {{ font-size: 13px; font-style: italic; fill: #123 }}
.event {{ font-size: 13px; fill: #123 }}
.halo {{ font-size: 13px; stroke: #fff; stroke-width: 4px }}
</style></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>"""


def text(x: float, y: float, words: str, kind: str = "event") -> str:
    """
    Words, centred at a point.
    """
    shown = f'x="{x:.0f}" y="{y:.0f}" text-anchor="middle">{words}</text>'
    return (f'<text class="halo" {shown}\n' if kind == "event" else "") + f'<text class="{kind}" {shown}'


def border(x: float, y: float, towards_x: float, towards_y: float) -> tuple[float, float]:
    """
    The point of a state's border on the way from its middle to another point.
    """
    far = max(abs(towards_x - x) / (HALF_WIDTH + 3), abs(towards_y - y) / (HALF_HEIGHT + 3))
    return x + (towards_x - x) / far, y + (towards_y - y) / far


def led(x: float, y: float, to_x: float, to_y: float, bend: float) -> tuple[str, tuple[float, float]]:
    """
    An arrow from state to state, and where its words stand.
    """
    length = ((to_x - x) ** 2 + (to_y - y) ** 2) ** 0.5
    over_x, over_y = (to_y - y) / length * bend, -(to_x - x) / length * bend
    via = (x + to_x) / 2 + 2 * over_x, (y + to_y) / 2 + 2 * over_y
    (begin_x, begin_y), (end_x, end_y) = border(x, y, *via), border(to_x, to_y, *via)
    by = f"Q{via[0]:.0f} {via[1]:.0f}" if bend else "L"
    shape = f"M{begin_x:.0f} {begin_y:.0f} {by} {end_x:.0f} {end_y:.0f}"
    return shape, (begin_x / 4 + via[0] / 2 + end_x / 4, begin_y / 4 + via[1] / 2 + end_y / 4 + 4)


def looped(x: float, y: float, to_x: int, to_y: int) -> tuple[str, tuple[float, float]]:
    """
    An arrow from a state to itself.
    """
    middle, edge = x + to_x * 36, y + to_y * HALF_HEIGHT
    far = edge + to_y * 44
    shape = f"M{middle - 16} {edge} C{middle - 24} {far} {middle + 24} {far} {middle + 16} {edge + 3 * to_y}"
    return shape, (middle, edge + (46 if to_y > 0 else -40))


def ended(x: float, y: float, to_x: int, to_y: int) -> tuple[str, tuple[float, float]]:
    """
    An arrow from a state to its mark of "gone".
    """
    edge_x, edge_y = x + to_x * HALF_WIDTH, y + to_y * HALF_HEIGHT
    far_x, far_y = edge_x + to_x * WAY, edge_y + to_y * DROP
    return f"M{edge_x} {edge_y} L{far_x} {far_y}", ((edge_x + far_x) / 2, (edge_y + far_y) / 2 - (8 if to_x else 2))


def main() -> None:
    """
    Print the tables, or write them into the page and draw the picture.
    """
    if "--write" in sys.argv[1:]:
        text = PAGE.read_text(encoding="utf-8")
        for name in TABLES:
            begin, end = marks(name)
            new = f"{begin}\n{table(name)}\n{end}"
            text = re.sub(f"{begin}.*?{end}", lambda _, new=new: new, text, flags=re.DOTALL)
        PAGE.write_text(text, encoding="utf-8")
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(picture(), encoding="utf-8")
    else:
        print("\n\n".join(table(name) for name in TABLES))


if __name__ == "__main__":
    main()
