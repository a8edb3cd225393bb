"""The host's cursor takes a token that the device's cursor has emitted."""

from __future__ import annotations

from collections import abc
from dataclasses import replace

from innervoice.model.device_step import Emitted
from innervoice.runtime.active_reply import ActiveReply
from innervoice.schedule import Emission, TokenKind
from innervoice_kernels.sampling.cursor_columns import Ending


class CursorMismatch(RuntimeError):
    """The device's cursor and the host's disagree about a token."""


def follow(reply: ActiveReply, emitted: Emitted) -> Emission:
    """Advance the host's cursor by the device's token.

    Raises CursorMismatch where the host would have emitted another.
    """
    cursor = reply.cursor
    if emitted.discarded:
        if cursor.forced is not None or not cursor.discards:
            raise CursorMismatch(_mismatch(reply, emitted, "no draw that is discarded"))
        cursor.finish_text()
    is_drawn = cursor.forced is None
    if is_drawn and emitted.token not in cursor.mask:
        raise CursorMismatch(_mismatch(reply, emitted, f"a draw from {cursor.mask}"))
    emission = cursor.draw(emitted.token) if is_drawn else cursor.emit_forced()
    kind = TokenKind.END if emitted.kind is None else emitted.kind
    expected = Emission(emitted.token, kind, emitted.segment, emitted.forced)
    if emission is None or emission != expected or cursor.is_done != (emitted.ending is Ending.STOP):
        raise CursorMismatch(_mismatch(reply, emitted, f"{emission}, ended: {cursor.is_done}"))
    return emission


def check_alike(emitted: Emitted, further: abc.Sequence[Emitted | None]) -> None:
    """Raise CursorMismatch where the rows of a reply's contexts emitted different tokens."""
    if any(one is None or replace(one, row=emitted.row) != emitted for one in further):
        raise CursorMismatch(f"the contexts of this reply drew {[emitted, *further]}: please report this")


def _mismatch(reply: ActiveReply, emitted: Emitted, expected: str) -> str:
    return (
        f"token {reply.num_tokens} of this reply is {emitted} on the device, and by its schedule {expected}: "
        "please report this"
    )
