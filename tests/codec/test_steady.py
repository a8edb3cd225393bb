"""`steady` streaming: fixed borders, any pattern of pushes, many replies beside each other, slots, bad input, cost."""

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
from small_codec import MEL, SETTINGS, random_codes, relative_error, small_decoder, speak
from torch.utils.flop_counter import FlopCounterMode

from innervoice.codec.glm_voice.chunks import Chunk, Clock, SteadySettings, next_border
from innervoice.codec.glm_voice.decoder import SpeechDecoder
from innervoice.codec.glm_voice.flow_encoder import nearest
from innervoice.codec.glm_voice.slot_bytes import slot_bytes
from innervoice.codec.glm_voice.steady import SteadyDecoder
from innervoice.codec.state import Slot

CLOCK = Clock.of(12.5)
ROUNDING = 1e-4
"""What float32's rounding in matrix products of another shape becomes on the way through these random layers, relative."""


@pytest.fixture(scope="module")
def decoder() -> SpeechDecoder:
    return small_decoder()


def steady(decoder: SpeechDecoder, rows: int | None = 1, slots: int = 4, **changes: object) -> SteadyDecoder:
    return SteadyDecoder(
        decoder._flow,
        decoder._hift,
        replace(SETTINGS, **changes),
        num_slots=slots,
        rows_at_once=rows,
        noise=decoder._noise,
    )


def chunks_of(total: int, layout: SteadySettings) -> list[Chunk]:
    borders = [0]
    while borders[-1] < total:
        borders.append(min(total, next_border(borders[-1], layout)))
    return [Chunk(begin, end, layout, CLOCK) for begin, end in pairwise(borders)]


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
    slots = [together.open(seed=i) for i in range(16)]
    heard: dict[Slot, list[np.ndarray]] = {slot: [] for slot in slots}
    rng = random.Random(0)
    positions, ended = [0] * 16, [False] * 16
    while not all(ended):
        for i, slot in enumerate(slots):
            size = rng.choice((0, 3, 11, 30))
            together.push(slot, replies[i][positions[i] : positions[i] + size]) if not ended[i] else None
            positions[i] += size
            if positions[i] >= lengths[i] and not ended[i]:
                together.finish(slot)
                ended[i] = True
        for sound in together.step():
            heard[sound.slot].append(sound.samples)
    for i, slot in enumerate(slots):
        ours, single = np.concatenate(heard[slot]), np.concatenate(speak(alone, replies[i], [100], seed=i))
        assert relative_error(ours, single) <= (0 if rows == 1 else ROUNDING)


def test_slots_are_reused_forked_and_moved(decoder: SpeechDecoder) -> None:
    voice, other = steady(decoder), steady(decoder)
    codes, branch = random_codes(70, 1), random_codes(40, 2)
    whole = np.concatenate(speak(voice, codes, [70]))
    slot = voice.open()
    voice.push(slot, codes[:40])
    head = [sound.samples for sound in voice.step()]
    twin, moved = voice.fork(slot), other.restore(voice.export(slot))
    voice.push(slot, codes[40:])
    voice.push(twin, branch)
    other.push(moved, codes[40:])
    for owner, one in ((voice, slot), (voice, twin), (other, moved)):
        owner.finish(one)
    heard: dict[Slot, list[np.ndarray]] = {slot: list(head), twin: list(head)}
    for sound in voice.step():
        heard[sound.slot].append(sound.samples)
    assert np.array_equal(np.concatenate(heard[slot]), whole)
    assert np.array_equal(np.concatenate([*head, *(sound.samples for sound in other.step())]), whole)
    assert np.array_equal(np.concatenate(heard[twin]), np.concatenate(speak(other, codes[:40] + branch, [9])))
    voice.close(slot)
    assert np.array_equal(np.concatenate(speak(voice, codes, [70])), whole)


def test_wrong_use_is_refused_in_a_sentence(decoder: SpeechDecoder) -> None:
    voice = steady(decoder, slots=2)
    first, second = voice.open(), voice.open()
    with pytest.raises(ValueError, match="all 2 voice slots are taken"):
        voice.open()
    with pytest.raises(ValueError, match="all 2 voice slots are taken"):
        voice.fork(first)
    voice.push(first, [])
    assert voice.step() == []
    voice.close(first)
    third = voice.open()
    assert third.place == first.place
    for call in (voice.finish, voice.close, voice.fork, voice.export):
        with pytest.raises(ValueError, match="was released"):
            call(first)
    voice.finish(second)
    with pytest.raises(ValueError, match="takes no more codes"):
        voice.push(second, [1])
    with pytest.raises(ValueError, match="speaker embedding"):
        voice.open(speaker=torch.zeros(1, 3))
    voice.close(third)
    with pytest.raises(ValueError, match="not finite"):
        voice.open(speaker=torch.full((1, 192), torch.nan))
    with pytest.raises(ValueError, match="other settings"):
        steady(decoder, look_back=64).restore(voice.export(second))
    damaged = voice.export(second) | {"hift.cycles": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"'cycles' is not of this decoder"):
        voice.restore(damaged)


@pytest.mark.parametrize("rows", [1, None])
def test_a_broken_reply_leaves_the_others_alone(decoder: SpeechDecoder, rows: int | None) -> None:
    voice, clean = steady(decoder, rows), steady(decoder, rows)
    codes = random_codes(50, 3)
    sounds = []
    for owner in (voice, clean):
        slots = [owner.open(seed=i) for i in range(3)]
        for slot in slots:
            owner.push(slot, codes[:20])
        sounds.append([owner.step()])
        if owner is voice:
            exported = owner.export(slots[1])
            exported["flow.tail"][2, 3] = torch.nan
            owner.close(slots[1])
            slots[1] = owner.restore(exported)
        for slot in slots:
            owner.push(slot, codes[20:])
        sounds[-1].append(owner.step())
    (_, broken), (_, whole) = sounds
    errors = [sound for sound in broken if sound.error]
    assert [sound.slot.place for sound in errors] == [1]
    assert errors[0].last
    assert "not finite" in str(errors[0].error)
    good = [sound.samples for sound in broken if not sound.error]
    expected = [sound.samples for sound in whole if sound.slot.place != 1]
    assert all(np.array_equal(a, b) for a, b in zip(good, expected, strict=True))
    for call in (voice.finish, voice.export):
        with pytest.raises(ValueError, match="not finite"):
            call(errors[0].slot)


def test_a_failing_call_of_many_rows_fails_one_reply(
    decoder: SpeechDecoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of a call that fails are run one by one: whichever fails alone breaks, in the flow and in the vocoder."""
    codes = random_codes(20, 3)
    whole = np.concatenate(speak(steady(decoder, None), codes, [20]))
    for part in ("_flow_call", "_vocoder_call"):
        voice = steady(decoder, None)
        slots = [voice.open() for _ in range(3)]
        original = getattr(voice, part)

        def fail(rows: list, *args: object, call: object = original, bad: Slot = slots[1]) -> object:  # type: ignore[type-arg]
            if any(getattr(row, "reply", row).slot == bad for row in rows):
                raise RuntimeError("no memory")
            return call(rows, *args)  # type: ignore[operator]

        monkeypatch.setattr(voice, part, fail)
        for slot in slots:
            voice.push(slot, codes)
            voice.finish(slot)
        sounds = voice.step()
        assert [(sound.slot, sound.last) for sound in sounds if sound.error] == [(slots[1], True)]
        for slot in (slots[0], slots[2]):
            ours = np.concatenate([sound.samples for sound in sounds if sound.slot == slot])
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
    slot = voice.open(speaker=torch.ones(1, 192))
    voice.push(slot, codes)
    voice.finish(slot)
    assert not np.array_equal(np.concatenate([sound.samples for sound in voice.step()]), plain)


def test_a_chunk_costs_the_same_at_minute_five(decoder: SpeechDecoder) -> None:
    """G17 in operations: every chunk with a full look-back has the same shapes, up to a bucket of 32 frames."""
    voice = decoder.steady(SteadySettings(steps=1))
    slot, codes, costs = voice.open(), random_codes(3750, 1), []
    for chunk in chunks_of(3750, voice.settings):
        voice.push(slot, codes[chunk.begin : chunk.end])
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
    """10,000 pushes, steps, finishes, closes and forks: what a reply sounds like depends on its own codes alone."""
    voice, alone = steady(decoder, rows, 64, steps=1), steady(decoder, steps=1)
    rng, families = random.Random(rows or 0), [random_codes(120, i) for i in range(4)]
    open_slots: dict[Slot, tuple[int, int, bool]] = {}  # family, codes pushed, finished
    heard: dict[Slot, list[np.ndarray]] = {}
    ended: list[tuple[int, int, np.ndarray]] = []
    for _ in range(10_000):
        move, slot = rng.random(), rng.choice(list(open_slots)) if open_slots else None
        if slot is None or (move < 0.03 and len(open_slots) < 64):
            slot = voice.open()
            open_slots[slot], heard[slot] = (rng.randrange(4), 0, False), []
            continue
        family, pushed, finished = open_slots[slot]
        if move < 0.86 and not finished and pushed < 40:
            size = rng.choice((0, 0, 4))
            voice.push(slot, families[family][pushed : pushed + size])
            open_slots[slot] = family, pushed + size, False
        elif move < 0.87 and len(open_slots) < 64:
            twin = voice.fork(slot)
            open_slots[twin], heard[twin] = open_slots[slot], list(heard[slot])
        elif move < 0.88:
            for sound in voice.step():
                heard[sound.slot].append(sound.samples)
                if sound.last:
                    family, pushed, _ = open_slots.pop(sound.slot)
                    ended.append((family, pushed, np.concatenate(heard.pop(sound.slot))))
                    voice.close(sound.slot)
        elif move < 0.96 and not finished:
            voice.finish(slot)
            open_slots[slot] = family, pushed, True
        elif move > 0.995:
            voice.close(slot)
            del open_slots[slot], heard[slot]
    assert len(voice._replies) == len(open_slots)
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
    idle, busy = voice.open(), voice.open()
    for slot in (idle, busy):
        voice.push(slot, random_codes(20, 1))
    voice.step()
    before = voice.export(idle)
    voice.push(busy, random_codes(40, 2))
    voice.step()
    after = voice.export(idle)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert before["flow.tail"].shape[0] == MEL
    assert voice.slot_bytes < 200_000
