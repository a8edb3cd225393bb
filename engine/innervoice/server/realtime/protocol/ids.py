"""The ids that the server gives to sessions, items, responses, calls and events."""

from __future__ import annotations

import secrets
from typing import Literal

Prefix = Literal["sess", "conv", "item", "resp", "call", "event", "ek", "resume"]


def new_id(prefix: Prefix) -> str:
    """Return a random id such as item_5f0c..., of at most 32 characters."""
    return f"{prefix}_{secrets.token_hex(12)}"
