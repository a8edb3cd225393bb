"""The ids of earlier answers that the body of a chat completion names."""

from __future__ import annotations

import re

_ID = re.compile(rb'"(audio_[0-9a-f]{24})"')


def audio_ids(body: bytes) -> list[str]:
    """Find the ids in their order, without reading the JSON, which may hold minutes of sound."""
    return [found.decode() for found in _ID.findall(body)]
