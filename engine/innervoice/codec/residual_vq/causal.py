"""One chunk of many rows through causal layers, time first: a convolution keeps the columns of its
input that it will see again.

A row brings n columns after `start` others; one that is not at its end brings whole frames, so
that every stride divides what it brings. What lies beyond a row's n columns is undefined, and
looked at by no column before it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.streaming import StreamPass, StreamState
from innervoice_kernels.residual_vq.elu_unit import EluUnit, elu_unit
from innervoice_kernels.residual_vq.taps import Taps, apply_taps
from innervoice_kernels.torch_layers import lstm

Padding = Literal["constant", "reflect", "replicate"]


@dataclass(frozen=True)
class Level:
    """Rows at one rate: n [B] columns that a row brings, start [B] columns before them.

    full: every row brings all columns. ends: some row's last frame is not whole, so that padding follows it.
    """

    n: Tensor
    start: Tensor
    full: bool
    ends: bool = False

    def down(self, stride: int) -> Level:
        """After a convolution of that stride."""
        return (
            self
            if stride == 1
            else Level((self.n + stride - 1) // stride, self.start // stride, self.full, self.ends)
        )

    def up(self, rate: int) -> Level:
        """After a transposed convolution."""
        return self if rate == 1 else Level(self.n * rate, self.start * rate, self.full, self.ends)


class CausalPass(StreamPass[Level, Taps, EluUnit]):
    """A call's layers. padding: of the columns before a row's first. Levels are those of a layer's input."""

    layout = "time first"

    def __init__(self, before: StreamState, padding: Padding = "constant") -> None:
        super().__init__(before)
        self._padding = padding

    def conv(self, name: str, x: Tensor, at: Level, layer: Taps, padding: Padding | None = None) -> Tensor:
        """x [B, T, C] -> [B, T up / stride, C']; state [B, past, C]: the columns before x."""
        if layer.past == 0:
            return apply_taps(x, layer)
        mode = (
            "constant" if layer.up > 1 else padding or self._padding
        )  # before a transposed convolution there is nothing
        state = self._begun(name, x, at, mode, layer.past)
        if at.ends and layer.stride > 1:
            return apply_taps(_padded_end(torch.cat([state, x], 1), at, mode, layer.past), layer)
        return apply_taps(x, layer, state)

    def unit(self, name: str, x: Tensor, at: Level, layer: EluUnit, elu: bool = False) -> Tensor:
        """A residual unit: x [B, T, C] -> [B, T, C], its ELU if `elu`.

        State [B, past, C]: the columns before x.
        """
        past = layer.wide.past
        state = self._begun(name, x, at, self._padding, past) if past > 0 else None
        return elu_unit(x, layer, state, elu)

    def _begun(self, name: str, x: Tensor, at: Level, mode: Padding, past: int) -> Tensor:
        """The columns before x, [B, past, C]; the columns before the next call's x are kept."""
        state = self._state(name, x, at, mode, past)
        steps = x.shape[1]
        if at.full and steps >= past:
            self.after[name] = x[:, steps - past :].clone()
        elif at.full:
            self.after[name] = torch.cat([state[:, steps:], x], 1)
        else:
            index = at.n[:, None] + torch.arange(past, device=x.device, dtype=torch.int64)
            self.after[name] = _columns(torch.cat([state, x], 1), index)
        return state

    def delay(self, name: str, x: Tensor, at: Level, steps: int) -> Tensor:
        """x [B, T, C], so many columns later; state [B, steps, C]: its last columns."""
        window = torch.cat([self._state(name, x, at, "constant", steps), x], 1)
        last = at.n[:, None] + torch.arange(steps, device=x.device, dtype=torch.int64)
        self.after[name] = window[:, -steps:] if at.full else _columns(window, last)
        return window[:, :-steps]

    def lstm(self, name: str, x: Tensor, at: Level, weights: list[Tensor]) -> Tensor:
        """x + LSTM(x), x [B, T, C]; state: hidden and cell of every layer, [B, L, C] each."""
        layers = len(weights) // 4
        hidden, cell = (
            self.before(f"{name}.{part}", layers, x.shape[-1], like=x) for part in ("hidden", "cell")
        )
        y, after = run_lstm(x, at, (hidden, cell), weights)
        self.after[f"{name}.hidden"], self.after[f"{name}.cell"] = after
        return x + y

    def _state(self, name: str, x: Tensor, at: Level, mode: Padding, past: int) -> Tensor:
        found = self.before(name, past, x.shape[-1], like=x)
        if mode == "constant":
            return found
        begins = (at.start == 0) & (at.n > 0)
        if mode == "replicate":
            first = x[:, :1].expand(-1, past, -1)
        else:
            known = F.pad(x[:, : past + 1], (0, 0, 0, max(0, past + 1 - x.shape[1])))
            beyond = torch.arange(past + 1, device=x.device, dtype=torch.int64) >= at.n[:, None]
            first = known.masked_fill(beyond[..., None], 0)[:, 1:].flip(1)
        return torch.where(begins[:, None, None], first, found)


def _columns(x: Tensor, index: Tensor) -> Tensor:
    """x [B, T, C], index [B, S] -> [B, S, C]."""
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def _padded_end(window: Tensor, at: Level, mode: Padding, past: int) -> Tensor:
    """A window of a strided convolution, its last incomplete stride padded as the original pads it."""
    column = torch.arange(window.shape[1], device=window.device, dtype=torch.int64) - past  # of the chunk
    n = at.n[:, None]
    beyond = column >= n
    if mode == "constant":
        return window.masked_fill(beyond[..., None], 0)
    mirrored = 2 * (n - 1) - column if mode == "reflect" else n - 1
    index = torch.where(beyond, mirrored, column) + past
    filled = _columns(window, index.clamp(0, window.shape[1] - 1))
    if mode == "replicate":
        return filled
    short = (at.start[:, None] + n) <= past  # too short to be mirrored: the original pads zeros first
    return filled.masked_fill((beyond & short)[..., None], 0)


def run_lstm(
    x: Tensor, at: Level, state: tuple[Tensor, Tensor], weights: list[Tensor]
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """y [B, T, C] and the state after n columns, as torch.nn.LSTM computes it; a row
    without columns keeps its state.
    """
    begun = (state[0].transpose(0, 1).contiguous(), state[1].transpose(0, 1).contiguous())  # [L, B, C]
    if at.full:
        y, hidden, cell = lstm(x, begun, weights)
        return y, (hidden.transpose(0, 1), cell.transpose(0, 1))

    # Rows of different lengths: those that bring columns are packed, longest first.
    lengths = at.n.cpu()
    rows = lengths.nonzero()[:, 0].to(x.device)
    packed = torch.nn.utils.rnn.pack_padded_sequence(
        x[rows], lengths[lengths > 0], True, enforce_sorted=False
    )
    order = packed.sorted_indices
    assert order is not None
    chosen = (begun[0][:, rows][:, order], begun[1][:, rows][:, order])
    data, hidden, cell = lstm(packed.data, chosen, weights, packed.batch_sizes)

    # Unpacked into the rows' places; a row without columns gives zeros and keeps its state.
    done = torch.nn.utils.rnn.PackedSequence(data, packed.batch_sizes, order, packed.unsorted_indices)
    y = torch.zeros_like(x)
    unpacked = torch.nn.utils.rnn.pad_packed_sequence(done, True, total_length=x.shape[1])[0]
    y[rows] = unpacked
    after = []
    for before, new in ((state[0], hidden), (state[1], cell)):
        kept = before.clone()
        kept[rows[order]] = new.transpose(0, 1)
        after.append(kept)
    return y, (after[0], after[1])
