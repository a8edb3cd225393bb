"""The replies of a simulated run and the figures of their sound."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from innervoice.telemetry.metrics import RequestTimings, RunMetrics, summarize

_TICKS = 100  # a second of sound, in the logs


@dataclass
class SimReply:
    """One reply: what its listener got and when. chunks: (arrival, seconds of sound)."""

    listener: int
    submitted_s: float
    prompt_tokens: int
    speech_tokens: int
    heard_s: float
    table_index: int = -1  # its row of the ReplyTable while it is generated
    chunks: list[tuple[float, float]] = field(default_factory=list)
    hidden: int = 0
    hidden_before_audio: int = 0
    sound_end_s: float = 0.0  # when its player runs dry
    num_underruns: int = 0
    underrun_s: float = 0.0
    finished_s: float | None = None  # all of it was made
    ended_s: float | None = None  # it was heard, or interrupted
    num_preempted: int = 0

    @property
    def first_audio_s(self) -> float | None:
        """From the question to the first sound."""
        return self.chunks[0][0] - self.submitted_s if self.chunks else None

    def log(self) -> RequestTimings:
        """The timings that reached the client, without its tokens."""
        audio = tuple((t, round(sound_s * _TICKS)) for t, sound_s in self.chunks)
        return RequestTimings(self.submitted_s, _TICKS, audio, finished_s=self.finished_s)


@dataclass
class SimulatedRun:
    """A run: its replies, and what the machine did.

    num_drawn: tokens, hidden ones among them. num_late: chunks that came when their player had run dry.
    """

    policy: str
    duration_s: float
    replies: list[SimReply] = field(default_factory=list)
    num_steps: int = 0
    num_voice_calls: int = 0
    num_drawn: int = 0
    num_hidden: int = 0
    num_preempted: int = 0
    num_late: int = 0
    step_s: float = 0.0
    voice_s: float = 0.0
    sound_s: float = 0.0
    heard_s: float = 0.0

    @property
    def num_underruns(self) -> int:
        """Chunks that came when their player had run dry."""
        return sum(reply.num_underruns for reply in self.replies)

    @property
    def hidden_per_audio_s(self) -> float:
        """Hidden tokens per second of sound made."""
        return self.num_hidden / self.sound_s if self.sound_s else 0.0

    @property
    def busy(self) -> float:
        """Share of the time in which the machine worked."""
        return (self.step_s + self.voice_s) / self.duration_s

    def figures(self) -> RunMetrics:
        """The figures by which engines are compared; those of tokens are not among them."""
        return summarize([reply.log() for reply in self.replies if reply.chunks])

    def first_audio(self, quantile: float) -> float:
        """Seconds to first sound; a reply that waits for it at the end counts with its time so far.

        nan: no replies.
        """
        waits = [
            reply.first_audio_s if reply.chunks else self.duration_s - reply.submitted_s
            for reply in self.replies
            if reply.chunks or reply.ended_s is None
        ]
        return float(np.quantile(np.asarray(waits, np.float64), quantile)) if waits else math.nan
