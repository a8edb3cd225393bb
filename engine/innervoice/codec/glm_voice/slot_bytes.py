"""Bytes of a voice slot, from the configuration alone: what every layer of flow and vocoder
keeps of a reply between chunks.
"""

from __future__ import annotations

import math

from innervoice.checkpoint.decoder_tensors import hift_shapes
from innervoice.checkpoint.speech_decoder import DecoderConfig, FlowConfig, HiftConfig
from innervoice.codec.glm_voice.chunks import FrameClock, SteadySettings, num_states
from innervoice.codec.glm_voice.hift_stream import StageShape, plan_stages

_FLOAT32, _FLOAT64 = 4, 8


def slot_bytes(config: DecoderConfig, itemsize: int, settings: SteadySettings | None = None) -> int:
    """Bytes that `steady` streaming keeps of one reply, weights being of so many bytes each.

    Raises ValueError for a vocoder that cannot be streamed.
    """
    settings = settings or SteadySettings()
    return _flow_bytes(config.flow, itemsize, settings) + _hift_bytes(config.hift, itemsize)


def _flow_bytes(config: FlowConfig, itemsize: int, settings: SteadySettings) -> int:
    encoder = config.encoder
    cache = 2 * encoder.width * settings.encoder_blocks * encoder.block_size * encoder.num_layers
    states = config.mel_channels * num_states(settings, FrameClock.of(config.token_rate), encoder.block_size)
    frames = settings.hold_back + settings.num_shown
    return (cache + states) * itemsize + config.mel_channels * frames * _FLOAT32


def _hift_bytes(config: HiftConfig, itemsize: int) -> int:
    shapes = hift_shapes(config)
    f0 = [shapes[f"f0_predictor.condnet.{2 * i}.weight_v"] for i in range(5)]
    f0_late, rate = sum(shape[2] // 2 for shape in f0), config.frame_len // config.hop_len
    pre, post = shapes["conv_pre.weight_v"], shapes["conv_post.weight_v"]
    stages = range(len(config.upsample_rates))
    stft_late = f0_late * rate + config.n_fft // (2 * config.hop_len) - 1
    plans = plan_stages([_shape(config, shapes, i) for i in stages], pre[2] // 2, stft_late)
    values = pre[1] * (pre[2] - 1) + post[1] * (post[2] - 1)
    for i, plan in zip(stages, plans, strict=True):
        up, down = shapes[f"ups.{i}.weight_v"], shapes[f"source_downs.{i}.weight"]
        values += up[0] * (-(-up[2] // config.upsample_rates[i]) - 1)  # inputs that a step looks back at
        values += up[1] * (plan.main_wait + sum(plan.waits))
        values += down[1] * (plan.source_wait + down[2] - _stride(config, i))
        values += up[1] * _block_steps(config.source_kernels[i], config.source_dilations[i])
        blocks = zip(config.resblock_kernels, config.resblock_dilations, strict=True)
        values += up[1] * sum(_block_steps(kernel, dilations) for kernel, dilations in blocks)
    source = sum(shape[1] * (shape[2] - 1) for shape in f0) + 1
    return values * itemsize + source * _FLOAT64 + 2 * (config.n_fft - config.hop_len) * _FLOAT32


def _shape(config: HiftConfig, shapes: dict[str, tuple[int, ...]], i: int) -> StageShape:
    delays = [
        _delay(k, dilations)
        for k, dilations in zip(config.resblock_kernels, config.resblock_dilations, strict=True)
    ]
    return StageShape(
        up_kernel=config.upsample_kernels[i],
        rate=config.upsample_rates[i],
        down_kernel=shapes[f"source_downs.{i}.weight"][2],
        down_stride=_stride(config, i),
        source_delay=_delay(config.source_kernels[i], config.source_dilations[i]),
        delays=tuple(delays),
    )


def _stride(config: HiftConfig, stage: int) -> int:
    return math.prod(config.upsample_rates[stage + 1 :])


def _delay(kernel: int, dilations: tuple[int, ...]) -> int:
    return sum(kernel // 2 * (dilation + 1) for dilation in dilations)


def _block_steps(kernel: int, dilations: tuple[int, ...]) -> int:
    """Steps of past that the units of a block keep, a channel: of their input, and of what
    is between their convolutions.
    """
    return 2 * _delay(kernel, dilations)
