"""A reply as a row of the device takes it over: its sequence's last token and pages, its cursor, its sampling."""

from __future__ import annotations

from dataclasses import replace

from innervoice.model.device_step import RowStart
from innervoice.model.sequence import Sequence
from innervoice.model.token_role import TokenRole
from innervoice.runtime.active_reply import ActiveReply
from innervoice.schedule import TokenKind

# A kind for each role, as the reflection weight tells them apart.
_KINDS = {
    TokenRole.NEUTRAL: None,
    TokenRole.HIDDEN: TokenKind.REFLECTION,
    TokenRole.SPOKEN: TokenKind.SPEECH,
    TokenRole.CALL: TokenKind.TOOL,
}


def row_start(reply: ActiveReply, sequence: Sequence, room: int) -> RowStart:
    """Begin a row with one of a reply's sequences. room: tokens that the longest one may still get."""
    sampling, number = reply.request.sampling, reply.number_in(sequence)
    return RowStart(
        token=sequence.ids[-1],
        position=len(sequence.ids) - 1,
        pages=sequence.table.pages,
        program=reply.request.program,
        sampling=replace(sampling, max_new_tokens=min(sampling.max_new_tokens, reply.num_tokens + room)),
        caps=reply.own_caps,
        reply=number,
        log_weight=sequence.log_weights[number],
        kind=_KINDS[sequence.roles[-1]],
        cursor=reply.cursor.state,
        num_tokens=reply.num_tokens,
    )
