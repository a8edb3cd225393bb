"""A speech codec of two codebooks, whose codes come in turn: replies are cut between frames."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import Engine, Sampling, Schedule, Text
from innervoice.codec.registry import register_speech_codec
from innervoice.codec.slot_output import SlotOutput, SpokenReply
from innervoice.codec.speech_codec import SpeechCodec, SpeechFormat, SpokenChunk

FRAME_LEN, CHUNK = 160, 8  # samples of a frame of two codes; codes of a chunk


@dataclass(kw_only=True)
class PairReply(SpokenReply):
    codes: list[int] = field(default_factory=list)
    num_decoded: int = 0

    def push(self, codes: Sequence[int]) -> None:
        self.codes += codes

    @property
    def num_waiting(self) -> int:
        return len(self.codes) - self.num_decoded


class PairOutput(SlotOutput[PairReply]):
    """A frame sounds as its first code."""

    def next_border(self, num_codes: int) -> int:
        return (num_codes // CHUNK + 1) * CHUNK

    def _begin(self, key: str, place: int) -> PairReply:
        return PairReply(key=key, place=place)

    def _is_due(self, reply: PairReply) -> bool:
        return not reply.is_done and (reply.is_finished or reply.num_waiting >= CHUNK)

    def _step(self, replies: list[PairReply]) -> Iterator[SpokenChunk]:
        for reply in filter(self._is_due, replies):
            codes = reply.codes[reply.num_decoded :]
            codes = codes[: len(codes) // 2 * 2]
            reply.num_decoded += len(codes)
            reply.is_done = reply.is_finished
            sound = np.repeat(np.array(codes[::2], np.float32) / 64, FRAME_LEN)
            yield SpokenChunk(reply.key, sound, reply.is_done)


class PairCodec(SpeechCodec):
    num_codes = 64

    def load_output(self, how: Any, streaming: Any, num_slots: int) -> PairOutput:
        form = SpeechFormat(self.num_codes, codes_per_s=100.0, sample_rate=8000, codes_per_frame=2)
        return PairOutput(form, num_slots)


@pytest.fixture
def engine(tiny_dir: Path, tmp_path: Path) -> Iterator[Engine]:
    unregister = register_speech_codec(lambda encoder, decoder: PairCodec() if decoder == tmp_path else None)
    with Engine.from_pretrained(tiny_dir / "glm-4-voice-9b", decoder=tmp_path, device="cpu") as engine:
        yield engine
    unregister()


def test_the_length_in_seconds_ends_a_reply_behind_a_frame(engine: Engine) -> None:
    schedule = Schedule.preset("stitch_s")
    for max_audio_s, num_codes in ((0.05, 6), (0.06, 6), (0.07, 8), (0.061, 8)):
        sampling = Sampling(seed=1, max_audio_s=max_audio_s)
        reply = engine.generate(Text("hm"), schedule=schedule, sampling=sampling)
        assert (reply.finish_reason, reply.usage.speech_tokens) == ("length", num_codes)
        assert len(reply.audio.samples) == num_codes // 2 * FRAME_LEN


def test_an_interruption_cuts_between_frames(engine: Engine) -> None:
    sampling = Sampling(seed=1, max_new_tokens=80)
    with engine.open_session(
        schedule=Schedule.preset("stitch_s"), sampling=sampling, realtime=False
    ) as session:
        assert session.reply(Text("hm")).reply().usage.speech_tokens > 20
        session.ack_playback(170)
        assert session.interrupt(cut="speech").speech_tokens == 16
