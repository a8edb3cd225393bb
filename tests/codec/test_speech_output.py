"""Speech outputs: chunk borders as GLM-4-Voice's demo draws them, any pushes, many keys, wrong use."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save

from innervoice.codec.glm_voice.chunked import ChunkedOutput
from innervoice.codec.glm_voice.codec import speech_output
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.steady import SteadyOutput
from innervoice.codec.speech_codec import NullSpeechOutput, SpeechFormat, SpeechOutput


class Recorder:
    """Stands in for a decoder: writes down what it is asked for; a code's sound is the code."""

    format = SpeechFormat(64, 12.5, 22050)

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], bool]] = []

    def init_state(self) -> int:
        return 0

    def push(self, state: int, codes: tuple[int, ...], final: bool) -> tuple[np.ndarray, int]:
        self.calls.append((tuple(codes), final))
        return np.array(codes, np.float32), state + 1


def demo_chunks(tokens: list[int | None]) -> list[tuple[tuple[int, ...], bool]]:
    """Chunks of the original's loop: before an arriving token is taken in, a full chunk is decoded.

    None: not speech.
    """
    chunks: list[tuple[tuple[int, ...], bool]] = []
    sizes, pending = [25, 50, 100, 150, 200], []
    for token in tokens:
        if len(pending) >= sizes[0]:
            chunks.append((tuple(pending), False))
            pending = []
            sizes = sizes[1:] or sizes
        if token is not None:
            pending.append(token)
    return [*chunks, (tuple(pending), True)]


@pytest.fixture(scope="module")
def decoder(tiny_dir: Path) -> SpeechDecoder:
    return SpeechDecoder.from_pretrained(tiny_dir / "glm-4-voice-decoder")


def heard(voice: SpeechOutput, key: str, chunks: Sequence[Sequence[int]]) -> np.ndarray:
    """Push, step after each push, finish: everything that came out."""
    voice.open(key)
    parts = []
    for codes in chunks:
        voice.push(key, codes)
        parts += voice.step()
    voice.finish(key)
    parts += voice.step()
    assert [last for _, _, last in parts] == [False] * (len(parts) - 1) + [True]
    voice.close(key)
    return np.concatenate([samples for _, samples, _ in parts])


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, 3)), max_size=14), st.integers(0, 2**32 - 1))
def test_borders_are_the_demos_for_any_pattern_of_pushes(runs: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    tokens: list[int | None] = []
    fake: Any = Recorder()
    voice = ChunkedOutput(fake, "reference")
    voice.open("a")
    for num_codes, num_others in runs:
        codes = [int(c) for c in rng.integers(0, 64, num_codes)]
        cut = int(rng.integers(0, num_codes + 1))
        for part in (codes[:cut], codes[cut:]):
            voice.push("a", part)
            if rng.random() < 0.5:
                voice.step()
        for _ in range(num_others):
            voice.tick("a")
        tokens += codes + [None] * num_others
    voice.finish("a")
    voice.step()
    assert fake.calls == demo_chunks(tokens)


def test_a_chunk_is_decoded_when_the_next_token_arrives() -> None:
    fake: Any = Recorder()
    voice = ChunkedOutput(fake, "reference")
    voice.open("a")
    voice.push("a", range(25))
    assert voice.step() == []
    voice.tick("a")
    assert [(key, len(samples), last) for key, samples, last in voice.step()] == [("a", 25, False)]
    voice.push("a", range(50))
    assert voice.step() == []
    voice.push("a", [7])
    assert [len(samples) for _, samples, _ in voice.step()] == [50]
    voice.finish("a")
    assert [(len(samples), last) for _, samples, last in voice.step()] == [(1, True)]
    assert voice.step() == []


@pytest.mark.parametrize("mode", ["reference", "offline", "steady"])
def test_pushes_of_any_size_sound_the_same(decoder: SpeechDecoder, mode: Any) -> None:
    codes = [i * 5 % 64 for i in range(82)]
    one_by_one = heard(speech_output(decoder, mode), "a", [[code] for code in codes])
    assert np.array_equal(one_by_one, heard(speech_output(decoder, mode), "a", [codes]))
    assert np.array_equal(
        one_by_one, heard(speech_output(decoder, mode), "a", [codes[:3], codes[3:60], [], codes[60:]])
    )


def test_offline_is_one_call(decoder: SpeechDecoder) -> None:
    codes = list(range(40))
    assert np.array_equal(
        heard(speech_output(decoder, "offline"), "a", [codes[:30], codes[30:]]), decoder.decode(codes)
    )


def test_reference_is_the_decoders_stream(decoder: SpeechDecoder) -> None:
    codes = list(range(60))
    first, state = decoder.push(decoder.init_state(), codes[:25], final=False)
    rest, _ = decoder.push(state, codes[25:], final=True)
    assert np.array_equal(
        heard(speech_output(decoder, "reference"), "a", [codes]), np.concatenate([first, rest])
    )


def test_a_reply_that_ends_with_nothing_pending_is_flushed(decoder: SpeechDecoder) -> None:
    voice = speech_output(decoder, "reference")
    voice.open("a")
    voice.push("a", range(25))
    voice.tick("a")
    voice.finish("a")
    parts = voice.step()
    assert [last for _, _, last in parts] == [False, True]
    assert sum(len(samples) for _, samples, _ in parts) == 172 * 256


@pytest.mark.parametrize("mode", ["reference", "offline", "steady"])
def test_a_reply_without_speech_ends(decoder: SpeechDecoder, mode: Any) -> None:
    assert len(heard(speech_output(decoder, mode), "a", [])) == 0


@pytest.mark.parametrize("mode", ["reference", "offline", "steady"])
def test_keys_do_not_disturb_each_other(decoder: SpeechDecoder, mode: Any) -> None:
    replies = {"a": list(range(30)), "b": [3] * 55, "c": []}
    voice = speech_output(decoder, mode)
    for key, codes in replies.items():
        voice.open(key)
        voice.push(key, codes)
    parts = voice.step()
    for key in replies:
        voice.finish(key)
    parts += voice.step()
    for key, codes in replies.items():
        together = np.concatenate([samples for owner, samples, _ in parts if owner == key])
        assert np.array_equal(together, heard(speech_output(decoder, mode), key, [codes]))


def test_wrong_use_is_refused(decoder: SpeechDecoder) -> None:
    voice = speech_output(decoder, "reference")
    for call in (voice.tick, voice.finish, voice.close):
        with pytest.raises(ValueError, match="'a' is not open"):
            call("a")
    voice.open("a")
    with pytest.raises(ValueError, match="open already"):
        voice.open("a")
    with pytest.raises(ValueError, match="out of range"):
        voice.push("a", [1, 64])
    voice.finish("a")
    with pytest.raises(ValueError, match="takes no more input"):
        voice.push("a", [1])
    with pytest.raises(ValueError, match="streaming mode"):
        speech_output(decoder, "fast")  # type: ignore[arg-type]


def test_close_forgets_at_any_time(decoder: SpeechDecoder) -> None:
    voice = speech_output(decoder, "reference")
    voice.open("a")
    voice.push("a", range(30))
    voice.close("a")
    assert voice.step() == []
    voice.open("a")
    voice.finish("a")
    assert [len(samples) for _, samples, _ in voice.step()] == [0]


def test_steady_is_the_default_and_copies_replies(decoder: SpeechDecoder) -> None:
    voice = speech_output(decoder, num_slots=3)
    assert isinstance(voice, SteadyOutput)
    codes = [i * 5 % 64 for i in range(40)]
    voice.open("a")
    voice.push("a", codes[:20])
    head = [samples for _, samples, _ in voice.step()]
    voice.fork("a", "b")
    voice.restore("c", voice.export("a"))
    for key in "abc":
        voice.push(key, codes[20:])
        voice.finish(key)
    parts = voice.step()
    whole = heard(speech_output(decoder), "a", [codes])
    for key in "abc":
        assert np.array_equal(
            np.concatenate([*head, *(samples for owner, samples, _ in parts if owner == key)]), whole
        )
    assert len(whole) == 256 * (441 * 40 // 64)


def test_steady_refuses_in_a_sentence(decoder: SpeechDecoder) -> None:
    voice = speech_output(decoder, num_slots=1)
    voice.open("a")
    with pytest.raises(ValueError, match="all 1 slots are taken"):
        voice.open("b")
    with pytest.raises(ValueError, match="open already"):
        voice.fork("a", "a")
    with pytest.raises(ValueError, match="'b' is not open"):
        voice.export("b")
    with pytest.raises(ValueError, match="out of range"):
        voice.push("a", [64])
    with pytest.raises(ValueError, match="not an exported voice"):
        voice.restore("b", b"nothing")
    voice.push("a", [])
    assert voice.step() == []
    voice.finish("a")
    for call in (voice.finish, voice.tick):
        with pytest.raises(ValueError, match="takes no more input"):
            call("a")


def test_a_broken_reply_ends_and_says_why(decoder: SpeechDecoder) -> None:
    voice = speech_output(decoder)
    for key in "ab":
        voice.open(key)
        voice.push(key, range(20))
    voice.step()
    exported = load(voice.export("a"))
    exported["flow.tail"][0, 0] = float("nan")
    voice.close("a")
    voice.restore("a", save(exported))
    for key in "ab":
        voice.push(key, range(20))
    parts = voice.step()
    assert [(key, len(samples), last) for key, samples, last in parts if key == "a"] == [("a", 0, True)]
    assert list(voice.errors) == ["a"]
    assert [len(samples) for key, samples, _ in parts if key == "b"] == [46080]
    with pytest.raises(ValueError, match="'a': the reply broke"):
        voice.push("a", [1])
    voice.close("a")
    assert voice.errors == {}


def test_a_step_decodes_what_is_named_and_ready_tells_what_is_due(decoder: SpeechDecoder) -> None:
    voice, alone = speech_output(decoder), speech_output(decoder)
    codes = {"a": [*range(12)], "b": [*range(9)], "c": [*range(36)], "d": []}
    for key, row in codes.items():
        voice.open(key)
        voice.push(key, row)
    assert voice.ready() == [("a", 12), ("c", 36)]
    assert {key for key, _, _ in voice.step(["c", "b"])} == {"c"}
    assert voice.ready() == [("a", 12)]
    for key in "bd":
        voice.finish(key)
    assert voice.ready() == [("a", 12), ("b", 9), ("d", 0)]
    with pytest.raises(ValueError, match="'x' is not open"):
        voice.step(["a", "x"])
    assert voice.ready() == [("a", 12), ("b", 9), ("d", 0)]
    assert voice.step([]) == []
    parts = voice.step(["b"])
    assert {key for key, _, _ in parts} == {"b"}
    assert np.array_equal(
        np.concatenate([samples for _, samples, _ in parts]), heard(alone, "b", [codes["b"]])
    )
    assert {key for key, _, _ in voice.step()} == {"a", "d"}
    assert voice.ready() == []


def test_ready_in_chunks_of_the_demo(decoder: SpeechDecoder) -> None:
    fake: Any = Recorder()
    for mode, due in (("reference", [("a", 26), ("b", 3)]), ("offline", [("b", 3)])):
        voice = ChunkedOutput(fake, mode)  # type: ignore[arg-type]
        for key, count in (("a", 26), ("b", 3), ("c", 24)):
            voice.open(key)
            voice.push(key, range(count))
        voice.finish("b")
        assert voice.ready() == due


@pytest.mark.parametrize("mode", ["steady", "reference", "offline"])
def test_an_error_in_one_reply_is_its_own(
    decoder: SpeechDecoder, mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice, clean = speech_output(decoder, mode), speech_output(decoder, mode)
    whole = heard(clean, "b", [range(30)])
    part = {"steady": "next_frames", "reference": "push", "offline": "decode"}[mode]
    owner: Any = voice._networks if isinstance(voice, SteadyOutput) else decoder
    original = getattr(owner, part)

    def fail_for_codes_from_40_on(*args: Any, **named: Any) -> Any:
        if mode == "steady":
            wrong = any(40 in reply.codes for reply in args[0])
        else:
            wrong = 40 in (args[1] if mode == "reference" else args[0])
        if wrong:
            raise RuntimeError("out of something")
        return original(*args, **named)

    monkeypatch.setattr(owner, part, fail_for_codes_from_40_on)
    for key, codes in (("a", range(40, 64)), ("b", range(30))):
        voice.open(key)
        voice.push(key, codes)
        voice.finish(key)
    parts = voice.step()
    assert [(len(samples), last) for key, samples, last in parts if key == "a"] == [(0, True)]
    assert list(voice.errors) == ["a"] and "out of something" in voice.errors["a"]
    assert np.array_equal(np.concatenate([samples for key, samples, _ in parts if key == "b"]), whole)
    assert voice.ready() == []
    with pytest.raises(ValueError, match="'a': the reply broke after 0 codes: out of something"):
        voice.push("a", [1])


def test_replies_without_sound_are_over_when_they_are_finished() -> None:
    output: SpeechOutput = NullSpeechOutput()
    for key in "ab":
        output.open(key)
        output.push(key, [3, 9])
        output.tick(key)
    assert (output.ready(), output.ended(), output.next_border(0), output.num_slots) == ([], [], None, 0)
    output.finish("b")
    assert output.ended() == ["b"]
    assert [(chunk.key, len(chunk.samples), chunk.is_last) for chunk in output.step(["a", "b"])] == [
        ("b", 0, True)
    ]
    for key in "ab":
        output.close(key)
    assert output.ended() == []
