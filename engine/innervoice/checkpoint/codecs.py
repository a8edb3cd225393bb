"""Configurations of the residual-VQ codecs: Mimi, EnCodec, DAC and SNAC."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass


class ResidualConfig(ABC):
    """Sizes and rates that the config of any residual-VQ codec gives. A frame is a column of codes."""

    kind: str
    """The name that its codes carry."""
    sample_rate: int
    codebook_size: int

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of the sound, 1 or 2."""

    @property
    @abstractmethod
    def frame_len(self) -> int:
        """Number of samples in a frame."""

    @property
    @abstractmethod
    def num_codebooks(self) -> int:
        """Codebooks that there are."""

    @property
    def least_codebooks(self) -> int:
        """Codebooks that an encoding has at least."""
        return 1

    @property
    def needs_all_codebooks(self) -> bool:
        """Whether a sound is decoded from the codes of all codebooks only."""
        return False

    @property
    def code_strides(self) -> tuple[int, ...]:
        """Frames that share a code, by codebook."""
        return (1,) * self.num_codebooks

    @property
    def block_frames(self) -> int:
        """Frames that are encoded only together."""
        return 1

    @property
    def frames_per_scale(self) -> int | None:
        """Frames that share a scale, None: codes have no scales."""
        return None

    def codebooks_of(self, kbps: float) -> int:
        """The number of codebooks that a bandwidth in kbit/s takes.

        Raises ValueError where there are no bandwidths, or not this one.
        """
        raise ValueError(
            f"{self.kind} has no bandwidths: give a number of codebooks, 1 to {self.num_codebooks}"
        )


@dataclass(frozen=True)
class SeanetShape:
    """The convolutional halves that Mimi and EnCodec share. ratios: of upsampling, from codes to samples."""

    channels: int
    width: int
    num_filters: int
    ratios: tuple[int, ...]
    kernel_size: int
    last_kernel_size: int
    residual_kernel_size: int
    num_residual_layers: int
    dilation_growth: int
    compress: int
    conv_shortcut: bool

    @property
    def hop_len(self) -> int:
        """Samples a column of the latent."""
        return math.prod(self.ratios)


@dataclass(frozen=True)
class MimiConfig(ResidualConfig):
    """Mimi (Kyutai 2024). window: keys that a query sees, itself among them."""

    kind = "mimi"
    sample_rate: int
    seanet: SeanetShape
    codebook_size: int
    codebook_dim: int
    num_quantizers: int
    num_semantic: int
    projected: bool
    num_layers: int
    num_heads: int
    num_groups: int
    head_dim: int
    ffn_dim: int
    norm_eps: float
    rope_theta: float
    window: int
    attention_bias: bool
    downsample: int
    has_encoder: bool
    has_decoder: bool

    @property
    def channels(self) -> int:
        """Channels of the sound."""
        return self.seanet.channels

    @property
    def frame_len(self) -> int:
        """Number of samples in a frame."""
        return self.seanet.hop_len * self.downsample

    @property
    def num_codebooks(self) -> int:
        """Codebooks of meaning and of sound."""
        return self.num_quantizers

    @property
    def least_codebooks(self) -> int:
        """The codebooks of meaning."""
        return self.num_semantic


@dataclass(frozen=True)
class EncodecConfig(ResidualConfig):
    """EnCodec (Défossez et al. 2022).

    chunk_len None: one causal stream; else chunks that overlap, each normed by itself.
    """

    kind = "encodec"
    sample_rate: int
    seanet: SeanetShape
    causal: bool
    group_norm: bool
    normalize: bool
    chunk_len: int | None
    chunk_stride: int | None
    num_lstm_layers: int
    codebook_size: int
    bandwidths: tuple[float, ...]

    @property
    def channels(self) -> int:
        """Channels of the sound."""
        return self.seanet.channels

    @property
    def frame_len(self) -> int:
        """Number of samples in a frame."""
        return self.seanet.hop_len

    @property
    def num_codebooks(self) -> int:
        """Codebooks of the widest bandwidth."""
        return int(1000 * self.bandwidths[-1] // (self.frame_rate * math.ceil(math.log2(self.codebook_size))))

    @property
    def frames_per_scale(self) -> int | None:
        """Frames of a chunk, which is scaled to its loudness."""
        return None if self.chunk_len is None else -(-self.chunk_len // self.frame_len)

    @property
    def frame_rate(self) -> int:
        """Frames a second, rounded up as the original does."""
        return math.ceil(self.sample_rate / self.frame_len)

    def codebooks_of(self, kbps: float) -> int:
        """The number of codebooks that a bandwidth of config.json takes.

        Raises ValueError for another bandwidth.
        """
        if kbps not in self.bandwidths:
            raise ValueError(
                f"a bandwidth of {kbps} kbit/s is none of this codec's {', '.join(map(str, self.bandwidths))}"
            )
        return max(1, math.floor(kbps * 1000 / (math.log2(self.codebook_size) * self.frame_rate)))


@dataclass(frozen=True)
class DacConfig(ResidualConfig):
    """DAC (Kumar et al. 2023), and SNAC (Siuzdak et al. 2024), which adds to it.

    SNAC adds strides (frames that share a code, by codebook), groups, noise and attention. window: frames
    that attend to each other, None: no attention.
    """

    kind: str
    sample_rate: int
    encoder_width: int
    encoder_ratios: tuple[int, ...]
    latent_width: int
    decoder_width: int
    decoder_ratios: tuple[int, ...]
    codebook_size: int
    codebook_dim: int
    strides: tuple[int, ...]
    depthwise: bool = False
    noise: bool = False
    window: int | None = None

    @property
    def channels(self) -> int:
        """The number of channels: one."""
        return 1

    @property
    def frame_len(self) -> int:
        """Number of samples in a frame, the time between two codes of the quickest codebook."""
        return math.prod(self.encoder_ratios)

    @property
    def num_codebooks(self) -> int:
        """The number of codebooks."""
        return len(self.strides)

    @property
    def least_codebooks(self) -> int:
        """All of SNAC's, any number of DAC's."""
        return self.num_codebooks if self.needs_all_codebooks else 1

    @property
    def needs_all_codebooks(self) -> bool:
        """True for SNAC."""
        return self.kind == "snac"

    @property
    def code_strides(self) -> tuple[int, ...]:
        """Frames that share a code, by codebook."""
        return self.strides

    @property
    def block_frames(self) -> int:
        """Frames that the encoder takes only together."""
        return math.lcm(*self.strides, self.window or 1)
