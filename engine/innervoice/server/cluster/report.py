"""ReplicaReport: what a replica says of itself, from which new sessions are placed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ReplicaReport:
    """The state of one replica at one time.

    number: grows with each report of the replica. first_audio_s: expected seconds from a question that came now
    to its first sound, 0: nothing was measured yet. num_sessions: sessions that it holds, with those whose client may
    come back. max_sessions: the most that it holds. num_running: replies that are being made or wait. is_draining:
    whether it takes none any more.
    """

    number: int
    first_audio_s: float
    num_sessions: int
    max_sessions: int
    num_running: int = 0
    is_draining: bool = False

    def to_dict(self) -> dict[str, Any]:
        """JSON values, which `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ReplicaReport | None:
        """Read what `to_dict` gave, None: a replica that has not reported yet, or of another version."""
        try:
            return cls(**values)
        except TypeError:
            return None
