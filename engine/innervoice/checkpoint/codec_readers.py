"""Readers of the residual-VQ codecs' config.json.

Mimi, EnCodec and DAC as transformers writes it, SNAC as its own package does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.checkpoint.codecs import DacConfig, EncodecConfig, MimiConfig, SeanetShape
from innervoice.checkpoint.files import agree, note_unknown, read_json, require
from innervoice.checkpoint.rope import read_rope

Source = str | PathLike[str]


def read_codec_json(directory: Source) -> tuple[str | None, dict[str, Any], Path]:
    """A codec's model_type, its config.json and the path of that.

    SNAC names no type: its strides tell it from others.

    Raises FileNotFoundError, and ValueError for a directory of GLM-4-Voice's decoder.
    """
    source = Path(directory) / "config.json"
    if not source.exists() and (Path(directory) / "config.yaml").exists():
        raise ValueError(
            f"{directory} holds a config.yaml, as GLM-4-Voice's decoder does: "
            "give it to `innervoice generate`"
        )
    data = read_json(source)
    _compare_preprocessor(data, source)
    return data.get("model_type", "snac" if "vq_strides" in data else None), data, source


# Settings of preprocessor_config.json, and what config.json calls them.
_PREPROCESSOR = {
    "sampling_rate": "sampling_rate",
    "feature_size": "audio_channels",
    "chunk_length_s": "chunk_length_s",
    "overlap": "overlap",
    "hop_length": "hop_length",
}


def _compare_preprocessor(data: Mapping[str, Any], source: Path) -> None:
    """Refuse a preprocessor_config.json that describes other sound than config.json."""
    path = source.with_name("preprocessor_config.json")
    beside = read_json(path) if path.exists() else {}
    for theirs, ours in _PREPROCESSOR.items():
        if None not in (beside.get(theirs), data.get(ours)) and beside[theirs] != data[ours]:
            raise ValueError(
                f"{path}: {theirs} is {beside[theirs]!r}, and {ours} of config.json is {data[ours]!r}: "
                "they must be the same"
            )


def _ints(data: Mapping[str, Any], key: str, source: Source) -> tuple[int, ...]:
    values = require(data, key, source, (list, tuple))
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in values):
        raise ValueError(f"{source}: {key} is {values!r}, expected whole numbers above 0")
    return tuple(values)


def _positive(data: Mapping[str, Any], key: str, source: Source, default: int | None = None) -> int:
    if default is not None and data.get(key) is None:
        return default
    value = require(data, key, source, int)
    if value <= 0:
        raise ValueError(f"{source}: {key} is {value}, expected a whole number above 0")
    return int(value)


def _hold(data: Mapping[str, Any], source: Source, **allowed: Any) -> None:
    """Refuse settings that no published checkpoint has."""
    for key, value in allowed.items():
        if data.get(key, value) != value:
            raise ValueError(f"{source}: {key} is {data[key]!r}, only {value!r} is supported")


_SEANET = {
    "audio_channels": "channels",
    "hidden_size": "width",
    "num_filters": "num_filters",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "num_residual_layers": "num_residual_layers",
    "dilation_growth_rate": "dilation_growth",
    "compress": "compress",
}
_TRAINING = (
    "architectures", "dtype", "torch_dtype", "transformers_version", "initializer_range",
    "tie_word_embeddings", "use_cache", "use_streaming", "attention_dropout", "max_position_embeddings",
    "layer_scale_initial_scale", "codebook_nbits",
)  # fmt: skip
_MIMI_KEYS = (
    "model_type", "hidden_act", "use_causal_conv", "trim_right_ratio", "pad_mode", "rope_parameters",
    "rope_theta", "rope_scaling", "sampling_rate", "frame_rate", "_frame_rate", "upsample_groups",
    "num_attention_heads", "num_key_value_heads", "head_dim", "vector_quantization_hidden_dimension",
    "codebook_size", "codebook_dim", "num_quantizers", "num_semantic_quantizers", "num_hidden_layers",
    "intermediate_size", "norm_eps", "sliding_window", "attention_bias", "encoder_config", "decoder_config",
    "upsampling_ratios", "use_conv_shortcut",
)  # fmt: skip
_ENCODEC_KEYS = (
    "model_type", "pad_mode", "trim_right_ratio", "norm_type", "use_causal_conv", "normalize",
    "chunk_length_s", "overlap", "sampling_rate", "num_lstm_layers", "codebook_size", "codebook_dim",
    "target_bandwidths", "upsampling_ratios", "use_conv_shortcut",
)  # fmt: skip


def _seanet(data: Mapping[str, Any], source: Source) -> SeanetShape:
    sizes = {ours: _positive(data, theirs, source) for theirs, ours in _SEANET.items()}
    shortcut = require(data, "use_conv_shortcut", source, bool)
    return SeanetShape(**sizes, ratios=_ints(data, "upsampling_ratios", source), conv_shortcut=shortcut)


def read_mimi(data: Mapping[str, Any], source: Source) -> MimiConfig:
    """config.json of transformers' Mimi. Raises ValueError for a setting that is not supported."""
    _hold(data, source, hidden_act="gelu", use_causal_conv=True, trim_right_ratio=1.0, pad_mode="constant")
    seanet = _seanet(data, source)
    rope = read_rope(data, source, max_position=8000)
    if rope.scaling is not None:
        raise ValueError(f"{source}: the rotary positions are scaled, which is not supported for Mimi")
    rate = _positive(data, "sampling_rate", source)
    agree(data, source, "frame_rate", "_frame_rate")
    frame_rate = data.get("frame_rate") or data.get("_frame_rate") or rate / (2 * seanet.hop_len)
    downsample = int(math.ceil(rate / seanet.hop_len) / frame_rate)
    if downsample < 2:
        raise ValueError(
            f"{source}: frame_rate is {frame_rate}, only a fraction of the latent's rate is supported"
        )
    if data.get("upsample_groups", seanet.width) != seanet.width:
        raise ValueError(
            f"{source}: upsample_groups is {data['upsample_groups']}, only one a channel is supported"
        )
    heads = _positive(data, "num_attention_heads", source)
    projected = _positive(data, "vector_quantization_hidden_dimension", source)
    known = {*_SEANET, *_TRAINING, *_MIMI_KEYS}
    note_unknown(data, known, source)
    return MimiConfig(
        sample_rate=rate,
        seanet=seanet,
        codebook_size=_positive(data, "codebook_size", source),
        codebook_dim=_positive(data, "codebook_dim", source, seanet.width),
        num_quantizers=_positive(data, "num_quantizers", source),
        num_semantic=_positive(data, "num_semantic_quantizers", source),
        projected=projected != seanet.width,
        num_layers=_positive(data, "num_hidden_layers", source),
        num_heads=heads,
        num_groups=_positive(data, "num_key_value_heads", source, heads),
        head_dim=_positive(data, "head_dim", source, seanet.width // heads),
        ffn_dim=_positive(data, "intermediate_size", source),
        norm_eps=float(require(data, "norm_eps", source)),
        rope_theta=rope.theta,
        window=_positive(data, "sliding_window", source),
        attention_bias=bool(data.get("attention_bias", False)),
        downsample=downsample,
        has_encoder=data.get("encoder_config", True) is not None,
        has_decoder=data.get("decoder_config", True) is not None,
    )


def read_encodec(data: Mapping[str, Any], source: Source) -> EncodecConfig:
    """config.json of transformers' EnCodec. Raises ValueError for a setting that is not supported."""
    seanet = _seanet(data, source)
    _hold(data, source, pad_mode="reflect", trim_right_ratio=1.0, codebook_dim=seanet.width)
    rate, norm = _positive(data, "sampling_rate", source), require(data, "norm_type", source, str)
    if norm not in ("weight_norm", "time_group_norm"):
        raise ValueError(f"{source}: norm_type is {norm!r}, expected weight_norm or time_group_norm")
    causal = require(data, "use_causal_conv", source, bool)
    length, overlap = data.get("chunk_length_s"), data.get("overlap")
    chunk_len = None if length is None else int(length * rate)
    stride = None if chunk_len is None else max(1, int((1.0 - require(data, "overlap", source)) * chunk_len))
    if (
        (chunk_len is None) != causal
        or (causal and norm != "weight_norm")
        or (chunk_len is None and data.get("normalize"))
    ):
        raise ValueError(
            f"{source}: "
            f"use_causal_conv {causal}, norm_type {norm}, chunk_length_s {length} and overlap {overlap} together are "
            "not of a published kind: a causal stream with weight_norm, or chunks that are not causal"
        )
    if chunk_len is not None and stride is not None and chunk_len > 2 * stride:
        raise ValueError(
            f"{source}: overlap is {overlap}, expected at most 0.5: "
            "no more than two chunks may lie over each other"
        )
    bandwidths = require(data, "target_bandwidths", source, (list, tuple))
    note_unknown(data, {*_SEANET, *_TRAINING, *_ENCODEC_KEYS}, source)
    return EncodecConfig(
        sample_rate=rate,
        seanet=seanet,
        causal=causal,
        group_norm=norm == "time_group_norm",
        normalize=bool(data.get("normalize")),
        chunk_len=chunk_len,
        chunk_stride=stride,
        num_lstm_layers=_positive(data, "num_lstm_layers", source),
        codebook_size=_positive(data, "codebook_size", source),
        bandwidths=tuple(float(b) for b in bandwidths),
    )


def read_dac(data: Mapping[str, Any], source: Source) -> DacConfig:
    """config.json of transformers' DAC. Raises ValueError for a setting that is not supported."""
    ratios = _ints(data, "downsampling_ratios", source)
    width = _positive(data, "encoder_hidden_size", source)
    derived = {
        "upsampling_ratios": list(ratios[::-1]),
        "hop_length": math.prod(ratios),
        "hidden_size": width << len(ratios),
    }
    for key, value in derived.items():
        if data.get(key) is not None and data[key] != value:
            raise ValueError(
                f"{source}: {key} is {data[key]!r}, but downsampling_ratios {list(ratios)} and "
                f"encoder_hidden_size {width} make it {value!r}: remove it, or change them"
            )
    return DacConfig(
        kind="dac",
        sample_rate=_positive(data, "sampling_rate", source),
        encoder_width=width,
        encoder_ratios=ratios,
        latent_width=width << len(ratios),
        decoder_width=_positive(data, "decoder_hidden_size", source),
        decoder_ratios=ratios[::-1],
        codebook_size=_positive(data, "codebook_size", source),
        codebook_dim=_positive(data, "codebook_dim", source),
        strides=(1,) * _positive(data, "n_codebooks", source),
    )


def read_snac(data: Mapping[str, Any], source: Source) -> DacConfig:
    """config.json of SNAC's own package. Raises ValueError for a setting that is not supported."""
    encoder, decoder = _ints(data, "encoder_rates", source), _ints(data, "decoder_rates", source)
    if math.prod(encoder) != math.prod(decoder):
        raise ValueError(
            f"{source}: "
            f"encoder_rates {list(encoder)} and decoder_rates {list(decoder)} have different products"
        )
    width = _positive(data, "encoder_dim", source)
    window = data.get("attn_window_size", 32)
    return DacConfig(
        kind="snac",
        sample_rate=_positive(data, "sampling_rate", source),
        encoder_width=width,
        encoder_ratios=encoder,
        latent_width=_positive(data, "latent_dim", source, width << len(encoder)),
        decoder_width=_positive(data, "decoder_dim", source),
        decoder_ratios=decoder,
        codebook_size=_positive(data, "codebook_size", source),
        codebook_dim=_positive(data, "codebook_dim", source),
        strides=_ints(data, "vq_strides", source),
        depthwise=bool(data.get("depthwise", True)),
        noise=bool(data.get("noise", True)),
        window=None if window is None else _positive(data, "attn_window_size", source, 32),
    )
