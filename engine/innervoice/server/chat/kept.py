"""KeptAnswers: earlier answers, which later requests name by the id of their sound."""

from __future__ import annotations

import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

KEPT_S = 3600
MAX_KEPT = 4096
MAX_BYTES = 256 * 2**20


@dataclass(frozen=True)
class KeptAnswer:
    """An answer that was given.

    dialogue: a digest of the messages before it. export: the session that it ended with, from which it goes
    on. expires_at: seconds since 1970.
    """

    audio_id: str
    transcript: str
    dialogue: bytes
    export: bytes
    expires_at: int


class KeptAnswers:
    """Answers of the last hour, as far as they fit; the oldest go first. For one event loop.

    on_keep: called with each answer that is kept.
    """

    def __init__(self, max_bytes: int = MAX_BYTES, clock: Callable[[], float] = time.time) -> None:
        self._max_bytes = max_bytes
        self._clock = clock
        self._kept: OrderedDict[str, KeptAnswer] = OrderedDict()
        self._num_bytes = 0
        self.on_keep: Callable[[KeptAnswer], None] = lambda reply: None

    def new_id(self) -> tuple[str, int]:
        """Make the id of an answer that begins, and the time until which it will be kept."""
        return f"audio_{uuid.uuid4().hex[:24]}", int(self._clock()) + KEPT_S

    def keep(self, reply: KeptAnswer) -> None:
        """Keep an answer until it expires."""
        self.add(reply)
        self.on_keep(reply)

    def add(self, reply: KeptAnswer) -> None:
        """Do the same with an answer that another server gave."""
        before = self._kept.pop(reply.audio_id, None)
        self._kept[reply.audio_id] = reply
        self._num_bytes += len(reply.export) - (0 if before is None else len(before.export))
        while len(self._kept) > MAX_KEPT or self._num_bytes > self._max_bytes or self._oldest_is_over():
            _, oldest = self._kept.popitem(last=False)
            self._num_bytes -= len(oldest.export)

    def find(self, audio_id: str) -> KeptAnswer | None:
        """The answer of an id, None when it is not kept any more."""
        found = self._kept.get(audio_id)
        return None if found is None or found.expires_at <= self._clock() else found

    def all(self) -> list[KeptAnswer]:
        """All that are kept, the oldest first."""
        return list(self._kept.values())

    def _oldest_is_over(self) -> bool:
        oldest = next(iter(self._kept.values()), None)
        return oldest is not None and oldest.expires_at <= self._clock()
