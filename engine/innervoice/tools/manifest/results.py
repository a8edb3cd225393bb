"""ResultLines and RunFolder: the results of a run, which a run that was stopped goes on from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from innervoice.files import replacing

_MOST_NAME = 120
Result = dict[str, Any]


class ResultLines:
    """A file of results, a line an item, and beside it the settings that decide them.

    A line is written whole before the next item of its kind begins: so a run that is killed at any time has lost no
    item whose line is there, and a line that breaks off is made again.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], settings_path: Path) -> None:
        """Open or create the files. settings: JSON values.

        Raises OSError, and ValueError where the results are those of other settings.
        """
        self.path = path
        _check_settings(settings_path, settings)
        self.done: dict[str, Result] = self._read()

    def add(self, result: Result) -> None:
        """Keep an item's result, on the disk when the call returns."""
        self.done[result["id"]] = result
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(_line(result))
            file.flush()
            os.fsync(file.fileno())

    def finish(self, order: Iterable[str]) -> None:
        """Put the lines in the manifest's order; results of items that are no longer in it stay behind them."""
        ids = [item_id for item_id in order if item_id in self.done]
        known = set(ids)
        self._write([*ids, *(item_id for item_id in self.done if item_id not in known)])

    def _write(self, ids: Iterable[str]) -> None:
        with replacing(self.path) as part:
            part.write_text("".join(_line(self.done[item_id]) for item_id in ids), encoding="utf-8")

    def _read(self) -> dict[str, Result]:
        """Read the lines that are whole; the file then holds these alone."""
        try:
            text = self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return {}
        done: dict[str, Result] = {}
        for line in text.split("\n"):
            try:
                result = json.loads(line)
            except ValueError:
                continue
            if isinstance(result, dict) and isinstance(result.get("id"), str):
                done[result["id"]] = result
        self.done = done
        if "".join(map(_line, done.values())) != text:
            self._write(done)
        return done


class RunFolder(ResultLines):
    """A directory with results.jsonl, a line an item, run.json with the settings, and audio/.

    A line is written behind the item's sound.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open or create the directory. settings: JSON values that decide the replies.

        Raises OSError, and ValueError where the directory has results of other settings.
        """
        self.folder = folder
        self.audio = folder / "audio"
        try:
            self.audio.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OSError(
                f"cannot create the directory {folder}: {error.strerror}, so name another"
            ) from None
        super().__init__(folder / "results.jsonl", settings, folder / "run.json")
        for left in self.audio.glob(".*.part.*"):  # of a run that was killed
            left.unlink(missing_ok=True)

    @property
    def results(self) -> Path:
        """The file of the results."""
        return self.path

    def audio_path(self, item_id: str, turn: int) -> Path:
        """The file of a turn's sound; turns count from 1."""
        name = quote(item_id, safe="")
        if len(name) > _MOST_NAME:
            name = f"{name[:_MOST_NAME]}-{hashlib.blake2b(item_id.encode(), digest_size=8).hexdigest()}"
        return self.audio / f"{name}-{turn}.wav"


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    text = json.dumps(settings, indent=1, sort_keys=True, ensure_ascii=False)
    if not path.exists():
        with replacing(path) as part:
            part.write_text(text, encoding="utf-8")
        return
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    if found != json.loads(text):
        changed = [
            name for name in settings if not isinstance(found, dict) or found.get(name) != settings[name]
        ]
        raise ValueError(
            f"{path.parent} holds a run with another {', '.join(changed) or 'set of settings'}: "
            "name another directory, or repeat its settings"
        )


def _line(result: Result) -> str:
    return json.dumps(result, ensure_ascii=False) + "\n"
