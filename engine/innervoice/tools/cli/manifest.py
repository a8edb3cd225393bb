"""innervoice generate --manifest: a whole test set, answered into a directory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from innervoice.api.engine import Engine
from innervoice.api.options import EngineOptions
from innervoice.files import replacing
from innervoice.schedule import Schedule
from innervoice.tools.cli.answers import say
from innervoice.tools.cli.progress import show_items
from innervoice.tools.manifest.exports import export_lines
from innervoice.tools.manifest.items import BrokenLine, ManifestFormat, ManifestItem, read_manifest
from innervoice.tools.manifest.results import RunFolder
from innervoice.tools.manifest.run import ManifestRun


def answer_manifest(
    load: Mapping[str, Any],
    request: Mapping[str, Any],
    manifest: Path,
    out_dir: Path,
    form: ManifestFormat,
    concurrency: int | None,
) -> None:
    """Answer every item of a manifest that `out_dir` has no result of yet, under a progress bar.

    load: the model and options of the engine. request: options of every reply. concurrency: items at a time,
    None: as many as the engine has rows. Raises ValueError at the end where lines or items failed, which are
    named as they do.
    """
    console = Console(stderr=True)
    found = list(read_manifest(manifest, form))
    failures = [one.reason for one in found if isinstance(one, BrokenLine)]
    for reason in failures:
        console.print(f"innervoice: {reason}", markup=False, highlight=False, soft_wrap=True)
    items = [one for one in found if isinstance(one, ManifestItem)]
    folder = RunFolder(out_dir, _settings(load, request, form))
    left = [item for item in items if item.item_id not in folder.done]
    if left:
        failures += _answered(load, request, items, folder, concurrency, console)
    folder.finish(item.item_id for item in items)
    if form != "innervoice":
        with replacing(out_dir / f"{form}.jsonl") as part:
            part.write_text("".join(export_lines(form, items, folder.done, out_dir)), encoding="utf-8")
    num_done = sum(item.item_id in folder.done for item in items)
    say(
        f"wrote {folder.results}: {num_done} of {len(found)} items, {num_done - len(items) + len(left)} of them now"
    )
    if failures:
        raise ValueError(
            f"{len(failures)} of {len(found)} items failed, which are named above: mend them and run again"
        )


def _answered(
    load: Mapping[str, Any],
    request: Mapping[str, Any],
    items: list[ManifestItem],
    folder: RunFolder,
    concurrency: int | None,
    console: Console,
) -> list[str]:
    """Run the items -> the reasons of those that failed, which were printed."""
    model, options = load["model"], {name: value for name, value in load.items() if name != "model"}
    with Engine.from_pretrained(model, EngineOptions().changed(**options)) as engine:
        most = engine.parts.core.max_rows
        results = ManifestRun(engine, folder, request).run(items, min(concurrency or most, most))
        num_done = sum(item.item_id in folder.done for item in items)
        return show_items("answering", results, num_items=len(items), num_done=num_done, console=console)


def _settings(load: Mapping[str, Any], request: Mapping[str, Any], form: str) -> dict[str, Any]:
    """What decides the replies, as JSON values that a later run is held to."""
    schedule, sampling = request.get("schedule"), request.get("sampling")
    return {
        "format": form,
        "engine": {name: str(value) for name, value in load.items()},
        "schedule": schedule.to_dict() if isinstance(schedule, Schedule) else schedule,
        "sampling": None
        if sampling is None
        else asdict(sampling) | {"stop_token_ids": list(sampling.stop_token_ids)},
        "system": request.get("system"),
        "template": request.get("template"),
    }
