"""SEANet, the convolutional halves of Mimi and EnCodec, as layers that a causal or a whole-chunk pass runs.

Tagliasacchi et al. 2020; ELU before every convolution but the first, a residual unit a rate, LSTM beside the
latent (EnCodec).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.codecs import SeanetShape
from innervoice.codec.layers import Affine
from innervoice.codec.residual_vq.causal import Level
from innervoice.codec.residual_vq.weights import CodecWeights
from innervoice_kernels.residual_vq.elu_unit import EluUnit
from innervoice_kernels.residual_vq.taps import Taps


class SeanetPass(Protocol):
    """A pass that SEANet's layers are run by: causal over rows, or over whole chunks."""

    def conv(self, name: str, x: Tensor, at: Level, layer: Taps) -> Tensor:
        """A convolution with its padding or its state."""
        ...

    def unit(self, name: str, x: Tensor, at: Level, layer: EluUnit, elu: bool = False) -> Tensor:
        """A residual unit, its ELU if `elu`."""
        ...

    def lstm(self, name: str, x: Tensor, at: Level, weights: list[Tensor]) -> Tensor:
        """x + LSTM(x)."""
        ...


@dataclass(frozen=True)
class SeanetStage:
    """Residual units at one rate and the convolution to the next; the decoder has the convolution first."""

    units: tuple[EluUnit, ...]
    change: Taps


@dataclass(frozen=True)
class Seanet:
    """The layers: first, the stages from the input's rate to the output's, last.

    lstm: weights of torch.lstm, before or after the stages. norms: group norms by the name of the convolution
    that they follow.
    """

    first: Taps
    stages: tuple[SeanetStage, ...]
    last: Taps
    lstm: tuple[Tensor, ...]
    norms: dict[str, Affine]

    def encode(self, run: SeanetPass, x: Tensor, at: Level) -> tuple[Tensor, Level]:
        """Samples [B, T, channels] -> latent [B, T / hop, width] and its level."""
        x = run.conv("first", x, at, self.first)
        for index, stage in enumerate(self.stages):
            x = self._units(run, f"stage{index}", x, at, stage)
            x = run.conv(f"stage{index}.change", x, at, stage.change)
            at = at.down(stage.change.stride)
        if self.lstm:
            x = run.lstm("lstm", x, at, list(self.lstm))
        return run.conv("last", F.elu_(x), at, self.last), at

    def decode(self, run: SeanetPass, x: Tensor, at: Level) -> Tensor:
        """Latent [B, T, width] -> samples [B, T * hop, channels]."""
        x = run.conv("first", x, at, self.first)
        if self.lstm:
            x = run.lstm("lstm", x, at, list(self.lstm))
        x = F.elu_(x)
        for index, stage in enumerate(self.stages):
            x = run.conv(f"stage{index}.change", x, at, stage.change)
            at = at.up(stage.change.up)
            x = self._units(run, f"stage{index}", x, at, stage)
        return run.conv("last", x, at, self.last)

    def _units(self, run: SeanetPass, name: str, x: Tensor, at: Level, stage: SeanetStage) -> Tensor:
        """The units of a stage and the ELU behind them."""
        for index, unit in enumerate(stage.units):
            x = run.unit(f"{name}.{index}", x, at, unit, index == len(stage.units) - 1)
        return x if stage.units else F.elu_(x)


@dataclass
class _Loader:
    """Reads layers in the order of the original's list, which gives them their names."""

    weights: CodecWeights
    shape: SeanetShape
    prefix: str
    group_norm: bool
    index: int = 0

    def __post_init__(self) -> None:
        self.norms: dict[str, Affine] = {}

    def conv(
        self, ours: str, name: str, out: int, channels: int, width: int, stride: int = 1, dilation: int = 1
    ) -> Taps:
        self._norm(ours, name, out)
        return self.weights.conv(
            f"{self.prefix}.{name}.conv", out, channels, width, stride=stride, dilation=dilation
        )

    def transpose(self, ours: str, channels: int, out: int, stride: int) -> Taps:
        name = f"layers.{self.index}"
        self._norm(ours, name, out)
        return self.weights.transpose(f"{self.prefix}.{name}.conv", channels, out, stride)

    def units(self, ours: str, width: int) -> tuple[EluUnit, ...]:
        made = []
        for depth in range(self.shape.num_residual_layers):
            name, own = f"layers.{self.index}", f"{ours}.{depth}"
            inner = width // self.shape.compress
            dilation = self.shape.dilation_growth**depth
            wide = self.conv(
                f"{own}.wide",
                f"{name}.block.1",
                inner,
                width,
                self.shape.residual_kernel_size,
                dilation=dilation,
            )
            narrow = self.conv(f"{own}.narrow", f"{name}.block.3", width, inner, 1)
            short = (
                self.conv(f"{own}.shortcut", f"{name}.shortcut", width, width, 1)
                if self.shape.conv_shortcut
                else None
            )
            made.append(EluUnit(wide, narrow, short))
            self.index += 1
        return tuple(made)

    def lstm(self, width: int, layers: int) -> tuple[Tensor, ...]:
        made = []
        for layer in range(layers):
            for part, shape in (("weight", (4 * width, width)), ("bias", (4 * width,))):
                name = f"{self.prefix}.layers.{self.index}.lstm.{part}"
                made += [self.weights.get(f"{name}_{side}_l{layer}", *shape) for side in ("ih", "hh")]
        self.index += 1 if layers else 0
        return tuple(made)

    def _norm(self, ours: str, name: str, out: int) -> None:
        if self.group_norm:
            self.norms[ours] = self.weights.affine(f"{self.prefix}.{name}.norm", out, bias=out)


def load_encoder(
    weights: CodecWeights, shape: SeanetShape, *, lstm_layers: int = 0, group_norm: bool = False
) -> Seanet:
    """The encoder's half. Raises ValueError for missing and misshapen tensors."""
    load = _Loader(weights, shape, "encoder", group_norm)
    width = shape.num_filters
    stages = []
    first = load.conv("first", "layers.0", width, shape.channels, shape.kernel_size)
    load.index = 1
    for index, ratio in enumerate(reversed(shape.ratios)):
        units = load.units(f"stage{index}", width)
        load.index += 1  # an ELU
        change = load.conv(
            f"stage{index}.change", f"layers.{load.index}", 2 * width, width, 2 * ratio, stride=ratio
        )
        stages.append(SeanetStage(units, change))
        load.index, width = load.index + 1, 2 * width
    lstm = load.lstm(width, lstm_layers)
    last = load.conv("last", f"layers.{load.index + 1}", shape.width, width, shape.last_kernel_size)
    return Seanet(first, tuple(stages), last, lstm, load.norms)


def load_decoder(
    weights: CodecWeights, shape: SeanetShape, *, lstm_layers: int = 0, group_norm: bool = False
) -> Seanet:
    """The decoder's half. Raises ValueError for missing and misshapen tensors."""
    load = _Loader(weights, shape, "decoder", group_norm)
    width = shape.num_filters << len(shape.ratios)
    stages = []
    first = load.conv("first", "layers.0", width, shape.width, shape.kernel_size)
    load.index = 1
    lstm = load.lstm(width, lstm_layers)
    for index, ratio in enumerate(shape.ratios):
        load.index += 1  # an ELU
        change = load.transpose(f"stage{index}.change", width, width // 2, ratio)
        load.index, width = load.index + 1, width // 2
        stages.append(SeanetStage(load.units(f"stage{index}", width), change))
    last = load.conv("last", f"layers.{load.index + 1}", shape.channels, width, shape.last_kernel_size)
    return Seanet(first, tuple(stages), last, lstm, load.norms)
