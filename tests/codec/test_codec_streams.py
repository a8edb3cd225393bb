"""Streams of the codecs: any cutting is the whole, sessions side by side are each by itself, idle slots keep
every bit.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_models import KINDS, make_module, save, snac_directory
from hypothesis import given, settings
from hypothesis import strategies as st

from innervoice.codec.residual_vq.codec import Codec
from innervoice.codec.residual_vq.codes import Codes, joined
from innervoice.codec.residual_vq.slot_stream import DecodeStream, EncodeStream, StreamPiece
from innervoice.codec.slot_table import Slot

CAUSAL = ("mimi", "encodec")
BOUND = 1e-6
cuts = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> dict[str, Codec]:
    folder = tmp_path_factory.mktemp("codecs")
    made = {kind: Codec.from_pretrained(save(make_module(kind), folder / kind)) for kind in KINDS}
    for name in ("plain", "attention"):
        made[f"snac {name}"] = Codec.from_pretrained(snac_directory(data_dir, folder / name, name)[0])
    return made


def sound(codec: Codec, num: int, seed: int = 0) -> np.ndarray:
    shape = num if codec.channels == 1 else (num, codec.channels)
    return (0.3 * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def part(codec: Codec, codes: Codes, start: int, end: int) -> Codes:
    """Frames start to end."""
    ids = tuple(
        row[start // stride : -(-end // stride)]
        for row, stride in zip(codes.ids, codec.config.code_strides, strict=True)
    )
    chunk = codec.config.frames_per_scale
    scales = (
        None if chunk is None or codes.scales is None else codes.scales[start // chunk : -(-end // chunk)]
    )
    return Codes(codes.kind, ids, scales)


def relative(ours: np.ndarray, whole: np.ndarray) -> float:
    assert ours.shape == whole.shape
    return float(np.linalg.norm(ours - whole) / max(np.linalg.norm(whole), 1e-9)) if whole.size else 0.0


def encode_by(codec: Codec, samples: np.ndarray, sizes: list[int], chunk_s: float) -> Codes:
    stream, parts, at = codec.stream_encode(chunk_s=chunk_s), [], 0
    slot = stream.open()
    for turn in range(10**6):
        size = sizes[turn % len(sizes)]
        stream.push(slot, samples[at : at + size])
        parts += [piece.codes for piece in stream.step()]
        at += size
        if at >= len(samples):
            break
    stream.finish(slot)
    last = stream.drain()
    assert [piece.last for piece in last] == [False] * (len(last) - 1) + [True]
    assert stream.is_over(slot)
    return joined(codec.kind, [*parts, *(piece.codes for piece in last)], len(samples))  # type: ignore[list-item]


def decode_by(codec: Codec, codes: Codes, sizes: list[int], chunk_s: float) -> np.ndarray:
    stream, parts, at = codec.stream_decode(chunk_s=chunk_s), [], 0
    slot, frames = stream.open(), len(codes.ids[-1]) * codec.config.code_strides[-1]
    for turn in range(10**6):
        size = sizes[turn % len(sizes)]
        stream.push(slot, part(codec, codes, at, min(at + size, frames)))
        parts += [piece.samples for piece in stream.step()]
        at += size
        if at >= frames:
            break
    stream.finish(slot)
    return np.concatenate([*parts, *(piece.samples for piece in stream.drain())])  # type: ignore[list-item]


def unit(codec: Codec) -> int:
    """Frames that are pushed together."""
    return codec.config.frames_per_scale or codec.config.block_frames


@settings(max_examples=4, deadline=None)
@given(cuts=cuts, frames=st.integers(1, 40), rest=st.integers(0, 23), chunk=st.integers(1, 5))
@pytest.mark.parametrize("kind", [*KINDS, "snac plain", "snac attention"])
def test_any_cutting_is_the_whole(
    kind: str, codecs: dict[str, Codec], cuts: list[int], frames: int, rest: int, chunk: int
) -> None:
    codec = codecs[kind]
    samples, chunk_s = (
        sound(codec, frames * codec.frame_len + rest),
        chunk * codec.frame_len / codec.sample_rate,
    )
    whole = codec.encode((samples, codec.sample_rate))
    cut = encode_by(codec, samples, [7 * size for size in cuts], chunk_s)
    assert all(
        np.array_equal(ours, all_at_once) for ours, all_at_once in zip(cut.ids, whole.ids, strict=True)
    )
    if whole.scales is not None:
        assert cut.scales is not None and np.array_equal(cut.scales, whole.scales)
    whole = Codes(whole.kind, whole.ids, whole.scales)
    made = decode_by(codec, whole, [size * unit(codec) for size in cuts], chunk_s)
    assert relative(made, codec.decode(whole).samples) <= BOUND


@dataclass
class Session:
    """What a session was given and gave, and what it is to give in all."""

    slot: Slot
    codes: Codes
    samples: np.ndarray
    whole: np.ndarray
    encoder: Slot | None = None
    at: int = 0
    made: list[np.ndarray] = field(default_factory=list)


@pytest.mark.parametrize("kind", CAUSAL)
def test_sessions_in_mixed_phases_are_each_by_itself(kind: str, codecs: dict[str, Codec]) -> None:
    codec, dice = codecs[kind], random.Random(1)
    chunk_s = 3 * codec.frame_len / codec.sample_rate
    decode, encode = codec.stream_decode(16, chunk_s=chunk_s), codec.stream_encode(16, chunk_s=chunk_s)
    sounds = [sound(codec, dice.randint(5, 30) * codec.frame_len + 3, seed) for seed in range(16)]
    codes = [codec.encode((one, codec.sample_rate)) for one in sounds]
    slots, others = [decode.open() for _ in codes], [encode.open() for _ in codes]
    heard: list[list[np.ndarray]] = [[] for _ in codes]
    found: list[list[Codes]] = [[] for _ in codes]
    at, put = [0] * 16, [0] * 16

    def take(pieces: list[StreamPiece]) -> None:
        for piece in pieces:
            if piece.samples is not None:
                heard[piece.slot.place].append(piece.samples)
            elif piece.codes is not None:
                found[piece.slot.place].append(piece.codes)

    while any(at[i] < len(codes[i].ids[0]) or put[i] < len(sounds[i]) for i in range(16)):
        for i in dice.sample(range(16), dice.randint(1, 16)):
            step, size = dice.randint(0, 5), dice.randint(0, 70)
            if at[i] < len(codes[i].ids[0]):
                decode.push(slots[i], part(codec, codes[i], at[i], at[i] + step))
            if put[i] < len(sounds[i]):
                encode.push(others[i], sounds[i][put[i] : put[i] + size])
            at[i], put[i] = at[i] + step, put[i] + size
        take(decode.step())
        take(encode.step())
    for slot, other in zip(slots, others, strict=True):
        decode.finish(slot)
        encode.finish(other)
    take(decode.drain())
    take(encode.drain())
    for i in range(16):
        alone = codec.decode(Codes(codec.kind, codes[i].ids)).samples
        assert relative(np.concatenate(heard[i]), alone) <= BOUND
        assert all(
            np.array_equal(a, b) for a, b in zip(joined(kind, found[i], None).ids, codes[i].ids, strict=True)
        )


@pytest.mark.parametrize("kind", CAUSAL)
def test_idle_slots_keep_every_bit(kind: str, codecs: dict[str, Codec]) -> None:
    codec = codecs[kind]
    codes = codec.encode((sound(codec, 30 * codec.frame_len), codec.sample_rate))
    stream = codec.stream_decode(3, chunk_s=4 * codec.frame_len / codec.sample_rate)
    slots = [stream.open() for _ in range(3)]
    for slot in slots:
        stream.push(slot, part(codec, codes, 0, 12))
    stream.drain()
    before = stream._slots.export(1)  # type: ignore[attr-defined]
    assert any(value.any() for value in before.values())
    for start in range(12, 30, 3):
        stream.push(slots[0], part(codec, codes, start, start + 3))
        stream.push(slots[2], part(codec, codes, start, start + 1))
        stream.step()
    after = stream._slots.export(1)  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], after[name]) for name in before)
    stream.push(slots[1], part(codec, codes, 12, 30))
    stream.finish(slots[1])
    rest = np.concatenate([piece.samples for piece in stream.drain() if piece.slot == slots[1]])
    assert (
        relative(rest, codec.decode(Codes(kind, codes.ids)).samples[-len(rest) :]) <= BOUND
        and len(rest) == 18 * codec.frame_len
    )


class Fuzz:
    """Random pushes, flushes, resets and forks over the slots of one stream, against what each session gives
    alone.
    """

    def __init__(self, codec: Codec, num_slots: int, seed: int) -> None:
        self.codec, self.dice = codec, random.Random(seed)
        chunk_s = 4 * unit(codec) * codec.frame_len / codec.sample_rate
        self.stream: DecodeStream = codec.stream_decode(num_slots, chunk_s=chunk_s)
        self.library = []
        for index in range(12):
            codes = codec.encode(
                (sound(codec, self.dice.randint(4, 60) * codec.frame_len, index), codec.sample_rate)
            )
            codes = Codes(codes.kind, codes.ids, codes.scales)
            self.library.append((codes, codec.decode(codes).samples))
        self.sessions: dict[int, Session] = {}
        self.checked = 0

    def open(self, slot: Slot) -> None:
        codes, whole = self.dice.choice(self.library)
        self.sessions[slot.place] = Session(slot, codes, np.zeros(0, np.float32), whole)

    def push(self, session: Session) -> None:
        frames = len(session.codes.ids[-1]) * self.codec.config.code_strides[-1]
        size = self.dice.randint(0, 5) * unit(self.codec)
        if session.at < frames:
            self.stream.push(
                session.slot, part(self.codec, session.codes, session.at, min(session.at + size, frames))
            )
            session.at += size

    def flush(self, session: Session) -> None:
        frames = len(session.codes.ids[-1]) * self.codec.config.code_strides[-1]
        if session.at < frames:
            self.stream.push(session.slot, part(self.codec, session.codes, session.at, frames))
        self.stream.finish(session.slot)
        while not self.stream.is_over(session.slot):
            self.step()

    def step(self) -> None:
        for piece in self.stream.step():
            assert piece.samples is not None
            self.sessions[piece.slot.place].made.append(piece.samples)
            if piece.last:
                self.check(piece.slot)

    def check(self, slot: Slot) -> None:
        session = self.sessions.pop(slot.place)
        assert relative(np.concatenate(session.made), session.whole) <= BOUND
        self.checked += 1

    def turn(self) -> None:
        kind = self.dice.choices(("push", "step", "flush", "reset", "fork"), (10, 6, 1, 1, 1))[0]
        if kind == "step" or not self.sessions:
            self.step()
        session = self.dice.choice(list(self.sessions.values())) if self.sessions else None
        if session is None or (
            kind == "fork" and len(self.sessions) < self.stream.num_slots and self.dice.random() < 0.3
        ):
            if len(self.sessions) < self.stream.num_slots:
                self.open(self.stream.open())
        elif kind == "push":
            self.push(session)
        elif kind == "flush":
            self.flush(session)
            self.stream.close(session.slot)
        elif kind == "reset":
            self.open(self.stream.reset(session.slot))
        elif kind == "fork" and len(self.sessions) < self.stream.num_slots:
            twin = self.stream.fork(session.slot)
            self.sessions[twin.place] = Session(
                twin, session.codes, session.samples, session.whole, None, session.at, list(session.made)
            )

    def run(self, turns: int) -> None:
        for _ in range(turns):
            self.turn()
        for session in list(self.sessions.values()):
            self.flush(session)
            self.stream.close(session.slot)
        assert not self.sessions and not len(self.stream.table)
        slots = [self.stream.open() for _ in range(self.stream.num_slots)]  # none leaked
        with pytest.raises(ValueError, match="slots are taken"):
            self.stream.open()
        for slot in slots:
            self.stream.close(slot)


@pytest.mark.parametrize("kind", [*KINDS, "snac plain"])
def test_slots_survive_random_use(kind: str, codecs: dict[str, Codec]) -> None:
    fuzz = Fuzz(codecs[kind], 8, seed=2)
    fuzz.run(250)
    assert fuzz.checked >= 5


@pytest.mark.long
@pytest.mark.parametrize("kind", CAUSAL)
def test_slots_survive_ten_thousand_operations(kind: str, codecs: dict[str, Codec]) -> None:
    fuzz = Fuzz(codecs[kind], 64, seed=3)
    fuzz.run(10_000)
    assert fuzz.checked >= 300


def test_a_session_is_reset_in_its_place(codecs: dict[str, Codec]) -> None:
    stream = codecs["mimi"].stream_decode(3)
    first, second, third = (stream.open() for _ in range(3))
    stream.close(first)  # a free place before it
    again = stream.reset(second)
    assert again.place == second.place and again != second
    with pytest.raises(ValueError, match="session Slot\\(place=1, number=1\\) is not open"):
        stream.finish(second)
    assert not stream.is_over(third)


def test_misuse_is_refused(codecs: dict[str, Codec]) -> None:
    codec = codecs["mimi"]
    encode: EncodeStream = codec.stream_encode(1)
    slot = encode.open()
    with pytest.raises(ValueError, match="all 1 slots are taken"):
        encode.open()
    with pytest.raises(ValueError, match=r"samples have shape \[3, 2\], expected \[n\]"):
        encode.push(slot, np.zeros((3, 2), np.float32))
    encode.finish(slot)
    with pytest.raises(ValueError, match="is finished"):
        encode.push(slot, np.zeros(3, np.float32))
    encode.close(slot)
    with pytest.raises(ValueError, match="is not open"):
        encode.finish(slot)
    decode = codec.stream_decode(1)
    slot, row = decode.open(), np.zeros(2, np.int64)
    decode.push(slot, Codes("mimi", (row, row)))
    with pytest.raises(ValueError, match="began with 2 codebooks and is given 3"):
        decode.push(slot, Codes("mimi", (row, row, row)))
    chunks = codecs["encodec chunks"].stream_decode(1)
    slot = chunks.open()
    chunks.push(slot, Codes("encodec", (row,), np.ones(1, np.float32)))
    with pytest.raises(ValueError, match="was given 2 frames, not whole chunks of 20"):
        chunks.push(slot, Codes("encodec", (row,), np.ones(1, np.float32)))
