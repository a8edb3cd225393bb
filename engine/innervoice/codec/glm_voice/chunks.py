"""The cuts of `steady` streaming: borders, frames and windows as functions of absolute
token and frame indices alone.

Frames are exact: n tokens make floor(n * 22050 / (12.5 * 256)) = floor(441 n / 64). Offline, token t
begins at frame ceil(t * frames / n), which depends on how many tokens there will be: 441 t / 64 less up
to one frame, a quarter on average. Here it begins at ceil(441 t / 64 - 1/4), so that frame f belongs to
token floor(64 (f + 1/4) / 441).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from innervoice.checkpoint.speech_decoder import MEL_HOP, MEL_RATE, FlowConfig, HiftConfig
from innervoice.codec.speech_codec import SpeechFormat
from innervoice.fields import AtLeastOne, Count, read_fields

_FRAME_BUCKET = 32


@dataclass(frozen=True)
class SteadySettings:
    """Chunks in tokens: `first`, then every `chunk`. `steps` of the solver.

    In mel frames: `look_back` (even) that the flow sees again before a chunk's new ones, `hold_back` at a
    chunk's end that the next one makes again, the first `fade` of them a mix of both. `show_look_back`: the
    flow is given the look-back's frames as a prompt, instead of only making them again. `encoder_blocks`:
    blocks that a token sees before its own.
    """

    first: AtLeastOne = 10
    chunk: AtLeastOne = 26
    look_back: Count = 688
    hold_back: Count = 20
    fade: Count = 12
    encoder_blocks: AtLeastOne = 12
    steps: AtLeastOne = 10
    show_look_back: bool = False

    @property
    def num_shown(self) -> int:
        """Mel frames of the past that are kept to be shown."""
        return self.look_back + 1 if self.show_look_back else 0

    def __post_init__(self) -> None:
        read_fields(self, "steady streaming: ")
        if self.look_back % 2:
            raise ValueError(f"steady streaming: look_back is {self.look_back} frames, it must be even")
        if self.fade > self.hold_back:
            raise ValueError(
                "steady streaming: "
                f"fade is {self.fade} frames, it must be from 0 to hold_back, {self.hold_back}"
            )


@dataclass(frozen=True)
class FrameClock:
    """Tokens against mel frames, exactly."""

    frames_per_token: Fraction

    @classmethod
    def of(cls, token_rate: float) -> FrameClock:
        """The clock of a decoder that takes so many tokens a second."""
        return cls(Fraction(MEL_RATE, MEL_HOP) / Fraction(token_rate))

    def frames(self, num_tokens: int) -> int:
        """Mel frames that so many tokens make."""
        return num_tokens * self.frames_per_token.numerator // self.frames_per_token.denominator

    def tokens(self, frame: Any) -> Any:
        """The token of a frame, an int or a tensor of int64."""
        return (4 * frame + 1) * self.frames_per_token.denominator // (4 * self.frames_per_token.numerator)


@dataclass(frozen=True)
class TokenChunk:
    """Tokens begin ... end - 1, decoded at once, and the frames that follow from it."""

    begin: int
    end: int
    settings: SteadySettings
    clock: FrameClock

    @property
    def first_frame(self) -> int:
        """The first frame that the chunks before have not given away."""
        return 0 if self.begin == 0 else max(0, self.clock.frames(self.begin) - self.settings.hold_back)

    @property
    def end_frame(self) -> int:
        """One past the last frame that the flow makes."""
        return self.clock.frames(self.end)

    @property
    def sure_frame(self) -> int:
        """One past the last frame given away: hold_back frames before the end."""
        return max(self.first_frame, self.end_frame - self.settings.hold_back)

    @property
    def window_frame(self) -> int:
        """The first frame of the flow's window: look_back frames before, and even, so that its half
        resolution stays on one grid.
        """
        return max(0, (self.first_frame - self.settings.look_back) // 2 * 2)

    @property
    def window_len(self) -> int:
        """Frames of the flow's window."""
        return self.end_frame - self.window_frame

    @property
    def bucket_len(self) -> int:
        """The same, padded: rows of one bucket share a call."""
        return -(-self.window_len // _FRAME_BUCKET) * _FRAME_BUCKET


def speech_format(flow: FlowConfig, hift: HiftConfig) -> SpeechFormat:
    """The format of a decoder's codes and audio.

    A reply may lack a mel frame, because frames are rounded down.
    """
    return SpeechFormat(
        num_codes=flow.vocab_size,
        codes_per_s=flow.token_rate,
        sample_rate=hift.sample_rate,
        lag_s=MEL_HOP / MEL_RATE,
    )


def next_border(num_tokens: int, settings: SteadySettings) -> int:
    """The first chunk border after so many tokens."""
    if num_tokens < settings.first:
        return settings.first
    return settings.first + ((num_tokens - settings.first) // settings.chunk + 1) * settings.chunk


def num_states(settings: SteadySettings, clock: FrameClock, block_size: int) -> int:
    """Encoded tokens before the open block that a chunk's window may reach back to."""
    return math.ceil((settings.look_back + settings.hold_back + 2) / clock.frames_per_token) + block_size + 1
