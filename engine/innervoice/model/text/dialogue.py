"""DialogueItem: one message of a dialogue as a prompt template takes it, and its JSON form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from innervoice.model.rows import is_id
from innervoice.types import Ids

Role = Literal["system", "user", "assistant", "tool"]
DialogueRole = Role | Literal["prompt"]
_ROLES = (*get_args(Role), "prompt")


@dataclass(frozen=True)
class SpokenCodes:
    """A recording as speech codes."""

    codes: tuple[int, ...]


ItemPart = str | SpokenCodes | Ids
"""A text, a recording, or ids that are used as they are."""


@dataclass(frozen=True)
class DialogueItem:
    """A message with its parts, or a reply that the model made.

    role "prompt": ids that stand in the dialogue without a template, up to where the reply begins. reply:
    number of the reply within its sequence, whose tokens are the content; 0: the parts are. is_once: the item
    counts for the reply behind it and is left out afterwards.
    """

    item_id: str
    role: DialogueRole
    parts: tuple[ItemPart, ...] = ()
    reply: int = 0
    reply_id: str | None = None
    is_once: bool = False

    @property
    def has_speech(self) -> bool:
        """Whether a recording is among the parts."""
        return any(isinstance(part, SpokenCodes) for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        """JSON values, which `from_json` reads."""
        return {
            "item_id": self.item_id,
            "role": self.role,
            "parts": [_part_to_json(part) for part in self.parts],
            "reply": self.reply,
            "reply_id": self.reply_id,
            "is_once": self.is_once,
        }

    @classmethod
    def from_json(cls, values: Any) -> DialogueItem:
        """Read what `to_json` gave. Raises ValueError for other keys, types and roles."""
        keys = ("item_id", "role", "parts", "reply", "reply_id", "is_once")
        if not isinstance(values, Mapping) or values.keys() != set(keys):
            raise ValueError(f"an item is {str(values)[:80]}: it must be an object of {', '.join(keys)}")
        item_id, role, parts, reply, reply_id, is_once = (values[key] for key in keys)
        for name, holds, expected in (
            ("item_id", isinstance(item_id, str), "text"),
            ("role", isinstance(role, str) and role in _ROLES, f"one of {', '.join(_ROLES)}"),
            ("parts", isinstance(parts, list), "a list"),
            ("reply", type(reply) is int and reply >= 0, "0 or more"),
            ("reply_id", reply_id is None or isinstance(reply_id, str), "null or text"),
            ("is_once", isinstance(is_once, bool), "true or false"),
        ):
            if not holds:
                raise ValueError(f"an item's {name} is {str(values[name])[:80]}: it must be {expected}")
        if reply and (role != "assistant" or parts):
            raise ValueError(
                f"item {item_id[:80]!r} is reply {reply} with role {role!r} and {len(parts)} parts: "
                "a reply is an assistant's, and has its content in the session's ids"
            )
        return cls(item_id, role, tuple(map(_part_from_json, parts)), reply, reply_id, is_once)


def _part_to_json(part: ItemPart) -> list[Any]:
    if isinstance(part, str):
        return ["text", part]
    return ["codes", list(part.codes)] if isinstance(part, SpokenCodes) else ["ids", list(part.ids)]


def _part_from_json(values: Any) -> ItemPart:
    kind, content = values if isinstance(values, list) and len(values) == 2 else (None, None)
    if kind == "text" and isinstance(content, str):
        return content
    if isinstance(content, list) and all(map(is_id, content)):
        if kind == "codes":
            return SpokenCodes(tuple(content))
        if kind == "ids":
            return Ids(content)
    raise ValueError(
        f"an item's part is {str(values)[:80]}: it must be text, codes or ids, and their content"
    )
