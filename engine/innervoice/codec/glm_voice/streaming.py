"""One chunk through a stack of streaming layers: where each layer stands, and its state before and after."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from innervoice_kernels.speech_codec.conv import stream_delay
from innervoice_kernels.speech_codec.residual import Bounds, ResidualWeights, clip, stream_residual
from innervoice_kernels.speech_codec.stream_conv import StreamConvWeights, stream_conv

State = Mapping[str, Tensor]
"""Streaming state of the rows of a call by name, [B, ...] each. A name that is missing stands for zeros."""


class Pass:
    """A call's rows: n [B] new frames of each; start [B] frames before them; end [B] frames there are, or a large number.

    A signal is at `rate` steps a frame and `late` by some steps: its column 0 is step start * rate - late of the row's reply.
    `after` collects every layer's state; inner: no column of any row lies before its reply's start or after its end.
    """

    def __init__(self, state: State, n: Tensor, start: Tensor, end: Tensor, inner: bool) -> None:
        self._state = state
        self.n, self.start, self.end, self._inner = n, start, end, inner
        self.after: dict[str, Tensor] = {}

    def before(self, name: str, *shape: int, like: Tensor) -> Tensor:
        """A layer's state, or zeros of [B, *shape]."""
        found = self._state.get(name)
        return like.new_zeros(len(self.n), *shape) if found is None else found

    def bounds(self, rate: int, late: int, extra: int = 0) -> Bounds | None:
        """What clips a signal to its reply, of end * rate + extra steps; None when nothing is to be clipped."""
        return None if self._inner else (self.start * rate - late, self.end * rate + extra)

    def clip(self, x: Tensor, rate: int, late: int, extra: int = 0) -> Tensor:
        """Zero what lies outside the reply."""
        return clip(x, self.bounds(rate, late, extra))

    def conv(
        self, name: str, x: Tensor, weights: StreamConvWeights, rate: int, bounds: Bounds | None = None
    ) -> Tensor:
        """[B, C, T] at `rate` -> [B, C', T'], later by the layer's reach; the result is clipped."""
        state = self.before(name, x.shape[1], weights.past, like=x)
        y, self.after[name] = stream_conv(x, state, self.n * rate, weights, bounds)
        return y

    def delay(self, name: str, x: Tensor, rate: int, steps: int) -> Tensor:
        """[B, C, T], later by so many steps."""
        if steps == 0:
            return x
        y, self.after[name] = stream_delay(x, self.before(name, x.shape[1], steps, like=x), self.n * rate)
        return y

    def residual(
        self, name: str, x: Tensor, weights: ResidualWeights, rate: int, late: int, extra: int
    ) -> Tensor:
        """A residual unit of the vocoder: [B, C, T] -> [B, C, T], later by its delay."""
        channels, half = x.shape[1], weights.half
        history = self.before(f"{name}.x", channels, 2 * half * weights.dilation, like=x)
        inner = self.before(f"{name}.h", channels, 2 * half, like=x)
        bounds = self.bounds(rate, late, extra)
        y, self.after[f"{name}.x"], self.after[f"{name}.h"] = stream_residual(
            x, history, inner, self.n * rate, weights, bounds
        )
        return y
