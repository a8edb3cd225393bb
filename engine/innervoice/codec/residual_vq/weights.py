"""Weights of the codecs by name; a direction and a length (weight norm) are multiplied out once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from innervoice.checkpoint.pickle_file import PickleFile
from innervoice.checkpoint.safetensors import INDEX, SINGLE, DummyTensors, TensorDir, TensorSource
from innervoice.codec.layers import Affine
from innervoice_kernels.residual_vq.taps import Taps, conv_taps, transpose_taps

PICKLED = "pytorch_model.bin"
_NORMED = (
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    ("weight_g", "weight_v"),
)


@dataclass(frozen=True)
class CodecWeights:
    """A source of tensors, the names in it (None: any), and the type and device that they are wanted in."""

    source: TensorSource
    names: frozenset[str] | None
    dtype: torch.dtype
    device: str | torch.device

    def get(self, name: str, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Return a tensor by its name. Raises ValueError when it is missing or of another shape."""
        return self.source.get(name, shape, dtype=dtype or self.dtype, device=self.device)

    def affine(self, name: str, *shape: int, bias: int = 0) -> Affine:
        """name.weight of that shape and name.bias [bias], 0: there is none."""
        return Affine(self._weight(name, shape), self.get(f"{name}.bias", bias) if bias else None)

    def conv(
        self,
        name: str,
        out: int,
        channels: int,
        width: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        bias: bool = True,
    ) -> Taps:
        """A convolution [C', C, k]."""
        layer = self.affine(name, out, channels, width, bias=out if bias else 0)
        return conv_taps(layer.weight, layer.bias, stride, dilation)

    def transpose(self, name: str, channels: int, out: int, stride: int) -> Taps:
        """A transposed convolution [C, C', 2 stride]."""
        layer = self.affine(name, channels, out, 2 * stride, bias=out)
        return transpose_taps(layer.weight, layer.bias, stride)

    def _weight(self, name: str, shape: Sequence[int]) -> Tensor:
        for scale, direction in _NORMED:
            if self.names is not None and f"{name}.{direction}" in self.names:
                v = self.get(f"{name}.{direction}", *shape, dtype=torch.float32)
                g = self.get(f"{name}.{scale}", shape[0], *[1] * (len(shape) - 1), dtype=torch.float32)
                length = v.flatten(1).square().sum(1).sqrt().view_as(g)
                return (v * (g / length)).to(self.dtype)
        return self.get(f"{name}.weight", *shape)


def open_weights(
    directory: Path, load_format: str, dtype: torch.dtype, device: str | torch.device, seed: int = 0
) -> CodecWeights:
    """The tensors of a directory, safetensors or pytorch_model.bin, or random ones.

    Raises FileNotFoundError, ValueError.
    """
    if load_format == "dummy":
        return CodecWeights(DummyTensors(seed), None, dtype, device)
    if (directory / PICKLED).exists() and not any((directory / name).exists() for name in (SINGLE, INDEX)):
        pickled = PickleFile(directory / PICKLED)
        return CodecWeights(pickled, frozenset(pickled.names()), dtype, device)
    files = TensorDir(directory)
    return CodecWeights(files, frozenset(files.names()), dtype, device)
