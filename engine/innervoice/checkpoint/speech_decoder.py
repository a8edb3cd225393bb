"""The configuration of the speech decoder: flow (codes -> mel frames) and HiFT (mel frames ->
samples), as config.yaml says.

The tags in that file are data: nothing is constructed or called.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.checkpoint.files import note_unknown
from innervoice.checkpoint.yaml_reader import Section, read_yaml, resolve, tags

MEL_RATE = 22050
"""Samples a second that the mel frames stand for."""
MEL_HOP = 256
"""Samples a mel frame."""

_FLOW = "cosyvoice.flow.flow.MaskedDiffWithXvec"
_ENCODER = "cosyvoice.transformer.encoder.BlockConformerEncoder"
_REGULATOR = "cosyvoice.flow.length_regulator.InterpolateRegulator"
_CFM = "cosyvoice.flow.flow_matching.ConditionalCFM"
_PARAMETERS = "omegaconf.DictConfig"
_ESTIMATOR = "cosyvoice.flow.decoder.ConditionalDecoder"
_HIFT = "cosyvoice.hifigan.generator.HiFTGenerator"
_F0 = "cosyvoice.hifigan.f0_predictor.ConvRNNF0Predictor"
_NEW = frozenset({_FLOW, _ENCODER, _REGULATOR, _CFM, _PARAMETERS, _ESTIMATOR, _HIFT, _F0})
_APPLY = frozenset({"random.seed", "numpy.random.seed", "torch.manual_seed", "torch.cuda.manual_seed_all"})


@dataclass(frozen=True)
class EncoderConfig:
    """The flow's token encoder: attention within and before blocks of `block_size` tokens."""

    input_size: int = 512
    width: int = 512
    num_heads: int = 8
    ffn_width: int = 2048
    num_layers: int = 6
    block_size: int = 10


@dataclass(frozen=True)
class EstimatorConfig:
    """The flow's U-Net over mel frames; one resolution a channel count."""

    channels: tuple[int, ...] = (256, 256)
    head_dim: int = 64
    num_heads: int = 8
    num_blocks: int = 4
    num_mid_blocks: int = 12


@dataclass(frozen=True)
class FlowConfig:
    """Speech codes -> mel frames. token_rate: codes a second; guidance: g in (1 + g) v_cond - g v_uncond."""

    vocab_size: int = 16384
    mel_channels: int = 80
    speaker_width: int = 192
    token_rate: float = 12.5
    num_regulator_layers: int = 4
    guidance: float = 0.7
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)


@dataclass(frozen=True)
class HiftConfig:
    """Mel frames -> samples. Rates in Hz; dilations are per kernel size."""

    mel_channels: int = 80
    base_channels: int = 512
    num_harmonics: int = 8
    sample_rate: int = 22050
    sine_amplitude: float = 0.1
    noise_sigma: float = 0.003
    voiced_threshold: float = 10.0
    upsample_rates: tuple[int, ...] = (8, 8)
    upsample_kernels: tuple[int, ...] = (16, 16)
    n_fft: int = 16
    hop_len: int = 4
    resblock_kernels: tuple[int, ...] = (3, 7, 11)
    resblock_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 3
    source_kernels: tuple[int, ...] = (7, 11)
    source_dilations: tuple[tuple[int, ...], ...] = ((1, 3, 5),) * 2
    slope: float = 0.1
    audio_limit: float = 0.99
    f0_channels: int = 512

    @property
    def frame_len(self) -> int:
        """Samples a mel frame."""
        return math.prod(self.upsample_rates) * self.hop_len


@dataclass(frozen=True)
class DecoderConfig:
    """Speech codes -> samples."""

    flow: FlowConfig = field(default_factory=FlowConfig)
    hift: HiftConfig = field(default_factory=HiftConfig)


def read_decoder_config(path: str | PathLike[str]) -> DecoderConfig:
    """config.yaml of a glm-4-voice-decoder directory.

    Raises FileNotFoundError; ValueError for a tag outside the known names and for a
    setting that is not supported.
    """
    file = Path(path)
    data = read_yaml(file)
    for key, value in data.items():
        _check_tags(value, used=key in ("flow", "hift"), file=file)
    used = {}
    for key in ("flow", "hift"):
        try:
            used[key] = resolve(data.get(key), data)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from None
    config = DecoderConfig(
        _flow(Section(used["flow"], _FLOW, file, "flow")), _hift(Section(used["hift"], _HIFT, file, "hift"))
    )
    if config.flow.mel_channels != config.hift.mel_channels:
        made, taken = config.flow.mel_channels, config.hift.mel_channels
        raise ValueError(f"{file}: flow.output_size {made} is not hift.in_channels {taken}")
    return config


def _check_tags(value: Any, used: bool, file: Path) -> None:
    for tag in tags(value):
        foreign = not used and tag.kind in ("new", "name") and re.fullmatch(r"cosyvoice(\.\w+)+", tag.name)
        known = (
            tag.kind == "ref"
            or (tag.kind == "new" and tag.name in _NEW)
            or (tag.kind == "apply" and tag.name in _APPLY)
        )
        if not (known or foreign):
            raise ValueError(
                f"{file}: the tag {tag} is not among the known names; take the file from a source you trust"
            )


def _flow(section: Section) -> FlowConfig:
    section.ignore("output_type", "only_mask_loss")
    mel_channels = section.integer("output_size")
    encoder = _encoder(section.part("encoder", _ENCODER))
    section.only("input_size", encoder.input_size)
    guidance, estimator = _cfm(section.part("decoder", _CFM), mel_channels)
    config = FlowConfig(
        vocab_size=section.integer("vocab_size"),
        mel_channels=mel_channels,
        speaker_width=section.integer("spk_embed_dim"),
        token_rate=section.number("input_frame_rate"),
        num_regulator_layers=_regulator(section.part("length_regulator", _REGULATOR), mel_channels),
        guidance=guidance,
        encoder=encoder,
        estimator=estimator,
    )
    if config.token_rate == 0:
        raise ValueError(f"{section.source}: input_frame_rate is 0, expected above 0")
    section.done()
    return config


def _encoder(section: Section) -> EncoderConfig:
    section.ignore("dropout_rate", "positional_dropout_rate", "attention_dropout_rate")
    section.only("input_layer", "linear", "conv2d")
    section.only("pos_enc_layer_type", "rel_pos_espnet", "rel_pos")
    section.only("selfattention_layer_type", "block_rel_selfattn", "rel_selfattn")
    section.only("normalize_before", True, True)
    section.only("use_cnn_module", False, True)
    section.only("macaron_style", False, True)
    section.only("activation_type", "swish", "swish")
    section.only("key_bias", True, True)
    section.only("static_chunk_size", 0, 0)
    section.only("use_dynamic_chunk", False, False)
    config = EncoderConfig(
        input_size=section.integer("input_size"),
        width=section.integer("output_size"),
        num_heads=section.integer("attention_heads"),
        ffn_width=section.integer("linear_units"),
        num_layers=section.integer("num_blocks"),
        block_size=section.integer("block_size"),
    )
    if config.width % (2 * config.num_heads):
        raise ValueError(
            f"{section.source}: output_size {config.width} does not make {config.num_heads} heads of even width"
        )
    section.done()
    return config


def _regulator(section: Section, mel_channels: int) -> int:
    section.only("channels", mel_channels)
    section.only("out_channels", mel_channels, mel_channels)
    section.only("groups", 1, 1)
    ratios = section.integers("sampling_ratios")
    section.only("sampling_ratios", [1] * len(ratios))
    section.done()
    return len(ratios)


def _cfm(section: Section, mel_channels: int) -> tuple[float, EstimatorConfig]:
    section.ignore("in_channels")
    section.only("n_spks", 1, 1)
    section.only("spk_emb_dim", mel_channels)
    parameters = section.part("cfm_params", _PARAMETERS)
    content = parameters.mapping("content")
    parameters.only("solver", "euler", "euler", content)
    parameters.only("t_scheduler", "cosine", None, content)
    guidance = parameters.number("inference_cfg_rate", content)
    note_unknown(
        content,
        ("solver", "t_scheduler", "inference_cfg_rate", "training_cfg_rate", "sigma_min", "reg_loss_type"),
        parameters.source,
    )
    estimator = _estimator(section.part("estimator", _ESTIMATOR), mel_channels)
    section.done()
    return guidance, estimator


def _estimator(section: Section, mel_channels: int) -> EstimatorConfig:
    section.ignore("dropout")
    section.only("in_channels", 4 * mel_channels)
    section.only("out_channels", mel_channels)
    section.only("act_fn", "gelu", "snake")
    config = EstimatorConfig(
        channels=section.integers("channels"),
        head_dim=section.integer("attention_head_dim"),
        num_heads=section.integer("num_heads"),
        num_blocks=section.integer("n_blocks"),
        num_mid_blocks=section.integer("num_mid_blocks"),
    )
    if any(width % 8 for width in config.channels):
        raise ValueError(
            f"{section.source}: channels {list(config.channels)} must be multiples of 8, the groups of its norms"
        )
    section.done()
    return config


def _hift(section: Section) -> HiftConfig:
    f0 = section.part("f0_predictor", _F0)
    f0.only("num_class", 1, 1)
    istft = section.mapping("istft_params")
    config = HiftConfig(
        mel_channels=section.integer("in_channels"),
        base_channels=section.integer("base_channels"),
        num_harmonics=section.integer("nb_harmonics"),
        sample_rate=section.integer("sampling_rate"),
        sine_amplitude=section.number("nsf_alpha"),
        noise_sigma=section.number("nsf_sigma"),
        voiced_threshold=section.number("nsf_voiced_threshold"),
        upsample_rates=section.integers("upsample_rates"),
        upsample_kernels=section.integers("upsample_kernel_sizes"),
        n_fft=section.integer("n_fft", istft),
        hop_len=section.integer("hop_len", istft),
        resblock_kernels=section.integers("resblock_kernel_sizes"),
        resblock_dilations=section.nested("resblock_dilation_sizes"),
        source_kernels=section.integers("source_resblock_kernel_sizes"),
        source_dilations=section.nested("source_resblock_dilation_sizes"),
        slope=section.number("lrelu_slope"),
        audio_limit=section.number("audio_limit"),
        f0_channels=f0.integer("cond_channels"),
    )
    f0.only("in_channels", config.mel_channels)
    f0.done()
    section.done()
    _check_hift(config, section.source)
    return config


def _check_hift(config: HiftConfig, source: str) -> None:
    stages, kernels = len(config.upsample_rates), len(config.resblock_kernels)
    for name, count, expected in (
        ("upsample_kernel_sizes", len(config.upsample_kernels), stages),
        ("source_resblock_kernel_sizes", len(config.source_kernels), stages),
        ("source_resblock_dilation_sizes", len(config.source_dilations), stages),
        ("resblock_dilation_sizes", len(config.resblock_dilations), kernels),
    ):
        if count != expected:
            raise ValueError(f"{source}: {name} has {count} entries, expected {expected}")
    if config.base_channels % 2**stages:
        raise ValueError(f"{source}: base_channels {config.base_channels} cannot be halved {stages} times")
    for kernel, rate in zip(config.upsample_kernels, config.upsample_rates, strict=True):
        if kernel < rate or (kernel - rate) % 2:
            raise ValueError(
                f"{source}: the upsample kernel size {kernel} does not fit the upsample rate {rate}"
            )
    if any(kernel % 2 == 0 for kernel in (*config.resblock_kernels, *config.source_kernels)):
        raise ValueError(f"{source}: resblock kernel sizes must be odd")
    if config.n_fft % 2 or config.n_fft < 2 * config.hop_len:
        raise ValueError(
            f"{source}: istft_params.n_fft {config.n_fft} must be even and at least twice hop_len {config.hop_len}"
        )
    if (config.sample_rate, config.frame_len) != (MEL_RATE, MEL_HOP):
        raise ValueError(
            f"{source}: {config.sample_rate} Hz with {config.frame_len} samples a frame is not supported; "
            f"the flow's frames are {MEL_HOP} samples at {MEL_RATE} Hz"
        )
