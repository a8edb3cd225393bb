"""Models that hear by an audio encoder: recordings as rows of prompts, in every way that a prompt comes and is fed."""

from __future__ import annotations

import json
import logging
import math
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

from omni_models import KINDS, NAMES, Spoken, sound

from innervoice import Engine, Ids, Message, Sampling, Schedule, Text, ZeroShotJudge
from innervoice.api.memory_plan import make_plan
from innervoice.api.request_builder import RequestOptions
from innervoice.checkpoint.locate import locate
from innervoice.checkpoint.quantization import Quantization
from innervoice.checkpoint.safetensors import TensorDir
from innervoice.codec.audio_encoder import AudioEncoder, FeatureWindow
from innervoice.model.rows import EmbeddingRow
from innervoice.tools.quantize import Quantizer
from innervoice.types import RequestFailed

REQUEST: dict[str, Any] = {
    "schedule": Schedule(cycle=(), guided=False),
    "sampling": Sampling(temperature=0, max_new_tokens=8, ignore_eos=True),
}
FRAMES = (1, 37, 99, 100, 101, 237, 855)


@pytest.fixture(scope="module", params=KINDS)
def spoken(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Spoken:
    return Spoken(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def engine(spoken: Spoken) -> Iterator[Engine]:
    with Engine.from_pretrained(spoken.folder, device="cpu", max_model_len=1600, max_sessions=8) as made:
        yield made


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of windows of every call of the encoder."""
    calls: list[int] = []
    plain = AudioEncoder.encode_windows

    def counting(self: AudioEncoder, windows: list[FeatureWindow]) -> Any:
        calls.append(len(windows))
        return plain(self, windows)

    monkeypatch.setattr(AudioEncoder, "encode_windows", counting)
    return calls


def least_samples(spoken: Spoken) -> int:
    """Of a recording that is heard, at 16 kHz."""
    return 201 if spoken.kind == KINDS[0] else 321


def said(*parts: str | None) -> dict[str, Any]:
    """A user's message for a chat template; None: a recording."""
    content = [{"type": "audio"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def test_greedy_ids_equal_transformers_at_every_length(spoken: Spoken, engine: Engine) -> None:
    """Together in a batch, alone from cached pages, and as rows that the encoder's caller puts into Ids."""
    recordings = [sound(max(160 * frames, least_samples(spoken))) for frames in FRAMES]
    prompt = spoken.prompt([said(None)])
    want = [spoken.greedy(prompt, [one], 8) for one in recordings]
    assert len({tuple(ids) for ids in want}) > len(want) // 2
    replies = engine.generate([(one, 16000) for one in recordings], **REQUEST)
    assert [reply.ids for reply in replies] == want
    for samples, ids in zip(recordings, want, strict=True):
        reply = engine.generate((samples, 16000), **REQUEST)
        assert reply.ids == ids
        num = len(prompt) - 1 + len(spoken.rows(samples))
        assert (reply.usage.prompt_tokens, reply.usage.cached_tokens) == (num, (num - 1) // 16 * 16)
    given = engine.parts.requests.request((recordings[5], 16000), RequestOptions(), 0.0).prompt_ids
    assert sum(isinstance(one, EmbeddingRow) for one in given) == len(spoken.rows(recordings[5]))
    assert engine.generate(Ids(given), **REQUEST).ids == want[5]


def test_the_reference_hears_the_same_through_its_own_features(spoken: Spoken, engine: Engine) -> None:
    """The whole of the thinker's own path, from log-mel features to ids."""
    import torch
    from transformers import WhisperFeatureExtractor

    samples = sound(160 * 237)
    given = WhisperFeatureExtractor(feature_size=128, chunk_length=30)(
        [samples], sampling_rate=16000, padding=True if spoken.kind == KINDS[0] else "max_length",
        truncation=False, return_attention_mask=True, return_tensors="pt",
    )  # fmt: skip
    row = spoken.tokenizer.convert_tokens_to_ids(NAMES[spoken.kind][0])
    num = len(spoken.rows(samples))
    ids = [j for i in spoken.prompt([said(None, "listen")]) for j in ([row] * num if i == row else [i])]
    x = torch.tensor([ids])
    with torch.inference_mode():
        made = spoken.model.generate(
            input_ids=x, attention_mask=torch.ones_like(x), input_features=given.input_features,
            feature_attention_mask=given.attention_mask, max_new_tokens=8, min_new_tokens=8, do_sample=False,
        )  # fmt: skip
    message = Message("user", [(samples, 16000), Text("listen")])
    assert engine.generate([message], **REQUEST).ids == made[0, len(ids) :].tolist()


def test_log_probabilities_and_ratings_behind_recordings_equal_transformers(
    spoken: Spoken, engine: Engine
) -> None:
    """Of continuations behind two recordings, and of the digits of a judge that hears question and reply."""
    question, answer = sound(160 * 237, 8), sound(160 * 99, 9)
    given = Message("user", [(question, 16000), Text("then"), (answer, 16000)])
    behind = [[20, 31, 44], [20, 31], [45]]
    prompt = spoken.prompt([said(None, "then", None)])

    def logprobs(ids: list[int], continuation: list[int]) -> list[float]:
        rows = spoken.logits([*ids, *continuation], [question, answer]).log_softmax(-1)[
            -len(continuation) - 1 : -1
        ]
        return [float(row[i]) for row, i in zip(rows, continuation, strict=True)]

    (found,) = engine.logprobs([[given]], [Ids(one) for one in behind])
    for ids, got in zip(behind, found.continuations, strict=True):
        assert got.logprobs == pytest.approx(logprobs(prompt, ids), abs=1e-4)
    judge = ZeroShotJudge(engine)
    pair: Any = ((question, 16000), (answer, 16000))
    made = judge.score(*pair)
    for name, score in made.scores.items():
        (message,) = judge.prompt(*pair, name)
        parts = [part.text if isinstance(part, Text) else None for part in message.parts]
        assert parts.count(None) == 2
        prompt = spoken.prompt([said(*parts)])
        digits = [spoken.tokenizer.encode(k, add_special_tokens=False) for k in "12345"]
        weights = [math.exp(sum(logprobs(prompt, ids))) for ids in digits]
        want = sum(k * weight for k, weight in enumerate(weights, 1)) / sum(weights)
        assert score == pytest.approx(want, abs=1e-4)
    assert len(set(made.scores.values())) == 4


def test_what_is_skipped_is_said_once(spoken: Spoken, caplog: pytest.LogCaptureFixture) -> None:
    """Of a checkpoint in 15 shards, with the parts that see and speak among them."""
    assert len(list(spoken.folder.glob("model-*-of-00015.safetensors"))) == 15
    names = TensorDir(spoken.folder).names()
    assert {name.split(".")[0] for name in names} == {"thinker", "talker", "code2wav"}
    assert any(name.startswith("thinker.visual.") for name in names)
    with (
        caplog.at_level(logging.INFO, logger="innervoice"),
        Engine.from_pretrained(spoken.folder, device="cpu", max_model_len=64),
    ):
        pass
    assert caplog.text.count("vision, talker and wave parts are skipped") == 1


def test_two_recordings_in_a_turn_and_turns_of_a_session(spoken: Spoken, engine: Engine) -> None:
    """With text beside them; a fork, a restored export and a changed history go on alike."""
    first, second, third = (sound(160 * frames, 3) for frames in (120, 61, 205))
    turn = Message("user", [(first, 16000), Text("what is the question"), (second, 16000)])
    one = engine.generate([turn], **REQUEST).ids
    prompt = spoken.prompt([said(None, "what is the question", None)])
    assert one == spoken.greedy(prompt, [first, second], 8)
    with engine.open_session(**REQUEST) as session:
        assert session.reply([turn]).reply().ids == one
        begin, row, end = (NAMES[spoken.kind][i] for i in (3, 0, 4))
        behind = spoken.tokenizer.encode(
            f"<|im_end|>\n<|im_start|>user\n{begin}{row}{end}<|im_end|>\n<|im_start|>assistant\n",
            add_special_tokens=False,
        )
        want = spoken.greedy([*prompt, *one, *behind], [first, second, third], 8)
        with session.fork() as fork, engine.open_session(restore=session.export(), **REQUEST) as restored:
            for each in (session, fork, restored):
                assert each.reply((third, 16000)).reply().ids == want
            items = restored.items()
            assert [item.role for item in items] == ["user", "assistant", "user", "assistant"]
            assert items[2].num_speech_tokens == len(spoken.rows(third))
            # The history is written anew from its items, the recordings' rows among them.
            restored.update(system="Be of help.")
            renewed = restored.reply(Text("again")).reply()
            assert renewed.usage.prompt_tokens > items[2].num_speech_tokens
        whole = [
            {"role": "system", "content": "Be of help."}, said(None, "what is the question", None),
            {"role": "assistant", "content": "X"}, said(None), {"role": "assistant", "content": "X"}, said("again"),
        ]  # fmt: skip
        x = spoken.tokenizer.encode("X", add_special_tokens=False)
        replies = iter((one, want))
        ids: list[int] = []
        for i in spoken.prompt(whole):
            ids += next(replies) if [i] == x else [i]
        assert renewed.ids == spoken.greedy(ids, [first, second, third], 8)


def test_equal_recordings_are_encoded_once_and_share_pages(
    spoken: Spoken, engine: Engine, encoded: list[int], tmp_path: Path
) -> None:
    """The same samples from a file, an array and another thread; a longer one shares its complete windows."""
    import soundfile

    samples = sound(160 * 450, 5)
    soundfile.write(tmp_path / "again.wav", samples, 16000, subtype="FLOAT")
    threads = [
        threading.Thread(target=engine.generate, args=((samples, 16000),), kwargs=REQUEST) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(encoded) == 3
    again = engine.generate(tmp_path / "again.wav", **REQUEST)
    assert sum(encoded) == 3
    assert again.usage.cached_tokens == (again.usage.prompt_tokens - 1) // 16 * 16
    longer = np.concatenate([samples, 0.5 * sound(160 * 300, 6)])
    engine.generate((longer, 16000), **REQUEST)
    assert sum(encoded) == 3 + 2  # windows of 200 frames: the first two are known
    other = engine.generate((sound(160 * 450, 7), 16000), **REQUEST)
    head = spoken.prompt([said(None)]).index(spoken.tokenizer.convert_tokens_to_ids(NAMES[spoken.kind][3]))
    assert other.usage.cached_tokens == (head + 1) // 16 * 16


def test_windows_of_several_speakers_are_one_call(spoken: Spoken, engine: Engine, encoded: list[int]) -> None:
    recordings = [sound(160 * frames, 50) for frames in (450, 610, 230)]
    heard: Any = engine.parts.requests.speech_tokenizer
    streams = [heard.stream(16000) for _ in recordings]
    for stream, samples in zip(streams, recordings, strict=True):
        stream.push(samples)
    heard.step(streams)
    assert encoded == [2 + 3 + 1]  # windows of 200 frames that are complete
    for stream, samples in zip(streams, recordings, strict=True):
        stream.end()
        rows = np.stack([row.values for row in stream.take()[1]])
        np.testing.assert_allclose(rows, spoken.rows(samples), atol=1e-4)


def test_long_prompts_in_pieces_and_recomputed_ones(spoken: Spoken, tmp_path: Path) -> None:
    """A recording of more rows than a step feeds; four replies in a cache for two."""
    recordings = [sound(160 * (330 + 10 * n), 20 + n) for n in range(4)]
    long = sound(16000 * 22, 30)
    want = [spoken.greedy(spoken.prompt([said(None)]), [one], 8) for one in recordings]
    with Engine.from_pretrained(spoken.folder, device="cpu", max_model_len=160, max_sessions=2) as small:
        replies = small.generate([(one, 16000) for one in recordings], **REQUEST)
        assert [reply.ids for reply in replies] == want
        small.parts.core.check_integrity()
        with pytest.raises(ValueError, match=r"the recording lasts 22.0 s, \d+ tokens"):
            small.generate((long, 16000), **REQUEST)
    with Engine.from_pretrained(spoken.folder, device="cpu", max_model_len=700, max_sessions=1) as large:
        assert large.generate((long, 16000), **REQUEST).ids == spoken.greedy(
            spoken.prompt([said(None)]), [long], 8
        )


def _since(engine: Engine, before: dict[str, int], name: str) -> int:
    return engine.stats().incidents.get(name, 0) - before.get(name, 0)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_pushed_frames_are_heard_as_the_whole(spoken: Spoken, engine: Engine, rate: int) -> None:
    """Windows are encoded and fed while the user speaks; a louder one makes those anew that it changes."""
    samples = sound(rate * 7, 40) * np.repeat(np.float32([1e-4, 1, 1, 1, 1, 1, 0.01]), rate)
    whole = engine.generate((samples, rate), **REQUEST)
    before = dict(engine.stats().incidents)
    with engine.open_session(**REQUEST) as session:
        for start in range(0, len(samples), 1600):
            session.push_audio(samples[start : start + 1600], rate)
        deadline = time.monotonic() + 60
        registry, ahead = engine.parts.core.registry, 3 * len(spoken.rows(sound(32000)))
        while registry.known(session.session_id).num_prefetched < ahead:
            assert time.monotonic() < deadline, "no window was fed ahead"
            time.sleep(0.01)
        session.commit_audio()
        assert session.reply().reply().ids == whole.ids
        num = whole.usage.prompt_tokens - (len(spoken.prompt([said(None)])) - 1)
        assert session.items()[0].num_speech_tokens == num
    assert _since(engine, before, "fed_ahead") >= ahead and _since(engine, before, "encoded_late") < num // 2
    with engine.open_session(**REQUEST) as session:
        session.push_audio(sound(rate, 41)[:150], rate)
        session.commit_audio()
        with pytest.raises(RequestFailed, match="this model hears recordings of"):
            session.reply().reply()


def test_bad_input_is_refused_in_one_sentence(spoken: Spoken, engine: Engine) -> None:
    least = least_samples(spoken)
    with pytest.raises(
        ValueError, match=f"has {least - 1} samples at 16000 Hz: this model hears .* of {least}"
    ):
        engine.generate((sound(least - 1), 16000))
    assert engine.generate((sound(least), 16000), **REQUEST).ids
    row, image, video = spoken.tokenizer.convert_tokens_to_ids(list(NAMES[spoken.kind][:3]))
    for one in (image, video):
        with pytest.raises(ValueError, match=f"prompt id {one} stands for an image or a video"):
            engine.generate(Ids([100, one]))
    with pytest.raises(ValueError, match=f"prompt id {row} stands for a row of a recording and has none"):
        engine.generate([Message("user", [Ids([row]), Text("x")])])
    typed = engine.parts.requests.request(Text(NAMES[spoken.kind][1]), RequestOptions(), 0.0)
    assert image not in typed.prompt_ids  # typed words are words


def test_configs_that_do_not_fit_are_refused(spoken: Spoken, tmp_path: Path) -> None:
    shutil.copytree(spoken.folder, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors", "thinker"))
    config = json.loads((spoken.folder / "config.json").read_text())
    audio = config["thinker_config"]["audio_config"]
    for change, message in (
        ({"n_window": 60}, "audio_config: n_window is 60, which is not supported"),
        ({"output_dim": 32}, "output_dim of audio_config is 32, and hidden_size of the language model is 64"),
    ):
        config["thinker_config"]["audio_config"] = audio | change
        (tmp_path / "m" / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            Engine.from_pretrained(tmp_path / "m", device="cpu")
    config["thinker_config"]["audio_config"] = None
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    dummy = {"device": "cpu", "load_format": "dummy", "max_model_len": 64}
    with (
        Engine.from_pretrained(tmp_path / "m", **dummy) as deaf,
        pytest.raises(ValueError, match="a recording needs a speech tokenizer"),
    ):
        deaf.generate((sound(4000), 16000))


def test_the_plan_counts_the_encoder_and_quantising_keeps_it(spoken: Spoken, tmp_path: Path) -> None:
    tensors = TensorDir(spoken.folder)
    names = [
        name
        for name in tensors.names()
        if name.startswith("thinker.audio_tower.") and "positional" not in name
    ]
    size = sum(int(np.prod(tensors.shape(name))) for name in names if "bos_eos" not in name)
    plan = make_plan(locate(spoken.folder))
    assert plan.audio_encoder_bytes == 4 * size
    assert plan.fixed_bytes == plan.weight_bytes + plan.audio_encoder_bytes
    out = tmp_path / "int8"
    written = list(Quantizer(locate(spoken.folder), out, Quantization("int8")).run())
    kept = {one.name: one for one in written if one.name in names}
    assert {one.format for one in kept.values()} == {"float32"} and len(kept) >= len(names) - 1
    with Engine.from_pretrained(out, device="cpu", max_model_len=256, dtype="float32") as engine:
        reply = engine.generate((sound(16000), 16000), **REQUEST)
        prompt = engine.parts.requests.request((sound(16000), 16000), RequestOptions(), 0.0).prompt_ids
        rows = [one for one in prompt if isinstance(one, EmbeddingRow)]
        assert len(reply.ids) == 8
        np.testing.assert_allclose(rows[0].block.values, spoken.rows(sound(16000)), atol=1e-4)


def test_random_weights_hear_too(spoken: Spoken, tmp_path: Path) -> None:
    """From config.json alone, with a tokenizer that is made up."""
    shutil.copy(spoken.folder / "config.json", tmp_path)
    with Engine.from_pretrained(tmp_path, device="cpu", load_format="dummy", max_model_len=128) as engine:
        assert len(engine.generate((sound(20000), 16000), **REQUEST).ids) == 8
