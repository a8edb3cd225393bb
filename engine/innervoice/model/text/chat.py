"""Dialogues in a checkpoint's own chat template, as ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from innervoice.model.text.chat_template import ChatTemplate, Message
from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.tokenizer_json import JsonTokenizer


def chat_turn_ids(
    tokenizer: TextTokenizer,
    user: str,
    system: str | None = None,
    *,
    first: bool,
    variables: Mapping[str, Any] | None = None,
    earlier: Sequence[Message] | None = None,
) -> list[int]:
    """The ids of one user turn up to where the reply begins; system None: the template's own.

    first: the whole opening; otherwise what follows the ids of the reply before, its end of turn included. A
    later turn is encoded by itself: nothing merges with the reply's last token. variables and earlier: as for
    `ChatTemplate.turn`. A tokenizer that was made up has a template made up. Raises ValueError without a chat
    template, or where it fails.
    """
    if not isinstance(tokenizer, JsonTokenizer):
        if variables:
            raise ValueError(
                f"a prompt that is made up has no variable {min(variables)!r}: leave template out"
            )
        return _made_up_turn(tokenizer, user, system if first else None)
    turn = _template_of(tokenizer).turn(user, system, first=first, variables=variables, earlier=earlier)
    return tokenizer.encode_pieces(turn, at_start=first)


def dialogue_ids(
    tokenizer: JsonTokenizer,
    messages: Sequence[Message],
    variables: Mapping[str, Any] | None = None,
    *,
    to_reply: bool = True,
) -> list[int]:
    """The ids of a whole dialogue; see `ChatTemplate.dialogue`. Raises ValueError as it does."""
    return tokenizer.encode_pieces(_template_of(tokenizer).dialogue(messages, variables, to_reply=to_reply))


def end_of_turn(tokenizer: JsonTokenizer, eos: Sequence[int]) -> int | None:
    """The eos id of a checkpoint that ends a turn: the one that the chat template puts
    behind a reply, else the first.
    """
    try:
        behind = chat_turn_ids(tokenizer, "?", first=False)
    except ValueError:
        behind = []
    return next((i for i in (*behind, *eos) if i in eos), None)


def check_variables(tokenizer: TextTokenizer, variables: Mapping[str, Any]) -> None:
    """Hold template variables against the checkpoint's chat template, before there is a dialogue.

    Raises ValueError for a name that the template does not read, a value that is not JSON's, and for any
    variable without a chat template.
    """
    if variables and not isinstance(tokenizer, JsonTokenizer):
        raise ValueError(f"this model's prompt has no variable {min(variables)!r}: leave template out")
    if variables and isinstance(tokenizer, JsonTokenizer):
        _template_of(tokenizer).check(variables)


def _template_of(tokenizer: JsonTokenizer) -> ChatTemplate:
    if tokenizer.chat is None:
        raise ValueError(
            f"{tokenizer.source.parent} has no chat template, neither chat_template.jinja nor one in tokenizer_config.json: "
            "add it, or give a prompt as Ids"
        )
    return tokenizer.chat


def _made_up_turn(tokenizer: TextTokenizer, user: str, system: str | None) -> list[int]:
    special, encode = tokenizer.require_special, tokenizer.encode
    opening = [] if system is None else [special("<|system|>"), *encode("\n" + system)]
    return [*opening, special("<|user|>"), *encode("\n" + user), special("<|assistant|>"), *encode("\n")]
