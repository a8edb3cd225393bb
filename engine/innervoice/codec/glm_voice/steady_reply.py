"""A reply of `steady` streaming: its codes, those already decoded, and the next chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from innervoice.codec.glm_voice.chunks import FrameClock, SteadySettings, TokenChunk, next_border
from innervoice.codec.slot_output import SpokenReply


@dataclass(kw_only=True)
class SteadyReply(SpokenReply):
    """seed: of its noise, with the phases [1, H] that follow; speaker: a vector [1, C];
    block_size: of the flow's encoder.

    codes: tokens from the open block on; begin: tokens decoded; heard: frames given to the vocoder.
    """

    settings: SteadySettings
    clock: FrameClock
    block_size: int
    seed: int
    phases: Tensor
    speaker: Tensor
    codes: list[int] = field(default_factory=list)
    num_codes: int = 0
    begin: int = 0
    heard: int = 0

    def push(self, codes: Sequence[int]) -> None:
        """Take codes in."""
        self.codes.extend(codes)
        self.num_codes += len(codes)

    @property
    def num_waiting(self) -> int:
        """Codes that no step has decoded."""
        return self.num_codes - self.begin

    @property
    def end_frame(self) -> int:
        """Frames that the codes so far make."""
        return self.clock.frames(self.num_codes)

    @property
    def chunk(self) -> TokenChunk | None:
        """The chunk that can be decoded now."""
        if self.is_done or self.begin == self.num_codes:
            return None
        border = next_border(self.begin, self.settings)
        if self.num_codes < border and not self.is_finished:
            return None
        return TokenChunk(self.begin, min(border, self.num_codes), self.settings, self.clock)

    def advance(self) -> None:
        """Note that the chunk is decoded; tokens of the blocks that are closed now are forgotten."""
        chunk, size = self.chunk, self.block_size
        assert chunk is not None, "no chunk was decoded"
        del self.codes[: chunk.end // size * size - chunk.begin // size * size]
        self.begin = chunk.end
