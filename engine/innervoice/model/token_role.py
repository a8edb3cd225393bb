"""The role of a token for the reflection weight, and all that follows from it: tags of queries and keys, keys
of pages.

Where a spoken token of a reply looks at a hidden token of the same reply, ln w is added to the score: w is
the schedule's `reflection_weight`, and `log_weight` is ln w everywhere behind it. Attention knows neither
roles nor replies. It compares tags: a query's tag is its reply's number where the token is spoken, a key's
where the token is hidden, and 0 in all other cases; equal tags other than 0 meet. A batch takes its tags from
here, and `begin_step` of the kernels makes the same of a token's kind.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum

from innervoice_kernels.sampling.cursor_columns import TokenKind


class TokenRole(IntEnum):
    """The part that a token plays for the reflection weight."""

    NEUTRAL = 0  # prompt, end of turn
    HIDDEN = 1  # reflection, open, close, done: a key whose score is raised
    SPOKEN = 2  # transcript, speech: a query that raises it
    CALL = 3  # a tool call, with its marks: neither

    @staticmethod
    def of(kind: TokenKind) -> TokenRole:
        """Return the role of an emitted token."""
        if kind.is_hidden:
            return TokenRole.HIDDEN
        if kind.is_call:
            return TokenRole.CALL
        return TokenRole.SPOKEN if kind.is_spoken else TokenRole.NEUTRAL


def reply_tag(reply: int, log_weight: float) -> int:
    """Return the tag of a reply's tokens: its number within the sequence, 0 where no weight is at work."""
    return reply if log_weight else 0


def token_tags(
    fed: range,
    role: TokenRole,
    roles: Sequence[TokenRole],
    replies: Sequence[int],
    log_weights: Sequence[float],
) -> list[int]:
    """Return the tags of some tokens of a sequence: `reply_tag` of those that have the role, 0 of the others."""
    return [replies[i] if roles[i] is role and log_weights[replies[i]] else 0 for i in fed]


def page_key(role: TokenRole, reply: int, log_weight: float) -> int:
    """Return all that a token's keys and values depend on beside the ids before it.

    It is 0 where no reflection weight is at work, so that replies share pages whatever their schedules were.
    """
    if role in (TokenRole.NEUTRAL, TokenRole.CALL) or log_weight == 0.0:
        return 0
    bits: int = struct.unpack("<I", struct.pack("<f", log_weight))[0]
    return bits << 31 | (reply & 0x1FFFFFFF) << 2 | role
