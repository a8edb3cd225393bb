"""A speech codec that is added through the seam alone, and that an engine speaks through: every code is a
tone.
"""

from dataclasses import dataclass, field

import numpy as np

from innervoice import Engine, Sampling, Schedule, Speech, Text
from innervoice.codec.registry import register_speech_codec
from innervoice.codec.slot_output import SlotOutput, SpokenReply
from innervoice.codec.speech_codec import SpeechCodec, SpeechFormat, SpokenChunk

CHUNK, CODE_LEN = 5, 320


def sound(codes):
    return np.sin(np.outer(codes, np.arange(CODE_LEN) / 64)).astype(np.float32).ravel()


@dataclass(kw_only=True)
class ToneReply(SpokenReply):
    codes: list = field(default_factory=list)
    num_waiting: int = 0

    def push(self, codes):
        self.codes += codes
        self.num_waiting += len(codes)


class ToneOutput(SlotOutput[ToneReply]):
    def next_border(self, num_codes):
        return (num_codes // CHUNK + 1) * CHUNK

    def _begin(self, key, place):
        return ToneReply(key=key, place=place)

    def _is_due(self, reply):
        return not reply.is_done and (reply.is_finished or reply.num_waiting >= CHUNK)

    def _step(self, replies):
        for reply in filter(self._is_due, replies):
            codes = reply.codes[len(reply.codes) - reply.num_waiting :]
            reply.num_waiting, reply.is_done = 0, reply.is_finished
            yield SpokenChunk(reply.key, sound(codes), reply.is_done)


class ToneCodec(SpeechCodec):
    num_codes = 64

    def load_output(self, how, streaming, num_slots):
        return ToneOutput(SpeechFormat(self.num_codes, codes_per_s=25.0, sample_rate=8000), num_slots)


def test_an_engine_speaks_through_a_codec_that_was_registered(tiny_dir, tmp_path):
    unregister = register_speech_codec(lambda encoder, decoder: ToneCodec() if decoder == tmp_path else None)
    with Engine.from_pretrained(tiny_dir / "glm-4-voice-9b", decoder=tmp_path, device="cpu") as engine:
        reply = engine.generate(Text("hm"), schedule=Schedule.preset("stitch_s"), sampling=Sampling(seed=1))
    unregister()
    codes = [code for event in reply.events if isinstance(event, Speech) for code in event.codes]
    assert (len(codes) > 20, reply.audio.rate) == (True, 8000)
    assert np.array_equal(reply.audio.samples, sound(codes))
