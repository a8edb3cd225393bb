"""HiFT over a stream: any cutting of the mel frames gives the samples of one call over all of them.

Every layer is centred, so that its output is late by its reach to the right, and zero outside the reply as
the padding of the one call is. Late together, with the shipped sizes: 4656 samples or 18.2 frames, through
F0, source, STFT and the widest blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from innervoice.codec.glm_voice.hift import Hift, HiftStage, ResBlock
from innervoice.codec.glm_voice.late_pass import LateLevel, LatePass
from innervoice.codec.layers import linear, widened
from innervoice.codec.streaming import StreamState
from innervoice_kernels.speech_codec.istft import stream_istft
from innervoice_kernels.speech_codec.noise import harmonic_phases, sample_noise
from innervoice_kernels.speech_codec.source import stream_source
from innervoice_kernels.speech_codec.stft import stream_stft
from innervoice_kernels.speech_codec.stream_conv import StreamConvWeights

UNKNOWN_END = 1 << 40
"""Number of frames of a reply that goes on."""


@dataclass(frozen=True)
class StageShape:
    """The sizes that decide a stage's delay: its kernels, its strides and the look-ahead of its blocks."""

    up_kernel: int
    rate: int
    down_kernel: int
    down_stride: int
    source_delay: int
    delays: tuple[int, ...]


@dataclass(frozen=True)
class StagePlan:
    """A stage's place in the stream, in steps of its own rate (steps a frame), waits
    of the source in STFT frames.

    extra: steps that the reply has more than frames * rate. late: of the stage's result;
    waits: of each block before it.
    """

    rate: int
    extra: int
    up_late: int
    down_late: int
    main_wait: int
    source_wait: int
    joined_late: int
    late: int
    waits: tuple[int, ...]


class HiftStream:
    """The vocoder as a stream.

    late: samples by which it is behind; flush_frames: frames to feed to get the last ones out.
    """

    def __init__(self, hift: Hift, noise: bool) -> None:
        config = hift.config
        if config.n_fft % (2 * config.hop_len):
            raise ValueError(
                f"steady streaming needs an n_fft that is a multiple of twice its hop, not {config.n_fft}"
            )
        self._hift, self._noise = hift, noise
        self._rate = config.frame_len // config.hop_len  # STFT frames a mel frame
        self._f0_layers = [layer.widened(torch.float64) for layer in hift.f0_layers]
        self._f0_out = widened(hift.f0_out, torch.float64)
        self._f0_late = sum(_half(layer) for layer in hift.f0_layers)
        self._stft_late = self._f0_late * self._rate + config.n_fft // (2 * config.hop_len) - 1
        self._plans = plan_stages([_shape(stage) for stage in hift.stages], _half(hift.pre), self._stft_late)
        self._post_late = self._plans[-1].late + _half(hift.post)
        self.frame_len = config.frame_len
        self.late = self._post_late * config.hop_len + config.n_fft // 2
        self.flush_frames = -(-self.late // self.frame_len)

    def __call__(
        self,
        mel: Tensor,
        state: StreamState,
        n: Tensor,
        start: Tensor,
        end: Tensor,
        seed: Tensor,
        *,
        phases: Tensor | None = None,
        inner: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """mel [B, C, T] float32; n, start, end, seed [B] int64 -> samples [B, T * frame_len] float32, state'.

        Row b brings n[b] frames after start[b] others; end[b] is the reply's length or UNKNOWN_END:
        what is fed from there on is not looked at. Column 0 is sample start * frame_len - late of the
        reply; outside the reply samples are undefined. phases [B, H]: what `phases` says of the seeds,
        where the caller keeps it. inner: the caller knows that no row has an end yet and that all have
        brought flush_frames frames before.
        """
        # Source and spectrum follow from F0; noise and phases from the reply's seed.
        run = LatePass(state, n, start, end, inner)
        mel = run.clip(mel, LateLevel(1, 0))
        if self._noise and phases is None:
            phases = self.phases(seed)
        spectrum = self._spectrum(run, mel, seed, phases)
        # Features through the stages, each of which adds the source at its own rate.
        pre = self._hift.pre
        x = run.conv("pre", mel.to(self._hift.dtype), LateLevel(1, _half(pre)), pre)
        for index, (stage, plan) in enumerate(zip(self._hift.stages, self._plans, strict=True)):
            x = self._stage(run, f"stage{index}", stage, plan, x, spectrum)
        return self._samples(run, x), run.after

    def phases(self, seed: Tensor) -> Tensor:
        """The phases [B, H] at which the harmonics of replies with these seeds begin."""
        return harmonic_phases(seed, self._hift.config.num_harmonics + 1)

    def _spectrum(self, run: LatePass, mel: Tensor, seed: Tensor, phases: Tensor | None) -> Tensor:
        """The source's STFT [B, n_fft + 2, T * rate]."""
        config, settings = self._hift.config, self._hift.source_settings
        f0, start = self._f0(run, mel), (run.start - self._f0_late) * self.frame_len
        noise = None
        if self._noise:
            noise = sample_noise(seed, start, f0.shape[-1] * self.frame_len, config.num_harmonics + 1)
        cycles = run.before("cycles", like=f0)
        source, run.after["cycles"] = stream_source(
            f0, cycles, run.n, settings, phases if self._noise else None, noise
        )
        past = run.before("stft", config.n_fft - config.hop_len, like=source)
        spectrum, run.after["stft"] = stream_stft(
            source,
            past,
            run.n * self.frame_len,
            self._hift.window,
            config.hop_len,
            start,
            run.end * self.frame_len,
        )
        return run.clip(spectrum, LateLevel(self._rate, self._stft_late, 1)).to(self._hift.dtype)

    def _f0(self, run: LatePass, mel: Tensor) -> Tensor:
        """F0 in float64: the phase is its sum, and float32's rounding would drift with the cutting."""
        x, late = mel.double(), 0
        for index, layer in enumerate(self._f0_layers):
            late += _half(layer)
            x = F.elu(run.conv(f"f0.{index}", x, LateLevel(1, late), layer))
        f0 = linear(x.transpose(1, 2), self._f0_out).transpose(1, 2).abs()
        return run.clip(f0, LateLevel(1, late))[:, 0]

    def _stage(
        self, run: LatePass, name: str, stage: HiftStage, plan: StagePlan, x: Tensor, spectrum: Tensor
    ) -> Tensor:
        rate, extra = plan.rate, plan.extra
        down_level = LateLevel(rate, plan.down_late, extra)
        joined = LateLevel(rate, plan.joined_late, extra)

        # Upsampled features and downsampled source, the earlier branch delayed until both are equally late.
        x = run.conv(f"{name}.up", x, LateLevel(rate, plan.up_late, extra), stage.up)
        if extra:
            x = _reflect_first(x, run.start * rate - plan.up_late)
        x = run.delay(f"{name}.wait", x, joined, plan.main_wait)
        down = run.delay(f"{name}.source.wait", spectrum, LateLevel(self._rate), plan.source_wait)
        down = run.conv(f"{name}.source.down", down, down_level, stage.source_down)
        x = x + _block(run, f"{name}.source", down, stage.source_block, down_level)

        # The mean of blocks that see different distances ahead: the nearer-sighted ones wait.
        total = torch.zeros_like(x)
        for index, (block, wait) in enumerate(zip(stage.blocks, plan.waits, strict=True)):
            waited = run.delay(f"{name}.{index}.wait", x, joined, wait)
            level = LateLevel(rate, plan.joined_late + wait, extra)
            total = total + _block(run, f"{name}.{index}", waited, block, level)
        return total / len(stage.blocks)

    def _samples(self, run: LatePass, x: Tensor) -> Tensor:
        config = self._hift.config
        real, imag = self._hift.head(run.conv("post", x, LateLevel(self._rate), self._hift.post))
        past = run.before("istft", config.n_fft - config.hop_len, like=real)
        start, end = run.start * self._rate - self._post_late, run.end * self._rate + 1
        samples, run.after["istft"] = stream_istft(
            real, imag, past, run.n * self._rate, self._hift.window, config.hop_len, start, end
        )
        return samples.clamp(-config.audio_limit, config.audio_limit)


def plan_stages(shapes: Sequence[StageShape], late: int, stft_late: int) -> list[StagePlan]:
    """The stages in order; late: delay of the first stage's input, in frames; stft_late:
    that of the source's spectrum.
    """
    plans, rate = [], 1
    for shape in shapes:
        plans.append(_plan(shape, rate, late, stft_late, is_last=shape is shapes[-1]))
        rate, late = plans[-1].rate, plans[-1].late
    return plans


def _plan(shape: StageShape, rate_before: int, late_before: int, stft_late: int, is_last: bool) -> StagePlan:
    """Make both branches of a stage equally late: the earlier one waits."""
    rate = rate_before * shape.rate
    extra = int(is_last)
    step = shape.down_stride
    up_late = late_before * shape.rate + (shape.up_kernel - shape.rate) // 2 - extra
    if extra and up_late % rate > rate - 3:
        raise ValueError(
            "steady streaming: with these kernel sizes the vocoder reflects its first sample across frames"
        )
    reach = shape.down_kernel - step
    align = (step // 2 - reach - stft_late) % step  # so that a stride begins at a frame's first column
    down_late = (stft_late + align + reach - step // 2) // step
    joined = max(up_late, down_late + shape.source_delay)
    wait = joined - down_late - shape.source_delay
    late = joined + max(shape.delays)
    waits = tuple(late - joined - delay for delay in shape.delays)
    return StagePlan(
        rate, extra, up_late, down_late + wait, joined - up_late, align + wait * step, joined, late, waits
    )


def _shape(stage: HiftStage) -> StageShape:
    kernels, delays = (
        (stage.up.weight.shape[-1], stage.source_down.weight.shape[-1]),
        tuple(b.delay for b in stage.blocks),
    )
    return StageShape(
        kernels[0], stage.up.stride, kernels[1], stage.source_down.stride, stage.source_block.delay, delays
    )


def _block(run: LatePass, name: str, x: Tensor, block: ResBlock, at: LateLevel) -> Tensor:
    """A block's units one after the other; at: of x."""
    assert at.late is not None
    late = at.late
    for index, unit in enumerate(block.units):
        x = run.unit(f"{name}.{index}", x, LateLevel(at.rate, late, at.extra), unit)
        late += unit.delay
    return x


def _reflect_first(x: Tensor, start: Tensor) -> Tensor:
    """Position 0 takes the value of position 2, its mirror image at 1: x [B, C, T],
    column 0 at position start [B].
    """
    is_first = start[:, None] + torch.arange(x.shape[-1], device=x.device, dtype=torch.int64) == 0
    return torch.where(is_first[:, None], x.roll(-2, -1), x)


def _half(layer: StreamConvWeights) -> int:
    return layer.weight.shape[-1] // 2
