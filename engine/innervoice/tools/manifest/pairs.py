"""RatedPair: the pairs of a manifest, each a question and a reply that is rated."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from innervoice.tools.manifest.items import BrokenLine, id_of, read_lines
from innervoice.types import Prompt, Text


@dataclass(frozen=True)
class PairItem:
    """A line's pair. question, reply: a recording, its words, or both. given: the scores that the line carries, by
    name. fields: the line's own, as they were read.
    """

    item_id: str
    question: list[Prompt]
    reply: list[Prompt]
    given: Mapping[str, float]
    fields: Mapping[str, Any]


def read_pairs(path: Path) -> Iterator[PairItem | BrokenLine]:
    """The pairs of a file, in order, and the lines that are none. Recordings are found beside the file.

    Raises FileNotFoundError, ValueError for a file that is not there or is no text.
    """
    return read_lines(path, lambda values, number: _pair(values, number, path.parent))


def _pair(values: Mapping[str, Any], number: int, folder: Path) -> PairItem:
    return PairItem(
        item_id=id_of(values, number),
        question=_side(values, "question", folder),
        reply=_side(values, "reply", folder),
        given=_scores(values.get("scores")),
        fields=dict(values),
    )


def _side(values: Mapping[str, Any], name: str, folder: Path) -> list[Prompt]:
    """One side of a pair: a path, or an object of audio and text; words may stand beside it as NAME_text."""
    given = values.get(name)
    if isinstance(given, dict):
        audio, text = given.get("audio"), given.get("text")
    else:
        audio, text = given, values.get(f"{name}_text")
    if isinstance(audio, dict):  # as the data sets library writes it
        audio = audio.get("path")
    made: list[Prompt] = []
    if audio is not None:
        if not isinstance(audio, str) or not audio or "\x00" in audio:
            raise ValueError(f"{name} is {str(audio)[:80]!r}: it must be the path of a recording")
        made.append(folder / audio)
    if text is not None:
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"the text of {name} is {str(text)[:80]!r}: it must be words")
        made.append(Text(text))
    if not made:
        raise ValueError(
            f"the {name} has no audio: give the path of a recording as {name}, or its words as {name}_text"
        )
    return made


def _scores(given: Any) -> dict[str, float]:
    if given is None:
        return {}
    is_table = isinstance(given, dict) and all(
        isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one)
        for one in given.values()
    )
    if not is_table:
        raise ValueError(f"scores is {str(given)[:80]}: it must be an object of numbers by name")
    return {str(name): float(one) for name, one in given.items()}
