"""ItemList: the items of a conversation in order, as its client knows them. Pure: nothing is sent from here."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from innervoice.server.errors import ApiError
from innervoice.server.realtime.protocol.session_patch import FormatType

ItemRole = Literal["user", "assistant", "system"]
ItemType = Literal["message", "function_call", "function_call_output"]
PartType = Literal["input_text", "input_audio", "output_text", "output_audio"]
Status = Literal["in_progress", "completed", "incomplete"]
ROOT = "root"
MAX_CHARACTERS = 2**23  # of all items that were inserted


@dataclass
class Part:
    """One part of a message's content.

    text: written, or the transcript of the assistant's speech. audio: bytes of the format, as the
    user spoke them. transcript: of that sound, None: not known.
    """

    type: PartType
    text: str = ""
    transcript: str | None = None
    audio: bytes | None = None
    format: FormatType = "audio/pcm"

    def to_json(self, with_audio: bool = False) -> dict[str, Any]:
        """Return the part as GA shows it."""
        if self.type == "input_audio":
            made: dict[str, Any] = {"type": self.type, "transcript": self.transcript}
            if with_audio and self.audio is not None:
                made["audio"] = base64.b64encode(self.audio).decode()
            return made
        return {"type": self.type, "transcript" if self.type == "output_audio" else "text": self.text}


@dataclass
class ConversationItem:
    """A message, a function call or its output."""

    id: str
    type: ItemType = "message"
    role: ItemRole | None = None
    content: list[Part] = field(default_factory=list)
    status: Status = "completed"
    name: str = ""
    call_id: str = ""
    arguments: str = ""
    output: str = ""

    @property
    def num_characters(self) -> int:
        """Characters of all texts."""
        parts = sum(len(part.text) + len(part.transcript or "") for part in self.content)
        return parts + len(self.arguments) + len(self.output) + len(self.name) + len(self.call_id)

    @property
    def num_audio_bytes(self) -> int:
        """Bytes of all sound."""
        return sum(len(part.audio or b"") for part in self.content)

    @property
    def num_bytes(self) -> int:
        """Bytes of all sound and about those of all text."""
        return self.num_audio_bytes + self.num_characters

    def copy(self) -> ConversationItem:
        """An equal item with parts of its own."""
        return replace(self, content=[replace(part) for part in self.content])

    def to_json(self, with_audio: bool = False) -> dict[str, Any]:
        """Return the item as GA shows it; with_audio: with the user's sound in base64."""
        made: dict[str, Any] = {
            "id": self.id,
            "object": "realtime.item",
            "type": self.type,
            "status": self.status,
        }
        if self.type == "message":
            made |= {"role": self.role, "content": [part.to_json(with_audio) for part in self.content]}
        elif self.type == "function_call":
            made |= {"call_id": self.call_id, "name": self.name, "arguments": self.arguments}
        else:
            made |= {"call_id": self.call_id, "output": self.output}
        return made


class ItemList:
    """Items in the order of the conversation."""

    def __init__(self, max_items: int = 4096) -> None:
        self._order: list[str] = []
        self._items: dict[str, ConversationItem] = {}
        self._lengths: dict[str, int] = {}  # characters of items as they were inserted
        self._num_characters = 0
        self._max_items = max_items

    def copy(self) -> ItemList:
        """Another list of equal items, which shares no item with this one, but the bytes of their sound."""
        made = ItemList(self._max_items)
        made._order = list(self._order)
        made._lengths, made._num_characters = dict(self._lengths), self._num_characters
        made._items = {id: item.copy() for id, item in self._items.items()}
        return made

    @property
    def num_bytes(self) -> int:
        """Bytes of all sound and about those of all text."""
        return sum(item.num_bytes for item in self._items.values())

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[ConversationItem]:
        return iter([self._items[id] for id in self._order])

    def __contains__(self, id: object) -> bool:
        return id in self._items

    @property
    def last_id(self) -> str | None:
        """The id of the last item, None: there is none."""
        return self._order[-1] if self._order else None

    def find(self, id: str) -> ConversationItem | None:
        """Return an item, None: there is none of that id."""
        return self._items.get(id)

    def get(self, id: str, code: str) -> ConversationItem:
        """Return an item. Raises ApiError with the code for an unknown id."""
        if id not in self._items:
            raise ApiError(code, f"The conversation has no item {id[:80]!r}.", "item_id")
        return self._items[id]

    def previous_of(self, id: str) -> str | None:
        """Return the id of the item before another one, None: it is the first."""
        place = self._order.index(id)
        return self._order[place - 1] if place else None

    def check(self, item: ConversationItem, previous: str | None) -> None:
        """Raise ApiError when the item cannot be inserted there: a used id, an unknown predecessor, no room."""
        if item.id in self._items:
            raise ApiError(
                "item_create_duplicate_item_id",
                f"The conversation already has an item {item.id[:80]!r}.",
                "item.id",
            )
        if previous not in (None, ROOT) and previous not in self._items:
            raise ApiError(
                "item_create_invalid_previous_item_id",
                f"The conversation has no item {str(previous)[:80]!r}.",
                "previous_item_id",
            )
        self.check_room()
        if self._num_characters + item.num_characters > MAX_CHARACTERS:
            raise ApiError(
                "invalid_value",
                f"The conversation has {self._num_characters} characters: delete some items first.",
                "item",
            )

    def check_room(self) -> None:
        """Raise ApiError when the list takes no more items."""
        if len(self._order) >= self._max_items:
            raise ApiError(
                "invalid_value", f"The conversation has {len(self._order)} items: delete some first.", "item"
            )

    def insert(self, item: ConversationItem, previous: str | None = None) -> str | None:
        """Insert an item after another one -> the id of its predecessor, None: it is the first.

        previous: None: at the end; "root": at the front. Raises ApiError, as `check`.
        """
        self.check(item, previous)
        place = self._place(previous)
        self._order.insert(place, item.id)
        self._items[item.id] = item
        self._lengths[item.id] = item.num_characters
        self._num_characters += item.num_characters
        return self._order[place - 1] if place else None

    def _place(self, previous: str | None) -> int:
        if previous is None:
            return len(self._order)
        return 0 if previous == ROOT else self._order.index(previous) + 1

    def delete(self, id: str) -> ConversationItem:
        """Take an item out. Raises ApiError for an unknown id."""
        item = self.get(id, "item_delete_invalid_item_id")
        self._order.remove(id)
        del self._items[id]
        self._num_characters -= self._lengths.pop(id)
        return item

    def after(self, id: str) -> list[ConversationItem]:
        """Return the items behind another one."""
        return [self._items[one] for one in self._order[self._order.index(id) + 1 :]]
