"""Streaming as GLM-4-Voice's own decoder does it, quirks included: the flow runs over everything so
far at each chunk, chunks meet in a Hamming cross-fade of log-mel frames, and HiFT repeats one mel
frame and 256 source samples.

Kept as they are: the window's halves sum to about 1.07; the repeated frame also enters the flow's prompt, so
that from the third chunk on one frame is lost a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from innervoice.checkpoint.speech_decoder import MEL_HOP, MEL_RATE
from innervoice.codec.glm_voice.flow import Flow, noise_generator
from innervoice.codec.glm_voice.hift import Hift
from innervoice.types import Samples

CACHED_FRAMES = 1
CACHED_SAMPLES = CACHED_FRAMES * MEL_HOP
_OVERLAP_CODES = 5


@dataclass(frozen=True)
class ReferenceState:
    """One reply so far: the codes decoded, and all mel frames given to HiFT [1, C, P],
    which are the flow's prompt.

    overlap [1, C, 34]: the last frames, not yet heard; hift_mel [1, C, 1], hift_source [1, 1, 256]: what HiFT
    repeats. The last three are None before the first chunk.
    """

    codes: tuple[int, ...]
    mel: Tensor
    overlap: Tensor | None = None
    hift_mel: Tensor | None = None
    hift_source: Tensor | None = None


class ReferenceStream:
    """The stream's formulas over a flow and a vocoder; the state is an argument."""

    def __init__(self, flow: Flow, hift: Hift, vocoder_noise: bool, device: str | torch.device) -> None:
        self._flow = flow
        self._hift = hift
        self._noise = vocoder_noise
        self._device = device
        self.overlap = int(_OVERLAP_CODES / flow.config.token_rate * MEL_RATE / MEL_HOP)  # frames

    def init_state(self) -> ReferenceState:
        """The state before the first chunk."""
        return ReferenceState(
            (), torch.empty(1, self._flow.config.mel_channels, 0, device=self._device, dtype=torch.float32)
        )

    def push(
        self, state: ReferenceState, codes: tuple[int, ...], final: bool
    ) -> tuple[Samples, ReferenceState]:
        """Decode one chunk; after the final one the state is that of a new reply.

        Raises ValueError when a first chunk that is not final is too short to
        leave a frame before the overlap.
        """
        generator = noise_generator()
        mel = self._flow(self._tensor(codes), self._tensor(state.codes), state.mel, generator=generator)
        mel = _join(mel, state, self.overlap)
        if final:
            return self._render(mel, state, generator)[0], self.init_state()
        mel, overlap = mel[..., : -self.overlap], mel[..., -self.overlap :]
        if mel.shape[-1] == 0:
            raise ValueError(
                f"a chunk of {len(codes)} codes is too short to stream: "
                "push more at once, or push it as final"
            )
        samples, source = self._render(mel, state, generator)
        cut = len(samples) - CACHED_SAMPLES
        played = torch.cat([state.mel, mel], -1)
        after = ReferenceState(
            state.codes + codes, played, overlap, mel[..., -CACHED_FRAMES:], source[..., -CACHED_SAMPLES:]
        )
        return samples[:cut], after

    def flush(self, state: ReferenceState) -> Samples:
        """The audio that remains when a reply ends with no code pending (the original drops it):
        overlap frames and last samples.
        """
        if state.overlap is None:
            return np.zeros(0, np.float32)
        assert state.hift_mel is not None
        return self._render(torch.cat([state.hift_mel, state.overlap], -1), state, noise_generator())[0]

    def _render(
        self, mel: Tensor, state: ReferenceState, generator: torch.Generator
    ) -> tuple[Samples, Tensor]:
        samples, source = self._hift(
            mel, generator=generator if self._noise else None, cached_source=state.hift_source
        )
        return samples[0].cpu().numpy(), source

    def _tensor(self, codes: tuple[int, ...]) -> Tensor:
        return torch.tensor(codes, dtype=torch.long, device=self._device)


def _join(mel: Tensor, state: ReferenceState, overlap: int) -> Tensor:
    """Cross-fade the frames that both chunks have, then put the repeated frame in front."""
    if state.overlap is None or state.hift_mel is None:
        return mel
    window = torch.from_numpy(np.hamming(2 * overlap)).to(mel.device)  # float64
    faded = mel[..., :overlap] * window[:overlap] + state.overlap * window[overlap:]
    return torch.cat([state.hift_mel, faded.to(mel.dtype), mel[..., overlap:]], -1)
