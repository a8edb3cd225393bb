"""Replies by the trained language model, greedily, in plain torch: what the evaluation listens to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from training.lm.layout import SPEECH_LEN, TEXT_LEN, prompt
from training.lm.model import NUM_LAYERS, LanguageModel
from training.lm.vocabulary import CLOSE, END, FIRST_CODE, NUM_CODES, NUM_TEXT, OPEN, decode

MAX_REFLECTION = 80
MAX_TEXT = 80
MAX_CODES = 300

Range = tuple[int, int]
TEXT: Range = (0, NUM_TEXT)
SPEECH: Range = (FIRST_CODE, FIRST_CODE + NUM_CODES)


def single(token: int) -> Range:
    """Return the range of one id."""
    return token, token + 1


@dataclass(frozen=True)
class Said:
    """A reply: hidden reflection, text, and the codes of its speech."""

    reflection: str
    text: str
    codes: tuple[int, ...]


class Speaker:
    """One reply in the making: the model, its cache, and the logits of the next token."""

    def __init__(self, model: LanguageModel, ids: Sequence[int]) -> None:
        self._model = model
        self._caches: list[list[torch.Tensor]] = [[] for _ in range(NUM_LAYERS)]
        self._length = 0
        self.feed(ids)

    @torch.inference_mode()
    def feed(self, ids: Sequence[int]) -> None:
        """Show the model what comes next."""
        self._logits = self._model(torch.tensor([list(ids)]), self._length, self._caches)[0, -1]
        self._length += len(ids)

    def best(self, *ranges: Range) -> int:
        """Return the likeliest next id out of some ranges."""
        values, places = zip(*(self._logits[low:high].max(0) for low, high in ranges), strict=True)
        winner = max(range(len(ranges)), key=lambda place: float(values[place]))
        return ranges[winner][0] + int(places[winner])


def answer(model: LanguageModel, codes: Sequence[int], reflect: bool = True) -> Said:
    """Return the reply to a recording, as the schedule `think_first` makes it, or `interleaved` without
    reflection.
    """
    speaker = Speaker(model, prompt(codes))
    reflection = _reflection(speaker) if reflect else []
    text: list[int] = []
    spoken: list[int] = []
    text_is_done = False
    while len(spoken) < MAX_CODES:
        for _ in range(TEXT_LEN if not text_is_done else 0):
            token = speaker.best(TEXT, SPEECH)
            if token >= FIRST_CODE or len(text) >= MAX_TEXT:
                text_is_done = True
                break
            text.append(token)
            speaker.feed([token])
        for _ in range(SPEECH_LEN):
            token = speaker.best(SPEECH, single(END)) if text_is_done else speaker.best(SPEECH)
            if token == END:
                return Said(decode(reflection), decode(text), tuple(spoken))
            spoken.append(token - FIRST_CODE)
            speaker.feed([token])
    return Said(decode(reflection), decode(text), tuple(spoken))


def _reflection(speaker: Speaker) -> list[int]:
    """Let the model write its reflection, up to the token that closes it."""
    speaker.feed([OPEN])
    ids: list[int] = []
    while len(ids) < MAX_REFLECTION:
        token = speaker.best(TEXT, single(CLOSE))
        if token == CLOSE:
            break
        ids.append(token)
        speaker.feed([token])
    speaker.feed([CLOSE])
    return ids
