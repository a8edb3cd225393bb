"""Results as the lines that VoiceBench's own evaluation reads: the row of the data set with the response."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from innervoice.tools.manifest.items import ManifestItem
from innervoice.tools.manifest.results import Result


def voicebench_lines(items: Iterable[ManifestItem], done: Mapping[str, Result]) -> Iterator[str]:
    """A line of JSON for each item that has a result: its fields without the sound, and `response`.

    The response is the transcript alone, of a dialogue of several turns a list: hidden reflections are no part of
    what is judged.
    """
    for item in items:
        if item.item_id not in done:
            continue
        said = [turn["transcript"] for turn in done[item.item_id]["turns"]]
        fields = {key: value for key, value in item.fields.items() if key != "audio"}
        response = said[0] if len(said) == 1 else said
        yield json.dumps({**fields, "response": response}, ensure_ascii=False) + "\n"
