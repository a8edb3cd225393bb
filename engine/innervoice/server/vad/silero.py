"""SileroNetwork: Silero VAD v6 (MIT) for frames of many listeners at once.

The networks of https://github.com/snakers4/silero-vad for 16 kHz: 64 samples of the frame before and 512 new
ones, magnitudes of a short-time Fourier transform (window 256, step 128), four convolutions, an LSTM cell and
one output. The package that holds the weights is not imported, since that sets the threads of the process, and
its safetensors file holds the weights of another version.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.types import Samples

CONTEXT_LEN = 64
_HOP = 128
_STRIDES = (1, 2, 2, 1)
_WIDTH = 128
_SHAPES = {
    "stft.forward_basis_buffer": (258, 1, 256),
    "encoder.0.reparam_conv.weight": (128, 129, 3),
    "encoder.1.reparam_conv.weight": (64, 128, 3),
    "encoder.2.reparam_conv.weight": (64, 64, 3),
    "encoder.3.reparam_conv.weight": (128, 64, 3),
    "decoder.rnn.weight_ih": (512, 128),
    "decoder.rnn.weight_hh": (512, 128),
    "decoder.decoder.2.weight": (1, 128, 1),
}


def find_weights() -> Path | None:
    """The file of weights in the installed silero-vad package, None where there is no such package."""
    try:
        path = Path(str(distribution("silero-vad").locate_file("silero_vad/data/silero_vad.jit")))
    except PackageNotFoundError:
        return None
    return path if path.is_file() else None


class SileroState(NamedTuple):
    """The state of a listener between frames: the end of the last one [64], hidden and cell state [128]."""

    context: Tensor
    hidden: Tensor
    cell: Tensor


class SileroNetwork:
    """Weights of the network by the names of their file."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self._basis = weights["stft.forward_basis_buffer"]
        self._convolutions = [
            (weights[f"encoder.{i}.reparam_conv.weight"], weights[f"encoder.{i}.reparam_conv.bias"], stride)
            for i, stride in enumerate(_STRIDES)
        ]
        self._cell = [
            weights[f"decoder.rnn.{name}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        self._head = weights["decoder.decoder.2.weight"][:, :, 0]
        self._head_bias = weights["decoder.decoder.2.bias"]

    @classmethod
    def load(cls, path: str | PathLike[str]) -> SileroNetwork:
        """Read the weights for 16 kHz. Raises ValueError for a file of another network."""
        try:
            stored = torch.jit.load(str(path), map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ValueError(f"{path} is no TorchScript file: install silero-vad 6 anew") from error
        weights = {
            name.removeprefix("_model."): tensor.float()
            for name, tensor in stored.items()
            if name.startswith("_model.")
        }
        for name, shape in _SHAPES.items():
            found = tuple(weights[name].shape) if name in weights else None
            if found != shape:
                raise ValueError(f"{path}: {name} has shape {found}, expected {shape}: install silero-vad 6")
        return cls(weights)

    def begin(self) -> SileroState:
        """Make the state of a listener before its first sound."""
        context, hidden, cell = (
            torch.zeros(size, dtype=torch.float32, device="cpu") for size in (CONTEXT_LEN, _WIDTH, _WIDTH)
        )
        return SileroState(context, hidden, cell)

    @torch.inference_mode()
    def push(self, frames: Samples, states: Sequence[SileroState]) -> tuple[Samples, list[SileroState]]:
        """Judge frames [B, 512] -> probabilities [B], and the next states."""
        context = torch.stack([state.context for state in states])
        x = torch.cat([context, torch.from_numpy(np.ascontiguousarray(frames))], dim=1)  # [B, 576]
        spectrum = F.conv1d(F.pad(x, (0, 64), mode="reflect")[:, None], self._basis, stride=_HOP)
        real, imaginary = spectrum.chunk(2, dim=1)
        features = torch.sqrt(real**2 + imaginary**2)  # [B, 129, 4]
        for weight, bias, stride in self._convolutions:
            features = F.relu(F.conv1d(features, weight, bias, stride=stride, padding=1))

        hidden = torch.stack([state.hidden for state in states])
        cell = torch.stack([state.cell for state in states])
        hidden, cell = torch.lstm_cell(features[:, :, 0], (hidden, cell), *self._cell)
        speech = torch.sigmoid(F.linear(F.relu(hidden), self._head, self._head_bias))[:, 0]
        rows = zip(x[:, -CONTEXT_LEN:].clone(), hidden, cell, strict=True)
        return speech.numpy(), [SileroState(*row) for row in rows]
