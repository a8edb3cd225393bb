"""`reference` and `offline` streaming: replies one by one, in the chunks of GLM-4-Voice's
demo or in one piece at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.reference_stream import ReferenceState
from innervoice.codec.slot_output import SlotOutput, SpokenReply
from innervoice.codec.speech_codec import ChunkMode, SpokenChunk
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples

CHUNK_SIZES = (25, 50, 100, 150, 200)
"""Codes of the first, second, ... chunk in `reference` mode; the last size is kept."""


@dataclass(kw_only=True)
class ChunkedReply(SpokenReply):
    """A reply: the codes of its open chunk, closed chunks that wait for a step, how many were
    closed, the decoder's state.

    sizes: of the chunks, none: all codes are one chunk.
    """

    state: ReferenceState
    sizes: tuple[int, ...]
    pending: list[int] = field(default_factory=list)
    closed: list[tuple[int, ...]] = field(default_factory=list)
    num_closed: int = 0

    @property
    def num_waiting(self) -> int:
        """Codes that no step has decoded."""
        return sum(map(len, self.closed)) + len(self.pending)

    def push(self, codes: Sequence[int]) -> None:
        """Take codes in, one by one."""
        for code in codes:
            self.tick()
            self.pending.append(code)

    def tick(self) -> None:
        """Close the open chunk if it is full: the original looks at it when a token arrives,
        before it takes the token in.
        """
        if self.sizes and len(self.pending) >= _size(self.sizes, self.num_closed):
            self.closed.append(tuple(self.pending))
            self.pending.clear()
            self.num_closed += 1


class ChunkedOutput(SlotOutput[ChunkedReply]):
    """The speech output of both modes."""

    def __init__(
        self,
        decoder: SpeechDecoder,
        mode: ChunkMode,
        *,
        num_slots: int = 64,
        tracer: Tracer | None = None,
    ) -> None:
        super().__init__(decoder.format, num_slots, tracer)
        self.mode = mode
        self._decoder = decoder
        self._sizes = CHUNK_SIZES if mode == "reference" else ()

    def next_border(self, num_codes: int) -> int | None:
        """The number of codes that completes the next chunk; None in `offline` mode."""
        if not self._sizes:
            return None
        border = index = 0
        while border <= num_codes:
            border += _size(self._sizes, index)
            index += 1
        return border

    def _begin(self, key: str, place: int) -> ChunkedReply:
        return ChunkedReply(key=key, place=place, state=self._decoder.init_state(), sizes=self._sizes)

    def _is_due(self, reply: ChunkedReply) -> bool:
        return bool(reply.closed) or (reply.is_finished and not reply.is_done)

    def _step(self, replies: list[ChunkedReply]) -> list[SpokenChunk]:
        chunks: list[SpokenChunk] = []
        for reply in replies:
            try:
                self._decode(reply, chunks)
            except Exception as error:
                chunks.append(self._break(reply, error))
        return chunks

    def _decode(self, reply: ChunkedReply, chunks: list[SpokenChunk]) -> None:
        while reply.closed:
            samples, reply.state = self._decoder.push(reply.state, reply.closed.pop(0), final=False)
            chunks.append(SpokenChunk(reply.key, _finite(samples), False))
        if reply.is_finished and not reply.is_done:
            chunks.append(SpokenChunk(reply.key, _finite(self._rest(reply)), True))

    def _rest(self, reply: ChunkedReply) -> Samples:
        codes = tuple(reply.pending)
        reply.pending.clear()
        reply.is_done = True
        if self.mode == "offline":
            return self._decoder.decode(codes)
        samples, reply.state = self._decoder.push(reply.state, codes, final=True)
        return samples

    def _break(self, reply: ChunkedReply, error: Exception) -> SpokenChunk:
        reply.closed.clear()
        return self._failed(reply, len(reply.state.codes), error)


def _size(sizes: tuple[int, ...], index: int) -> int:
    return sizes[min(index, len(sizes) - 1)]


def _finite(samples: Samples) -> Samples:
    if not np.isfinite(samples).all():
        raise ArithmeticError("its samples are not finite")
    return samples
