"""Compare two files of records: `python -m bench.compare BEFORE AFTER` fails on a regression beyond the spread.

Where a case was measured beside a peer its ratio is compared, which other work on the machine changes least; else the figure
itself. A regression is a worsening by more than half the spread of each side, (p90 - p10) / median, and by more than
--least. Exit code 1: there is one; 2: the files have no case in common.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from bench.record import Record, read

LEAST = 0.02


class Change(NamedTuple):
    """From one record to another: worse by so much of the former value (negative: better), and how much is noise."""

    before: Record
    after: Record
    worse: float
    spread: float

    def is_regression(self, least: float) -> bool:
        """Whether it is beyond the spread."""
        return self.worse > max(self.spread, least)

    def line(self) -> str:
        """As it is printed."""
        a, b = (r.ratio if _by_ratio(self.before, self.after) else r.ours for r in (self.before, self.after))
        what = "ratio" if _by_ratio(self.before, self.after) else self.before.unit
        return (
            f"{self.before.goal or '-':5} {self.before.name:28} {self.before.shape:34} {a:.4g} -> {b:.4g} {what}  "
            f"{-self.worse:+.1%} (spread {self.spread:.1%})"
        )


def _by_ratio(a: Record, b: Record) -> bool:
    return a.ratio is not None and b.ratio is not None


def spread(record: Record) -> float:
    """(p90 - p10) / median of ours, and of the peer where a ratio is compared; 0 where they were not taken."""
    own = 0.0
    if record.median and record.p10 is not None and record.p90 is not None:
        own = (record.p90 - record.p10) / record.median
    if (
        record.ratio is not None
        and record.peer
        and record.peer_p10 is not None
        and record.peer_p90 is not None
    ):
        own += (record.peer_p90 - record.peer_p10) / record.peer
    return own


def change(before: Record, after: Record) -> Change | None:
    """How a case changed; None where one of the two has no valid figure."""
    if before.invalid or after.invalid:
        return None
    if _by_ratio(before, after):
        a, b, better = before.ratio, after.ratio, before.ratio_better
    else:
        a, b, better = before.ours, after.ours, before.better
    if not a or b is None:
        return None
    worse = (b - a) / a if better == "lower" else (a - b) / a
    return Change(before, after, worse, (spread(before) + spread(after)) / 2)


def changes(before: list[Record], after: list[Record]) -> list[Change]:
    """The cases that both have, in the order of `before`."""
    later = {record.key: record for record in after}
    both = (change(record, later[record.key]) for record in before if record.key in later)
    return [found for found in both if found is not None]


def main(argv: list[str] | None = None) -> int:
    """Print what changed; see the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument(
        "--least", type=float, default=LEAST, help=f"a worsening that never counts (default {LEAST:.0%})"
    )
    arguments = parser.parse_args(argv)
    before, after = read(arguments.before), read(arguments.after)
    found = changes(before, after)
    for one in found:
        print(("REGRESSION " if one.is_regression(arguments.least) else "           ") + one.line())
    gone = {r.key: r for r in before}.keys() - {r.key for r in after}
    for record in before:
        if record.key in gone:
            print(f"gone       {record.line()}")
    if not found:
        print("no case is in both files")
        return 2
    number = sum(one.is_regression(arguments.least) for one in found)
    print(f"{len(found)} cases compared, {number} regressions, {len(gone)} gone")
    return 1 if number else 0


if __name__ == "__main__":
    raise SystemExit(main())
