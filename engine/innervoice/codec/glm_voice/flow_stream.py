"""The flow over a stream: each chunk's frames from a window of bounded look-back, the same noise
for a frame in every window.

A chunk gives its frames away except the last `hold_back`, which lack what comes after them: the next chunk
makes them again, and the first `fade` of them are a mix whose weights sum to 1. Frames given away are
shown to the flow as a prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from innervoice.codec.glm_voice.chunks import FrameClock, SteadySettings, TokenChunk, num_states
from innervoice.codec.glm_voice.encoder_stream import EncoderStream
from innervoice.codec.glm_voice.flow import Flow
from innervoice.codec.layers import linear
from innervoice.codec.streaming import StreamState
from innervoice_kernels.speech_codec.conv import shifted
from innervoice_kernels.speech_codec.noise import frame_noise


class _Places(NamedTuple):
    """Chunks as tensors, [B] each: where they begin, tokens to encode and where these start,
    whole blocks' tokens, and frames.
    """

    begin: Tensor
    num_tokens: Tensor
    start: Tensor
    closed: Tensor
    end: Tensor
    window: Tensor
    length: Tensor
    first: Tensor
    given: Tensor


class FlowStream:
    """The flow in chunks; weights are the flow's.

    max_new: frames that a chunk gives away at most, before it holds any back.
    """

    def __init__(self, flow: Flow, settings: SteadySettings, device: torch.device | str) -> None:
        self._flow = flow
        self._settings = settings
        self._device = device
        self.clock = FrameClock.of(flow.config.token_rate)
        self._block_size = flow.config.encoder.block_size
        most = max(settings.first, settings.chunk + self._block_size - 1)
        self._encoder = EncoderStream(flow.encoder, settings.encoder_blocks, most, device)
        self._num_states = num_states(settings, self.clock, self._block_size)
        self._num_shown = settings.num_shown
        self.max_new = max(
            self.clock.frames(settings.first), self.clock.frames(settings.chunk) + 1 + settings.hold_back
        )
        self._rise = (torch.arange(settings.fade, device=device, dtype=torch.float32) + 0.5) / max(
            settings.fade, 1
        )

    def numbers(
        self, codes: Sequence[Sequence[int]], chunks: Sequence[TokenChunk]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """codes: of each row the tokens from its open block on -> what a call takes: tokens [B, max_tokens], and
        the chunks' places [9, B].
        """
        most = self._encoder.max_tokens
        padded = np.array([[*row, *[0] * (most - len(row))] for row in codes], np.int64)
        return padded, np.ascontiguousarray(np.array([self._places(chunk) for chunk in chunks], np.int64).T)

    def __call__(
        self,
        tokens: Tensor,
        places: Tensor,
        chunks: Sequence[TokenChunk],
        state: StreamState,
        seed: Tensor,
        speaker: Tensor,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """tokens and places: the `numbers` of the chunks; seed [B]; speaker [B, C] -> frames [B, C, max_new],
        state'.

        Row b gives away frames first_frame ... sure_frame - 1 of its chunk, its first columns;
        state' holds the rest as "tail".
        """
        at = _Places(*places)
        states, after = self._encode(tokens, state, at)
        mu, after["states"] = self._mu(states, state, at, max(chunk.bucket_len for chunk in chunks))
        frames = at.window[:, None] + torch.arange(mu.shape[-1], device=self._device, dtype=torch.int64)
        shown = self._state(state, "mel", self._num_shown, len(chunks))
        cond = self._cond(shown, frames, at)
        noise = frame_noise(seed, frames, mu.shape[1])
        mel = self._flow.solve(noise, mu, speaker, cond, chunks[0].settings.steps, at.length)
        new = _columns(mel, at.first - at.window, self.max_new)
        new = self._fade(new, self._state(state, "tail", self._settings.hold_back, len(chunks)), at)
        after["tail"] = shifted(F.pad(new, (0, self._settings.hold_back)), at.given, self._settings.hold_back)
        after["mel"] = shifted(torch.cat([shown, new], -1), at.given, self._num_shown)
        return new, after

    def _places(self, chunk: TokenChunk) -> tuple[int, ...]:
        """The fields of _Places, of one chunk."""
        size = self._block_size
        start = chunk.begin // size * size
        return (
            chunk.begin,
            chunk.end - start,
            start,
            chunk.end // size * size - start,
            chunk.end,
            chunk.window_frame,
            chunk.window_len,
            chunk.first_frame,
            chunk.sure_frame - chunk.first_frame,
        )

    def _encode(self, tokens: Tensor, state: StreamState, at: _Places) -> tuple[Tensor, dict[str, Tensor]]:
        embedded = F.embedding(tokens, self._flow.embedding)
        states, after = self._encoder(embedded, state, at.num_tokens, at.start, at.closed)
        return linear(states, self._flow.project).transpose(1, 2), after  # [B, C, max_tokens]

    def _mu(self, states: Tensor, state: StreamState, at: _Places, num_frames: int) -> tuple[Tensor, Tensor]:
        """New tokens' states [B, C, U] -> the flow's condition [B, C, T] float32, and the states to keep."""
        kept = state.get("states")
        if kept is None:
            kept = states.new_zeros(*states.shape[:2], self._num_states)
        states = torch.cat([kept, states], -1)
        frames = at.window[:, None] + torch.arange(num_frames, device=self._device, dtype=torch.int64)
        token = torch.minimum(self.clock.tokens(frames), at.end[:, None] - 1)
        index = (token - at.start[:, None] + self._num_states).clamp(min=0)
        resampled = states.gather(-1, index[:, None].expand(-1, states.shape[1], -1))
        return self._flow.regulator.smooth(resampled, at.length).float(), shifted(
            states, at.closed, self._num_states
        )

    def _cond(self, shown: Tensor, frames: Tensor, at: _Places) -> Tensor:
        """Frames given away that lie in the window, [B, C, T]; zero elsewhere."""
        if self._num_shown == 0:
            return shown.new_zeros(*shown.shape[:2], frames.shape[1])
        place = frames - at.first[:, None] + self._num_shown
        known = shown.gather(-1, place.clamp(max=self._num_shown - 1)[:, None].expand(-1, shown.shape[1], -1))
        return known.masked_fill((frames >= at.first[:, None])[:, None], 0)

    def _fade(self, new: Tensor, tail: Tensor, at: _Places) -> Tensor:
        """Mix the first frames with those of the chunk before, unless this is the first."""
        fade, rise = self._settings.fade, self._rise
        mixed = new[..., :fade] * rise + tail[..., :fade] * (1 - rise)
        return torch.cat(
            [torch.where((at.begin == 0)[:, None, None], new[..., :fade], mixed), new[..., fade:]], -1
        )

    def _state(self, state: StreamState, name: str, size: int, rows: int) -> Tensor:
        found = state.get(name)
        if found is not None:
            return found
        return torch.zeros(
            rows, self._flow.config.mel_channels, size, device=self._device, dtype=torch.float32
        )


def _columns(x: Tensor, first: Tensor, count: int) -> Tensor:
    """Row b's columns first[b] ... first[b] + count - 1 of x [B, C, T]; zeros past the end."""
    return shifted(F.pad(x, (0, count)), first, count)
