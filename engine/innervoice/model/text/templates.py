"""GLM-4-Voice's prompt template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from innervoice.model.text.chat_template import Message
from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.vocabulary import speech_ids
from innervoice.types import Vocabulary

_SYSTEM = (
    "User will provide you with a {} instruction. Do it step by step. First, think about the instruction and respond "
    "in a interleaved manner, with 13 text token followed by 26 audio tokens."
)
SPEECH_SYSTEM = _SYSTEM.format("speech") + " "
TEXT_SYSTEM = _SYSTEM.format("text")


def turn_ids(
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    user: str | Sequence[int],
    system: str | None = None,
    *,
    first: bool,
    variables: Mapping[str, Any] | None = None,
    earlier: Sequence[Message] | None = None,
) -> list[int]:
    """One turn, typed text or the codes of a recording, up to where the reply begins; system
    None: the model's own sentence.

    First: [gMASK] <sop> <|system|> \\n SYSTEM, and then always: <|user|> \\n USER <|assistant|>
    streaming_transcription \\n The history before a later turn is the ids as they were fed and drawn, without
    the reply's end of turn. The original joins strings and encodes them anew: it would strip white space from
    the end of a reply that ends in text, may split a reply's text into other ids, and cannot spell the last
    speech code. Ids as drawn keep the cache valid; `earlier` turns change nothing. Raises ValueError for a
    code outside the codebook, a checkpoint without the template's tokens, and for variables, of which there
    are none.
    """
    if variables:
        raise ValueError(f"GLM-4-Voice's prompt has no variable {min(variables)!r}: leave template out")
    special, encode = tokenizer.require_special, tokenizer.encode
    if isinstance(user, str):
        turn = [
            *_opening(tokenizer, TEXT_SYSTEM if system is None else system, first=first),
            *encode("\n" + user),
        ]
    else:
        turn = [*turn_head_ids(tokenizer, vocabulary, user, system, first=first), special("<|end_of_audio|>")]
    return [*turn, special("<|assistant|>"), *encode("streaming_transcription\n")]


def turn_head_ids(
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    codes: Sequence[int],
    system: str | None = None,
    *,
    first: bool,
) -> list[int]:
    """The known prefix of a turn while it is spoken: `turn_ids` of any recording that begins with
    these codes begins with this.

    Raises ValueError as `turn_ids` does.
    """
    opening = _opening(tokenizer, SPEECH_SYSTEM if system is None else system, first=first)
    begin = tokenizer.require_special("<|begin_of_audio|>")
    return [*opening, *tokenizer.encode("\n"), begin, *speech_ids(vocabulary, codes)]


def _opening(tokenizer: TextTokenizer, system: str, *, first: bool) -> list[int]:
    """All before the line break that the user's words or sound follow."""
    special = tokenizer.require_special
    system_turn = (
        [special("[gMASK]"), special("<sop>"), special("<|system|>"), *tokenizer.encode("\n" + system)]
        if first
        else []
    )
    return [*system_turn, special("<|user|>")]
