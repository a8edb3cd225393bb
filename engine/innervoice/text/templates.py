"""GLM-4-Voice's prompt template."""

from __future__ import annotations

from collections.abc import Sequence

from innervoice.text.tokenizer import TextTokenizer
from innervoice.text.vocabulary import speech_ids
from innervoice.types import Vocabulary

_SYSTEM = (
    "User will provide you with a {} instruction. Do it step by step. First, think about the instruction and respond "
    "in a interleaved manner, with 13 text token followed by 26 audio tokens."
)
SPEECH_SYSTEM = _SYSTEM.format("speech") + " "
TEXT_SYSTEM = _SYSTEM.format("text")


def turn_ids(
    tokenizer: TextTokenizer, vocabulary: Vocabulary, user: str | Sequence[int], system: str | None = None, *, first: bool
) -> list[int]:
    """One turn, typed text or the codes of a recording, up to where the reply begins; system None: the model's own sentence.

    First: [gMASK] <sop> <|system|> \\n SYSTEM, and then always: <|user|> \\n USER <|assistant|> streaming_transcription \\n
    The history before a later turn is the ids as they were fed and drawn, without the reply's end of turn. The original joins
    strings and encodes them anew: it would strip white space from the end of a reply that ends in text, may split a reply's
    text into other ids, and cannot spell the last speech code. Ids as drawn keep the cache valid.
    Raises ValueError for a code outside the codebook, or a checkpoint without the template's tokens.
    """
    special, encode = tokenizer.require_special, tokenizer.encode
    if isinstance(user, str):
        system = TEXT_SYSTEM if system is None else system
        content = encode("\n" + user)
    else:
        system = SPEECH_SYSTEM if system is None else system
        content = [*encode("\n"), special("<|begin_of_audio|>"), *speech_ids(vocabulary, user), special("<|end_of_audio|>")]
    opening = [special("[gMASK]"), special("<sop>"), special("<|system|>"), *encode("\n" + system)] if first else []
    return [*opening, special("<|user|>"), *content, special("<|assistant|>"), *encode("streaming_transcription\n")]
