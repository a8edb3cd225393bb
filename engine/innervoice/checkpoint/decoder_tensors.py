"""The tensors of flow.pt and hift.pt: names, shapes and so bytes, from the config alone, before loading."""

from __future__ import annotations

import itertools
import math

from innervoice.checkpoint.speech_decoder import (
    DecoderConfig,
    EncoderConfig,
    EstimatorConfig,
    FlowConfig,
    HiftConfig,
)

Shapes = dict[str, tuple[int, ...]]


def flow_shapes(config: FlowConfig) -> Shapes:
    """Every tensor of flow.pt."""
    mel, encoder = config.mel_channels, config.encoder
    shapes: Shapes = {"input_embedding.weight": (config.vocab_size, encoder.input_size)}
    shapes |= _affine("spk_embed_affine_layer", mel, config.speaker_width)
    shapes |= _encoder_shapes(encoder)
    shapes |= _affine("encoder_proj", mel, encoder.width)
    for layer in range(config.num_regulator_layers):
        shapes |= _affine(f"length_regulator.model.{3 * layer}", mel, mel, 3)
        shapes |= _affine(f"length_regulator.model.{3 * layer + 1}", mel)
    shapes |= _affine(f"length_regulator.model.{3 * config.num_regulator_layers}", mel, mel, 1)
    return shapes | _estimator_shapes(config.estimator, mel)


def hift_shapes(config: HiftConfig) -> Shapes:
    """Every tensor of hift.pt, its convolutions still split into weight_g and weight_v."""
    base, bins = config.base_channels, config.n_fft + 2
    shapes = _affine("m_source.l_linear", 1, config.num_harmonics + 1)
    shapes |= _split("conv_pre", base, base, config.mel_channels, 7)
    stages = len(config.upsample_rates)
    for stage, (kernel, source_kernel) in enumerate(
        zip(config.upsample_kernels, config.source_kernels, strict=True)
    ):
        width = base >> (stage + 1)
        shapes |= _split(f"ups.{stage}", width, base >> stage, width, kernel)
        below = math.prod(config.upsample_rates[stage + 1 :])
        shapes |= _affine(f"source_downs.{stage}", width, bins, 2 * below if below > 1 else 1)
        shapes |= _resblock(
            f"source_resblocks.{stage}", width, source_kernel, len(config.source_dilations[stage])
        )
        for index, (size, dilations) in enumerate(
            zip(config.resblock_kernels, config.resblock_dilations, strict=True)
        ):
            shapes |= _resblock(
                f"resblocks.{stage * len(config.resblock_kernels) + index}", width, size, len(dilations)
            )
    shapes |= _split("conv_post", bins, bins, base >> stages, 7)
    for layer in range(5):
        inputs = config.mel_channels if layer == 0 else config.f0_channels
        shapes |= _split(
            f"f0_predictor.condnet.{2 * layer}", config.f0_channels, config.f0_channels, inputs, 3
        )
    return shapes | _affine("f0_predictor.classifier", 1, config.f0_channels)


def num_parameters(shapes: Shapes) -> int:
    """The number of elements of all tensors."""
    return sum(math.prod(shape) for shape in shapes.values())


def is_delicate(name: str) -> bool:
    """Whether a tensor of the vocoder stays float32 whatever the dtype: F0 and source
    decide a phase that accumulates.
    """
    return name.startswith(("f0_predictor.", "m_source."))


def tensor_bytes(config: DecoderConfig, itemsize: int) -> int:
    """Bytes of the weights once loaded (weight norm folded, F0 and source in float32) where
    the rest has itemsize bytes.
    """
    kept = {name: shape for name, shape in hift_shapes(config.hift).items() if not name.endswith(".weight_g")}
    hift = sum(math.prod(shape) * (4 if is_delicate(name) else itemsize) for name, shape in kept.items())
    return num_parameters(flow_shapes(config.flow)) * itemsize + hift


def _affine(name: str, outputs: int, *rest: int) -> Shapes:
    return {f"{name}.weight": (outputs, *rest), f"{name}.bias": (outputs,)}


def _split(name: str, bias: int, *weight: int) -> Shapes:
    return {f"{name}.bias": (bias,), f"{name}.weight_g": (weight[0], 1, 1), f"{name}.weight_v": weight}


def _resblock(name: str, width: int, kernel: int, num_dilations: int) -> Shapes:
    shapes: Shapes = {}
    for index in range(num_dilations):
        for half in (1, 2):
            shapes |= _split(f"{name}.convs{half}.{index}", width, width, width, kernel)
            shapes[f"{name}.activations{half}.{index}.alpha"] = (width,)
    return shapes


def _encoder_shapes(config: EncoderConfig) -> Shapes:
    width, head = config.width, (config.num_heads, config.width // config.num_heads)
    shapes = _affine("encoder.embed.out.0", width, config.input_size) | _affine("encoder.embed.out.1", width)
    for layer in range(config.num_layers):
        name = f"encoder.encoders.{layer}"
        for linear in ("linear_q", "linear_k", "linear_v", "linear_out"):
            shapes |= _affine(f"{name}.self_attn.{linear}", width, width)
        shapes[f"{name}.self_attn.linear_pos.weight"] = (width, width)
        shapes |= {f"{name}.self_attn.pos_bias_{half}": head for half in "uv"}
        shapes |= _affine(f"{name}.feed_forward.w_1", config.ffn_width, width)
        shapes |= _affine(f"{name}.feed_forward.w_2", width, config.ffn_width)
        shapes |= _affine(f"{name}.norm_ff", width) | _affine(f"{name}.norm_mha", width)
    return shapes | _affine("encoder.after_norm", width)


def _estimator_shapes(config: EstimatorConfig, mel: int) -> Shapes:
    root, channels = "decoder.estimator", config.channels
    first = channels[0]
    last = channels[-1]
    levels = len(channels)
    shapes = _affine(f"{root}.time_mlp.linear_1", 4 * first, 4 * mel) | _affine(
        f"{root}.time_mlp.linear_2", 4 * first, 4 * first
    )
    for level, (inputs, outputs) in enumerate(zip((4 * mel, *channels), channels, strict=False)):
        shapes |= _stage(f"{root}.down_blocks.{level}", config, inputs, outputs)
        shapes |= _affine(
            f"{root}.down_blocks.{level}.2{'' if level == levels - 1 else '.conv'}", outputs, outputs, 3
        )
    for block in range(config.num_mid_blocks):
        shapes |= _stage(f"{root}.mid_blocks.{block}", config, last, last)
    upward = (*channels[::-1], first)
    for level, (inputs, outputs) in enumerate(itertools.pairwise(upward)):
        name, is_last = f"{root}.up_blocks.{level}", level == levels - 1
        shapes |= _stage(name, config, 2 * inputs, outputs)
        shapes |= _affine(f"{name}.2{'' if is_last else '.conv'}", outputs, outputs, 3 if is_last else 4)
    shapes |= _affine(f"{root}.final_block.block.0", first, first, 3) | _affine(
        f"{root}.final_block.block.1", first
    )
    return shapes | _affine(f"{root}.final_proj", mel, first, 1)


def _stage(name: str, config: EstimatorConfig, inputs: int, width: int) -> Shapes:
    inner = config.num_heads * config.head_dim
    shapes = _affine(f"{name}.0.mlp.1", width, 4 * config.channels[0]) | _affine(
        f"{name}.0.res_conv", width, inputs, 1
    )
    for half, size in (("block1", inputs), ("block2", width)):
        shapes |= _affine(f"{name}.0.{half}.block.0", width, size, 3) | _affine(
            f"{name}.0.{half}.block.1", width
        )
    for block in range(config.num_blocks):
        inside = f"{name}.1.{block}"
        shapes |= _affine(f"{inside}.norm1", width) | _affine(f"{inside}.norm3", width)
        shapes |= {f"{inside}.attn1.to_{part}.weight": (inner, width) for part in "qkv"}
        shapes |= _affine(f"{inside}.attn1.to_out.0", width, inner)
        shapes |= _affine(f"{inside}.ff.net.0.proj", 4 * width, width) | _affine(
            f"{inside}.ff.net.2", width, 4 * width
        )
    return shapes
