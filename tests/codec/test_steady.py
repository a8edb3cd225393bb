"""`steady` streaming: fixed borders, any pattern of pushes, many replies beside each other, slots, bad input,
cost.
"""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from small_codec import MEL, SETTINGS, random_codes, relative_error, small_decoder, speak
from torch.utils.flop_counter import FlopCounterMode

from innervoice.codec.glm_voice.chunks import FrameClock, SteadySettings, TokenChunk, next_border
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.flow_encoder import nearest
from innervoice.codec.glm_voice.slot_bytes import slot_bytes
from innervoice.codec.glm_voice.steady import SteadyOutput

CLOCK = FrameClock.of(12.5)
ROUNDING = 1e-4
"""What float32's rounding in matrix products of another shape becomes on the way through these random layers,
relative.
"""


@pytest.fixture(scope="module")
def decoder() -> SpeechDecoder:
    return small_decoder()


def steady(decoder: SpeechDecoder, rows: int | None = 1, slots: int = 4, **changes: object) -> SteadyOutput:
    return SteadyOutput(
        decoder._flow,
        decoder._hift,
        replace(SETTINGS, **changes),
        num_slots=slots,
        rows_at_once=rows,
        noise=decoder._noise,
    )


def chunks_of(total: int, layout: SteadySettings) -> list[TokenChunk]:
    borders = [0]
    while borders[-1] < total:
        borders.append(min(total, next_border(borders[-1], layout)))
    return [TokenChunk(begin, end, layout, CLOCK) for begin, end in pairwise(borders)]


@pytest.mark.parametrize(
    "layout", [SteadySettings(), SETTINGS, SteadySettings(first=1, chunk=1, look_back=0, hold_back=80)]
)
def test_windows_tile_the_reply(layout: SteadySettings) -> None:
    for total in (1, 9, 10, 11, 36, 64, 125, 700):
        chunks = chunks_of(total, layout)
        assert [c.end for c in chunks][:3] == [min(total, layout.first + i * layout.chunk) for i in range(3)][
            : len(chunks)
        ]
        assert chunks[0].first_frame == 0
        for before, after in pairwise(chunks):
            assert after.first_frame == before.sure_frame
            assert before.end_frame - before.sure_frame <= layout.hold_back
        for chunk in chunks:
            assert chunk.window_frame % 2 == 0
            assert (
                chunk.window_frame == 0
                or layout.look_back <= chunk.first_frame - chunk.window_frame <= layout.look_back + 1
            )
            assert chunk.bucket_len - 32 < chunk.window_len <= chunk.bucket_len
        assert chunks[-1].end_frame == 441 * total // 64


def test_frames_and_tokens_are_exact() -> None:
    for n in range(1, 3000):
        assert CLOCK.frames(n) == 441 * n // 64
        assert CLOCK.tokens(CLOCK.frames(n) - 1) == n - 1
    tokens = CLOCK.tokens(torch.arange(441 * 20))
    assert torch.equal(tokens, ((4 * torch.arange(441 * 20) + 1) * 64).div(4 * 441, rounding_mode="floor"))
    assert set(tokens.bincount().tolist()) <= {6, 7}


@pytest.mark.parametrize(
    "changes", [{"first": 0}, {"steps": 0}, {"look_back": 7}, {"fade": 20, "hold_back": 10}]
)
def test_bad_settings_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="steady streaming"):
        SteadySettings(**changes)


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 80), st.lists(st.integers(0, 40), min_size=1, max_size=8), st.booleans())
def test_any_pattern_of_pushes_sounds_the_same(total: int, sizes: list[int], show: bool) -> None:
    decoder = steady(small_decoder(), show_look_back=show)
    codes = random_codes(total, total)
    whole = speak(decoder, codes, [max(total, 1)])
    ours = speak(decoder, codes, [*sizes, 3])
    assert all(np.array_equal(a, b) for a, b in zip(ours, whole, strict=True))
    assert sum(len(part) for part in ours) == 256 * (441 * total // 64)


def test_shipped_settings_give_the_exact_number_of_samples(decoder: SpeechDecoder) -> None:
    voice = decoder.steady()
    for total in (1, 10, 36, 125):
        codes = random_codes(total, 1)
        whole = speak(voice, codes, [total])
        assert all(np.array_equal(a, b) for a, b in zip(speak(voice, codes, [1]), whole, strict=True))
        assert sum(len(part) for part in whole) == len(decoder.decode(codes)) == 256 * (441 * total // 64)
        assert len(whole[0]) == (256 * (68 - 20) - 4656 if total > 10 else len(whole[0]))


def test_a_reply_of_one_chunk_is_the_offline_reply(decoder: SpeechDecoder) -> None:
    """Where the tokens' frames are the same: nothing is cut off, so nothing else may differ."""
    compared = 0
    for total in range(1, 11):
        frames = CLOCK.frames(total)
        if torch.equal(CLOCK.tokens(torch.arange(frames)), nearest(total, frames)):
            codes = random_codes(total, total)
            ours = np.concatenate(speak(steady(decoder, steps=10), codes, [total]))
            assert relative_error(ours, decoder.decode(codes, noise="frame")) < 1e-4
            compared += 1
    assert compared >= 3


@pytest.mark.parametrize("rows", [1, None, 5])
def test_sixteen_replies_in_mixed_phases_sound_as_alone(decoder: SpeechDecoder, rows: int | None) -> None:
    lengths = [5 * i + i % 3 for i in range(16)]
    replies = [random_codes(n, n) for n in lengths]
    together, alone = steady(decoder, rows, 16), steady(decoder)
    keys = [str(i) for i in range(16)]
    for i, key in enumerate(keys):
        together.open(key, seed=i)
    heard: dict[str, list[np.ndarray]] = {key: [] for key in keys}
    rng = random.Random(0)
    positions, ended = [0] * 16, [False] * 16
    while not all(ended):
        for i, key in enumerate(keys):
            size = rng.choice((0, 3, 11, 30))
            if not ended[i]:
                together.push(key, replies[i][positions[i] : positions[i] + size])
            positions[i] += size
            if positions[i] >= lengths[i] and not ended[i]:
                together.finish(key)
                ended[i] = True
        for chunk in together.step():
            heard[chunk.key].append(chunk.samples)
    for i, key in enumerate(keys):
        ours, single = np.concatenate(heard[key]), np.concatenate(speak(alone, replies[i], [100], seed=i))
        assert relative_error(ours, single) <= (0 if rows == 1 else ROUNDING)


def test_slots_are_reused_forked_and_moved(decoder: SpeechDecoder) -> None:
    voice, other = steady(decoder), steady(decoder)
    codes, branch = random_codes(70, 1), random_codes(40, 2)
    whole = np.concatenate(speak(voice, codes, [70]))
    voice.open("a")
    voice.push("a", codes[:40])
    head = [chunk.samples for chunk in voice.step()]
    voice.fork("a", "twin")
    other.restore("a", voice.export("a"))
    voice.push("a", codes[40:])
    voice.push("twin", branch)
    other.push("a", codes[40:])
    for owner, key in ((voice, "a"), (voice, "twin"), (other, "a")):
        owner.finish(key)
    heard = {"a": list(head), "twin": list(head)}
    for chunk in voice.step():
        heard[chunk.key].append(chunk.samples)
    assert np.array_equal(np.concatenate(heard["a"]), whole)
    assert np.array_equal(np.concatenate([*head, *(chunk.samples for chunk in other.step())]), whole)
    other.close("a")
    expected = np.concatenate(speak(other, codes[:40] + branch, [9]))
    assert np.array_equal(np.concatenate(heard["twin"]), expected)
    voice.close("a")
    assert np.array_equal(np.concatenate(speak(voice, codes, [70])), whole)


def test_wrong_use_is_refused_in_a_sentence(decoder: SpeechDecoder) -> None:
    voice = steady(decoder, slots=2)
    for key in ("first", "second"):
        voice.open(key)
    with pytest.raises(ValueError, match="all 2 slots are taken"):
        voice.open("third")
    with pytest.raises(ValueError, match="all 2 slots are taken"):
        voice.fork("first", "third")
    place = voice.table.find("first").place
    voice.push("first", [])
    assert voice.step() == []
    voice.close("first")
    voice.open("third")
    assert voice.table.find("third").place == place
    for call in (voice.finish, voice.close, voice.export):
        with pytest.raises(ValueError, match="is not open"):
            call("first")
    with pytest.raises(ValueError, match="is not open"):
        voice.fork("first", "fourth")
    voice.finish("second")
    with pytest.raises(ValueError, match="takes no more input"):
        voice.push("second", [1])
    voice.close("third")
    with pytest.raises(ValueError, match="speaker embedding"):
        voice.open("third", speaker=torch.zeros(1, 3))
    with pytest.raises(ValueError, match="not finite"):
        voice.open("third", speaker=torch.full((1, 192), torch.nan))
    with pytest.raises(ValueError, match="other settings"):
        steady(decoder, look_back=64).restore("third", voice.export("second"))
    damaged = save(load(voice.export("second")) | {"hift.cycles": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'cycles' is not of this decoder"):
        voice.restore("third", damaged)
    assert voice.num_open == 1


@pytest.mark.parametrize("rows", [1, None])
def test_a_broken_reply_leaves_the_others_alone(decoder: SpeechDecoder, rows: int | None) -> None:
    voice, clean = steady(decoder, rows), steady(decoder, rows)
    codes = random_codes(50, 3)
    steps = []
    for owner in (voice, clean):
        for i, key in enumerate("abc"):
            owner.open(key, seed=i)
            owner.push(key, codes[:20])
        owner.step()
        if owner is voice:
            exported = load(owner.export("b"))
            exported["flow.tail"][2, 3] = torch.nan
            owner.close("b")
            owner.restore("b", save(exported))
        for key in "abc":
            owner.push(key, codes[20:])
        steps.append(owner.step())
    broken, whole = steps
    assert [(len(chunk.samples), chunk.is_last) for chunk in broken if chunk.key == "b"] == [(0, True)]
    assert list(voice.errors) == ["b"]
    assert "not finite" in voice.errors["b"]
    for key in "ac":
        good = [chunk.samples for chunk in broken if chunk.key == key]
        expected = [chunk.samples for chunk in whole if chunk.key == key]
        assert all(np.array_equal(a, b) for a, b in zip(good, expected, strict=True))
    for call in (voice.finish, voice.export):
        with pytest.raises(ValueError, match="not finite"):
            call("b")


def test_a_failing_call_of_many_rows_fails_one_reply(
    decoder: SpeechDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a call that fails are run one by one: whichever fails alone breaks, in the flow and in the
    vocoder.
    """
    codes = random_codes(20, 3)
    whole = np.concatenate(speak(steady(decoder, None), codes, [20]))
    for part in ("next_frames", "vocode"):
        voice = steady(decoder, None)
        original = getattr(voice._networks, part)

        def fail(rows: list, call: object = original, **named: object) -> object:  # type: ignore[type-arg]
            if any(getattr(row, "reply", row).key == "b" for row in rows):
                raise RuntimeError("no memory")
            return call(rows, **named)  # type: ignore[operator]

        monkeypatch.setattr(voice._networks, part, fail)
        for key in "abc":
            voice.open(key)
            voice.push(key, codes)
            voice.finish(key)
        chunks = voice.step()
        assert list(voice.errors) == ["b"]
        assert [chunk.is_last for chunk in chunks if chunk.key == "b"] == [True]
        for key in "ac":
            ours = np.concatenate([chunk.samples for chunk in chunks if chunk.key == key])
            assert relative_error(ours, whole) <= ROUNDING
        assert voice.ready() == []


def test_slot_bytes_are_known_before_loading(decoder: SpeechDecoder, tiny_dir: Path) -> None:
    for changes in ({}, {"look_back": 64, "show_look_back": True, "encoder_blocks": 3, "hold_back": 9}):
        voice = steady(decoder, **changes)
        assert slot_bytes(decoder.config, 4, voice.settings) == voice.slot_bytes
    for dtype in (torch.float32, torch.bfloat16):
        tiny = SpeechDecoder.from_pretrained(tiny_dir / "glm-4-voice-decoder", dtype=dtype)
        assert slot_bytes(tiny.config, dtype.itemsize) == tiny.steady(num_slots=1).slot_bytes


def test_speaker_steps_and_seed_make_a_difference(decoder: SpeechDecoder) -> None:
    codes = random_codes(12, 5)
    voice = steady(decoder)
    plain = np.concatenate(speak(voice, codes, [12]))
    assert not np.array_equal(np.concatenate(speak(voice, codes, [12], seed=7)), plain)
    assert not np.array_equal(np.concatenate(speak(steady(decoder, steps=3), codes, [12])), plain)
    voice.open("a", speaker=torch.ones(1, 192))
    voice.push("a", codes)
    voice.finish("a")
    assert not np.array_equal(np.concatenate([chunk.samples for chunk in voice.step()]), plain)


def test_a_chunk_costs_the_same_at_minute_five(decoder: SpeechDecoder) -> None:
    """Every chunk with a full look-back has the same shapes, up to a bucket of 32 frames, so the same cost."""
    voice = decoder.steady(SteadySettings(steps=1))
    codes, costs = random_codes(3750, 1), []
    voice.open("a")
    for chunk in chunks_of(3750, voice.settings):
        voice.push("a", codes[chunk.begin : chunk.end])
        if chunk.end < 300 or chunk.end > 3650:
            with FlopCounterMode(display=False) as counter:
                voice.step()
            costs.append((chunk.window_frame > 0, counter.get_total_flops()))
        else:
            voice.step()
    full = [cost for is_full, cost in costs[:-1] if is_full]
    assert len(full) > 5
    assert max(full) / full[0] <= 1.0


@pytest.mark.slow
@pytest.mark.parametrize("rows", [1, None])
def test_random_operations_on_sixty_four_slots(decoder: SpeechDecoder, rows: int | None) -> None:
    """10,000 pushes, steps, finishes, closes and forks: what a reply sounds like depends on its own codes
    alone.
    """
    voice, alone = steady(decoder, rows, 64, steps=1), steady(decoder, steps=1)
    rng, families = random.Random(rows or 0), [random_codes(120, i) for i in range(4)]
    open_keys: dict[str, tuple[int, int, bool]] = {}  # family, codes pushed, finished
    heard: dict[str, list[np.ndarray]] = {}
    ended: list[tuple[int, int, np.ndarray]] = []
    for number in range(10_000):
        move, key = rng.random(), rng.choice(list(open_keys)) if open_keys else None
        if key is None or (move < 0.03 and len(open_keys) < 64):
            key = str(number)
            voice.open(key)
            open_keys[key], heard[key] = (rng.randrange(4), 0, False), []
            continue
        family, pushed, finished = open_keys[key]
        if move < 0.86 and not finished and pushed < 40:
            size = rng.choice((0, 0, 4))
            voice.push(key, families[family][pushed : pushed + size])
            open_keys[key] = family, pushed + size, False
        elif move < 0.87 and len(open_keys) < 64:
            twin = str(number)
            voice.fork(key, twin)
            open_keys[twin], heard[twin] = open_keys[key], list(heard[key])
        elif move < 0.88:
            for chunk in voice.step():
                heard[chunk.key].append(chunk.samples)
                if chunk.is_last:
                    family, pushed, _ = open_keys.pop(chunk.key)
                    ended.append((family, pushed, np.concatenate(heard.pop(chunk.key))))
                    voice.close(chunk.key)
        elif move < 0.96 and not finished:
            voice.finish(key)
            open_keys[key] = family, pushed, True
        elif move > 0.995:
            voice.close(key)
            del open_keys[key], heard[key]
    assert voice.num_open == len(open_keys)
    expected: dict[tuple[int, int], np.ndarray] = {}
    assert len(ended) > 50
    for family, pushed, samples in ended:
        key = family, pushed
        if key not in expected:
            parts = speak(alone, families[family][:pushed], [200])
            expected[key] = np.concatenate(parts)
        assert relative_error(samples, expected[key]) <= (0 if rows == 1 else ROUNDING)


def test_state_of_idle_slots_is_bit_unchanged(decoder: SpeechDecoder) -> None:
    voice = steady(decoder, None)
    for key in ("idle", "busy"):
        voice.open(key)
        voice.push(key, random_codes(20, 1))
    voice.step()
    before = load(voice.export("idle"))
    voice.push("busy", random_codes(40, 2))
    voice.step()
    after = load(voice.export("idle"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before["flow.tail"].shape[0] == MEL
    assert voice.slot_bytes < 200_000
