"""An audio encoder: samples at 16 kHz -> log-mel features -> embedding rows of the language model.

A recording's rows are those of the recording alone, whatever is encoded beside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.audio_encoder import HOP, N_FFT, SAMPLE_RATE, AudioEncoderConfig, encoder_shapes
from innervoice.checkpoint.safetensors import TensorSource
from innervoice.codec.audio_encoder.features import FeatureWindow, RecordingFeatures
from innervoice.codec.audio_encoder.layers import EncoderWeights, run_layers, window_lens
from innervoice.codec.audio_encoder.stems import columns_of
from innervoice.types import Samples
from innervoice_kernels.speech_codec.mel import mel_filters

PREFIX = "thinker.audio_tower."  # of the tensors' names in the shipped files


def read_tensors(
    config: AudioEncoderConfig,
    tensors: TensorSource,
    dtype: torch.dtype,
    device: str | torch.device,
    prefix: str = PREFIX,
) -> dict[str, Tensor]:
    """All tensors of an encoder by name. Raises ValueError for one that is missing or misshapen."""
    shapes = encoder_shapes(config)
    return {
        name: tensors.get(prefix + name, shape, dtype=dtype, device=device) for name, shape in shapes.items()
    }


class AudioEncoder:
    """An encoder over tensors by name; it holds no state between calls."""

    sample_rate = SAMPLE_RATE

    def __init__(self, config: AudioEncoderConfig, tensors: Mapping[str, Tensor]) -> None:
        self.config = config
        self._weights = EncoderWeights(tensors)
        self.device = self._weights.device
        self._filters = mel_filters(config.num_mel_bins, N_FFT, SAMPLE_RATE).to(self.device)

    @classmethod
    def load(
        cls,
        config: AudioEncoderConfig,
        tensors: TensorSource,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        prefix: str = PREFIX,
    ) -> AudioEncoder:
        """Read all tensors, whose names begin with prefix. Raises ValueError for one that is missing or misshapen."""
        return cls(config, read_tensors(config, tensors, dtype, device, prefix))

    def num_rows(self, num_samples: int) -> int:
        """Rows of a recording of so many samples at sample_rate. Raises ValueError for one that is too short."""
        return self.config.num_rows(num_samples)

    @property
    def window_len(self) -> int:
        """Samples of a window at sample_rate."""
        return self.config.window_frames * HOP

    @property
    def fingerprint(self) -> bytes:
        """A digest of the config and of the last projection, by which encoders are known from each other."""
        last = "proj2" if self.config.kind == "qwen3_omni" else "proj"
        held = self._weights[f"{last}.weight"].detach().float().cpu().numpy()
        return hashlib.blake2b(repr(self.config).encode() + held.tobytes(), digest_size=16).digest()

    def features(self, samples: Samples) -> Tensor:
        """Log-mel features [M, F] float32 of samples [T] at sample_rate.

        Frames are centred, reflected at the beginning; at the end Qwen3-Omni reflects and Qwen2.5-Omni reads zeros.
        Raises ValueError for a recording that is too short.
        """
        recording = RecordingFeatures(self.config, self._filters)
        recording.push(samples)
        recording.end()
        return torch.cat([window.mel for window in recording.windows()], dim=1)

    def recording(self) -> RecordingFeatures:
        """An empty recording, whose windows `encode_windows` takes."""
        return RecordingFeatures(self.config, self._filters)

    def encode(self, recordings: Sequence[Samples]) -> list[Tensor]:
        """Embedding rows [num_rows, output_size] of each recording [T] at sample_rate.

        Raises ValueError for one that is too short.
        """
        return self.encode_features([self.features(samples) for samples in recordings])

    def encode_features(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """Embedding rows of log-mel features [M, F] of each recording."""
        return self._encoded(mels, None)

    def encode_windows(self, windows: Sequence[FeatureWindow]) -> list[Tensor]:
        """Embedding rows of each window, of whatever recordings: a window's rows depend on no other."""
        return self._encoded([one.mel for one in windows], [one.is_long for one in windows])

    @torch.inference_mode()
    def _encoded(self, mels: Sequence[Tensor], is_long: Sequence[bool] | None) -> list[Tensor]:
        if not mels:
            return []
        weights = self._weights
        columns = columns_of(mels, weights, self.config, is_long)
        lens = [len(x) for x in columns]
        x = run_layers(torch.cat(columns), weights, self.config, window_lens(lens, self.config.window))
        if self.config.kind == "qwen3_omni":
            x = F.gelu(weights.linear(weights.norm(x, "ln_post"), "proj1"))
            return list(torch.split(weights.linear(x, "proj2"), lens))
        # The mean of two columns; an odd last one is dropped.
        halves = torch.cat([part[: len(part) // 2 * 2] for part in torch.split(x, lens)])
        pooled = halves.view(-1, 2, self.config.width).mean(dim=1)
        rows = weights.linear(weights.norm(pooled, "ln_post"), "proj")
        return list(torch.split(rows, [n // 2 for n in lens]))
