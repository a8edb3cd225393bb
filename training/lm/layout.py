"""The order of tokens in a prompt and in a reply: where the engine's schedules have text, speech and
reflection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from training.lm.vocabulary import CLOSE, DONE, END, FIRST_CODE, ID_OF, OPEN, SYSTEM, TRANSCRIPTION, encode

TEXT_LEN = 13
SPEECH_LEN = 26

# `off` is the schedule `interleaved`, `first` is `think_first`; `after` is `stitch_s` and `reempathy`, `before` is
# `stitch_r` and `reempathy` with `reflect_first`: one sentence of reflection a cycle.
Mode = Literal["off", "first", "after", "before"]
MODES: tuple[Mode, ...] = ("off", "first", "after", "before")


def prompt(codes: Sequence[int], first: bool = True) -> list[int]:
    """Return the ids of a turn of the user; the first turn has the system's sentence before it."""
    opening = [ID_OF["[gMASK]"], ID_OF["<sop>"], ID_OF["<|system|>"], *encode("\n" + SYSTEM)] if first else []
    return [
        *opening,
        ID_OF["<|user|>"],
        *encode("\n"),
        ID_OF["<|begin_of_audio|>"],
        *(FIRST_CODE + code for code in codes),
        ID_OF["<|end_of_audio|>"],
        ID_OF["<|assistant|>"],
        *encode(TRANSCRIPTION),
    ]


def fits(text: Sequence[int], codes: Sequence[int]) -> bool:
    """Say whether the speech outlasts the text, so that the turn ends in speech."""
    return len(codes) > SPEECH_LEN * (len(text) // TEXT_LEN)


def reply(
    text: Sequence[int], codes: Sequence[int], reflection: Sequence[Sequence[int]], mode: Mode
) -> list[int]:
    """Return the ids of a reply, its end of turn included; the reflection is given segment by segment.

    A text that is shorter than its segment is finished: speech then goes on to the end, without reflection.
    """
    assert fits(text, codes)
    sentences = list(reflection) if mode != "off" else []
    ids: list[int] = []
    if mode == "first":
        ids += [OPEN, *(token for sentence in sentences for token in sentence), CLOSE]
        sentences = []
    text_left, codes_left = list(text), [FIRST_CODE + code for code in codes]
    while True:
        if mode == "before" and sentences:
            ids += _reflect(sentences)
        segment, text_left = text_left[:TEXT_LEN], text_left[TEXT_LEN:]
        ids += segment
        if len(segment) < TEXT_LEN:
            return [*ids, *codes_left, END]
        ids += codes_left[:SPEECH_LEN]
        codes_left = codes_left[SPEECH_LEN:]
        if mode == "after" and sentences:
            ids += _reflect(sentences)


def _reflect(sentences: list[Sequence[int]]) -> list[int]:
    """Take the next sentence; after the last one the reflection is said to be done."""
    sentence = sentences.pop(0)
    return [OPEN, *sentence, CLOSE] if sentences else [OPEN, *sentence, CLOSE, DONE]
