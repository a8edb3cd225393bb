"""An output whose subclass breaks the rules: its replies end with an error, and the others and the engine live."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from innervoice import Engine, RequestFailed, Sampling, Schedule, Text
from innervoice.codec.registry import register_speech_codec
from innervoice.codec.slot_output import SlotOutput, SpokenReply
from innervoice.codec.speech_codec import SpeechCodec, SpeechFormat, SpokenChunk

CHUNK = 4


@dataclass(kw_only=True)
class StepReply(SpokenReply):
    codes: list[int] = field(default_factory=list)

    def push(self, codes: Sequence[int]) -> None:
        self.codes += codes

    @property
    def num_waiting(self) -> int:
        return len(self.codes)


class StepOutput(SlotOutput[StepReply]):
    """Makes each code a sample, by a method that may change what it made."""

    def __init__(self, num_slots: int = 4) -> None:
        super().__init__(SpeechFormat(64, codes_per_s=100.0, sample_rate=100), num_slots)

    def change(self, chunks: Iterator[SpokenChunk]) -> Any:
        return chunks

    def next_border(self, num_codes: int) -> int:
        return (num_codes // CHUNK + 1) * CHUNK

    def _begin(self, key: str, place: int) -> StepReply:
        return StepReply(key=key, place=place)

    def _is_due(self, reply: StepReply) -> bool:
        return not reply.is_done and (reply.is_finished or reply.num_waiting >= CHUNK)

    def _step(self, replies: list[StepReply]) -> Iterable[SpokenChunk]:
        made: Iterable[SpokenChunk] = self.change(self._made(replies))
        return made

    def _made(self, replies: list[StepReply]) -> Iterator[SpokenChunk]:
        for reply in filter(self._is_due, replies):
            samples = np.array(reply.codes, np.float32)
            reply.codes, reply.is_done = [], reply.is_finished
            yield SpokenChunk(reply.key, samples, reply.is_done)


def output_with(change: Any) -> StepOutput:
    """An output with two replies that are due and one that is not."""
    output = type("Changed", (StepOutput,), {"change": lambda self, chunks: change(chunks)})()
    for key, num in (("a", 4), ("b", 5), ("c", 1)):
        output.open(key)
        output.push(key, range(num))
    return output


def resampled(**fields: Any) -> Any:
    """The same chunks, those of "a" with fields that a function makes from the samples."""

    def change(chunks: Iterable[SpokenChunk]) -> Iterator[SpokenChunk]:
        for one in chunks:
            made = {name: value(one.samples) for name, value in fields.items()}
            yield one._replace(**made) if one.key == "a" else one

    return change


def fails_at_last(chunks: Iterable[SpokenChunk]) -> Iterator[SpokenChunk]:
    yield from chunks
    raise RuntimeError("a table is missing")


def goes_on_without_numbers(chunks: Iterable[SpokenChunk]) -> Iterator[SpokenChunk]:
    for one in chunks:
        yield one
        yield one._replace(samples=one.samples * np.nan)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda chunks: 1 // 0, "ZeroDivisionError"),
        (lambda chunks: None, "TypeError: 'NoneType' object is not iterable"),
        (lambda chunks: [], "it did nothing for replies that are ready"),
        (fails_at_last, "RuntimeError: a table is missing"),
        (resampled(key=lambda samples: "unknown"), "'unknown', which is not a reply of this step"),
    ],
)
def test_a_step_that_breaks_ends_its_replies(change: Any, message: str) -> None:
    output = output_with(change)
    chunks = output.step()
    assert [(chunk.key, len(chunk.samples), chunk.is_last) for chunk in chunks] == [
        ("a", 0, True),
        ("b", 0, True),
    ]
    assert list(output.errors) == ["a", "b"] and all(message in error for error in output.errors.values())
    output.close("a")
    output.close("b")
    output.change = lambda chunks: chunks  # type: ignore[method-assign]
    output.push("c", [7, 8, 9])
    assert [chunk.samples.tolist() for chunk in output.step()] == [[0, 7, 8, 9]]


def test_a_lost_device_belongs_to_no_reply() -> None:
    def lose(chunks: Iterable[SpokenChunk]) -> Iterable[SpokenChunk]:
        raise torch.AcceleratorError("the device is lost")

    output = output_with(lose)
    with pytest.raises(torch.AcceleratorError, match="the device is lost"):
        output.step()
    assert not output.errors


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"samples": lambda samples: samples * np.nan}, "its samples are not finite"),
        ({"samples": lambda samples: samples[:, None]}, r"float32 \[4, 1\], expected"),
        ({"samples": lambda samples: samples.astype(np.int16)}, r"int16 \[4\], expected"),
        ({"samples": lambda samples: None}, r"object \[\], expected"),
        ({"is_last": lambda samples: True}, "last before the reply's codes are over"),
    ],
)
def test_a_chunk_that_cannot_be_heard_ends_its_reply(fields: Any, message: str) -> None:
    output = output_with(resampled(**fields))
    first, second = output.step()
    assert (first.key, len(first.samples), first.is_last) == ("a", 0, True)
    assert (second.key, second.samples.tolist(), second.is_last) == ("b", [0, 1, 2, 3, 4], False)
    assert list(output.errors) == ["a"]
    with pytest.raises(ValueError, match=message):
        output.push("a", [1])


@pytest.mark.parametrize("form", [list, lambda samples: samples.astype(np.float64)])
def test_other_numbers_become_float32(form: Any) -> None:
    first, second = output_with(resampled(samples=form)).step()
    assert first.samples.dtype == second.samples.dtype == np.float32
    assert first.samples.tolist() == [0, 1, 2, 3]


def test_a_reply_without_a_last_chunk_is_broken() -> None:
    output = output_with(resampled(is_last=lambda samples: False))
    output.finish("a")
    assert [(chunk.key, len(chunk.samples), chunk.is_last) for chunk in output.step()] == [
        ("a", 4, False),
        ("b", 5, False),
        ("a", 0, True),
    ]
    assert "no chunk of it was marked as the last" in output.errors["a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fails_at_last, "the codec's step broke: RuntimeError: a table is missing"),
        (goes_on_without_numbers, "the codec's step broke: ValueError: its samples are not finite"),
    ],
)
def test_the_engine_lives_on_after_a_step_that_broke(
    change: Any, message: str, tiny_dir: Path, tmp_path: Path
) -> None:
    output = StepOutput(64)

    class StepCodec(SpeechCodec):
        num_codes = 64

        def load_output(self, how: Any, streaming: Any, num_slots: int) -> StepOutput:
            return output

    unregister = register_speech_codec(lambda encoder, decoder: StepCodec() if decoder == tmp_path else None)
    schedule, sampling = Schedule.preset("stitch_s"), Sampling(seed=1, max_new_tokens=60)
    with Engine.from_pretrained(tiny_dir / "glm-4-voice-9b", decoder=tmp_path, device="cpu") as engine:
        unregister()
        whole = engine.generate(Text("hm"), schedule=schedule, sampling=sampling)
        output.change = change  # type: ignore[method-assign]
        with pytest.raises(RequestFailed, match=message):
            engine.generate(Text("hm"), schedule=schedule, sampling=sampling)
        assert output.num_open == 0
        del output.change
        again = engine.generate(Text("hm"), schedule=schedule, sampling=sampling)
        engine.check_health()
    assert whole.finish_reason != "error" and len(whole.audio.samples) == whole.usage.speech_tokens
    assert np.array_equal(whole.audio.samples, again.audio.samples)
