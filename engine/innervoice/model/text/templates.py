"""GLM-4-Voice's prompt template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from innervoice.model.text.chat_template import ChatMessage
from innervoice.model.text.dialogue import DialogueItem, ItemPart, SpokenCodes
from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.tools import OBSERVATION
from innervoice.model.text.vocabulary import speech_ids
from innervoice.types import Vocabulary

_SYSTEM = (
    "User will provide you with a {} instruction. Do it step by step. First, think about the instruction and respond "
    "in a interleaved manner, with 13 text token followed by 26 audio tokens."
)
_ROLES = {"tool": OBSERVATION}
_REPLY_OPENING = "streaming_transcription\n"
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
    earlier: Sequence[ChatMessage] | None = None,
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
    _refuse_variables(variables)
    special, encode = tokenizer.require_special, tokenizer.encode
    if isinstance(user, str):
        turn = [
            *_opening(tokenizer, TEXT_SYSTEM if system is None else system, first=first),
            *encode("\n" + user),
        ]
    else:
        turn = [*turn_head_ids(tokenizer, vocabulary, user, system, first=first), special("<|end_of_audio|>")]
    return [*turn, special("<|assistant|>"), *encode(_REPLY_OPENING)]


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


def default_system(vocabulary: Vocabulary, items: Sequence[DialogueItem]) -> str | None:
    """The system text of a dialogue that has none of its own: None where it begins with one.

    The first user message decides between the two sentences; without any, the model awaits speech where it
    has a speech codebook.
    """
    if items and items[0].role == "system":
        return None
    first = next((item for item in items if item.role == "user"), None)
    is_spoken = vocabulary.speech is not None if first is None else first.has_speech
    return SPEECH_SYSTEM if is_spoken else TEXT_SYSTEM


def dialogue_runs(
    tokenizer: TextTokenizer,
    vocabulary: Vocabulary,
    items: Sequence[DialogueItem],
    head: str | None = None,
    *,
    opens: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """The ids before, between and behind the replies among the items, whose own tokens are not in them.

    [gMASK] <sop>, and <|system|> \\n HEAD where there is a head; then for each item its role's token, \\n and
    its content: texts joined by a line break, recordings in <|begin_of_audio|> and <|end_of_audio|>, in order.
    An assistant's turn is <|assistant|> streaming_transcription \\n CONTENT, a tool's result <|observation|> \\n
    CONTENT. The original has one part a turn;
    several stand side by side here. A prompt's ids stand for themselves, with what opens the reply behind
    them. opens: up to where the next reply begins. Raises ValueError for a code outside the codebook, and for
    variables, of which there are none.
    """
    _refuse_variables(variables)
    special = tokenizer.require_special
    runs: list[list[int]] = [[]]
    is_raw = bool(items) and items[0].role == "prompt"
    if not is_raw:
        runs[0] += [special("[gMASK]"), special("<sop>")]
        if head is not None:
            runs[0] += [special("<|system|>"), *tokenizer.encode("\n" + head)]
    is_open = False  # a prompt's ids end where the reply begins
    for item in items:
        before = ""
        if item.role != "prompt" and not (item.role == "assistant" and is_open):
            runs[-1].append(special(_ROLES.get(item.role, f"<|{item.role}|>")))
            before = _REPLY_OPENING if item.role == "assistant" else "\n"
        runs[-1] += _content_ids(tokenizer, vocabulary, before, item.parts)
        if item.reply:
            runs.append([])
        is_open = item.role == "prompt"
    if opens and not is_open:
        runs[-1] += [special("<|assistant|>"), *tokenizer.encode(_REPLY_OPENING)]
    return runs


def _refuse_variables(variables: Mapping[str, Any] | None) -> None:
    if variables:
        raise ValueError(f"GLM-4-Voice's prompt has no variable {min(variables)!r}: leave template out")


def _content_ids(
    tokenizer: TextTokenizer, vocabulary: Vocabulary, before: str, parts: Sequence[ItemPart]
) -> list[int]:
    """The ids of some text and the parts behind it; texts side by side are encoded as one."""
    ids: list[int] = []
    text, was_text = before, False
    for part in parts:
        if isinstance(part, str):
            text += "\n" + part if was_text else part
            was_text = True
            continue
        ids += tokenizer.encode(text)
        text, was_text = "", False
        if isinstance(part, SpokenCodes):
            begin, end = (tokenizer.require_special(f"<|{name}_of_audio|>") for name in ("begin", "end"))
            ids += [begin, *speech_ids(vocabulary, part.codes), end]
        else:
            ids += part.ids
    return [*ids, *tokenizer.encode(text)]


def _opening(tokenizer: TextTokenizer, system: str, *, first: bool) -> list[int]:
    """All before the line break that the user's words or sound follow."""
    special = tokenizer.require_special
    system_turn = (
        [special("[gMASK]"), special("<sop>"), special("<|system|>"), *tokenizer.encode("\n" + system)]
        if first
        else []
    )
    return [*system_turn, special("<|user|>")]
