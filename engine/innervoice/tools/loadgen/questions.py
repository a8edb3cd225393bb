"""Questions of callers: lines of a manifest, or the recordings that come with the package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.api.request_builder import RequestOptions
from innervoice.codec.audio import read_audio
from innervoice.files import packaged_questions, parse_json, read_text
from innervoice.schedule import Schedule
from innervoice.types import Ids, Prompt, Sampling, Text

_PROMPTS = ("audio", "text", "ids")
_OPTIONS = tuple(f.name for f in fields(RequestOptions))


@dataclass(frozen=True)
class Question:
    """A prompt with the request options that it asks for. name: how it is called in the results."""

    name: str
    prompt: Prompt
    options: Mapping[str, Any] = field(default_factory=dict)

    def request(self, defaults: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Options of a request: the question's own before the defaults. Where no seed is given, this one."""
        made = dict(defaults) | dict(self.options)
        sampling = made.get("sampling") or Sampling()
        made["sampling"] = replace(sampling, seed=seed) if sampling.seed is None else sampling
        return made


def bundled_questions() -> list[Question]:
    """The recordings of the package."""
    return [Question(one.path.name, read_audio(one.path)) for one in packaged_questions()]


def read_manifest(path: str | PathLike[str]) -> list[Question]:
    """A question a line: {"audio": path from the manifest's folder}, {"text": ...} or {"ids":
    [...]}, and any request options.

    `schedule` is a preset's name, a .json file or a schedule; `sampling` an object. Raises FileNotFoundError,
    and ValueError with the line.
    """
    source = Path(path)
    remedy = "give a file with a question a line, as JSON"
    made = []
    for number, text in enumerate(read_text(path, remedy, "manifest").splitlines(), 1):
        if text.strip():
            line = parse_json(text, f"{path}, line {number}: this", remedy)
            try:
                made.append(_question(line, source.parent, f"{source.name}:{number}"))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    if not made:
        raise ValueError(f'{path} holds no question: give it a line such as {{"text": "How are you?"}}')
    return made


def _question(line: Any, folder: Path, name: str) -> Question:
    if not isinstance(line, dict):
        raise ValueError("a question is a JSON object")
    given = [key for key in _PROMPTS if key in line]
    if len(given) != 1:
        raise ValueError(
            f"a question has one of {', '.join(_PROMPTS)}, and this has {', '.join(given) or 'none'}"
        )
    unknown = sorted(set(line) - {*_PROMPTS, *_OPTIONS, "name"})
    if unknown:
        raise ValueError(f"unknown key {unknown[0]!r}; options are {', '.join(_OPTIONS)}")
    options = {key: line[key] for key in _OPTIONS if key in line}
    if isinstance(options.get("schedule"), dict):
        options["schedule"] = Schedule.from_dict(options["schedule"])
    if "sampling" in options:
        sampling = dict(options["sampling"])
        options["sampling"] = Sampling(
            **sampling | {"stop_token_ids": tuple(sampling.get("stop_token_ids", ()))}
        )
    prompts: dict[str, Any] = {"text": Text, "ids": Ids, "audio": lambda audio: read_audio(folder / audio)}
    return Question(line.get("name", name), prompts[given[0]](line[given[0]]), options)
