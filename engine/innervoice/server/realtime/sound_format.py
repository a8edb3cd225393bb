"""Sound between the protocol's formats and samples."""

from __future__ import annotations

import numpy as np

from innervoice.server.errors import ApiError
from innervoice.server.g711 import decode_alaw, decode_ulaw, encode_alaw, encode_ulaw
from innervoice.server.realtime.protocol.session_patch import FormatType
from innervoice.types import Pcm16

MAX_APPEND_BYTES = 15 * 2**20


def decode(data: bytes, kind: FormatType, param: str = "audio") -> Pcm16:
    """Decode a client's sound to samples [n]. Raises ApiError for half a sample and for too many bytes."""
    if len(data) > MAX_APPEND_BYTES:
        raise ApiError(
            "invalid_value", f"The sound has {len(data)} bytes: at most {MAX_APPEND_BYTES} fit.", param
        )
    if kind == "audio/pcmu":
        return decode_ulaw(data)
    if kind == "audio/pcma":
        return decode_alaw(data)
    if len(data) % 2:
        raise ApiError("invalid_value", f"The sound has {len(data)} bytes, and samples have two each.", param)
    return np.frombuffer(data, dtype="<i2").astype(np.int16)


def encode(pcm: Pcm16, kind: FormatType) -> bytes:
    """Encode samples [n] for a client."""
    if kind == "audio/pcmu":
        return encode_ulaw(np.ascontiguousarray(pcm))
    if kind == "audio/pcma":
        return encode_alaw(np.ascontiguousarray(pcm))
    return pcm.astype("<i2").tobytes()
