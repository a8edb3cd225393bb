"""EngineHistory: the engine's session behind an item list, and the edits that wait until no reply runs."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any

from innervoice.api.session import Session
from innervoice.runtime.conversation import Delete, Edit, Insert, Message, Truncate
from innervoice.runtime.stream import Stream
from innervoice.server.errors import ApiError
from innervoice.server.realtime.engine_messages import to_message
from innervoice.server.realtime.items import ConversationItem, ItemList
from innervoice.server.realtime.spoken_text import SpokenText
from innervoice.types import Heard

log = logging.getLogger(__name__)
MAX_QUICK_TEXT = 4096  # characters that are encoded within a millisecond or so


@dataclass
class SpokenItem:
    """An assistant's item and its sound.

    sent_s: seconds that were sent. frozen_s: seconds that were heard when the user broke in, None: nobody did.
    cut_s: the part that the history keeps, None: all. is_of_session: whether the engine's session made it.
    reply_id: the engine's name for the reply, None: it was not asked for.
    """

    item: ConversationItem
    spoken: SpokenText
    sent_s: float = 0.0
    frozen_s: float | None = None
    cut_s: float | None = None
    is_of_session: bool = True
    reply_id: str | None = None

    def cut(self, heard_s: float) -> None:
        """Keep the text that was heard, by the estimate of `SpokenText`."""
        self.cut_s = heard_s
        if self.item.content:
            self.item.content[0].text = self.spoken.until(heard_s, self.sent_s)


@dataclass(frozen=True)
class PendingEdits:
    """Changes of a session's history that wait for its next reply.

    cuts: ids of replies and the milliseconds that are kept of them. deleted: ids of items that leave.
    """

    cuts: Mapping[str, float]
    deleted: Set[str]


@dataclass
class EngineHistory:
    """The engine's session of a conversation.

    What comes at the end of the list is given to the session at once. All else waits for `settle`, which compares
    the list with the session: items between others, recordings and long texts, which take time to encode, and
    deletions. given: ids that the session was given, whether it still has them or not. on_heard: called with an
    item and what an interruption left of it. can_call: whether the model calls tools.
    """

    session: Session
    items: ItemList
    on_heard: Callable[[ConversationItem, Heard], None] = lambda item, heard: None
    can_call: bool = False
    given: set[str] = field(default_factory=set)
    spoken: dict[str, SpokenItem] = field(default_factory=dict)
    last: SpokenItem | None = None
    _stale: set[str] = field(default_factory=set)  # ids whose item in the session is an earlier one
    _truncations: list[Truncate] = field(default_factory=list)
    _num_announced: int = 0  # replies that the session has not been asked for yet

    def add(self, item: ConversationItem) -> None:
        """Give the engine an item that was inserted into the list. Raises ApiError when it cannot read it."""
        is_quick = item.num_characters <= MAX_QUICK_TEXT and not any(part.audio for part in item.content)
        is_last = item.id == self.items.last_id
        if not is_quick or not is_last or self.is_asking or item.id in self._stale:
            return
        message = to_message(item, self.items, can_call=self.can_call)
        if message is None:
            return
        try:
            self.session.append([message])
        except ValueError as error:
            raise ApiError("invalid_value", f"{error}.", "item") from None
        self.given.add(item.id)

    @property
    def is_asking(self) -> bool:
        """Whether a reply was announced that the session has not been asked for: new items must not join it."""
        return self._num_announced > 0

    def add_utterance(self, item: ConversationItem) -> None:
        """Note an item whose sound was committed to the session."""
        self.given.add(item.id)

    def add_calls(self, spoken: SpokenItem, calls: list[ConversationItem]) -> None:
        """Note the calls of a reply, which the session has with it."""
        if spoken.is_of_session and spoken.item.id in self.given:
            self.given.update(call.id for call in calls)

    def add_detached(self, spoken: SpokenItem) -> None:
        """Take in a reply that another context made."""
        spoken.is_of_session = False
        self.spoken[spoken.item.id] = spoken

    def remove(self, item: ConversationItem) -> None:
        """Note that an item has left the list."""
        if item.id in self.given:
            self.given.discard(item.id)
            self._stale.add(item.id)
        self.spoken.pop(item.id, None)
        if self.last is not None and self.last.item is item:
            self.last = None

    async def truncate(self, id: str, played_ms: float) -> float:
        """Cut an assistant's item to the sound that was heard -> milliseconds that are kept.

        A longer time than was sent, or than an earlier cut, changes nothing.
        """
        spoken = self.spoken.get(id)
        if spoken is None:
            return 0.0
        most_s = spoken.sent_s if spoken.cut_s is None else spoken.cut_s
        heard_s = min(played_ms / 1e3, most_s)
        if heard_s < most_s or spoken.frozen_s is not None:
            await self._cut(spoken, heard_s)
        return round(1e3 * heard_s)

    @property
    def pending(self) -> PendingEdits:
        """The edits of the session's history that the next reply makes before it begins."""
        heard = {
            spoken.item.id: 1e3 * min(spoken.frozen_s, spoken.sent_s)
            for spoken in self.spoken.values()
            if spoken.frozen_s is not None and spoken.is_of_session and spoken.item.id in self.given
        }
        cuts = {str(one.item_id): one.played_ms for one in self._truncations} | heard
        return PendingEdits(cuts, set(self._stale))

    @pending.setter
    def pending(self, edits: PendingEdits) -> None:
        self._truncations = [Truncate(id, played_ms) for id, played_ms in edits.cuts.items()]
        self._stale = set(edits.deleted)

    async def _cut(self, spoken: SpokenItem, heard_s: float) -> None:
        spoken.frozen_s = None
        spoken.cut(heard_s)
        id, played_ms = spoken.item.id, 1e3 * heard_s
        if spoken is self.last:
            with contextlib.suppress(ValueError):  # more than the engine sent
                heard = await self.session.ainterrupt(played_ms, cut="transcript", reply_id=spoken.reply_id)
                if spoken.item.content:
                    spoken.item.content[0].text = heard.transcript
                self.on_heard(spoken.item, heard)
        elif not spoken.is_of_session and id in self.given:
            self.given.discard(id)
            self._stale.add(id)
        elif id in self.given:
            self._truncations.append(Truncate(id, played_ms))

    def announce(self) -> list[ConversationItem]:
        """Note that a reply to the list as it is now has been promised -> the items."""
        self._num_announced += 1
        return list(self.items)

    def asked(self) -> None:
        """Note that the session has been asked for an announced reply, or never will be."""
        self._num_announced -= 1

    async def reply(self, spoken: SpokenItem, answered: list[ConversationItem], **options: Any) -> Stream:
        """Answer the items of `announce`; the reply becomes an item. Raises what `Session.reply` raises.

        Only while no reply runs.
        """
        await self._settle(answered)
        stream = await self.session.areply([], item_id=spoken.item.id, **options)
        self.last = spoken
        spoken.reply_id = stream.reply_id
        self.given.add(spoken.item.id)
        self.spoken[spoken.item.id] = spoken
        if spoken.item.id not in self.items:  # deleted while the engine was asked
            self.remove(spoken.item)
        return stream

    async def _settle(self, answered: list[ConversationItem]) -> None:
        """Make the session's items those of the list."""
        for spoken in list(self.spoken.values()):
            if spoken.frozen_s is not None:
                await self._cut(spoken, min(spoken.frozen_s, spoken.sent_s))
        is_new = any(item.id not in self.given for item in answered)
        if not (is_new or self._stale or self._truncations):
            return
        there = [item.item_id for item in await self.session.aitems()]
        new = [item for item in answered if item.id not in self.given and self.items.find(item.id) is item]
        edits: list[Edit] = [Delete(id) for id in there if id in self._stale]
        kept = [id for id in there if id not in self._stale]
        edits += [one for one in self._truncations if one.item_id in kept]
        edits += self._insertions(new, answered, set(kept))
        self._stale.clear()
        self._truncations.clear()
        await self._edit(edits)

    def _insertions(
        self, new: list[ConversationItem], answered: list[ConversationItem], there: set[str]
    ) -> list[Edit]:
        """Insert items, each behind the nearest before it that is there; they count as given."""
        made: list[Edit] = []
        for item in new:
            message = to_message(item, answered, can_call=self.can_call)
            if message is not None:
                made.append(Insert([message], after=_nearest_before(item, answered, there)))
                there.add(item.id)
                self.given.add(item.id)
        return made

    async def _edit(self, edits: list[Edit]) -> None:
        """Apply edits, or those of them that can be applied."""
        try:
            if edits:
                await self.session.aedit(*edits)
            return
        except ValueError as error:
            log.info("the history could not be edited at once: %s", error)
        for edit in edits:
            try:
                await self.session.aedit(edit)
            except ValueError as error:
                log.info("an edit of the history was left out: %s", error)

    def as_messages(self, items: list[ConversationItem]) -> list[Message]:
        """Write items as messages without handles, for a reply in a context of its own."""
        made = [
            message
            for item in items
            if (message := to_message(item, self.items, can_call=self.can_call)) is not None
        ]
        return [Message(one.role, one.content) for one in made]


def _nearest_before(item: ConversationItem, answered: list[ConversationItem], there: set[str]) -> str | None:
    """The id of the nearest item before another one that is there, None: there is none."""
    found = None
    for one in answered:
        if one is item:
            break
        if one.id in there:
            found = one.id
    return found
