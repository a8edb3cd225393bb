"""The configuration of an audio encoder, which turns a recording into embedding rows of a language model.

It has the sizes, counts frames and rows, and lists names and shapes of the tensors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any, Literal

from innervoice.checkpoint.files import note_unknown
from innervoice.checkpoint.model_config import read_size

Kind = Literal["qwen3_omni", "qwen2_5_omni"]
SAMPLE_RATE = 16_000  # Hz
N_FFT, HOP = 400, 160  # samples
CHUNK_FRAMES: dict[Kind, int] = {
    "qwen3_omni": 100,
    "qwen2_5_omni": 200,
}  # mel frames between which no convolution reaches
CHUNK_COLUMNS: dict[Kind, int] = {
    "qwen3_omni": 13,
    "qwen2_5_omni": 100,
}  # what the convolutions make of a chunk
STEM_STEPS = 3  # convolutions of Qwen3-Omni's stem, each halving time and mel bins
TensorShapes = dict[str, tuple[int, ...]]

_SIZES = {
    "num_mel_bins": "num_mel_bins",
    "width": "d_model",
    "num_layers": "encoder_layers",
    "num_heads": "encoder_attention_heads",
    "ffn_size": "encoder_ffn_dim",
    "output_size": "output_dim",
}
_NOTHING = (
    "model_type", "dropout", "attention_dropout", "activation_dropout", "initializer_range", "max_source_positions",
    "conv_chunksize", "architectures", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "num_hidden_layers",
    "hidden_size", "use_cache", "encoder_layerdrop", "init_std", "return_dict", "output_attentions", "output_hidden_states",
    "is_encoder_decoder", "chunk_size_feed_forward", "problem_type", "id2label", "label2id", "num_attention_heads",
    "intermediate_size",
)  # fmt: skip


@dataclass(frozen=True)
class AudioEncoderConfig:
    """A Whisper-like encoder over windows. window: columns that attend to each other; stem_channels: of Qwen3-Omni's
    two-dimensional convolutions, 0 for Qwen2.5-Omni; output_size: width of a row.
    """

    kind: Kind
    num_mel_bins: int
    width: int
    num_layers: int
    num_heads: int
    ffn_size: int
    output_size: int
    window: int
    stem_channels: int = 0

    def num_frames(self, num_samples: int) -> int:
        """Mel frames of a recording at SAMPLE_RATE: Qwen2.5-Omni counts the last, partial hop."""
        return num_samples // HOP if self.kind == "qwen3_omni" else -(-num_samples // HOP)

    @property
    def window_frames(self) -> int:
        """Mel frames of a window of columns that attend to each other."""
        return self.window // CHUNK_COLUMNS[self.kind] * CHUNK_FRAMES[self.kind]

    @property
    def num_parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(math.prod(shape) for shape in encoder_shapes(self).values())

    def num_columns(self, num_frames: int) -> int:
        """Columns that the convolutions make of mel frames."""
        chunks, rest = divmod(num_frames, CHUNK_FRAMES[self.kind])
        return CHUNK_COLUMNS[self.kind] * chunks + self.chunk_columns(rest)

    def chunk_columns(self, num_frames: int) -> int:
        """Columns of one chunk of at most CHUNK_FRAMES frames."""
        for _ in range(STEM_STEPS if self.kind == "qwen3_omni" else 1):
            num_frames = -(-num_frames // 2)
        return num_frames

    def num_rows(self, num_samples: int) -> int:
        """Embedding rows of a recording of so many samples at SAMPLE_RATE.

        Raises ValueError for one that is too short to be encoded.
        """
        least = N_FFT // 2 + 1 if self.kind == "qwen3_omni" else 2 * HOP + 1
        if num_samples < least:
            raise ValueError(
                f"audio has {num_samples} samples at {SAMPLE_RATE} Hz: this model hears recordings of {least} or more"
            )
        columns = self.num_columns(self.num_frames(num_samples))
        return columns if self.kind == "qwen3_omni" else columns // 2


def read_audio_encoder_config(
    data: Mapping[str, Any], source: str | PathLike[str], kind: Kind
) -> AudioEncoderConfig:
    """The section audio_config of config.json. Raises ValueError naming a key that is missing or not supported."""
    own = ("n_window_infer", "downsample_hidden_size") if kind == "qwen3_omni" else ()
    fixed = {"n_window": CHUNK_FRAMES[kind] // 2, "activation_function": "gelu", "scale_embedding": False}
    note_unknown(data, (*_SIZES.values(), *fixed, *own, *_NOTHING), source)
    for key, only in fixed.items():
        if data.get(key, only) != only:
            raise ValueError(
                f"{source}: {key} is {data[key]!r}, which is not supported; supported is {only!r}"
            )
    sizes = {field: read_size(data, key, source) for field, key in _SIZES.items()}
    if sizes["width"] % (2 * sizes["num_heads"]):
        raise ValueError(
            f"{source}: d_model {sizes['width']} must be a multiple of twice encoder_attention_heads {sizes['num_heads']}"
        )
    if kind == "qwen2_5_omni":
        return AudioEncoderConfig(kind, **sizes, window=CHUNK_COLUMNS[kind])
    heard = read_size(data, "n_window_infer", source)
    if heard % CHUNK_FRAMES[kind]:
        raise ValueError(f"{source}: n_window_infer is {heard}, expected a multiple of {CHUNK_FRAMES[kind]}")
    channels = read_size(data, "downsample_hidden_size", source)
    window = heard // CHUNK_FRAMES[kind] * CHUNK_COLUMNS[kind]
    return AudioEncoderConfig(kind, **sizes, window=window, stem_channels=channels)


def encoder_shapes(config: AudioEncoderConfig) -> TensorShapes:
    """Names, behind the encoder's prefix, and shapes of all its tensors."""
    width, channels = config.width, config.stem_channels
    if config.kind == "qwen3_omni":
        shapes = _affine("conv2d1", channels, 1, 3, 3)
        for step in range(2, STEM_STEPS + 1):
            shapes |= _affine(f"conv2d{step}", channels, channels, 3, 3)
        bins = config.chunk_columns(config.num_mel_bins)
        shapes["conv_out.weight"] = (width, channels * bins)
        shapes |= _affine("proj1", width, width) | _affine("proj2", config.output_size, width)
    else:
        shapes = _affine("conv1", width, config.num_mel_bins, 3) | _affine("conv2", width, width, 3)
        shapes |= _affine("proj", config.output_size, width)
    for index in range(config.num_layers):
        shapes |= {f"layers.{index}.{name}": shape for name, shape in _layer_shapes(config).items()}
    return shapes | _affine("ln_post", width)


def _layer_shapes(config: AudioEncoderConfig) -> TensorShapes:
    width, shapes = config.width, TensorShapes()
    for part in ("q", "k", "v", "out"):
        shapes |= _affine(f"self_attn.{part}_proj", width, width)
    if config.kind == "qwen2_5_omni":
        del shapes["self_attn.k_proj.bias"]
    shapes |= _affine("self_attn_layer_norm", width) | _affine("final_layer_norm", width)
    return shapes | _affine("fc1", config.ffn_size, width) | _affine("fc2", width, config.ffn_size)


def _affine(name: str, outputs: int, *rest: int) -> TensorShapes:
    return {f"{name}.weight": (outputs, *rest), f"{name}.bias": (outputs,)}
