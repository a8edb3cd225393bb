"""GLM-4-Voice's codec behind the engine's seam."""

from __future__ import annotations

from typing import cast, get_args

from innervoice.codec.glm_voice.chunked import ChunkedOutput, ChunkMode
from innervoice.codec.glm_voice.chunks import SteadySettings
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.speech_codec import SpeechOutput
from innervoice.telemetry.trace import Tracer


def speech_output(
    decoder: SpeechDecoder,
    streaming: str | SteadySettings = "steady",
    *,
    num_slots: int = 64,
    tracer: Tracer | None = None,
) -> SpeechOutput:
    """The output of a decoder in a streaming mode, or in `steady` mode with other settings. Raises ValueError."""
    if streaming == "steady":
        return decoder.steady(num_slots=num_slots)
    if isinstance(streaming, SteadySettings):
        return decoder.steady(streaming, num_slots=num_slots)
    if streaming in get_args(ChunkMode):
        return ChunkedOutput(decoder, cast(ChunkMode, streaming), num_slots=num_slots, tracer=tracer)
    raise ValueError(f"streaming mode {streaming!r} is not known: use 'steady', 'offline' or 'reference'")
