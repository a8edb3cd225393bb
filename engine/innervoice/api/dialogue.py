"""The ids of a session's next turn: rendered, joined with the replies' own tokens, and shortened to fit."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace

from innervoice.api.request_builder import RequestBuilder, RequestOptions, extra_items
from innervoice.model.sequence import TokenColumns
from innervoice.model.text import ChatMessage, ChatTemplate, JsonTokenizer, TextStream
from innervoice.model.text.chat_template import HistoryChanges
from innervoice.model.text.dialogue import DialogueItem, SpokenCodes
from innervoice.model.token_role import TokenRole
from innervoice.runtime.conversation import Item
from innervoice.runtime.history import droppable, join_tokens, transcript_ids_of, without
from innervoice.runtime.request import SessionTurn
from innervoice.runtime.session_state import History

LARGEST_RESERVE = 0.25  # of the context: the most that "auto" keeps free for the reply


@dataclass(frozen=True)
class PlannedTurn:
    """A turn's prompt and its place in the history.

    dropped: handles of the items that were dropped to make room. num_dropped: the turns that they were, an
    unanswered message and a system message counting as one each.
    """

    prompt_ids: list[int]
    turn: SessionTurn
    dropped: tuple[str, ...] = ()
    num_dropped: int = 0


@dataclass(frozen=True)
class TurnPlanner:
    """Finds what a session's sequence must hold for its next reply. Any thread may use it."""

    requests: RequestBuilder

    def shown(self, item: DialogueItem, history: History, *, is_pending: bool = False) -> Item:
        """An item as a session's user sees it."""
        speech = self.requests.vocabulary.speech or (0, 0)
        text = "\n".join(part for part in item.parts if isinstance(part, str))
        num_speech = sum(len(part.codes) for part in item.parts if isinstance(part, SpokenCodes))
        if item.reply:
            own = history.own.of_reply(item.reply)
            text = TextStream(self.requests.tokenizer).feed(transcript_ids_of(own, speech))
            num_speech = sum(speech[0] <= i < speech[1] for i in own.ids)
        return Item(item.item_id, item.role, text, num_speech, item.reply_id, is_pending)

    @property
    def reads_words(self) -> bool:
        """Whether a turn depends on the words of the replies before it, for which their tokens are needed."""
        return self._chat is not None

    @property
    def _chat(self) -> ChatTemplate | None:
        tokenizer = self.requests.tokenizer
        return tokenizer.chat if isinstance(tokenizer, JsonTokenizer) else None

    def _messages(self, items: Sequence[DialogueItem], own: TokenColumns) -> list[ChatMessage] | None:
        """What was said, as a chat template takes it; None: there is none, or ids are among it."""
        if self._chat is None or not all(isinstance(part, str) for item in items for part in item.parts):
            return None
        return [
            {
                "role": item.role,
                "content": self._words(item.reply, own) if item.reply else "\n".join(map(str, item.parts)),
            }
            for item in items
        ]

    def _words(self, reply: int, own: TokenColumns) -> str:
        """The text that is heard of a reply."""
        tokens = zip(own.ids, own.roles, own.replies, strict=True)
        stream = TextStream(self.requests.tokenizer)
        heard = (i for i, role, number in tokens if number == reply and role is TokenRole.SPOKEN)
        return stream.feed(heard) + stream.flush()

    def plan_plain(
        self, history: History, new: Sequence[DialogueItem], options: RequestOptions
    ) -> PlannedTurn | None:
        """A turn of one item that only adds to the history, for which the history's tokens need not be known;
        None: it is none. Raises ValueError.
        """
        head, own_head = self._heads(history, new, options)
        if not self._only_adds(history, head) or options.extra_system is not None:
            return None
        if len(new) != 1 or len(new[0].parts) != 1 or new[0].role not in ("user", "prompt"):
            return None
        earlier = self._messages(history.items, history.own)
        try:
            ids = self.requests.turn_ids(new[0], head, options, first=not history.items, earlier=earlier)
        except HistoryChanges:  # the template writes earlier turns otherwise now
            return None
        if options.truncation == "auto" and history.num_tokens + len(ids) > self.limit(options):
            return None
        items = (*history.items, *new)
        return PlannedTurn(ids, SessionTurn(items, head, own_head, item_id=options.item_id))

    def plan(self, history: History, new: Sequence[DialogueItem], options: RequestOptions) -> PlannedTurn:
        """Any turn. history: with its tokens. Raises ValueError for what the template does not take."""
        head, own_head = self._heads(history, new, options)
        old = [item for item in history.items if not item.is_once]
        new = [*new, *extra_items(options)]
        items, num_dropped = [*old, *new], 0
        if options.truncation == "auto":
            items, num_dropped = self._shortened(old, new, head, history.own, options)
        runs = self.requests.render(items, head, options)
        said = self._messages(items, history.own)
        if said is not None and self._chat is not None:
            opening = [] if head is None else [{"role": "system", "content": head}]
            self._chat.check_replies([*opening, *said], self.requests.variables_of(options))
        tokens = join_tokens(runs, items, history.own)
        turn = SessionTurn(
            items=tuple(items),
            head=head,
            own_head=own_head,
            history=None if tokens == history.own else tokens,
            item_id=options.item_id,
        )
        kept = {item.item_id for item in items}
        dropped = tuple(item.item_id for item in (*old, *new) if item.item_id not in kept)
        return PlannedTurn(runs[-1], turn, dropped, num_dropped)

    def head_ids(
        self,
        history: History,
        before: Sequence[DialogueItem],
        codes: Sequence[int],
        options: RequestOptions,
    ) -> list[int]:
        """The beginning of the prompt of a user who still speaks, behind messages that wait.

        The history is not stale. Raises ValueError.
        """
        spoken = DialogueItem("", "user", (SpokenCodes(tuple(codes)),))
        head, _ = self._heads(history, [*before, spoken], options)
        if not before:
            return self.requests.spoken_head(codes, head, first=not history.items)
        run = self.requests.render([*history.items, *before], head, options, opens=False)[-1]
        return [*run, *self.requests.spoken_head(codes, head, first=False)]

    def is_stale(self, history: History, options: RequestOptions) -> bool:
        """Whether the next turn begins with another history, as far as is known before it."""
        if history.paused is not None:
            return False
        return not self._only_adds(history, self._heads(history, (), options)[0])

    def renewed(self, history: History, options: RequestOptions) -> History:
        """The history that the next turn begins with. history: with its tokens. Raises ValueError."""
        head, own_head = self._heads(history, (), options)
        items = [item for item in history.items if not item.is_once]
        own = self.rendered(items, head, history.own, options)
        return replace(history, items=items, own=own, num_tokens=len(own.ids), head=head, own_head=own_head)

    def rendered(
        self, items: Sequence[DialogueItem], head: str | None, own: TokenColumns, options: RequestOptions
    ) -> TokenColumns:
        """The tokens of a history that ends with a reply. Raises ValueError."""
        return join_tokens(self.requests.render(items, head, options), items, own)

    def limit(self, options: RequestOptions) -> int:
        """The most tokens of history and prompt before oldest turns are dropped: the context less the reply's
        most tokens, or less a quarter of it.
        """
        context = self.requests.max_model_len
        most = 2000 if options.sampling is None else options.sampling.max_new_tokens
        return context - max(1, min(most, int(LARGEST_RESERVE * context)))

    def _heads(
        self, history: History, new: Sequence[DialogueItem], options: RequestOptions
    ) -> tuple[str | None, str | None]:
        """The system text before this reply, and the one that the session goes back to."""
        items = [*history.items, *new]
        if items and items[0].role == "prompt":  # it has its own, or none
            return None, None
        own = options.system
        if own is None:
            is_known = history.items or history.own_head is not None
            own = history.own_head if is_known else self.requests.default_system(items)
        head = own if options.instructions is None else options.instructions
        return self.requests.with_tools(head, options), own

    def _only_adds(self, history: History, head: str | None) -> bool:
        if not history.items:
            return True
        return head == history.head and not any(item.is_once for item in history.items)

    def _shortened(
        self,
        old: Sequence[DialogueItem],
        new: Sequence[DialogueItem],
        head: str | None,
        own: TokenColumns,
        options: RequestOptions,
    ) -> tuple[list[DialogueItem], int]:
        """The items without the oldest, so that they fit -> items, number of turns and messages dropped.

        Turns are dropped until the rest fills `retention_ratio` of the room, and what lies behind them in
        `droppable` only as far as it must be.
        """
        items = [*old, *new]
        groups, num_turns = droppable(old, new)

        def size(num_groups: int) -> int:
            kept = without(items, groups[:num_groups])
            runs = self.requests.render(kept, head, options)
            return len(join_tokens(runs, kept, own).ids) + len(runs[-1])

        def first_within(most: int, low: int, high: int) -> int:
            return low + bisect_left(range(low, high), -most, key=lambda num: -size(num))

        limit = self.limit(options)
        if size(0) <= limit:
            return items, 0
        num = first_within(int(options.retention_ratio * limit), 0, num_turns)
        if num == num_turns and size(num) > limit:
            num = first_within(limit, num_turns, len(groups))
        return without(items, groups[:num]), num
