"""
What `python -m bench --report DIR` leaves: the figures with the machine that they are of, as a page with plots.

In DIR are then report.json, index.md, which is written from it alone, and plots as SVG if matplotlib is there. Each
subject keeps the date, Python and machine of its own run: a later run of some subjects replaces those and no others.
`python -m bench.report DIR` writes the page and the plots once more from report.json and measures nothing; with
`--page` it prints the page.
"""

import dataclasses
import datetime as dt
import importlib
import json
import os
import platform
import sys

from bench.harness import Figure

FILE = "report.json"
PAGE = "index.md"
PLOTTED = {"x": "ratio; 1 is the peer", "times faster": "times faster than the peer", "/s": "tasks a second"}
HEAD = """\
# Performance

Every figure is a ratio, or an absolute number, that `python -m bench` has measured on one machine: ours and the peer's
in turns, in the same run, and the median of the rounds' ratios. A figure stands with its target, and a missed target
says so. Absolute numbers are of that machine and that hour; on another machine run it yourself.

```sh
make bench                             # every subject, some minutes on an idle machine
make bench ARGS="latency loop --quick" # some, with fewer rounds: a look, not a figure
make bench ARGS="--report docs/performance"  # writes this page: tables, plots and report.json
```

Peers that are not installed are left out, and named. A ratio of time below 1 and a ratio of rates above 1 are in our
favour; the sign of the target says which of them it is. *quick* marks a run with `--quick`, and the load is what
the system said of the minute before: above 0.5 on an otherwise idle machine, somebody else was at work. Where a line
differs from the README's table look there first: that one has full runs on an idle machine.
"""


def facts(*, quick: bool) -> dict[str, object]:
    """
    The machine and the hour.
    """
    return {
        "when": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "quick": quick,
    }


def cpu_name() -> str:
    """
    What /proc/cpuinfo calls it; "" if it does not.
    """
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), "")


def add(directory: str, subject: str, about: dict[str, object], figures: list[Figure]) -> None:
    """
    Put a subject's figures into the report, in the place of those that it had.
    """
    os.makedirs(directory, exist_ok=True)
    report = load(directory)
    title = importlib.import_module(f"bench.{subject}").TITLE
    rows = [{**dataclasses.asdict(figure), "met": figure.met} for figure in figures]
    report[subject] = {"title": title, **about, "figures": rows}
    with open(os.path.join(directory, FILE), "w", encoding="utf-8") as file:
        json.dump(report, file, indent=1, ensure_ascii=False)
        file.write("\n")


def load(directory: str) -> dict[str, dict]:
    """
    The report of a directory; nothing if it has none.
    """
    try:
        with open(os.path.join(directory, FILE), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return {}


def page(report: dict[str, dict]) -> str:
    """
    The page, of the report alone.
    """
    parts = [HEAD]
    for subject in ordered(report):
        entry = report[subject]
        parts += [f"## {subject}\n", f"{entry['title'][0].upper()}{entry['title'][1:]}.", f"*{run_of(entry)}*\n"]
        parts += [f"![{subject}, {name}]({name})\n" for name, *_ in plots(subject, entry)]
        parts += ["| figure | value | target | | both sides |", "|---|---:|---|---|---|"]
        for row in entry["figures"]:
            verdict = {None: "", True: "met", False: "**missed**"}[row["met"]]
            cells = (cell(row["name"]), value(row), row["target"], verdict, cell(row["detail"]))
            parts.append(f"| {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def ordered(report: dict[str, dict]) -> list[str]:
    """
    The subjects as the benchmark runs them.
    """
    from bench.__main__ import SUBJECTS

    return [name for name in SUBJECTS if name in report]


def run_of(entry: dict) -> str:
    """
    When and where a subject was measured.
    """
    quick = ", quick" if entry["quick"] else ""
    cpu = f", {entry['cpu']}" if entry["cpu"] else ""
    return (
        f"{entry['when']}, CPython {entry['python']}, {entry['system']}{cpu}, {entry['cores']} cores, "
        f"load {entry['load']}{quick}"
    )


def value(row: dict) -> str:
    """
    A figure with its unit.
    """
    number, unit = row["value"], row["unit"]
    if number in {float("inf"), float("-inf")}:
        return "none"
    digits = 0 if abs(number) >= 100 or number == int(number) else 2 if unit == "x" else 1
    return f"{number:,.{digits}f} {unit}".strip()


def cell(text: str) -> str:
    """
    Text for a cell of a table: as code where it has what Markdown takes for marks.
    """
    text = text.strip().replace("|", "/")
    return f"`{text}`" if any(mark in text for mark in "_*<[") else text


def plots(subject: str, entry: dict) -> list[tuple[str, str, list[dict]]]:
    """
    The plots of a subject: file, unit, figures. A single bar says no more than its number.
    """
    found = []
    for number, unit in enumerate(PLOTTED):
        rows = [row for row in entry["figures"] if row["unit"] == unit and 0 < row["value"] < float("inf")]
        if len(rows) > 1:
            found.append((f"{subject}-{number}.svg", unit, rows))
    return found


def draw(directory: str, report: dict[str, dict]) -> bool:
    """
    The plots as files; False when matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
    except ImportError:
        return False
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "bench"  # the same figures make the same file
    from matplotlib import pyplot as plt

    for subject in ordered(report):
        for name, unit, rows in plots(subject, report[subject]):
            height = 0.9 + 0.32 * len(rows)  # inches
            figure, axes = plt.subplots(figsize=(8.5, height), layout="constrained")
            values = [row["value"] for row in rows]
            colours = [{True: "#2a7f62", False: "#b4462f", None: "#7f95a8"}[row["met"]] for row in rows]
            axes.barh(range(len(rows)), values, color=colours)
            axes.set_yticks(range(len(rows)), [row["name"].strip() for row in rows], fontsize=8)
            axes.bar_label(axes.containers[0], [value(row) for row in rows], padding=3, fontsize=8)
            axes.invert_yaxis()
            axes.margins(x=0.15)
            axes.set_xlabel(PLOTTED[unit], fontsize=8)
            if unit != "/s":
                axes.axvline(1, color="#333", linewidth=0.8, linestyle=":")
            for at, row in enumerate(rows):
                if row["target"]:
                    limit = float(row["target"].split()[1])
                    axes.plot([limit, limit], [at - 0.4, at + 0.4], color="#111", linewidth=1.6)
            if max(values) > 20 * min(values):
                axes.set_xscale("log")
            figure.savefig(os.path.join(directory, name), metadata={"Date": None})
            plt.close(figure)
    return True


def write(directory: str) -> None:
    """
    The page and the plots of a directory's report.
    """
    report = load(directory)
    drawn = draw(directory, report)
    with open(os.path.join(directory, PAGE), "w", encoding="utf-8") as file:
        file.write(page(report))
    print(f"{os.path.join(directory, PAGE)}: {len(report)} subjects" + ("" if drawn else "; no plots: no matplotlib"))


if __name__ == "__main__":
    if "--page" in sys.argv[2:]:
        sys.stdout.write(page(load(sys.argv[1])))
    else:
        write(sys.argv[1])
