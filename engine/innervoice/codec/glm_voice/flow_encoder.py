"""The flow's token encoder: block-causal attention with relative positions, then the length regulator.

Formulas: CosyVoice's BlockConformerEncoder without convolution or macaron; relative scores of
Transformer-XL (Dai et al. 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.speech_decoder import EncoderConfig
from innervoice.codec.glm_voice.flow_estimator import Lengths, clear, norm_mish, over_frames
from innervoice.codec.layers import Affine, Tensors, affine, conv, layer_norm, linear
from innervoice_kernels.backend import TRITON, choose
from innervoice_kernels.native import takes
from innervoice_kernels.speech_codec.frame_conv import frame_conv


@dataclass(frozen=True)
class EncoderLayer:
    """A layer's weights."""

    norm_attention: Affine
    qkv: Affine
    position: Tensor  # [D, D]
    bias_u: Tensor  # [H, D/H]
    bias_v: Tensor
    out: Affine
    norm_ffn: Affine
    up: Affine
    down: Affine

    def feed_forward(self, x: Tensor) -> Tensor:
        """x [B, n, D] with its residual."""
        return x + linear(F.silu(linear(layer_norm(x, self.norm_ffn), self.up)), self.down)


class FlowEncoder:
    """[n] embedded tokens -> [n] states; a token sees all before it and its own block of `block_size`."""

    def __init__(self, config: EncoderConfig, tensors: Tensors) -> None:
        self.config = config
        self._input = affine(tensors, "encoder.embed.out.0")
        self._input_norm = affine(tensors, "encoder.embed.out.1")
        self.layers = [_layer(tensors, f"encoder.encoders.{i}") for i in range(config.num_layers)]
        self._output_norm = affine(tensors, "encoder.after_norm")

    def __call__(self, x: Tensor) -> Tensor:
        """x [1, n, D_in] -> [1, n, D]. One row only: nothing is masked for padding."""
        assert x.shape[0] == 1
        n, width = x.shape[1], self.config.width
        x = self.enter(x)
        table = relative_positions(n, width, x.device).to(x.dtype)  # [2n-1, D]
        hidden = ~block_causal(n, self.config.block_size, x.device)  # [n, n]
        for layer in self.layers:
            x = x + self._attend(layer_norm(x, layer.norm_attention), table, hidden, layer)
            x = layer.feed_forward(x)
        return self.leave(x)

    def enter(self, x: Tensor) -> Tensor:
        """Embedded tokens [B, n, D_in] -> the first layer's input [B, n, D]."""
        return layer_norm(linear(x, self._input), self._input_norm) * math.sqrt(self.config.width)

    def leave(self, x: Tensor) -> Tensor:
        """Normalise the last layer's output [B, n, D] -> states [B, n, D]."""
        return layer_norm(x, self._output_norm)

    def _attend(self, x: Tensor, table: Tensor, hidden: Tensor, layer: EncoderLayer) -> Tensor:
        n, heads = x.shape[1], self.config.num_heads
        q, k, v = linear(x, layer.qkv).view(n, 3, heads, -1).permute(1, 2, 0, 3)  # [H, n, d] each
        positions = (
            F.linear(table, layer.position).view(2 * n - 1, heads, -1).permute(1, 2, 0)
        )  # [H, d, 2n-1]
        content = (q + layer.bias_u[:, None]) @ k.transpose(1, 2)  # [H, n, n]
        position = shift((q + layer.bias_v[:, None]) @ positions)
        scores = (content.float() + position.float()) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(hidden, -torch.inf).softmax(-1).to(v.dtype)
        return linear((weights @ v).transpose(0, 1).reshape(1, n, -1), layer.out)


class LengthRegulator:
    """n token frames -> F mel frames: nearest resampling, then convolutions with statistics over all time."""

    def __init__(self, num_layers: int, tensors: Tensors) -> None:
        name = "length_regulator.model"
        self._layers = [
            (affine(tensors, f"{name}.{3 * i}"), affine(tensors, f"{name}.{3 * i + 1}"))
            for i in range(num_layers)
        ]
        self._out = affine(tensors, f"{name}.{3 * num_layers}")
        self._frame_convs = [over_frames(layer, 1) for layer, _ in self._layers] + [over_frames(self._out, 0)]

    def __call__(self, x: Tensor, num_frames: int) -> Tensor:
        """x [1, n, C] -> [1, C, F]."""
        return self.smooth(x[:, nearest(x.shape[1], num_frames, x.device)].transpose(1, 2))

    def smooth(self, x: Tensor, n: Tensor | None = None) -> Tensor:
        """Frames [B, C, F] after resampling -> [B, C, F].

        n [B]: true lengths, what lies beyond is zero; None: all of F.
        """
        lengths = None if n is None else Lengths.of(n, x.shape[-1])
        # Over frames as they lie, by native code and on a GPU, where cuDNN would round float32 to TF32.
        if takes(x, self._out.weight) or choose("frame_conv", x, has_native=True) == TRITON:
            *convs, out = self._frame_convs
            for weights, (_, norm) in zip(convs, self._layers, strict=True):
                x = norm_mish(frame_conv(x.transpose(1, 2), n, weights).transpose(1, 2), norm, 1, lengths)
            return frame_conv(x.transpose(1, 2), n, out).transpose(1, 2)
        x = clear(x, lengths)
        for layer, norm in self._layers:
            x = norm_mish(conv(x, layer, padding=1), norm, 1, lengths)
        return clear(conv(x, self._out), lengths)


def relative_positions(n: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Sinusoids of r = n-1 ... -(n-1), float32 [2n-1, width]: sin at even, cos at odd places,
    frequency 10000^(-2m/width).
    """
    r = torch.arange(n - 1, -n, -1, dtype=torch.float32, device=device)[:, None]
    frequency = torch.exp(
        torch.arange(0, width, 2, dtype=torch.float32, device=device) * -(math.log(10000.0) / width)
    )
    return torch.stack([torch.sin(r * frequency), torch.cos(r * frequency)], -1).flatten(1)


def block_causal(n: int, block_size: int, device: torch.device | str = "cpu") -> Tensor:
    """The attention mask [n, n] of queries i over keys j, true for j <= i or j in the block of i."""
    block = torch.arange(n, device=device, dtype=torch.int64) // block_size
    return block[None, :] <= block[:, None]


def shift(scores: Tensor) -> Tensor:
    """Scores by relative position [H, n, 2n-1] (r falling from n-1) -> by key [H, n, n]:
    column j of row i is r = i - j.
    """
    n = scores.shape[1]
    padded = F.pad(scores, (1, 0)).reshape(scores.shape[0], 2 * n, n)
    return padded[:, 1:].reshape(scores.shape)[..., :n]


def nearest(n: int, num_frames: int, device: torch.device | str = "cpu") -> Tensor:
    """Source index of each frame, [F]: min(floor(f * n / F), n - 1), the factor and product in float32."""
    factor = torch.tensor(n / num_frames, dtype=torch.float32, device=device)
    frames = torch.arange(num_frames, dtype=torch.float32, device=device)
    return (frames * factor).floor().long().clamp(max=n - 1)


def _layer(tensors: Tensors, name: str) -> EncoderLayer:
    weight = torch.cat([tensors[f"{name}.self_attn.linear_{part}.weight"] for part in "qkv"])
    bias = torch.cat([tensors[f"{name}.self_attn.linear_{part}.bias"] for part in "qkv"])
    return EncoderLayer(
        norm_attention=affine(tensors, f"{name}.norm_mha"),
        qkv=Affine(weight, bias),
        position=tensors[f"{name}.self_attn.linear_pos.weight"],
        bias_u=tensors[f"{name}.self_attn.pos_bias_u"],
        bias_v=tensors[f"{name}.self_attn.pos_bias_v"],
        out=affine(tensors, f"{name}.self_attn.linear_out"),
        norm_ffn=affine(tensors, f"{name}.norm_ff"),
        up=affine(tensors, f"{name}.feed_forward.w_1"),
        down=affine(tensors, f"{name}.feed_forward.w_2"),
    )
