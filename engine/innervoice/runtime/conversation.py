"""Messages that go into a dialogue, the items of a session's history, and edits of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Annotated, Any

import numpy as np

from innervoice.fields import Encodable, Length, NotNegative, read_fields, types_of
from innervoice.model.text.dialogue import Role
from innervoice.runtime.interrupt import Behind, Cut
from innervoice.types import Ids, Text, ToolCall

ItemHandle = Annotated[str, Length(512), Encodable()]
Content = Text | Ids | ToolCall | PathLike[str] | bytes | tuple[np.ndarray, int]
"""One part of a message: typed text, ids, a call, or a recording as a path, file bytes or samples with their rate."""


@dataclass(frozen=True)
class _Named:
    """The fields of a message that its annotations describe wholly."""

    role: Role
    item_id: ItemHandle | None


@dataclass(frozen=True)
class Message:
    """A message of a dialogue: role "system", "user", "assistant" or "tool", and one part of content or several.

    A message of role "tool" is the result of a call. A recording may stand in a user's message alone, a ToolCall
    in an assistant's. Ids are used as they are within the message, such as an
    assistant's reply as it was drawn. A bare string is refused, as it could be a path: use Text or Path.
    item_id: the handle of the item that the message becomes, None: one is made. Raises ValueError.
    """

    role: Role
    content: Content | Sequence[Content]
    item_id: str | None = None

    def __post_init__(self) -> None:
        types = types_of(_Named)
        types["role"].read(self.role, "role")
        types["item_id"].read(self.item_id, "item_id")
        check_item_id(self.item_id)
        if not self.parts:
            raise ValueError(f"the content of a message of role {self.role} is empty: give at least one part")
        for part in self.parts:
            if isinstance(part, str):
                raise ValueError(
                    f"content holds the string {part[:40]!r}: use Text(...) for words, pathlib.Path(...) for a file"
                )
            is_recording = _is_recording(part)
            if not is_recording and not isinstance(part, Text | Ids | ToolCall):
                raise ValueError(
                    f"content holds a {type(part).__name__}: use Text, Ids, a Path, bytes, or (samples, rate)"
                )
            if isinstance(part, ToolCall) and self.role != "assistant":
                raise ValueError(
                    f"a message of role {self.role} holds a ToolCall: only an assistant's may, use Text"
                )
            if is_recording and self.role != "user":
                raise ValueError(
                    f"a message of role {self.role} holds a recording: only a user's may, use Text or Ids"
                )

    @property
    def parts(self) -> tuple[Content, ...]:
        """The parts of the content, one or several."""
        content: Any = self.content
        is_several = isinstance(content, list | tuple) and not _is_recording(content)
        return tuple(content) if is_several else (content,)


@dataclass(frozen=True)
class Item:
    """A message or reply in a session's history, or one that waits for the next reply.

    text: of typed parts, and the transcript of a reply. num_speech_tokens: of recordings, or spoken in a
    reply. reply_id: of the reply that made it, None for a message. is_pending: no reply has answered it yet.
    """

    item_id: str
    role: str
    text: str
    num_speech_tokens: int
    reply_id: str | None = None
    is_pending: bool = False


@dataclass(frozen=True)
class Delete:
    """Remove an item from a session's history. Raises ValueError for a handle that is none."""

    item_id: ItemHandle

    def __post_init__(self) -> None:
        read_fields(self)


@dataclass(frozen=True)
class Insert:
    """Put messages behind the item `after`; None: at the front. Raises ValueError for other types."""

    messages: Sequence[Message]
    after: ItemHandle | None = None

    def __post_init__(self) -> None:
        read_fields(self)


@dataclass(frozen=True)
class Truncate:
    """Cut a reply of the history to the part that was heard in played_ms milliseconds, with `cut` and
    `reflection` as in `Session.interrupt`.

    More than the reply has leaves it whole. An assistant's message without speech tokens is emptied at 0 and
    else left whole. Raises ValueError.
    """

    item_id: ItemHandle
    played_ms: NotNegative
    cut: Cut = "transcript"
    reflection: Behind = "drop"

    def __post_init__(self) -> None:
        read_fields(self)


Edit = Delete | Insert | Truncate


def check_item_id(item_id: str | None) -> None:
    """Raise ValueError for a handle without a character."""
    if item_id == "":
        raise ValueError("item_id is '': use text of at least one character, or None")


def _is_recording(part: object) -> bool:
    if isinstance(part, tuple):
        return len(part) == 2 and isinstance(part[0], np.ndarray)
    return isinstance(part, PathLike | bytes)
