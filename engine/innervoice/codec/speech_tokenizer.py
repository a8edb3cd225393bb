"""Speech in: samples -> speech codes, with the Whisper-VQ tokenizer of GLM-4-Voice."""

from __future__ import annotations

import math
from os import PathLike
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

from innervoice.codec.audio import check_samples, resample
from innervoice.codec.whisper_encoder import Weights, encode, pool
from innervoice.config.speech_tokenizer import SpeechTokenizerConfig, read_speech_tokenizer_config, tensor_shapes
from innervoice.safetensors_file import DummyTensors, TensorDir, TensorSource
from innervoice.trace import Tracer
from innervoice.types import Samples
from innervoice_kernels.mel import log_mel, mel_filters
from innervoice_kernels.vq import nearest_code

MAX_BATCH = 8  # pieces a pass: bounds the memory that a long recording takes
REFERENCE_BATCH = 128  # pieces that the original pads to a common length
_FULL_PREFIX = "model.encoder."  # of a checkpoint that also holds the speech recogniser's decoder


class SpeechTokenizer:
    """Turns sound into codes, one each 80 ms at the shipped size. Holds weights only, so any thread may call it."""

    def __init__(self, config: SpeechTokenizerConfig, weights: Weights, tracer: Tracer | None = None) -> None:
        self.config = config
        self._weights = weights
        self._tracer = tracer or Tracer()
        self._device = weights["codebook.weight"].device
        self._filters = mel_filters(config.num_mel_bins, config.n_fft, config.sample_rate).to(self._device)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | PathLike[str],
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        load_format: Literal["auto", "dummy"] = "auto",
        tracer: Tracer | None = None,
    ) -> SpeechTokenizer:
        """config.json, preprocessor_config.json (optional) and model.safetensors; "dummy": random weights from the configs alone.

        Raises FileNotFoundError for missing files, ValueError for damaged or unsupported ones.
        """
        config = read_speech_tokenizer_config(directory)
        source: TensorSource = DummyTensors() if load_format == "dummy" else TensorDir(directory)
        prefix = _FULL_PREFIX if isinstance(source, TensorDir) and _FULL_PREFIX + "conv1.weight" in source else ""
        shapes = tensor_shapes(config).items()
        weights = {name: source.get(prefix + name, shape, dtype=dtype, device=device) for name, shape in shapes}
        return cls(config, weights, tracer)

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return self.config.vocab_size

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.numel() * weight.element_size() for weight in self._weights.values())

    def encode(self, samples: Samples, rate: int) -> list[int]:
        """Codes of a recording: samples [T] of any rate -> one code each 80 ms begun, piece after piece of 30 s.

        Raises ValueError for no samples, for numbers that are not finite and for a rate that is none.
        """
        check_samples(samples, rate)
        with self._tracer.span("speech_tokenizer", samples=len(samples), rate=int(rate)), torch.inference_mode():
            wave = resample(samples.astype(np.float32, copy=False), int(rate), self.config.sample_rate)
            pieces, tail = self._cut(wave)
            codes = []
            for start in range(0, len(pieces), MAX_BATCH):
                codes += self._encode_batch(pieces[start : start + MAX_BATCH])
            if len(tail):
                codes += self._encode_batch(tail[None], zeros_follow=len(pieces) % REFERENCE_BATCH > 0)
            return codes

    def _cut(self, wave: Samples) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole pieces [B, T], and what is left [T]."""
        whole = len(wave) - len(wave) % self.config.piece_len
        samples = torch.from_numpy(np.require(wave, requirements=["C", "W"]))
        return samples[:whole].view(-1, self.config.piece_len), samples[whole:]

    def _encode_batch(self, pieces: torch.Tensor, zeros_follow: bool = False) -> list[int]:
        """Codes of pieces [B, T], row after row.

        zeros_follow: the original pads this piece to a longer one beside it, so its last frame sees zeros and no reflection.
        """
        config = self.config
        num_samples = pieces.shape[1]
        num_tokens = math.ceil(num_samples / config.token_len)
        padded_len = (num_tokens + zeros_follow) * config.token_len
        padded = F.pad(pieces.to(self._device), (0, padded_len - num_samples))
        features = log_mel(padded, self._filters, config.hop)[..., : num_tokens * config.token_len // config.hop]
        num_positions = torch.full((len(pieces),), math.ceil(num_samples / config.position_len), device=self._device)
        states = encode(self._weights, config, features, num_positions)
        codes: list[int] = nearest_code(pool(states, config.pooling), self._weights["codebook.weight"]).flatten().tolist()
        return codes
