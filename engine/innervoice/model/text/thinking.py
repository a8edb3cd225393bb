"""Whether a prompt asks the model to think, between marks of its own, before it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.tokenizer_json import JsonTokenizer

OPEN, CLOSE = "<think>", "</think>"
SWITCH = "enable_thinking"
"""The template variable by which Qwen3 and others write a prompt without thinking, where it is False."""


def asks_to_think(tokenizer: TextTokenizer, prompt_ids: Sequence[int], variables: Mapping[str, Any]) -> bool:
    """Whether the model will write its thoughts first: its prompt opens them, or its template has a switch
    that is not off, and the prompt does not close them itself.
    """
    marks = tokenizer.special(OPEN), tokenizer.special(CLOSE)
    if None in marks:
        return False
    last = next((i for i in reversed(prompt_ids) if i in marks), None)
    if last is not None:
        return last == marks[0]
    chat = tokenizer.chat if isinstance(tokenizer, JsonTokenizer) else None
    return chat is not None and SWITCH in chat.variables and variables.get(SWITCH) is not False
