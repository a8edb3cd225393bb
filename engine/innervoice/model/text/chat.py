"""Dialogues in a checkpoint's own chat template, as ids."""

from __future__ import annotations

from collections.abc import Sequence

from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.tokenizer_json import JsonTokenizer


def chat_turn_ids(
    tokenizer: TextTokenizer, user: str, system: str | None = None, *, first: bool
) -> list[int]:
    """The ids of one user turn up to where the reply begins; system None: the template's own.

    first: the whole opening; otherwise what follows the ids of the reply before, its end of turn included. A
    later turn is encoded by itself: nothing merges with the reply's last token. A tokenizer that was made up
    has a template made up. Raises ValueError without a chat template, or where it fails.
    """
    if not isinstance(tokenizer, JsonTokenizer):
        return _made_up_turn(tokenizer, user, system if first else None)
    if tokenizer.chat is None:
        raise ValueError(
            f"{tokenizer.source.parent} has no chat template, neither chat_template.jinja nor one in tokenizer_config.json: "
            "add it, or give a prompt as Ids"
        )
    return tokenizer.encode_pieces(tokenizer.chat.turn(user, system, first=first), at_start=first)


def end_of_turn(tokenizer: JsonTokenizer, eos: Sequence[int]) -> int | None:
    """The eos id of a checkpoint that ends a turn: the one that the chat template puts
    behind a reply, else the first.
    """
    try:
        behind = chat_turn_ids(tokenizer, "?", first=False)
    except ValueError:
        behind = []
    return next((i for i in (*behind, *eos) if i in eos), None)


def _made_up_turn(tokenizer: TextTokenizer, user: str, system: str | None) -> list[int]:
    special, encode = tokenizer.require_special, tokenizer.encode
    opening = [] if system is None else [special("<|system|>"), *encode("\n" + system)]
    return [*opening, special("<|user|>"), *encode("\n" + user), special("<|assistant|>"), *encode("\n")]
