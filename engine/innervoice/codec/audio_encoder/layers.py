"""Transformer layers of Whisper's form whose attention stays inside windows.

Recordings lie one behind another, [T of all, D]; what is no attention is one product for all.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022; Xu et al., "Qwen3-Omni
Technical Report", 2025.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.audio_encoder import AudioEncoderConfig
from innervoice_kernels import _C
from innervoice_kernels.native import floats, team


class EncoderWeights:
    """An encoder's tensors by name, and the products with them.

    On a CPU without products of bfloat16, matrices of bfloat16 are multiplied by native code as the float32 numbers
    that they stand for, and hidden states are float32: torch takes four times as long there. Elsewhere torch's own
    products are the faster ones.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._native: dict[str, _C.Weight] = {}
        first = self["ln_post.weight"]
        if first.device.type == "cpu" and first.dtype == torch.bfloat16 and not _C.has_halves():
            for name, x in tensors.items():
                if x.ndim == 2:
                    self._native[name] = _C.Weight(x.detach().contiguous())
                else:
                    self._tensors[name] = x.float()

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    @property
    def dtype(self) -> torch.dtype:
        """The type of hidden states."""
        return self["ln_post.weight"].dtype

    @property
    def device(self) -> torch.device:
        """The device that holds the tensors."""
        return self["ln_post.weight"].device

    def linear(self, x: Tensor, name: str) -> Tensor:
        """x W^T + b of a layer: x [T, K] -> [T, N]; without a bias in the weights none is added."""
        bias, native = self._tensors.get(f"{name}.bias"), self._native.get(f"{name}.weight")
        if native is None:
            return F.linear(x, self[f"{name}.weight"], bias)
        out = torch.empty(len(x), native.shape[0], dtype=torch.float32, device="cpu")
        _C.gemm(team(), floats(x), native, out, bias)
        return out

    def norm(self, x: Tensor, name: str) -> Tensor:
        """LayerNorm over the last dimension."""
        return F.layer_norm(x, x.shape[-1:], self[f"{name}.weight"], self[f"{name}.bias"], 1e-5)


def window_lens(columns: Sequence[int], window: int) -> list[int]:
    """Lengths of all windows of recordings of so many columns, cut from each one's start."""
    return [min(window, n - start) for n in columns for start in range(0, n, window)]


def run_layers(x: Tensor, weights: EncoderWeights, config: AudioEncoderConfig, lens: Sequence[int]) -> Tensor:
    """All layers over columns [T, D] whose windows have these lengths -> [T, D]."""
    for index in range(config.num_layers):
        name = f"layers.{index}"
        normed = weights.norm(x, f"{name}.self_attn_layer_norm")
        q, k, v = (weights.linear(normed, f"{name}.self_attn.{part}_proj") for part in "qkv")
        attended = _attend(q, k, v, config.num_heads, lens)
        x = x + weights.linear(attended, f"{name}.self_attn.out_proj")
        inner = F.gelu(weights.linear(weights.norm(x, f"{name}.final_layer_norm"), f"{name}.fc1"))
        x = x + weights.linear(inner, f"{name}.fc2")
    return x


def _attend(q: Tensor, k: Tensor, v: Tensor, num_heads: int, lens: Sequence[int]) -> Tensor:
    """Every column sees all of its window: [T, D] -> [T, D]; windows of one length in a row go in one call."""
    made, begin, index = [], 0, 0
    while index < len(lens):
        count = next((i for i, n in enumerate(lens[index:]) if n != lens[index]), len(lens) - index)
        end = begin + count * lens[index]
        heads = [x[begin:end].view(count, lens[index], num_heads, -1).transpose(1, 2) for x in (q, k, v)]
        y = F.scaled_dot_product_attention(heads[0], heads[1], heads[2])  # [count, H, n, D / H]
        made.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
        begin, index = end, index + count
    return torch.cat(made)
