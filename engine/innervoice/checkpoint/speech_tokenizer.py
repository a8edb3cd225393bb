"""The configuration of a speech tokenizer: a Whisper encoder cut after a layer, then one codebook."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.checkpoint.files import note_unknown, read_json, require
from innervoice.checkpoint.model_config import dtype_bytes

CONV_KERNEL = 3
CONV_STRIDE = 2  # of the second convolution


@dataclass(frozen=True)
class SpeechTokenizerConfig:
    """Lengths are in samples of `sample_rate` (n_fft, hop, piece_len), mel frames (2 a
    position) or positions (block_len).

    block_len: a position sees everything before it and to the end of its own
    block; pooling: positions a token.
    """

    num_mel_bins: int
    hidden_size: int
    num_heads: int
    ffn_size: int
    num_layers: int
    max_position: int
    block_len: int
    pooling: int
    vocab_size: int
    sample_rate: int = 16000
    n_fft: int = 400
    hop: int = 160
    piece_len: int = 480000

    @property
    def position_len(self) -> int:
        """Samples a position."""
        return self.hop * CONV_STRIDE

    @property
    def token_len(self) -> int:
        """Samples a token."""
        return self.position_len * self.pooling

    def num_tokens(self, num_samples: int) -> int:
        """Tokens of a recording of so many samples at `sample_rate`; each piece rounds up."""
        pieces, rest = divmod(num_samples, self.piece_len)
        return pieces * math.ceil(self.piece_len / self.token_len) + math.ceil(rest / self.token_len)


_EXPECTED = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "encoder_causal_convolution": True,
    "encoder_causal_attention": False,
    "quantize_causal_encoder": False,
    "pooling_type": "avg",
}
_SIZES = {
    "num_mel_bins": "num_mel_bins",
    "hidden_size": "d_model",
    "num_heads": "encoder_attention_heads",
    "ffn_size": "encoder_ffn_dim",
    "num_layers": "quantize_position",
    "max_position": "max_source_positions",
    "block_len": "quantize_causal_block_size",
    "pooling": "pooling_kernel_size",
    "vocab_size": "quantize_vocab_size",
}
# Of training, of the decoder that the checkpoint has not, or of transformers' own book-keeping:
# no meaning for the encoder.
_UNUSED = (
    "architectures", "auto_map", "torch_dtype", "dtype", "transformers_version", "_name_or_path", "use_cache",
    "is_encoder_decoder", "dropout", "attention_dropout", "activation_dropout", "encoder_layerdrop", "decoder_layerdrop",
    "init_std", "scale_embedding", "encoder_layers", "num_hidden_layers", "decoder_layers", "decoder_attention_heads",
    "decoder_ffn_dim", "max_target_positions", "vocab_size", "max_length", "quantize_encoder_only", "quantize_loss_scale",
    "quantize_commit_coefficient", "quantize_ema_decay", "quantize_restart_interval", "skip_language_detection",
    "apply_spec_augment", "mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob",
    "mask_feature_length", "mask_feature_min_masks", "median_filter_length", "use_weighted_layer_sum",
    "classifier_proj_size", "begin_suppress_tokens", "suppress_tokens", "forced_decoder_ids", "bos_token_id",
    "eos_token_id", "pad_token_id", "decoder_start_token_id",
)  # fmt: skip
_FRONT_END = {"sample_rate": "sampling_rate", "n_fft": "n_fft", "hop": "hop_length", "piece_len": "n_samples"}
_FRONT_END_UNUSED = (
    "feature_extractor_type", "processor_class", "return_attention_mask", "chunk_length", "nb_max_frames", "padding_side",
)  # fmt: skip


def read_speech_tokenizer_config(directory: str | PathLike[str]) -> SpeechTokenizerConfig:
    """config.json, and preprocessor_config.json where there is one (else 16 kHz,
    n_fft 400, hop 160, 30 s pieces).

    Raises FileNotFoundError without a config.json, ValueError for a key that is missing
    or a network of another kind.
    """
    path = Path(directory) / "config.json"
    data = read_json(path)
    note_unknown(data, [*_EXPECTED, *_SIZES.values(), *_UNUSED, "pooling_position"], path)
    for key, expected in _EXPECTED.items():
        _expect(data, key, expected, path)
    sizes = {field: _size(data, key, path) for field, key in _SIZES.items()}
    _expect(data, "pooling_position", sizes["num_layers"], path)
    if sizes["hidden_size"] % sizes["num_heads"]:
        raise ValueError(
            f"{path}: d_model {sizes['hidden_size']} is no multiple of encoder_attention_heads {sizes['num_heads']}"
        )
    front_end = _read_front_end(Path(directory) / "preprocessor_config.json", sizes["num_mel_bins"])
    config = SpeechTokenizerConfig(**sizes, **front_end)
    _check_piece(config, path)
    return config


def tensor_shapes(config: SpeechTokenizerConfig) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that turn sound into ids."""
    width, shapes = config.hidden_size, dict[str, tuple[int, ...]]()
    for name, channels in (("conv1", config.num_mel_bins), ("conv2", width)):
        shapes |= {f"{name}.weight": (width, channels, CONV_KERNEL), f"{name}.bias": (width,)}
    shapes["embed_positions.weight"] = (config.max_position, width)
    for i in range(config.num_layers):
        shapes |= {
            f"layers.{i}.{name}": shape for name, shape in _layer_shapes(width, config.ffn_size).items()
        }
    return shapes | {"codebook.weight": (config.vocab_size, width)}


def num_parameters(config: SpeechTokenizerConfig) -> int:
    """Parameters of the checkpoint, with the position table of the pooled rate
    (embed_positions2) that ids do not need.
    """
    pooled_table = math.ceil(config.max_position / config.pooling) * config.hidden_size
    return sum(map(math.prod, tensor_shapes(config).values())) + pooled_table


def tensor_bytes(config: SpeechTokenizerConfig, dtype: str) -> int:
    """Bytes of the weights that are loaded. Raises ValueError for a dtype that models are not run in."""
    return sum(map(math.prod, tensor_shapes(config).values())) * dtype_bytes(dtype)


def _layer_shapes(width: int, ffn_size: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {
        f"self_attn.{part}_proj.weight": (width, width) for part in ("q", "k", "v", "out")
    }
    shapes |= {f"self_attn.{part}_proj.bias": (width,) for part in ("q", "v", "out")}
    shapes |= {
        f"{norm}.{part}": (width,)
        for norm in ("self_attn_layer_norm", "final_layer_norm")
        for part in ("weight", "bias")
    }
    shapes |= {
        "fc1.weight": (ffn_size, width),
        "fc1.bias": (ffn_size,),
        "fc2.weight": (width, ffn_size),
        "fc2.bias": (width,),
    }
    return shapes


def _read_front_end(path: Path, num_mel_bins: int) -> dict[str, int]:
    data = read_json(path) if path.exists() else {}
    note_unknown(data, [*_FRONT_END.values(), *_FRONT_END_UNUSED, "feature_size", "padding_value"], path)
    _expect({"feature_size": num_mel_bins, "padding_value": 0.0} | data, "feature_size", num_mel_bins, path)
    _expect({"padding_value": 0.0} | data, "padding_value", 0.0, path)
    return {field: _size(data, key, path) for field, key in _FRONT_END.items() if key in data}


def _check_piece(config: SpeechTokenizerConfig, path: Path) -> None:
    if config.n_fft % 2 or config.n_fft // 2 >= config.token_len:
        raise ValueError(
            f"{path}: n_fft {config.n_fft} is odd or too long for tokens of {config.token_len} samples"
        )
    padded = math.ceil(config.piece_len / config.token_len) * config.token_len
    room = config.max_position * config.position_len
    if padded > room:
        raise ValueError(
            f"{path}: max_source_positions {config.max_position} hold {room} samples, fewer than a piece of {padded} (n_samples"
            " in preprocessor_config.json): the two files do not belong together"
        )


def _expect(data: Mapping[str, Any], key: str, expected: Any, path: Path) -> None:
    if (
        require(data, key, path, type(expected) if not isinstance(expected, float) else (int, float))
        != expected
    ):
        raise ValueError(f"{path}: {key} is {data[key]!r}, only {expected!r} is supported")


def _size(data: Mapping[str, Any], key: str, path: Path) -> int:
    value: int = require(data, key, path, int)
    if value < 1:
        raise ValueError(f"{path}: {key} is {value}, expected 1 or more")
    return value
