"""A session's history as items: its tokens put together from a rendered template, and turns taken out of it."""

from __future__ import annotations

from collections import abc

from innervoice.model.sequence import TokenColumns
from innervoice.model.text.dialogue import DialogueItem
from innervoice.model.token_role import TokenRole
from innervoice.types import Ids


def join_tokens(
    runs: abc.Sequence[abc.Sequence[int]], items: abc.Sequence[DialogueItem], own: TokenColumns
) -> TokenColumns:
    """Put the replies' own tokens between the runs of a rendered template; what follows the last is left out.

    runs: as `Family.dialogue_runs` gives them. own: columns that hold the tokens of every reply.
    """
    made = TokenColumns.empty()
    replies = [item.reply for item in items if item.reply]
    for run, number in zip(runs, replies, strict=False):
        made.extend(TokenColumns.neutral(run))
        made.extend(own.of_reply(number))
    return made


def groups_of(items: abc.Sequence[DialogueItem]) -> list[list[DialogueItem]]:
    """The turns, oldest first: each from a user's message or prompt to the next; system messages are in none.

    The results of tools belong to the turn in which they were called.
    """
    groups: list[list[DialogueItem]] = []
    before = None
    for item in items:
        if item.role == "system":
            continue
        if before is None or (item.role in ("user", "prompt") and before in ("assistant", "tool")):
            groups.append([])
        groups[-1].append(item)
        before = item.role
    return groups


def droppable(
    old: abc.Sequence[DialogueItem], new: abc.Sequence[DialogueItem]
) -> tuple[list[list[DialogueItem]], int]:
    """List what may be dropped of a dialogue, in this order -> groups of items, and how many of them are turns.

    old: the history; its turns go first, the oldest before others. new: messages that no reply has answered;
    they go next, then system messages. The last message stays, and so do those that count for one reply.
    """
    turns = groups_of(old)
    others = [item for item in new if item.role != "system"]
    texts = [item for item in (*old, *new) if item.role == "system" and not item.is_once]
    if new and not others:  # a system message is what is answered
        texts = [item for item in texts if item is not new[-1]]
    return [*turns, *([item] for item in (*others[:-1], *texts))], len(turns)


def without(
    items: abc.Sequence[DialogueItem], groups: abc.Sequence[abc.Sequence[DialogueItem]]
) -> list[DialogueItem]:
    """The items that are in none of the groups."""
    dropped = {id(item) for group in groups for item in group}
    return [item for item in items if id(item) not in dropped]


def derive_items(own: TokenColumns) -> list[DialogueItem]:
    """Items of a history that has none recorded: one for each reply, prompts of ids between."""
    items: list[DialogueItem] = []
    start, num = 0, len(own.ids)
    for end in range(1, num + 1):
        number = own.replies[start]
        if end < num and own.replies[end] == number:
            continue
        name = f"item-{len(items)}"
        if number:
            items.append(DialogueItem(name, "assistant", reply=number))
        else:
            items.append(DialogueItem(name, "prompt", (Ids(own.ids[start:end]),)))
        start = end
    return items


def speech_ids_of(own: TokenColumns, speech: tuple[int, int]) -> list[int]:
    """The speech ids among tokens."""
    return [i for i in own.ids if speech[0] <= i < speech[1]]


def transcript_ids_of(own: TokenColumns, speech: tuple[int, int]) -> list[int]:
    """The ids of the spoken text among a reply's tokens."""
    pairs = zip(own.ids, own.roles, strict=True)
    return [i for i, role in pairs if role is TokenRole.SPOKEN and not speech[0] <= i < speech[1]]
