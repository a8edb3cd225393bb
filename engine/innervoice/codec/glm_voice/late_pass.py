"""The vocoder's streaming pass.

Layers are centred, so their output is late by their reach to the right; it is clipped to the rows' replies.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from innervoice.codec.streaming import StreamPass, StreamState
from innervoice_kernels.speech_codec.conv import stream_delay
from innervoice_kernels.speech_codec.residual import ResidualWeights, StreamEdges, clip, stream_residual
from innervoice_kernels.speech_codec.stream_conv import StreamConvWeights, stream_conv


class LateLevel(NamedTuple):
    """A signal at `rate` steps a frame, late by some steps.

    Its column 0 is step start * rate - late of the row's reply, which has end * rate + extra steps. late
    None: the signal is not cleared outside the reply.
    """

    rate: int
    late: int | None = None
    extra: int = 0


class LatePass(StreamPass[LateLevel, StreamConvWeights, ResidualWeights]):
    """A pass over rows that bring n [B] new frames after start [B] others.

    end [B]: the frames of each reply, or a large number. inner: no column of any row lies before its reply's
    start or after its end. Levels are those of a layer's result.
    """

    layout = "channels first"

    def __init__(self, before: StreamState, n: Tensor, start: Tensor, end: Tensor, inner: bool) -> None:
        super().__init__(before)
        self.n = n
        self.start = start
        self.end = end
        self._inner = inner

    def clip(self, x: Tensor, at: LateLevel) -> Tensor:
        """Zero what lies outside the reply."""
        return clip(x, self._bounds(at))

    def conv(self, name: str, x: Tensor, at: LateLevel, layer: StreamConvWeights) -> Tensor:
        """[B, C, T] -> [B, C', T'], later by the layer's reach."""
        rate = at.rate // layer.up if layer.is_transposed else at.rate * layer.stride  # of x
        state = self.before(name, x.shape[1], layer.past, like=x)
        y, self.after[name] = stream_conv(x, state, self.n * rate, layer, self._bounds(at))
        return y

    def unit(self, name: str, x: Tensor, at: LateLevel, layer: ResidualWeights) -> Tensor:
        """A residual unit of the vocoder: [B, C, T] -> [B, C, T], later by its delay; at: of x."""
        channels, half = x.shape[1], layer.half
        history = self.before(f"{name}.x", channels, 2 * half * layer.dilation, like=x)
        inner = self.before(f"{name}.h", channels, 2 * half, like=x)
        y, self.after[f"{name}.x"], self.after[f"{name}.h"] = stream_residual(
            x, history, inner, self.n * at.rate, layer, self._bounds(at)
        )
        return y

    def delay(self, name: str, x: Tensor, at: LateLevel, steps: int) -> Tensor:
        """[B, C, T], later by so many steps."""
        if steps == 0:
            return x
        state = self.before(name, x.shape[1], steps, like=x)
        y, self.after[name] = stream_delay(x, state, self.n * at.rate)
        return y

    def _bounds(self, at: LateLevel) -> StreamEdges | None:
        """What clips a signal to its reply, None when nothing is to be clipped."""
        if self._inner or at.late is None:
            return None
        return self.start * at.rate - at.late, self.end * at.rate + at.extra
