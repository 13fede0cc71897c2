"""
Processes as /proc shows them, and which of them are ours: for `safespawn status`, `ps` and `top`.

Runs in: an application of its own.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

SHOWN_WIDTH = 100


def one_line(command: str) -> str:
    """
    A command line, or the beginning of a long one.
    """
    text = printable(" ".join(command.split()))
    return text if len(text) <= SHOWN_WIDTH else text[: SHOWN_WIDTH - 3] + "..."


def printable(text: str) -> str:
    """
    *text* without what a terminal would obey: whoever may start a process chooses its name, and who looks may be root.
    """
    return text if text.isprintable() else "".join(each if each.isprintable() else "\ufffd" for each in text)


def counted(number: int | None, one: str, many: str = "") -> str:
    """
    "1 child", "2 children"; a number that may not be known.
    """
    if number is None:
        return f"{many or one + 's'} unknown"
    return f"{number or 'no'} {one if number == 1 else many or one + 's'}"


def duration(seconds: float) -> str:
    """
    A time as people write it.
    """
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def megabytes(size: int | None) -> str:
    """
    A size as people write it.
    """
    return "?" if size is None else f"{size / 2**20:.1f} MiB"


def find_zygotes(table: dict[int, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """
    Every zygote of this user, root's view: of everybody, in *table*, or from one pass over /proc.

    A process is one by its name and its arguments: ``PYTHON -I -S .../_zygote FD APPLICATION own|keep``. The warden has
    the same arguments and another name; a forked child of the zygote, before its exec, has both and a zygote as parent.

    Source: proc(5).
    """
    table = look() if table is None else table
    found: list[dict[str, Any]] = []
    for facts in table.values():
        words = facts["words"]
        parent = table.get(facts["parent"])
        if facts["comm"] != "safespawn" or not is_zygote(words) or (parent and parent["comm"] == "safespawn"):
            continue
        application = table.get(int(words[-2]))
        warden = parent if parent is not None and parent["comm"] == "safespawn-wardn" else None
        found.append(
            {
                "pid": facts["pid"],
                "application": {
                    "pid": int(words[-2]),
                    "command": None if application is None else application["command"],
                },
                "warden": None if warden is None else {"pid": warden["pid"], "rss_bytes": warden["rss_bytes"]},
                "keeps_children": words[-1] == "keep",
                "state": facts["state"],
                "uptime_seconds": facts["age_seconds"],
                "descriptors": facts["descriptors"](),
                "rss_bytes": facts["rss_bytes"],
                "children": [
                    {key: child[key] for key in ("pid", "command", "age_seconds", "state", "rss_bytes")}
                    for child in table.values()
                    if child["parent"] == facts["pid"]
                ],
            }
        )
    return found


def look() -> dict[int, dict[str, Any]]:
    """
    What /proc says of each process of this user, by pid.
    """
    return {facts["pid"]: facts for facts in scan()}


def is_zygote(words: list[str]) -> bool:
    """
    Whether a command line is a zygote's, or its warden's.
    """
    return (
        len(words) > 5
        and words[-1] in ("own", "keep")
        and words[-2].isdecimal()
        and os.path.basename(words[-4].rstrip("/")) == "_zygote"
    )


def scan() -> Iterator[dict[str, Any]]:
    """
    What /proc says of each process of this user.
    """
    user = os.geteuid()
    ticks = os.sysconf("SC_CLK_TCK")
    page = os.sysconf("SC_PAGE_SIZE")
    with open("/proc/uptime", "rb") as file:
        up = float(file.read().split()[0])
    for name in os.listdir("/proc"):
        if not name.isdecimal():
            continue
        directory = f"/proc/{name}"
        try:
            if user not in (0, os.stat(directory).st_uid):
                continue
            text = read(f"{directory}/stat")
            words = [os.fsdecode(word) for word in read(f"{directory}/cmdline").split(b"\0")[:-1]]
        except OSError:
            continue  # it ended while we looked
        fields = text[text.rindex(b")") + 2 :].split()
        comm = os.fsdecode(text[text.index(b"(") + 1 : text.rindex(b")")])
        yield {
            "pid": int(name),
            "comm": comm,
            "words": words,
            "command": " ".join(words) or f"[{comm}]",
            "state": fields[0].decode(),
            "parent": int(fields[1]),
            "age_seconds": round(max(0.0, up - int(fields[19]) / ticks), 2),
            "cpu_seconds": round((int(fields[11]) + int(fields[12])) / ticks, 2),
            "rss_bytes": int(fields[21]) * page,
            "descriptors": descriptors_of(directory),
        }


def read(path: str) -> bytes:
    """
    The whole of a small file.
    """
    with open(path, "rb") as file:
        return file.read()


def descriptors_of(directory: str) -> Callable[[], int | None]:
    """
    Counts the open descriptors of a process; for zygotes only, it is the dear part of the look.
    """

    def count() -> int | None:
        try:
            return len(os.listdir(f"{directory}/fd"))
        except OSError:
            return None

    return count
