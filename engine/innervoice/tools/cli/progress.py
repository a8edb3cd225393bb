"""A progress bar over the items of a file, which names those that fail."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def show_items(
    verb: str, results: Iterable[object], *, num_items: int, num_done: int, console: Console
) -> list[str]:
    """Draw a bar while results come, and print the items that failed -> their reasons.

    verb: before the bar, such as "rating". results: one of each item that is not done yet, a FailedItem among them
    where it failed. num_items: of the file; num_done: of an earlier run.
    """
    from innervoice.tools.manifest.run import FailedItem

    failures: list[str] = []
    bar = Progress(
        TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
    )
    with bar:
        task = bar.add_task(verb, total=num_items)
        bar.update(task, completed=num_done)
        for one in results:
            if isinstance(one, FailedItem):
                failures.append(f"item {one.item_id!r}: {one.reason}")
                bar.console.print(
                    f"innervoice: {failures[-1]}", markup=False, highlight=False, soft_wrap=True
                )
            bar.advance(task)
    return failures
