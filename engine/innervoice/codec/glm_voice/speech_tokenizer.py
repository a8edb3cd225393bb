"""Speech in: samples -> speech codes, with the Whisper-VQ tokenizer of GLM-4-Voice."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Literal

import torch

from innervoice.checkpoint.safetensors import DummyTensors, TensorDir, TensorSource
from innervoice.checkpoint.speech_tokenizer import (
    SpeechTokenizerConfig,
    read_speech_tokenizer_config,
    tensor_shapes,
)
from innervoice.codec.audio import check_samples, resampled_len
from innervoice.codec.glm_voice.tokenizer_stream import Network, TokenizerStream, encode_ready
from innervoice.codec.glm_voice.whisper_encoder import WhisperWeights
from innervoice.telemetry.trace import Tracer
from innervoice.types import Samples
from innervoice_kernels.speech_codec.mel import mel_filters

_FULL_PREFIX = "model.encoder."  # of a checkpoint that also holds the speech recogniser's decoder


class SpeechTokenizer:
    """Turns sound into codes, one each 80 ms at the shipped size.

    Holds weights only, so any thread may call it.
    """

    def __init__(
        self, config: SpeechTokenizerConfig, weights: WhisperWeights, tracer: Tracer | None = None
    ) -> None:
        self.config = config
        filters = mel_filters(config.num_mel_bins, config.n_fft, config.sample_rate)
        self._network = Network(config, weights, filters.to(weights["codebook.weight"].device))
        self._tracer = tracer or Tracer()

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
        """config.json, preprocessor_config.json (optional) and model.safetensors; "dummy": random
        weights from the configs alone.

        Raises FileNotFoundError for missing files, ValueError for damaged or unsupported ones.
        """
        config = read_speech_tokenizer_config(directory)
        source: TensorSource = DummyTensors() if load_format == "dummy" else TensorDir(directory)
        prefix = (
            _FULL_PREFIX if isinstance(source, TensorDir) and _FULL_PREFIX + "conv1.weight" in source else ""
        )
        shapes = tensor_shapes(config).items()
        weights = {
            name: source.get(prefix + name, shape, dtype=dtype, device=device) for name, shape in shapes
        }
        return cls(config, weights, tracer)

    @property
    def vocab_size(self) -> int:
        """Number of codes."""
        return self.config.vocab_size

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight.numel() * weight.element_size() for weight in self._network.weights.values())

    def count_codes(self, num_samples: int, rate: int) -> int:
        """The number of codes that so many samples at `rate` Hz make."""
        return self.config.num_tokens(resampled_len(num_samples, rate, self.config.sample_rate))

    def block_len(self, rate: int) -> int:
        """Samples at `rate` Hz of a block, which a stream encodes at once."""
        config = self.config
        return resampled_len(config.block_len * config.position_len, config.sample_rate, rate)

    def encode(self, samples: Samples, rate: int) -> list[int]:
        """Codes of a recording: samples [T] of any rate -> one code each 80 ms
        begun, piece after piece of 30 s.

        Raises ValueError for no samples, for numbers that are not finite and for a rate that is none.
        """
        check_samples(samples, rate)
        with self._tracer.span("speech_tokenizer", samples=len(samples), rate=int(rate)):
            stream = self.stream(rate)
            stream.push(samples)
            return stream.finish()

    def stream(self, rate: int) -> TokenizerStream:
        """A recording that comes in frames at `rate` Hz. Raises ValueError for a rate that is none."""
        return TokenizerStream(self._network, rate)

    def step(self, streams: Sequence[TokenizerStream]) -> None:
        """Encode the complete blocks of all streams, a block of each in one call of the network;
        `take` then has it at no cost.

        Raises ValueError for a stream of another tokenizer.
        """
        if any(stream.network is not self._network for stream in streams):
            raise ValueError(
                "a stream of another tokenizer was given: step each with the tokenizer that opened it"
            )
        with self._tracer.span("speech_tokenizer_step", streams=len(streams)):
            encode_ready(list(dict.fromkeys(streams)))
