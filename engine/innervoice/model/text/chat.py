"""Dialogues in a checkpoint's own chat template, as ids."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from innervoice.model.text.chat_template import ChatMessage, ChatTemplate, Piece
from innervoice.model.text.dialogue import DialogueItem
from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.model.text.tokenizer_json import JsonTokenizer
from innervoice.types import Ids


def chat_turn_ids(
    tokenizer: TextTokenizer,
    user: str | Ids,
    system: str | None = None,
    *,
    first: bool,
    variables: Mapping[str, Any] | None = None,
    earlier: Sequence[ChatMessage] | None = None,
) -> list[int]:
    """The ids of one user turn up to where the reply begins; system None: the template's own.

    user: text, or ids that stand in the turn as they are. first: the whole opening; otherwise what follows the
    ids of the reply before, its end of turn included. A later turn is encoded by itself: nothing merges with the
    reply's last token. variables and earlier: as for `ChatTemplate.turn`. A tokenizer that was made up has a
    template made up. Raises ValueError without a chat template, or where it fails.
    """
    if not isinstance(tokenizer, JsonTokenizer):
        if variables:
            raise ValueError(
                f"a prompt that is made up has no variable {min(variables)!r}: leave template out"
            )
        return _made_up_turn(tokenizer, user, system if first else None)
    said = _StandIns(DialogueItem("", "user", (user,)))
    turn = _template_of(tokenizer).turn(said.text, system, first=first, variables=variables, earlier=earlier)
    parts: list[Piece | Ids | DialogueItem] = []
    for piece in turn:
        parts += [piece] if piece.is_template else said.parts(piece.text)
    (ids,) = _encoded(tokenizer, parts, at_start=first)
    return ids


def dialogue_ids(
    tokenizer: JsonTokenizer,
    messages: Sequence[ChatMessage],
    variables: Mapping[str, Any] | None = None,
    *,
    to_reply: bool = True,
) -> list[int]:
    """The ids of a whole dialogue; see `ChatTemplate.dialogue`. Raises ValueError as it does."""
    return tokenizer.encode_pieces(_template_of(tokenizer).dialogue(messages, variables, to_reply=to_reply))


def chat_runs(
    tokenizer: TextTokenizer,
    items: Sequence[DialogueItem],
    head: str | None = None,
    *,
    opens: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """The ids before, between and behind the replies among the items, in the checkpoint's chat template.

    Texts of one item are joined by a line break. A prompt's ids stand for themselves, with what opens the
    reply behind them. opens: up to where the next reply begins. variables: as for `ChatTemplate.dialogue`.
    Raises ValueError for speech, without a chat template, and where the template takes no such dialogue.
    """
    if any(item.has_speech for item in items):
        raise ValueError("this model takes no speech: give text")
    if not isinstance(tokenizer, JsonTokenizer):
        return _made_up_runs(tokenizer, items, head, opens=opens)
    heads = [] if head is None else [DialogueItem("", "system", (head,))]
    if not heads and not items:
        raise ValueError("a chat template writes no dialogue without a message: give one, or a system text")
    return _encoded(tokenizer, _chat_parts(_template_of(tokenizer), [*heads, *items], opens, variables))


def encode_parts(tokenizer: JsonTokenizer, parts: Iterable[Piece | Ids]) -> list[int]:
    """The ids of a whole prompt: of pieces of text, and ids that stand between them."""
    (ids,) = _encoded(tokenizer, parts)
    return ids


def _encoded(
    tokenizer: JsonTokenizer, parts: Iterable[Piece | Ids | DialogueItem], *, at_start: bool = True
) -> list[list[int]]:
    """The ids of pieces and of the ids among them, in runs between which the replies stand."""
    runs: list[list[int]] = [[]]
    texts: list[Piece] = []

    def flush() -> None:
        is_first = at_start and len(runs) == 1 and not runs[0]
        runs[-1] += tokenizer.encode_pieces(texts, at_start=is_first)
        texts.clear()

    for part in parts:
        if isinstance(part, Piece):
            texts.append(part)
            continue
        flush()
        if isinstance(part, Ids):
            runs[-1] += part.ids
        else:
            runs.append([])
    flush()
    return runs


def _chat_parts(
    template: ChatTemplate,
    items: Sequence[DialogueItem],
    opens: bool,
    variables: Mapping[str, Any] | None,
) -> Iterator[Piece | Ids | DialogueItem]:
    """The pieces of a rendered dialogue, with ids as they are, and an item in place of each reply."""
    words = [_StandIns(item) for item in items]
    messages = [
        {"role": "user" if item.role == "prompt" else item.role, "content": said.text}
        for item, said in zip(items, words, strict=True)
    ]
    pieces = template.dialogue(messages, variables, to_reply=opens)
    spoken = iter([i for i, said in enumerate(words) if said.text.strip()])
    number = next(spoken, len(items))
    for piece in pieces:
        if not piece.is_template:
            yield from words[number].parts(piece.text)
            number = next(spoken, len(items))
            continue
        is_raw = number < len(items) and items[number].role == "prompt"
        is_open = number > 0 and items[number - 1].role == "prompt"  # its ids end where the reply begins
        if not is_raw and not (is_open and (number == len(items) or items[number].role == "assistant")):
            yield piece


class _StandIns:
    """An item's content as text, in which made-up words stand for ids and for a reply."""

    def __init__(self, item: DialogueItem) -> None:
        self._given: dict[str, Ids | DialogueItem] = {}
        self.text = ""
        before: object = None
        for part in (item,) if item.reply else item.parts:
            if isinstance(part, str):
                self.text += "\n" + part if isinstance(before, str) else part
            else:
                assert isinstance(part, Ids | DialogueItem), "speech was refused"
                word = f"\uf8f0{uuid.uuid4().hex}\uf8f1"
                self._given[word] = part
                self.text += word
            before = part

    def parts(self, written: str) -> Iterator[Piece | Ids | DialogueItem]:
        """The content as the template wrote it, with the ids in their places."""
        for text in re.split("(\uf8f0[0-9a-f]{32}\uf8f1)", written):
            if text in self._given:
                yield self._given[text]
            elif text:
                yield Piece(text, is_template=False)


def _made_up_runs(
    tokenizer: TextTokenizer, items: Sequence[DialogueItem], head: str | None, *, opens: bool
) -> list[list[int]]:
    special, encode = tokenizer.require_special, tokenizer.encode
    runs: list[list[int]] = [[] if head is None else [special("<|system|>"), *encode("\n" + head)]]
    is_open = False
    for item in items:
        if item.role != "prompt" and not (item.role == "assistant" and is_open):
            runs[-1] += [special(f"<|{item.role}|>"), *encode("\n")]
        for part in item.parts:
            runs[-1] += part.ids if isinstance(part, Ids) else encode(str(part))
        if item.reply:
            runs.append([])
        is_open = item.role == "prompt"
    if opens and not is_open:
        runs[-1] += [special("<|assistant|>"), *encode("\n")]
    return runs


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


def _made_up_turn(tokenizer: TextTokenizer, user: str | Ids, system: str | None) -> list[int]:
    special, encode = tokenizer.require_special, tokenizer.encode
    opening = [] if system is None else [special("<|system|>"), *encode("\n" + system)]
    said = encode("\n" + user) if isinstance(user, str) else [*encode("\n"), *user.ids]
    return [*opening, special("<|user|>"), *said, special("<|assistant|>"), *encode("\n")]
