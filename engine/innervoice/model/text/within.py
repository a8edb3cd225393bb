"""Ids of a text that stands within another."""

from __future__ import annotations

from innervoice.model.text.chat_template import Piece
from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.tokenizer_json import JsonTokenizer


def ids_within(tokenizer: TextTokenizer, text: str) -> list[int]:
    """Return the ids of a text as it would be written within a text; nothing in it is a special token."""
    if isinstance(tokenizer, JsonTokenizer):
        return tokenizer.encode_pieces([Piece(text, is_template=False)], at_start=False)
    return tokenizer.encode(text)
