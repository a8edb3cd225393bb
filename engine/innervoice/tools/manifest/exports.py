"""Results as the lines that VoiceBench's and HumDial's own evaluations read: the item's line with the model's replies.

What is judged is the transcript alone, and the sound: hidden reflections are no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from innervoice.tools.manifest.items import ManifestItem, humdial_turns
from innervoice.tools.manifest.results import Result


def export_lines(
    form: str, items: Iterable[ManifestItem], done: Mapping[str, Result], folder: Path
) -> Iterator[str]:
    """A line of JSON for each item that has a result. form: "voicebench" or "humdial". folder: that of the results."""
    make = {"voicebench": _voicebench, "humdial": _humdial}[form]
    for item in items:
        if item.item_id in done:
            yield json.dumps(make(item.fields, done[item.item_id], folder), ensure_ascii=False) + "\n"


def _voicebench(fields: Mapping[str, Any], result: Result, _: Path) -> dict[str, Any]:
    """The row of the data set without its sound, and `response`, of a dialogue of several turns a list."""
    said = [turn["transcript"] for turn in result["turns"]]
    row = {key: value for key, value in fields.items() if key != "audio"}
    return {**row, "response": said[0] if len(said) == 1 else said}


def _humdial(fields: Mapping[str, Any], result: Result, folder: Path) -> dict[str, Any]:
    """The dialogue, each turn with `response_text`, and where it sounds `response_audio`, in place of given replies."""
    turns = []
    for given, made in zip(humdial_turns(fields), result["turns"], strict=True):
        turn = {key: value for key, value in given.items() if key != "response_audio"}
        turn["response_text"] = made["transcript"]
        if made["audio"] is not None:
            turn["response_audio"] = str((folder / made["audio"]).absolute())
        turns.append(turn)
    return {**fields, "turns": turns}
