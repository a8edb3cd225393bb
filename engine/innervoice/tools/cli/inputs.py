"""Question, schedule and sampling of a request, read from words of the command line."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from innervoice.codec.audio import read_audio
from innervoice.schedule import PRESETS, Schedule
from innervoice.types import Prompt, Sampling, Text

STANDARD_INPUT = "-"


def read_schedule(name: str | None) -> Schedule | None:
    """A preset by name or a schedule from a JSON file; None: the model's own.

    Raises FileNotFoundError, ValueError.
    """
    if name is None:
        return None
    if name.endswith(".json") or os.sep in name:
        if not Path(name).is_file():
            raise FileNotFoundError(
                f"there is no schedule file {name}: give a preset ({', '.join(PRESETS)}) or a .json file"
            )
        return Schedule.load(name)
    return Schedule.preset(name)


def read_sampling(greedy: bool, max_new_tokens: int, **given: float | None) -> Sampling:
    """Sampling from options; None stands for the checkpoint's own. Raises ValueError."""
    named = {name: value for name, value in given.items() if value is not None}
    if greedy and named:
        option = next(iter(named)).replace("_", "-")
        raise ValueError(
            f"--greedy takes the likeliest token and --{option} shapes a draw: give one of the two"
        )
    if greedy:
        named = {"temperature": 0.0}
    return Sampling(max_new_tokens=max_new_tokens, **named)  # type: ignore[arg-type]


def read_template(words: Sequence[str]) -> dict[str, object] | None:
    """Template variables from NAME=VALUE, the value JSON or a string; None: there are none. Raises ValueError."""
    found: dict[str, object] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name:
            raise ValueError(f"--template is {word!r}: write NAME=VALUE, such as enable_thinking=false")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found or None


def read_prompt(recording: str | None, text: str | None) -> Prompt:
    """The typed question, or the samples of the recorded one. Raises FileNotFoundError, ValueError."""
    if text is not None:
        if recording is not None:
            raise ValueError(f"both {recording} and --text were given: ask one question")
        return Text(typed(text))
    if not recording:
        raise ValueError("no question: give a recording or --text")
    return read_audio(_standard_input() if recording == STANDARD_INPUT else recording)


def typed(text: str) -> str:
    """Text of the command line as UTF-8, also where the locale knows no such characters. Raises ValueError."""
    if not any("\udc80" <= character <= "\udcff" for character in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("the text of the command line is not UTF-8: write it in UTF-8") from None


def _standard_input() -> bytes:
    stream = getattr(sys.stdin, "buffer", None)  # a closed one is None
    if stream is None or stream.isatty():
        raise ValueError(
            "the question is to come from standard input, which is no file: send one there with <"
        )
    try:
        return bytes(stream.read())
    except OSError as error:
        raise ValueError(f"standard input cannot be read ({error.strerror}): name an audio file") from None
