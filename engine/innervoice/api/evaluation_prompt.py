"""EvaluationPrompt: question and reply in the prompt that a checkpoint's heads were trained on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from innervoice.api.request_builder import RequestBuilder
from innervoice.checkpoint.heads import QUESTION, REPLY, HeadsConfig
from innervoice.model.text import JsonTokenizer, Piece, encode_parts, ids_within
from innervoice.model.text.dialogue import SpokenCodes
from innervoice.runtime.conversation import Content, Message
from innervoice.types import Ids, Prompt, Text

RatedContent = Prompt | list[Prompt]
"""A recording or a text, or several of them in order."""


class EvaluationPrompt:
    """Writes the prompts of pairs. A prompt in which tokens of a turn stand is taken as it is; any other is what a user
    says, in the checkpoint's chat template.
    """

    def __init__(self, config: HeadsConfig, requests: RequestBuilder) -> None:
        self._config, self._requests = config, requests
        describe = config.describe_prompt
        if describe is not None and QUESTION not in describe:
            if self._is_whole(config.prompt):
                raise ValueError(
                    f"heads.json: prompt is a whole prompt, and describe_prompt has no {QUESTION}: write it whole too"
                )
            describe = config.prompt + "\n" + describe
        self._describe = config.prompt if describe is None else describe

    def of(
        self, question: RatedContent, reply: RatedContent, *, describes: bool = False
    ) -> list[Message] | Ids:
        """The prompt of a pair. describes: of its description. Raises ValueError for content that is none."""
        prompt = self._describe if describes else self._config.prompt
        given = {QUESTION: contents_of(question, "question"), REPLY: contents_of(reply, "reply")}
        if self._is_whole(prompt):
            return self._whole(prompt, given)
        parts: list[Content] = []
        is_written = False  # whether the last part is a text that the prompt goes on with
        for one in _pieces(prompt, given):
            part: Content = Text(one) if isinstance(one, str) else one
            last = parts[-1] if parts else None
            if isinstance(part, Text) and isinstance(last, Text) and (isinstance(one, str) or is_written):
                parts[-1] = Text(last.text + part.text)
            else:
                parts.append(part)
            is_written = isinstance(one, str)
        return [Message("user", [self._with_blanks(part) for part in parts])]

    def _with_blanks(self, part: Content) -> Content:
        """A part, where a text is white space alone as its ids."""
        if not isinstance(part, Text) or part.text.strip():
            return part
        return Ids(ids_within(self._requests.tokenizer, part.text))

    def _is_whole(self, prompt: str) -> bool:
        tokenizer = self._requests.tokenizer
        return isinstance(tokenizer, JsonTokenizer) and tokenizer.find_mark(prompt) is not None

    def _whole(self, prompt: str, given: Mapping[str, Sequence[Content]]) -> Ids:
        parts: list[Piece | Ids] = []
        for one in _pieces(prompt, given):
            if isinstance(one, str):
                parts.append(Piece(one, is_template=True))
                continue
            part = self._requests.part(one)
            if isinstance(part, SpokenCodes):
                parts.append(Ids(self._requests.spoken(part)))
            else:
                assert isinstance(part, str), "Ids were refused"
                parts.append(Piece(part, is_template=False))
        tokenizer = self._requests.tokenizer
        assert isinstance(tokenizer, JsonTokenizer), "a whole prompt has a tokenizer's marks"
        return Ids(encode_parts(tokenizer, parts))


def _pieces(prompt: str, given: Mapping[str, Sequence[Content]]) -> Iterator[str | Content]:
    """The prompt's own words as str, and between them what is rated."""
    for piece in re.split(f"({re.escape(QUESTION)}|{re.escape(REPLY)})", prompt):
        if piece in given:
            yield from given[piece]
        elif piece:
            yield piece


def contents_of(given: RatedContent, name: str) -> list[Content]:
    """The parts of a question or a reply. Raises ValueError for none, and for Ids."""
    parts: list[Prompt] = list(given) if isinstance(given, list) else [given]
    if not parts:
        raise ValueError(f"the {name} is empty: give a recording or a text")
    made: list[Content] = []
    for part in parts:
        if isinstance(part, Ids):
            raise ValueError(
                f"the {name} is given as Ids, which have no place in its prompt: use text or a recording"
            )
        made.append(Path(part) if isinstance(part, str) else part)
    return made
