"""Draw what was measured: `python -m bench.report [--results DIR] [--out DIR] [--only PLOT]`.

Writes report.md (the goals with what was reached, then every record) and, where matplotlib is installed, a PNG for every plot
that finds records (see bench/plots.py, whose `@plot` a module named bench/plot_NAME.py may use for more).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.plots import PLOTS
from bench.record import GOALS, RESULTS, Record, read


def load(folder: Path) -> list[Record]:
    """The records of all files below a folder; of one case, the latest."""
    found = [record for path in sorted(folder.rglob("*.json")) for record in read(path)]
    latest = {record.key: record for record in sorted(found, key=lambda record: record.date)}
    return list(latest.values())


def verdict(record: Record) -> str:
    """What a ratio reached of its goal."""
    if record.invalid:
        return f"invalid: {record.invalid}"
    if record.goal is None or record.ratio is None:
        return ""
    goal = GOALS[record.goal]

    def reaches(bound: float | None) -> bool:
        return bound is not None and (
            record.ratio >= bound if goal.better == "higher" else record.ratio <= bound
        )

    return "stretch" if reaches(goal.stretch) else "floor" if reaches(goal.floor) else "missed"


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def number(value: float | None, unit: str = "") -> str:
    """Four digits and the unit."""
    return "" if value is None else f"{value:.4g}{' ' + unit if unit else ''}"


def goals_table(records: Sequence[Record]) -> str:
    """One row a record that has a goal, in the order of the goals."""
    order = list(GOALS)
    with_goal = sorted((r for r in records if r.goal is not None), key=lambda r: order.index(r.goal or ""))
    header = ("goal", "case", "shape", "device", "ours", "peer", "ratio", "floor", "stretch", "reached")
    rows = []
    for r in with_goal:
        goal = GOALS[r.goal or ""]
        peer = (
            ""
            if r.peer is None and r.peer_name is None
            else f"{number(r.peer, r.unit)} {r.peer_name or ''}".strip()
        )
        bounds = (number(goal.floor), number(goal.stretch))
        rows.append(
            (
                r.goal or "",
                r.name,
                r.shape,
                r.device,
                number(r.ours, r.unit),
                peer,
                number(r.ratio),
                *bounds,
                verdict(r),
            )
        )
    return table(header, rows)


def records_table(records: Sequence[Record]) -> str:
    """All records of a device."""
    header = ("case", "shape", "dtype", "ours", "p10 to p90", "peer", "ratio", "commit")
    rows = []
    for r in records:
        spread = "" if r.p10 is None or r.p90 is None else f"{number(r.p10)} to {number(r.p90)}"
        peer = f"{number(r.peer, r.unit)} {r.peer_name or ''}".strip()
        commit = r.commit[:9] + ("+" if r.dirty else "")
        rows.append(
            (r.name, r.shape, r.dtype or "", number(r.ours, r.unit), spread, peer, number(r.ratio), commit)
        )
    return table(header, rows)


def markdown(records: Sequence[Record], pictures: Sequence[str]) -> str:
    """The whole report."""
    by_device: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_device[record.device].append(record)
    parts = [
        "# Measurements",
        "A commit with a + had changes beside it. Ratios are of one run, peer and ours in turns.",
    ]
    if any(r.goal for r in records):
        parts += ["## Goals", goals_table(records)]
    for device, some in by_device.items():
        parts += [f"## {device}", records_table(some)]
    parts += [f"![{name}]({name})" for name in pictures]
    return "\n\n".join(parts) + "\n"


def draw(records: Sequence[Record], folder: Path, only: str | None = None) -> list[str]:
    """The PNG files that could be drawn; none where matplotlib is missing."""
    if importlib.util.find_spec("matplotlib") is None:
        print("no plots: matplotlib is not installed")
        return []
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    made = []
    for name, function in sorted(PLOTS.items()):
        if only is not None and name != only:
            continue
        figure, axes = pyplot.subplots(figsize=(9, 6), constrained_layout=True)
        if function(records, axes):
            axes.set_title(name)
            figure.savefig(folder / f"{name}.png", dpi=150)
            made.append(f"{name}.png")
        pyplot.close(figure)
    return made


def main(argv: list[str] | None = None) -> int:
    """Write the report; see the module."""
    for path in sorted(Path(__file__).resolve().parent.glob("plot_*.py")):
        importlib.import_module(f"bench.{path.stem}")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--out", type=Path, help="default: the folder of the results")
    parser.add_argument("--only", metavar="PLOT", help=f"one of {', '.join(sorted(PLOTS))}")
    arguments = parser.parse_args(argv)
    if arguments.only is not None and arguments.only not in PLOTS:
        parser.error(f"there is no plot {arguments.only!r}; there are {', '.join(sorted(PLOTS))}")
    out = arguments.out or arguments.results
    records = load(arguments.results)
    if not records:
        print(
            f"{arguments.results} holds no records: run a module of bench with --json {arguments.results}/NAME.json"
        )
        return 2
    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(records, out, arguments.only)
    (out / "report.md").write_text(markdown(records, pictures), encoding="utf-8")
    print(f"{len(records)} records in {out / 'report.md'}, plots: {', '.join(pictures) or 'none'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
