"""An audio encoder: samples at 16 kHz -> log-mel features -> embedding rows of the language model.

A recording's rows are those of the recording alone, whatever is encoded beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.checkpoint.audio_encoder import HOP, N_FFT, SAMPLE_RATE, AudioEncoderConfig, encoder_shapes
from innervoice.checkpoint.safetensors import TensorSource
from innervoice.codec.audio_encoder.layers import EncoderWeights, linear, norm, run_layers, window_lens
from innervoice.codec.audio_encoder.stems import columns_of
from innervoice.types import Samples
from innervoice_kernels.speech_codec.mel import floor_frames, log_frames, mel_filters


class AudioEncoder:
    """An encoder over weights by name; it holds no state between calls."""

    sample_rate = SAMPLE_RATE

    def __init__(self, config: AudioEncoderConfig, weights: EncoderWeights) -> None:
        self.config = config
        self._weights = weights
        self.device = weights["ln_post.weight"].device
        self._filters = mel_filters(config.num_mel_bins, N_FFT, SAMPLE_RATE).to(self.device)

    @classmethod
    def load(
        cls,
        config: AudioEncoderConfig,
        tensors: TensorSource,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
        prefix: str = "thinker.audio_tower.",
    ) -> AudioEncoder:
        """Read all tensors, whose names begin with prefix. Raises ValueError for one that is missing or misshapen."""
        shapes = encoder_shapes(config)
        return cls(
            config,
            {
                name: tensors.get(prefix + name, shape, dtype=dtype, device=device)
                for name, shape in shapes.items()
            },
        )

    def num_rows(self, num_samples: int) -> int:
        """Rows of a recording of so many samples at sample_rate. Raises ValueError for one that is too short."""
        return self.config.num_rows(num_samples)

    @torch.inference_mode()
    def features(self, samples: Samples) -> Tensor:
        """Log-mel features [M, F] float32 of samples [T] at sample_rate.

        Frames are centred, reflected at the beginning; at the end Qwen3-Omni reflects and Qwen2.5-Omni reads zeros.
        Raises ValueError for a recording that is too short.
        """
        self.num_rows(len(samples))
        half, frames = N_FFT // 2, self.config.num_frames(len(samples))
        x = torch.as_tensor(samples, dtype=torch.float32, device=self.device)[None]
        if self.config.kind == "qwen3_omni":
            padded = F.pad(x, (half, half), mode="reflect")
        else:
            padded = F.pad(F.pad(x, (half, 0), mode="reflect"), (0, half + HOP))
        log = log_frames(padded, self._filters, HOP)[..., :frames]
        return floor_frames(log, log.amax())[0]

    def encode(self, recordings: Sequence[Samples]) -> list[Tensor]:
        """Embedding rows [num_rows, output_size] of each recording [T] at sample_rate.

        Raises ValueError for one that is too short.
        """
        return self.encode_features([self.features(samples) for samples in recordings])

    @torch.inference_mode()
    def encode_features(self, mels: Sequence[Tensor]) -> list[Tensor]:
        """Embedding rows of log-mel features [M, F] of each recording."""
        if not mels:
            return []
        columns = columns_of(mels, self._weights, self.config)
        lens = [len(x) for x in columns]
        x = run_layers(torch.cat(columns), self._weights, self.config, window_lens(lens, self.config.window))
        if self.config.kind == "qwen3_omni":
            x = F.gelu(linear(norm(x, self._weights, "ln_post"), self._weights, "proj1"))
            return list(torch.split(linear(x, self._weights, "proj2"), lens))
        # The mean of two columns; an odd last one is dropped.
        halves = torch.cat([part[: len(part) // 2 * 2] for part in torch.split(x, lens)])
        pooled = halves.view(-1, 2, self.config.width).mean(dim=1)
        rows = linear(norm(pooled, self._weights, "ln_post"), self._weights, "proj")
        return list(torch.split(rows, [n // 2 for n in lens]))
