"""EncodedCounts: how many speech tokens were encoded, and when."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class EncodedCounts:
    """Speech tokens that were encoded, repetitions included.

    recomputed_tokens: those encoded again because a louder frame came; late_tokens: those encoded after the
    turn's end.
    """

    encoded_tokens: int = 0
    recomputed_tokens: int = 0
    late_tokens: int = 0

    def add(self, more: EncodedCounts) -> None:
        """Add the counts of another encoder run."""
        self.encoded_tokens += more.encoded_tokens
        self.recomputed_tokens += more.recomputed_tokens
        self.late_tokens += more.late_tokens
