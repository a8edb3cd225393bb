"""Replies of the engine on the tiny checkpoint: ids and sound equal those of the original modules."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from small_requests import SHORT_REFLECTION, greedy

from innervoice import (
    AudioChunk,
    Done,
    End,
    Engine,
    Reflection,
    Sampling,
    Schedule,
    ScheduleError,
    Segment,
    Speech,
    SteadySettings,
    Text,
    TokenEvent,
    Transcript,
)

FREE = Schedule(cycle=(), guided=False)


@pytest.fixture(scope="module")
def engine(tiny_dir: Path) -> Iterator[Engine]:
    with Engine.from_pretrained(tiny_dir, device="cpu", streaming="offline", vocoder_noise=False) as made:
        yield made


@pytest.mark.parametrize("case", ["case0", "case1", "text"])
def test_free_decoding_equals_the_original(
    engine: Engine, prompts: dict[str, Any], expected: dict[str, Any], case: str
) -> None:
    reply = engine.generate(prompts[case], schedule=FREE, sampling=greedy(60))
    assert reply.ids == expected[case]["free"]["ids"]
    assert reply.usage.prompt_tokens == len(expected[case]["prompt_ids"])


@pytest.mark.parametrize("case", ["case0", "case1"])
@pytest.mark.parametrize(
    "name", ["interleaved", "stitch_s", "stitch_r", "think_first", "reempathy", "stitch_s_weight_1.15"]
)
def test_guided_decoding_equals_the_original(
    engine: Engine, prompts: dict[str, Any], expected: dict[str, Any], case: str, name: str
) -> None:
    schedule = expected["meta"]["schedules"][name.removesuffix("_weight_1.15")]
    weight = 1.15 if name.endswith("1.15") else 1.0
    reply = engine.generate(
        prompts[case],
        schedule=Schedule.from_dict(schedule | {"reflection_weight": weight}),
        sampling=greedy(160),
    )
    assert reply.ids == expected[case][name]["ids"]
    hidden = {"open", "reflection", "close", "done"}
    kinds = ["reflection" if k in hidden else k for k in expected[case][name]["kinds"]]
    assert [e.kind for e in reply.events if isinstance(e, TokenEvent)] == kinds


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_sound_equals_the_original(
    engine: Engine, prompts: dict[str, Any], expected: dict[str, Any], data_dir: Path, case: str
) -> None:
    """`codes` are the speech of stitch_s; `wav` is those through flow and vocoder in one call, without noise."""
    reply = engine.generate(
        prompts[case],
        schedule=Schedule.from_dict(expected["meta"]["schedules"]["stitch_s"]),
        sampling=greedy(160),
    )
    codes = np.concatenate([e.codes for e in reply.events if isinstance(e, Speech)])
    assert codes.tolist() == expected[case]["codes"]
    wav = load_file(data_dir / "tiny" / "expected.safetensors")[f"wav{case[-1]}"].reshape(-1)
    assert reply.audio.rate == 22050
    assert reply.audio.samples.shape == wav.shape
    assert np.abs(reply.audio.samples - wav).max() < 1e-3


def test_rows_together_give_the_ids_they_give_alone(engine: Engine, prompts: dict[str, Any]) -> None:
    def request(i: int) -> dict[str, Any]:
        return {
            "schedule": SHORT_REFLECTION,
            "sampling": Sampling(temperature=0.9, top_p=0.9, seed=i, max_new_tokens=20 + 5 * i),
        }

    texts = [prompts["text"], prompts["case1"], Text("so?"), Text("what is the weather like?")]
    alone = [engine.generate(text, **request(i)).ids for i, text in enumerate(texts)]
    streams = [engine.stream(text, **request(i)) for i, text in enumerate(texts)]
    assert [stream.reply().ids for stream in streams] == alone
    assert [len(ids) for ids in alone] == [20, 25, 30, 35]
    assert len({tuple(ids[:20]) for ids in alone}) == 4
    engine.parts.core.pool.check_integrity()
    assert engine.parts.core.pool.num_available == engine.parts.core.pool.num_pages


def test_events_are_numbered_timed_and_whole(engine: Engine, prompts: dict[str, Any]) -> None:
    stream = engine.stream(prompts["text"], schedule=SHORT_REFLECTION, sampling=greedy(60))
    events = list(stream)
    reply = stream.reply()
    assert reply.events == events
    assert [e.index for e in events] == list(range(len(events)))
    assert {e.reply_id for e in events} == {stream.reply_id}
    assert all(a.t <= b.t for a, b in pairwise(events))
    assert [type(e) for e in events].count(Done) == 1
    assert isinstance(events[-1], Done)
    usage = reply.usage
    assert (
        usage.total_new_tokens
        == 60
        == usage.reflection_tokens + usage.transcript_tokens + usage.speech_tokens
    )
    assert usage.forced_tokens >= 2
    assert usage.sampling.temperature == 0
    assert usage.sampling.seed is not None
    assert usage.audio_ttfp_ms is not None
    assert usage.ttft_ms is not None
    assert 0 < usage.ttft_ms <= usage.audio_ttfp_ms <= usage.e2el_ms
    assert usage.audio_s == pytest.approx(reply.audio.duration_s)
    assert reply.transcript == "".join(e.text for e in events if isinstance(e, Transcript))
    assert len(reply.reflections) == len({e.segment for e in events if isinstance(e, Reflection)})
    assert pickle.loads(pickle.dumps(reply)).ids == reply.ids


def test_unset_sampling_comes_from_the_checkpoint_and_is_echoed(
    engine: Engine, prompts: dict[str, Any]
) -> None:
    assert engine.default_sampling() == Sampling(temperature=0.8, top_k=50, top_p=0.8)
    first = engine.generate(prompts["text"], sampling=Sampling(max_new_tokens=30))
    echoed = first.usage.sampling
    assert (echoed.temperature, echoed.top_k, echoed.top_p) == (0.8, 50, 0.8)
    again = engine.generate(prompts["text"], sampling=Sampling(seed=echoed.seed, max_new_tokens=30))
    assert again.ids == first.ids
    other = engine.generate(
        prompts["text"], sampling=Sampling(seed=(echoed.seed or 0) + 1, max_new_tokens=30)
    )
    assert other.ids != first.ids


def test_segment_sampling_overrides_by_kind(engine: Engine, prompts: dict[str, Any]) -> None:
    """A greedy transcript under hot speech is the transcript of a greedy reply; the speech is not."""
    mixed = Schedule(cycle=(Segment("transcript", 6, sampling=Sampling(temperature=0)), Segment("speech", 8)))
    reply = engine.generate(
        prompts["text"],
        schedule=mixed,
        sampling=Sampling(temperature=5.0, top_k=0, top_p=1.0, seed=1, max_new_tokens=14),
    )
    cold = engine.generate(
        prompts["text"],
        schedule=Schedule.preset("fixed_ratio", transcript_budget=6, speech_budget=8),
        sampling=greedy(14),
    )
    assert reply.ids[:6] == cold.ids[:6]
    assert reply.ids[6:] != cold.ids[6:]


def test_logprobs_are_of_the_drawn_token_after_the_mask(engine: Engine, prompts: dict[str, Any]) -> None:
    reply = engine.generate(prompts["text"], schedule="interleaved", sampling=greedy(30, logprobs=True))
    values = [p for e in reply.events if isinstance(e, TokenEvent) for p in e.logprobs or []]
    assert len(values) == 30
    assert max(values) <= 0
    assert min(values) > -np.log(512)
    plain = engine.generate(prompts["text"], schedule="interleaved", sampling=greedy(3))
    assert all(e.logprobs is None for e in plain.events if isinstance(e, TokenEvent))


def test_forced_segments_are_emitted_and_marked(engine: Engine, prompts: dict[str, Any]) -> None:
    ids = (104, 105)
    schedule = Schedule(
        prologue=(Segment("forced", ids=ids),),
        cycle=(Segment("transcript", 4), Segment("speech", 4)),
        reflection_weight=1.1,
    )
    reply = engine.generate(prompts["text"], schedule=schedule, sampling=greedy(12))
    assert reply.ids[:2] == list(ids)
    assert [(e.kind, e.forced) for e in reply.events if isinstance(e, TokenEvent)][:3] == [
        ("reflection", True),
        ("reflection", True),
        ("transcript", False),
    ]
    assert reply.reflections == ["hi"]


def test_caps_are_given_to_the_reflections_in_order(engine: Engine, prompts: dict[str, Any]) -> None:
    schedule = Schedule.preset("stitch_r", transcript_budget=2, speech_budget=2, reflection_budget=9)
    reply = engine.generate(
        prompts["text"], schedule=schedule, sampling=greedy(40), reflection_caps=[3, 0, 2]
    )
    lengths: dict[int, int] = {}
    for event in reply.events:
        if isinstance(event, Reflection):
            lengths[event.segment] = lengths.get(event.segment, 0) + len(event.ids)
    assert list(lengths.values())[:2] == [3 + 2, 2 + 2]  # with open and close


@pytest.mark.parametrize(
    ("changes", "reason", "num"),
    [
        ({"max_new_tokens": 9}, "length", 9),
        ({"max_audio_s": 0.4, "max_new_tokens": 99}, "length", 13 + 5),
        ({"stop_token_ids": (51,), "max_new_tokens": 99}, "stop", None),
    ],
)
def test_ways_to_end(
    engine: Engine, prompts: dict[str, Any], changes: dict[str, Any], reason: str, num: int | None
) -> None:
    reply = engine.generate(prompts["text"], sampling=Sampling(temperature=0, **changes))
    assert reply.finish_reason == reason
    assert num is None or len(reply.ids) == num
    assert num is not None or (reply.ids.index(51) == len(reply.ids) - 1)


def test_end_of_turn_ends_the_reply(engine: Engine, prompts: dict[str, Any]) -> None:
    """Hot sampling finishes the text and then the turn; every speech id is voiced."""
    for seed in range(20):
        reply = engine.generate(
            prompts["text"],
            schedule=SHORT_REFLECTION,
            sampling=Sampling(temperature=3.0, top_k=0, top_p=1.0, seed=seed, max_new_tokens=400),
        )
        if reply.finish_reason == "stop":
            break
    assert reply.finish_reason == "stop"
    ends = [e for e in reply.events if isinstance(e, End)]
    assert [e.ids for e in ends] == [reply.ids[-1:]]
    assert reply.ids[-1] in engine.parts.requests.vocabulary.eos == (373, 380, 382)
    assert len(reply.audio.samples) == 256 * (441 * reply.usage.speech_tokens // 64)


def test_reference_streaming_sends_sound_before_the_end(tiny_dir: Path, prompts: dict[str, Any]) -> None:
    with Engine.from_pretrained(
        tiny_dir, device="cpu", streaming="reference", vocoder_noise=False
    ) as streaming:
        events = list(streaming.stream(prompts["text"], sampling=greedy(130)))
    kinds = [type(e) for e in events]
    first_audio = kinds.index(AudioChunk)
    assert Speech in kinds[first_audio:]
    assert first_audio == 39  # the token after the 25th speech token sets it off
    chunks = [e for e in events if isinstance(e, AudioChunk)]
    assert chunks[0].pcm.shape == (137 * 256,)
    assert [c.start for c in chunks] == np.cumsum([0] + [len(c.pcm) for c in chunks[:-1]]).tolist()
    assert chunks[0].to_pcm16().dtype == np.int16


def test_steady_streaming_is_exact_in_length_and_independent_of_neighbours(
    tiny_dir: Path, prompts: dict[str, Any]
) -> None:
    with Engine.from_pretrained(tiny_dir, device="cpu", streaming="steady") as steady:
        request = {"schedule": SHORT_REFLECTION, "sampling": greedy(130), "realtime": False}
        alone = steady.generate(prompts["text"], **request)
        assert len(alone.audio.samples) == 256 * (441 * alone.usage.speech_tokens // 64)
        assert [type(e) for e in alone.events].count(AudioChunk) > 2
        assert alone.usage.first_chunk_s is not None
        assert alone.usage.first_chunk_s < 0.4
        streams = [steady.stream(p, **request) for p in (prompts["case1"], prompts["text"], Text("so?"))]
        replies = [stream.reply() for stream in streams]
        assert np.array_equal(replies[1].audio.samples, alone.audio.samples)
        assert not np.array_equal(replies[2].audio.samples, alone.audio.samples)


def test_steady_streaming_takes_settings(tiny_dir: Path, prompts: dict[str, Any]) -> None:
    settings = SteadySettings(first=5, chunk=20, look_back=40, steps=2)
    with Engine.from_pretrained(tiny_dir, device="cpu", streaming=settings) as engine:
        assert engine.plan().voice_bytes_per_session == engine.parts.core.speech.slot_bytes  # type: ignore[union-attr]
        made = engine.generate(
            prompts["text"], schedule=SHORT_REFLECTION, sampling=greedy(130), realtime=False
        )
    chunks = [e for e in made.events if isinstance(e, AudioChunk)]
    assert len(made.audio.samples) == 256 * (441 * made.usage.speech_tokens // 64)
    assert round((len(chunks[0].pcm) / 256 + 38) * 64 / 441) in (
        5,
        25,
    )  # less what flow and vocoder hold back


def test_bfloat16_and_float16_run(tiny_dir: Path) -> None:
    for dtype in ("bfloat16", "float16"):
        with Engine.from_pretrained(tiny_dir, device="cpu", dtype=dtype, codec_dtype=dtype) as narrow:
            reply = narrow.generate(Text("hello"), sampling=greedy(30))
            assert len(reply.ids) == 30
            assert np.isfinite(reply.audio.samples).all()
            assert np.abs(reply.audio.samples).max() <= 0.99


def test_a_model_alone_answers_text_in_text(tiny_dir: Path, assets_dir: Path) -> None:
    with Engine.from_pretrained(tiny_dir / "glm-4-voice-9b", device="cpu") as bare:
        reply = bare.generate(Text("hello"), schedule="thinking_in_speaking", sampling=greedy(30))
        assert len(reply.ids) == 30
        assert len(reply.audio.samples) == 0
        with pytest.raises(ValueError, match="none was loaded"):
            bare.generate(assets_dir / "question.wav", schedule="thinking_in_speaking")
        with pytest.raises(ScheduleError, match="load a speech tokenizer or a decoder"):
            bare.generate(Text("hello"), schedule="interleaved")
