"""Edits of a session's items: removed, put in, cut; all of a call or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from innervoice.model.sequence import TokenColumns
from innervoice.model.text.dialogue import DialogueItem
from innervoice.runtime.conversation import Truncate
from innervoice.runtime.interrupt import ReplySize, cut_tokens


class ItemEdits:
    """Items of a session while they are edited, and the tokens of its replies.

    items: of the history, then those that wait. own: the history's tokens. speech: range of speech ids.
    count_heard: seconds of a reply to speech tokens heard.
    """

    def __init__(
        self,
        items: Sequence[DialogueItem],
        own: TokenColumns,
        sizes: dict[int, ReplySize],
        speech: tuple[int, int],
        count_heard: Callable[[float], int],
    ) -> None:
        self.items = list(items)
        self.own = own
        self.sizes = dict(sizes)
        self._speech = speech
        self._count_heard = count_heard

    def delete(self, item_id: str) -> None:
        """Remove an item. Raises ValueError for one that is not there."""
        del self.items[self._place(item_id)]

    def insert(self, items: Sequence[DialogueItem], after: str | None) -> None:
        """Put items behind another, None: at the front.

        Raises ValueError for one that is not there, and for a handle that is taken.
        """
        check_new_ids(self.items, items)
        place = 0 if after is None else self._place(after) + 1
        self.items[place:place] = items

    def truncate(self, edit: Truncate) -> None:
        """Cut an assistant's item. Raises ValueError for another, and for one that is not there."""
        place = self._place(edit.item_id)
        item = self.items[place]
        if item.role != "assistant":
            raise ValueError(f"item {edit.item_id!r} is of role {item.role}: only an assistant's can be cut")
        if not item.reply:
            if not edit.played_ms:
                self.items[place] = replace(item, parts=())
            return
        at = [i for i, reply in enumerate(self.own.replies) if reply == item.reply]
        cut = cut_tokens(
            self.own.at(at),
            self._speech,
            self._count_heard(edit.played_ms / 1e3),
            edit.cut,
            edit.reflection,
            is_over=True,
            size=self.sizes.get(item.reply),
        )
        self.sizes[item.reply] = cut.size
        gone = set(at) - {at[i] for i in cut.places}
        self.own = self.own.at(i for i in range(len(self.own.ids)) if i not in gone)

    def split(self) -> tuple[list[DialogueItem], list[DialogueItem]]:
        """The items up to the last reply, and those behind it, which wait for the next."""
        ends = [i + 1 for i, item in enumerate(self.items) if item.reply]
        end = ends[-1] if ends else 0
        return self.items[:end], self.items[end:]

    def _place(self, item_id: str) -> int:
        for place, item in enumerate(self.items):
            if item.item_id == item_id and not item.is_once:
                return place
        raise ValueError(f"the session has no item {item_id!r}: items() lists those that it has")


def check_new_ids(items: Sequence[DialogueItem], new: Sequence[DialogueItem]) -> None:
    """Raise ValueError when a new item's handle is in use, or two have the same."""
    taken = {item.item_id for item in items}
    for item in new:
        if item.item_id in taken:
            raise ValueError(f"item_id {item.item_id!r} is in use in this session: give another, or None")
        taken.add(item.item_id)
