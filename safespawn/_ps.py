"""
What every application that uses safespawn runs: the tables of `safespawn ps` and `safespawn top`.

What the kernel knows comes from /proc: which processes there are, their CPU and memory. What only the application knows
comes from its board (`_drive.board`), and what a worker does at this moment from its journal. All of it is read without
the help of the application, which may be busy, stopped or hung, and without holding it up.

Runs in: an application of its own.
"""

import os
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any

from safespawn._drive import board
from safespawn._processes import duration, find_zygotes, look, megabytes, one_line, printable
from safespawn._worker import journal

JOURNALS = "safespawn-journals"
STATES = {"T": "stopped", "t": "traced", "Z": "ended", "X": "ended", "D": "in the kernel"}
_CELLS = struct.Struct("<8Q")


# --- facts -----------------------------------------------------------------------------------------------------------
def find_applications() -> list[dict[str, Any]]:
    """
    Every application of this user (root: of everybody) that has a zygote: its pid, its command, and its rows.

    A row has `kind`, `name`, `pid`, `depth`, `state`, `uptime_seconds`, `restarts`, `cpu_seconds`, `rss_bytes`, `task`,
    `task_seconds`, `event`, `event_seconds`, `left_seconds`; what is not known is None.
    """
    table = look()
    below: dict[int, list[int]] = {}
    for pid in sorted(table):
        below.setdefault(table[pid]["parent"], []).append(pid)
    zygotes: dict[int, list[dict[str, Any]]] = {}
    for zygote in find_zygotes(table):
        zygotes.setdefault(zygote["application"]["pid"], []).append(zygote)
    found: list[dict[str, Any]] = []
    for pid, own in sorted(zygotes.items()):
        facts = table.get(pid)
        rows, hidden = board.read_board(pid) or ([], 0)
        listing = Listing(table, below, pid, rows)
        found.append(
            {
                "pid": pid,
                "command": "" if facts is None else facts["command"],
                "rows": list(listing.all(own)),
                "hidden_rows": hidden,
            }
        )
    return found


class Listing:
    """
    The rows of one application.
    """

    def __init__(
        self, table: dict[int, dict[str, Any]], below: dict[int, list[int]], pid: int, rows: list[board.Facts]
    ) -> None:
        self.table = table
        self.below = below
        self.pid = pid
        self.rows = rows
        self.by_pid = {row.pid: row for row in rows if row.pid}
        self.now = time.monotonic()
        self.shown: set[int] = set()

    def all(self, zygotes: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """
        The application, its helpers, what its owners have published, and what else runs below the helpers.
        """
        yield self.process("application", self.pid, 0)
        templates: list[int] = []
        for zygote in zygotes:
            if zygote["warden"] is not None:
                yield self.process("warden", zygote["warden"]["pid"], 1)
            yield self.process("zygote", zygote["pid"], 1)
            for pid in self.below.get(zygote["pid"], ()):
                if is_template(self.table[pid]["words"]):
                    templates.append(pid)
                    yield self.process("template", pid, 2)
        owners = {row.name for row in self.rows}
        for row in self.rows:
            if row.owner not in owners or row.owner == row.name:
                yield from self.owned(row, 1)
        for pid in [*templates, *(zygote["pid"] for zygote in zygotes)]:
            for child in self.below.get(pid, ()):
                if child not in self.shown:
                    yield from self.stranger("process" if pid in templates else "command", child, 1)

    def owned(self, row: board.Facts, depth: int) -> Iterator[dict[str, Any]]:
        """
        A row of the board, and what belongs to it.
        """
        yield self.published(row, depth)
        for pid in self.below.get(row.pid, ()) if row.pid else ():
            if pid not in self.by_pid and pid not in self.shown and row.pid != self.pid:
                yield from self.stranger("process", pid, depth + 1)
        if depth < 8:  # nobody owns himself; a board that says so ends here
            for each in self.rows:
                if each.owner == row.name and each is not row and each.kind != row.kind:
                    yield from self.owned(each, depth + 1)

    def stranger(self, kind: str, pid: int, depth: int) -> Iterator[dict[str, Any]]:
        """
        A process that nobody has published, and what it has started.
        """
        yield self.process(kind, pid, depth)
        for child in self.below.get(pid, ()):
            if child not in self.shown:
                yield from self.stranger("process", child, depth + 1)

    def process(self, kind: str, pid: int, depth: int) -> dict[str, Any]:
        """
        The row of a process, as the kernel knows it.
        """
        self.shown.add(pid)
        facts = self.table.get(pid)
        row: dict[str, Any] = dict.fromkeys(
            ("restarts", "task", "task_seconds", "event", "event_seconds", "left_seconds")
        )
        if facts is None:
            name, state = "", "ended"
            figures: dict[str, Any] = dict.fromkeys(("uptime_seconds", "cpu_seconds", "rss_bytes"))
        else:
            inner = kind in ("warden", "zygote", "template")
            name = kind if inner else facts["comm"] if is_template(facts["words"]) else facts["command"]
            state = STATES.get(facts["state"], "running")
            figures = {
                "uptime_seconds": facts["age_seconds"],
                "cpu_seconds": facts["cpu_seconds"],
                "rss_bytes": facts["rss_bytes"],
            }
        return {"kind": kind, "name": name, "pid": pid or None, "depth": depth, "state": state, **figures, **row}

    def published(self, facts: board.Facts, depth: int) -> dict[str, Any]:
        """
        The row of something that its owner has published.
        """
        row = self.process(facts.kind, facts.pid, depth)
        row["name"], row["restarts"] = facts.name, facts.restarts
        if not facts.pid or row["state"] not in STATES.values():
            row["state"] = facts.state
        if not facts.pid:
            row["uptime_seconds"] = round(max(0.0, self.now - facts.since), 2)
        if facts.until:
            row["left_seconds"] = round(max(0.0, facts.until - self.now), 2)
        if facts.event:
            row["event"] = facts.event
            row["event_seconds"] = round(max(0.0, self.now - facts.event_at), 2)
        if facts.task:
            row["task"] = facts.task
            row["task_seconds"] = round(max(0.0, self.now - facts.task_since), 2)
        if facts.cells[0] >= 0:
            self.add_task(row, *facts.cells)
        return row

    def add_task(self, row: dict[str, Any], number: int, offset: int) -> None:
        """
        What a worker does, as its journal says.
        """
        fd = board.open_memory(self.pid, number, JOURNALS)
        if fd < 0:
            return
        try:
            cells = _CELLS.unpack(os.pread(fd, _CELLS.size, offset))
            label = os.pread(fd, journal.LABEL_BYTES, offset + journal.LABEL_AT).partition(b"\0")[0]
            again = _CELLS.unpack(os.pread(fd, _CELLS.size, offset))
        except (OSError, struct.error):
            return
        finally:
            os.close(fd)
        running = cells[journal.RUNNING]
        if row["state"] == "ready":
            row["state"] = "busy" if running else "idle"
        if running:
            known = cells[journal.NAMED] == again[journal.NAMED] == again[journal.RUNNING] == running
            row["task"] = label.decode(errors="replace") if known else f"task {running}"
            row["task_seconds"] = round(max(0.0, self.now - cells[journal.SINCE_NS] * 1e-9), 2)


def is_template(words: list[str]) -> bool:
    """
    Whether a command line is a template's, or that of a worker, which is forked from one.
    """
    return len(words) > 4 and os.path.basename(words[-4].rstrip("/")) == "_worker" and words[-1].isdecimal()


# --- text ------------------------------------------------------------------------------------------------------------
HEADS = ("PID", "NAME", "KIND", "STATE", "UP", "RST", "CPU", "RSS", "NOW")
RIGHT = frozenset(("PID", "UP", "RST", "CPU", "RSS"))


def cells(row: dict[str, Any], cpu: float | None) -> tuple[str, ...]:
    """
    What stands in a row of the table.

    Args:
        row: As `find_applications` has it.
        cpu: CPUs that it used lately; None: on the average of its life.
    """
    up, spent = row["uptime_seconds"], row["cpu_seconds"]
    if cpu is None and spent is not None:
        cpu = spent / up if up else 0.0
    state = row["state"]
    if row["left_seconds"] is not None:
        state = f"{state}, {row['left_seconds']:.1f} s left"
    return (
        str(row["pid"] or "-"),
        "  " * row["depth"] + one_line(row["name"])[:48],
        printable(row["kind"]),
        printable(state),
        "-" if up is None else duration(up),
        "-" if row["restarts"] is None else str(row["restarts"]),
        "-" if cpu is None or row["pid"] is None else f"{cpu * 100:.0f} %",
        "-" if row["rss_bytes"] is None else megabytes(row["rss_bytes"]),
        doing(row),
    )


def doing(row: dict[str, Any]) -> str:
    """
    What a process is at, and what happened to it last.
    """
    words: list[str] = []
    if row["task"]:
        words.append(f"{row['task']} for {duration(row['task_seconds'])}")
    if row["event"]:
        words.append(f"{row['event']}, {duration(row['event_seconds'])} ago")
    return printable("; ".join(words))


def lines(applications: list[dict[str, Any]], width: int | None = None) -> Iterator[str]:
    """
    The tables, for reading.

    Args:
        applications: As `find_applications` has them.
        width: Columns at which a line is cut; None: it is not.
    """
    if not applications:
        yield "No application with safespawn runs here" + ("." if os.geteuid() == 0 else " as this user.")
    for application in applications:
        yield from table_lines(application, width)


def table_lines(application: dict[str, Any], width: int | None) -> Iterator[str]:
    """
    One application's table.
    """
    rows = [HEADS, *(cells(row, row.get("cpu")) for row in application["rows"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
    for row in rows:
        words = [
            text.rjust(size) if head in RIGHT else text.ljust(size)
            for head, text, size in zip(HEADS, row, widths, strict=True)
        ]
        line = "  ".join(words).rstrip()
        yield line if width is None else line[:width]
    if application["hidden_rows"]:
        yield f"and {application['hidden_rows']} more that its board has no room for"
    yield ""


# --- top -------------------------------------------------------------------------------------------------------------
def top(interval: float, count: int | None) -> None:
    """
    Show the tables again and again, with the CPU since the look before: as rich does it where that is installed and
    somebody looks, else one below the other.

    Args:
        interval: Seconds between two looks.
        count: So many looks; None: until Ctrl-C.
    """
    looks = watch(interval, count)
    if sys.stdout.isatty():
        try:
            import rich.live
        except ImportError:
            for found in looks:
                size = os.get_terminal_size()
                text = list(lines(found, size.columns))[: size.lines - 1]
                write("\x1b[H\x1b[2J" + "\n".join(text))
            return
        with rich.live.Live(auto_refresh=False, screen=True) as live:
            for found in looks:
                live.update(pretty(found), refresh=True)
        return
    for found in looks:
        write("\n".join(lines(found)))


def write(text: str) -> None:
    """
    Show it now.
    """
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def watch(interval: float, count: int | None) -> Iterator[list[dict[str, Any]]]:
    """
    The applications, again and again; each row with `cpu`: the CPUs that it used since the look before.
    """
    before: dict[int, float] = {}
    then = time.monotonic()
    number = 0
    while count is None or number < count:
        if number:
            time.sleep(interval)
        found = find_applications()
        now = time.monotonic()
        after: dict[int, float] = {}
        for application in found:
            for row in application["rows"]:
                pid, spent = row["pid"], row["cpu_seconds"]
                if pid is not None and spent is not None:
                    after[pid] = spent
                    row["cpu"] = (spent - before[pid]) / max(now - then, 0.01) if pid in before else None
        before, then = after, now
        number += 1
        yield found


def pretty(applications: list[dict[str, Any]]) -> Any:
    """
    The tables as rich draws them.
    """
    import rich.console
    import rich.table
    import rich.text

    parts: list[Any] = []
    for application in applications:
        rows = [cells(row, row.get("cpu")) for row in application["rows"]]
        table = rich.table.Table(
            box=None, header_style="bold", title=one_line(application["command"]), title_justify="left"
        )
        for column, head in enumerate(HEADS):
            least = None if head in ("NAME", "NOW") else max(len(head), *(len(row[column]) for row in rows))
            side = "right" if head in RIGHT else "left"
            table.add_column(head, justify=side, no_wrap=True, min_width=least)  # type: ignore[arg-type]
        for row, words in zip(application["rows"], rows, strict=True):
            style = {"busy": "green", "stopped": "yellow", "ended": "red"}.get(row["state"], "")
            table.add_row(*map(rich.text.Text, words), style=style)
        parts.append(table)
    if not parts:
        parts.append(rich.text.Text(next(lines([]))))
    return rich.console.Group(*parts)
