"""ManifestItem: the items of a manifest, and of VoiceBench's and HumDial's files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from innervoice.files import parse_json, read_text
from innervoice.types import Prompt, Text

ManifestFormat = Literal["innervoice", "voicebench", "humdial"]
_REMEDY = "give a manifest, a JSON object a line"
_MOST_ID = 512


@dataclass(frozen=True)
class ManifestTurn:
    """The user's part of one turn. audio: a recording's path, None for a typed one."""

    audio: Path | None
    text: str | None = None

    @property
    def prompt(self) -> Prompt:
        """The turn as a prompt: the recording where there is one."""
        return self.audio if self.audio is not None else Text(self.text or "")


@dataclass(frozen=True)
class ManifestItem:
    """One item: its turns are one dialogue. fields: the line's own, as they were read, without sound."""

    item_id: str
    turns: tuple[ManifestTurn, ...]
    fields: Mapping[str, Any]

    def seed(self, turn: int) -> int:
        """The seed of a turn's reply, of the item's id and the turn's number alone."""
        digest = hashlib.blake2b(f"{turn}:{self.item_id}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class BrokenLine:
    """A line that no item can be made of. reason: one sentence that names file and line."""

    reason: str


class Identified(Protocol):
    """An item with an id of its own."""

    @property
    def item_id(self) -> str:
        """The id of the item."""
        ...


LineItem = TypeVar("LineItem", bound=Identified)
MakeItem = Callable[[dict[str, Any], int], LineItem]
"""Makes an item of a line's object and number; raises ValueError."""


def read_manifest(path: Path, form: ManifestFormat = "innervoice") -> Iterator[ManifestItem | BrokenLine]:
    """The items of a file, in order, and the lines that are none. Recordings are found beside the file.

    Raises FileNotFoundError, ValueError for a file that is not there or is no text.
    """
    return read_lines(path, lambda values, number: _item(values, number, path.parent, form))


def read_lines(path: Path, make: MakeItem[LineItem]) -> Iterator[LineItem | BrokenLine]:
    """The items that `make` makes of a file's lines, in order, and the lines that are none.

    Raises FileNotFoundError, ValueError for a file that is not there or is no text.
    """
    seen: dict[str, int] = {}
    for number, line in enumerate(read_text(path, _REMEDY, "manifest").split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            values = parse_json(line, where, "write one object a line")
            if not isinstance(values, dict):
                raise ValueError("it holds no object: write one object a line")
            item = make(values, number)
        except ValueError as error:
            reason = str(error)
            yield BrokenLine(reason if reason.startswith(where) else f"{where}: {reason}")
            continue
        if item.item_id in seen:
            yield BrokenLine(
                f"{where}: the id {item.item_id!r} is that of line {seen[item.item_id]} too: give each item its own"
            )
            continue
        seen[item.item_id] = number
        yield item


def id_of(values: Mapping[str, Any], number: int, key: str = "id") -> str:
    """The id of a line's object, or else its number. Raises ValueError for one that is no text."""
    item_id = values.get(key, str(number))
    if isinstance(item_id, int) and not isinstance(item_id, bool):
        item_id = str(item_id)
    if not isinstance(item_id, str) or not 0 < len(item_id) <= _MOST_ID:
        raise ValueError(f"{key} is {str(item_id)[:80]!r}: it must be text of 1 to {_MOST_ID} characters")
    return item_id


def _item(values: Mapping[str, Any], number: int, folder: Path, form: ManifestFormat) -> ManifestItem:
    item_id = id_of(values, number, _ID_KEYS[form])
    return ManifestItem(item_id, _READERS[form](values, folder), _without_sound(values))


def _own_turns(values: Mapping[str, Any], folder: Path) -> tuple[ManifestTurn, ...]:
    if "turns" not in values:
        return (_turn(values, folder, ("audio",), ("text",)),)
    return tuple(_turn(turn, folder, ("audio",), ("text",)) for turn in _list_of(values, "turns"))


def _voicebench_turns(values: Mapping[str, Any], folder: Path) -> tuple[ManifestTurn, ...]:
    """A row of the data set: the sound is the question, and its text is for the judge alone."""
    if "turns" in values and "audio" not in values:
        return tuple(_turn(turn, folder, ("audio",)) for turn in _list_of(values, "turns"))
    return (_turn(values, folder, ("audio",)),)


def _humdial_turns(values: Mapping[str, Any], folder: Path) -> tuple[ManifestTurn, ...]:
    """A dialogue: what the user says, as sound or else as text; earlier replies are the model's own."""
    keys = ("split_audio_file", "input_audio"), ("input_text", "text")
    return tuple(_turn(turn, folder, *keys) for turn in humdial_turns(values))


def humdial_turns(values: Mapping[str, Any]) -> list[Any]:
    """The turns of a dialogue of HumDial in their order, which turn_id says where all have one.

    Raises ValueError for a dialogue without turns.
    """
    turns = _list_of(values, "turns")
    is_numbered = all(isinstance(turn, dict) and isinstance(turn.get("turn_id"), int) for turn in turns)
    return sorted(turns, key=lambda turn: int(turn["turn_id"])) if is_numbered else turns


_ID_KEYS: Mapping[str, str] = {"innervoice": "id", "voicebench": "id", "humdial": "dialogue_id"}
_READERS: Mapping[str, Callable[[Mapping[str, Any], Path], tuple[ManifestTurn, ...]]] = {
    "innervoice": _own_turns,
    "voicebench": _voicebench_turns,
    "humdial": _humdial_turns,
}


def _list_of(values: Mapping[str, Any], name: str) -> list[Any]:
    found = values.get(name)
    if not isinstance(found, list) or not found:
        raise ValueError(f"{name} is {str(found)[:80]!r}: it must be a list of at least one turn")
    return found


def _turn(
    values: Any, folder: Path, audio_keys: tuple[str, ...], text_keys: tuple[str, ...] = ()
) -> ManifestTurn:
    """What the user says in a turn, by the first of the keys that is there: a recording, or else a text."""
    if not isinstance(values, dict):
        raise ValueError(f"a turn is {str(values)[:80]!r}: it must be an object")
    audio_key = next((key for key in audio_keys if values.get(key) is not None), audio_keys[0])
    audio = values.get(audio_key)
    if isinstance(audio, dict):  # as the data sets library writes it
        audio = audio.get("path")
    if isinstance(audio, str) and audio and "\x00" not in audio:
        return ManifestTurn(folder / audio)
    text = next((values[key] for key in text_keys if values.get(key) is not None), None)
    if audio is None and isinstance(text, str) and text.strip():
        return ManifestTurn(None, text)
    if audio is not None:
        raise ValueError(f"{audio_key} is {str(audio)[:80]!r}: it must be the path of a recording")
    other = f", or text as {text_keys[0]}" if text_keys else ""
    raise ValueError(f"the item has no audio: give the path of a recording as {audio_key}{other}")


def _without_sound(values: Mapping[str, Any]) -> dict[str, Any]:
    """The line's fields, without sound that stands in it as numbers."""
    return {key: value for key, value in values.items() if key != "audio" or isinstance(value, str)}
