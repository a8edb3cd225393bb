"""The listener: codes of pushed frames equal those of the whole; what the core is told, what is left at the end, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from innervoice.api.live_audio import LiveEncoder, Prefetcher, UserAudio
from innervoice.codec.audio import read_audio, read_frame, resample
from innervoice.codec.glm_voice.speech_tokenizer import SpeechTokenizer
from innervoice.codec.glm_voice.tokenizer_stream import TokenizerStream
from innervoice.model.sequence import TokenColumns
from innervoice.runtime.session_state import History
from innervoice.types import EngineDead, OutOfCapacity, RequestFailed

TIMEOUT_S = 60.0
few = settings(
    deadline=None,
    max_examples=12,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


class Told:
    """A core that notes what it is told; refusal: what it raises instead."""

    def __init__(self) -> None:
        self.ids: dict[str, list[list[int]]] = {}
        self.refusal: Exception | None = None
        self.num_calls = 0

    def history(self, session_id: str, *, tokens: bool = True) -> History:
        return History([], 0, TokenColumns.empty())

    def prefetch(self, session_id: str, ids: Sequence[int]) -> None:
        if self.refusal is not None:
            raise self.refusal
        self.ids.setdefault(session_id, []).append(list(ids))

    def last(self, name: str) -> list[int] | None:
        """What it was told last; None: nothing yet."""
        return self.ids[name][-1] if name in self.ids else None

    def num_codes(self, name: str) -> int:
        """Codes that it was told last."""
        return len(self.last(name) or [-1]) - 1

    def call(self, order: Callable[[Prefetcher], None]) -> None:
        self.num_calls += 1
        order(self)

    def tell(self, name: str) -> Callable[[Prefetcher, Sequence[int] | None], None]:
        """Codes as they are for ids, behind one that stands for the head; none when they are void."""
        return lambda core, codes: core.prefetch(name, () if codes is None else (-1, *codes))


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> SpeechTokenizer:
    return SpeechTokenizer.from_pretrained(tiny_dir / "glm-4-voice-tokenizer")


@pytest.fixture(scope="module")
def short(tiny: SpeechTokenizer) -> SpeechTokenizer:
    """Blocks of 5 tokens (0.4 s), pieces of 4.8 s."""
    return SpeechTokenizer(replace(tiny.config, block_len=20, piece_len=76800), tiny._network.weights)


@pytest.fixture
def core() -> Told:
    return Told()


@pytest.fixture
def listener(short: SpeechTokenizer, core: Told) -> Iterator[LiveEncoder]:
    made = LiveEncoder(short, 4096, core.call)
    yield made
    made.close()
    assert made.num_open == 0


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def noise(seed: int, num: int, *levels: float) -> np.ndarray:
    """Noise in equal parts of these levels."""
    parts = np.repeat(np.float32(levels), -(-num // len(levels)))[:num]
    return np.random.default_rng(seed).standard_normal(num).astype(np.float32) * parts


def cut(wave: np.ndarray, seed: int, max_len: int) -> Iterator[np.ndarray]:
    generator, start = np.random.default_rng(seed), 0
    while start < len(wave):
        stop = start + int(generator.integers(1, max_len + 1))
        yield wave[start:stop]
        start = stop


def push_all(turn: UserAudio, frames: Iterator[np.ndarray]) -> None:
    for frame in frames:
        turn.push(read_frame(frame, turn.rate))


@few
@given(
    rate=st.sampled_from([8000, 16000, 22050, 44100, 48000]), seconds=st.floats(0.001, 7.0), seed=st.integers(0, 99),
    max_len=st.integers(1, 40000), is_int=st.booleans(), is_stereo=st.booleans(), levels=st.sampled_from([(0.1,), (1e-5, 0.3)]),
)  # fmt: skip
def test_any_frames_give_the_codes_of_the_whole(
    short: SpeechTokenizer, rate: int, seconds: float, seed: int, max_len: int, is_int: bool, is_stereo: bool,
    levels: tuple[float, ...],
) -> None:  # fmt: skip
    core = Told()
    counts: dict[str, int] = {}
    listener = LiveEncoder(
        short, 4096, core.call, lambda what, number: counts.update({what: counts.get(what, 0) + number})
    )
    wave = noise(seed, max(1, int(seconds * rate)), *levels)
    wave = (wave * 32767).clip(-32768, 32767).astype(np.int16) if is_int else wave
    wave = np.stack([wave, wave[::-1]], 1) if is_stereo else wave
    turn = listener.open(rate, core.tell("a"))
    push_all(turn, cut(wave, seed, max(max_len, len(wave) // 500)))
    turn.end()
    codes = turn.codes()
    assert codes == short.encode(*read_audio((wave, rate)))
    assert all(told[:1] == [-1] and len(told) - 1 <= len(codes) for told in core.ids.get("a", []))
    assert listener.counts == turn.counts
    cost = turn.counts
    assert cost.encoded_tokens - cost.recomputed_tokens == len(codes)
    ahead = cost.encoded_tokens - cost.late_tokens
    told = {"encoded_ahead": ahead, "encoded_late": cost.late_tokens, "encoded_again": cost.recomputed_tokens}
    assert counts == {what: number for what, number in told.items() if number}
    listener.close()


@pytest.mark.parametrize("name", ["question", "reading"])
@pytest.mark.parametrize("rate", [16000, 48000])
def test_recordings_pushed_in_frames_of_20_ms(
    tiny: SpeechTokenizer, assets_dir: Path, core: Told, name: str, rate: int
) -> None:
    wave = resample(read_audio(assets_dir / f"{name}.wav")[0], 16000, rate)
    listener = LiveEncoder(tiny, 4096, core.call)
    turn = listener.open(rate, core.tell("a"))
    for frame in np.split(wave, range(rate // 50, len(wave), rate // 50)):
        turn.push(frame)
    turn.end()
    assert turn.codes() == tiny.encode(wave, rate)
    listener.close()


@pytest.mark.parametrize("seconds", [6, 12, 30, 61])
def test_what_is_left_at_the_end_does_not_grow_with_the_turn(
    tiny: SpeechTokenizer, core: Told, seconds: int
) -> None:
    """At the shipped block of 50 tokens: all earlier blocks are encoded and told, however long the turn was."""
    listener = LiveEncoder(tiny, 4096, core.call)
    wave = noise(1, 16000 * seconds - 77, 0.2)
    turn = listener.open(16000, core.tell("a"))
    for frame in np.split(wave, range(320, len(wave), 320)):
        turn.push(frame)
    config = tiny.config
    pieces, rest = divmod(len(wave), config.piece_len)
    complete = 375 * pieces + 50 * ((rest - 40) // 64000)
    wait_until(lambda: core.num_codes("a") == complete)
    turn.end()
    codes = turn.codes()
    assert turn.counts.late_tokens == len(codes) - complete <= 50 + 1
    assert [-1, *codes[:complete]] == core.last("a")
    assert [len(told) - 1 for told in core.ids["a"]] == sorted({len(told) - 1 for told in core.ids["a"]})
    assert codes == tiny.encode(wave, 16000)
    listener.close()


def test_the_head_is_told_with_the_first_frame(listener: LiveEncoder, core: Told) -> None:
    turn = listener.open(16000, core.tell("a"))
    turn.push(np.zeros(1, np.float32))
    wait_until(lambda: core.ids == {"a": [[-1]]})
    turn.drop()


def test_a_louder_frame_revises_what_was_told(
    listener: LiveEncoder, short: SpeechTokenizer, core: Told
) -> None:
    """Steady noise, near silence, then a shout that raises the floor over it."""
    wave = noise(5, 8 * 6400, 0.3, 3e-5, 3e-5, 3e-5, 1.0, 0.1, 0.1, 0.1)
    turn = listener.open(16000, core.tell("a"))
    turn.push(wave[: 4 * 6400 + 40])
    wait_until(lambda: core.num_codes("a") == 20)
    told = core.last("a")
    turn.push(wave[4 * 6400 + 40 :])
    turn.end()
    codes = turn.codes()
    assert codes == short.encode(wave, 16000)
    assert [-1, *codes[:20]] != told, "the shout changes nothing: a louder one is wanted"
    assert turn.counts.recomputed_tokens in (15, 20)
    assert turn.counts.encoded_tokens == 40 + turn.counts.recomputed_tokens
    assert listener.counts == turn.counts


def test_sessions_share_calls_and_a_long_recording_holds_up_nobody(
    short: SpeechTokenizer, core: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    step, gate = short.step, threading.Event()

    def slow_step(streams: Sequence[TokenizerStream]) -> None:
        gate.wait(TIMEOUT_S)
        batches.append(sum(stream.ready() for stream in streams))
        step(streams)

    monkeypatch.setattr(short, "step", slow_step)
    listener = LiveEncoder(short, 100_000, core.call)
    long, waves = noise(0, 16000 * 12, 0.1), [noise(i, 16000 + 777 * i, 0.1) for i in range(8)]
    first = listener.open(16000, core.tell("long"))
    first.push(long)
    first.end()
    others = [listener.open(rate, core.tell(str(rate))) for rate in (16000,) * 8]
    for turn, wave in zip(others, waves, strict=True):
        turn.push(wave)
        turn.end()
    gate.set()
    codes = [turn.codes() for turn in others]
    assert not first.is_settled, "the long one was encoded first"
    assert codes == [short.encode(wave, 16000) for wave in waves]
    assert first.codes() == short.encode(long, 16000)
    assert max(batches) >= 8
    listener.close()


def test_the_thread_is_woken_for_blocks_and_not_for_frames(
    listener: LiveEncoder, short: SpeechTokenizer, core: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[int] = []
    step = short.step
    monkeypatch.setattr(short, "step", lambda streams: (rounds.append(1), step(streams)))
    turn = listener.open(44100, core.tell("a"))
    wave = noise(2, 44100 * 4, 0.1)
    for number, frame in enumerate(np.split(wave, range(441, len(wave), 441))):
        turn.push(frame)
        if number % 45 == 44:  # 0.45 s: one block more is complete
            wait_until(lambda n=number: core.num_codes("a") >= 5 * int((n + 1) * 0.01 / 0.4 - 0.1))
    assert len(rounds) <= 5 * 10, "400 frames, 10 blocks; the resampler holds back some of a block's end"
    turn.drop()


@pytest.mark.parametrize("refusal", [ValueError("the session is still replying"), OutOfCapacity("no pages")])
def test_what_the_core_refuses_is_told_again(listener: LiveEncoder, core: Told, refusal: Exception) -> None:
    core.refusal = refusal
    turn = listener.open(16000, core.tell("a"))
    turn.push(noise(3, 6440, 0.1))
    wait_until(lambda: turn.counts.encoded_tokens == 5 and core.num_calls > 0)
    core.refusal = None
    turn.push(np.zeros(1, np.float32))
    wait_until(lambda: core.num_codes("a") == 5)
    turn.drop()


def test_a_dropped_turn_is_forgotten_by_the_core(
    listener: LiveEncoder, short: SpeechTokenizer, core: Told
) -> None:
    turn = listener.open(16000, core.tell("a"))
    turn.push(noise(3, 7000, 0.1))
    wait_until(lambda: core.num_codes("a") == 5)
    turn.drop()
    turn.drop()
    wait_until(lambda: core.last("a") == [])
    for attempt in (turn.codes, turn.end, lambda: turn.push(np.zeros(9, np.float32))):
        with pytest.raises(ValueError, match="the turn was cleared"):
            attempt()
    second = listener.open(16000, core.tell("a"))
    wave = noise(4, 7000, 0.1)
    second.push(wave)
    second.end()
    assert second.codes() == short.encode(wave, 16000)
    second.drop()
    wait_until(lambda: core.last("a") == [])
    assert second.codes() == short.encode(wave, 16000), "one that has ended keeps its codes"


def test_a_copy_goes_its_own_way(listener: LiveEncoder, short: SpeechTokenizer, core: Told) -> None:
    wave = noise(6, 30000, 0.1)
    first = listener.open(16000, core.tell("a"))
    first.push(wave[:20000])
    second = first.copy(core.tell("b"))
    first.push(wave[20000:])
    second.push(wave[:5000])
    first.end(), second.end()
    assert first.codes() == short.encode(wave, 16000)
    assert second.codes() == short.encode(np.concatenate([wave[:20000], wave[:5000]]), 16000)
    assert first.copy(core.tell("c")) is first


def test_a_failure_is_that_of_one_turn(
    listener: LiveEncoder, short: SpeechTokenizer, core: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = short.step
    wave = noise(7, 20000, 0.1)
    bad = listener.open(16000, core.tell("bad"))
    its = bad.stream

    def failing(streams: Sequence[TokenizerStream]) -> None:
        if its in streams and its.ready():
            raise RuntimeError("out of memory")
        step(streams)

    monkeypatch.setattr(short, "step", failing)
    good = [listener.open(16000, core.tell(name)) for name in "xyz"]
    with listener.lock:  # so that they are one batch
        for turn in (good[0], bad, *good[1:]):
            turn.push(wave)
            turn.end()
    assert [turn.codes() for turn in good] == [short.encode(wave, 16000)] * 3
    for attempt in (bad.codes, bad.end, lambda: bad.push(wave)):
        with pytest.raises(RequestFailed, match="could not be encoded: out of memory"):
            attempt()
    listener.check_health()


def test_a_failure_of_the_thread_reaches_all(short: SpeechTokenizer) -> None:
    def call(order: Any) -> None:
        raise KeyError("a bug")

    listener = LiveEncoder(short, 4096, call)
    first, second = (listener.open(16000, Told().tell("a")) for _ in range(2))
    first.push(np.zeros(9, np.float32))
    wait_until(lambda: first.is_settled and second.is_settled)
    for attempt in (
        listener.check_health,
        lambda: second.push(np.zeros(9, np.float32)),
        lambda: listener.open(16000, print),
    ):
        with pytest.raises(EngineDead, match="stopped listening: 'a bug'"):
            attempt()
    listener.close()


def test_a_closed_engine_ends_what_was_open(short: SpeechTokenizer, core: Told) -> None:
    listener = LiveEncoder(short, 4096, core.call)
    listener.close()
    with pytest.raises(ValueError, match="the engine is closed"):
        listener.open(16000, core.tell("a"))
    listener = LiveEncoder(short, 4096, core.call)
    turn = listener.open(16000, core.tell("a"))
    listener.close()
    with pytest.raises(ValueError, match="closed before the turn was encoded"):
        turn.codes()
    with pytest.raises(ValueError, match="the engine is closed"):
        turn.push(np.zeros(9, np.float32))


def test_bad_pushes_change_nothing(listener: LiveEncoder, short: SpeechTokenizer, core: Told) -> None:
    turn, wave = listener.open(16000, core.tell("a")), noise(8, 9000, 0.1)
    with pytest.raises(ValueError, match="the turn holds 0 samples"):
        turn.end()
    with pytest.raises(ValueError, match="the turn has not ended"):
        turn.codes()
    turn.push(wave)
    for bad, message in (
        (np.float32([0, np.nan]), "frame: sample 1 is nan"),
        (np.zeros(0, np.float32), "frame holds 0 samples"),
        (np.zeros((4, 2), np.float32), r"shape \[4, 2\]"),
        (
            np.zeros(4096 * 1280 - 8999, np.float32),
            r"327\.7 s of sound, 4097 tokens, and a prompt has at most 4096",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            turn.push(bad)
    turn.end()
    turn.end()
    assert turn.codes() == short.encode(wave, 16000)
    with pytest.raises(ValueError, match="the turn has ended"):
        turn.push(wave)
    for rate in (0, 999, 384_001, 10**12, 16000.0):
        with pytest.raises(ValueError, match="expected a whole number of Hz from 1000 to 384000"):
            listener.open(rate, core.tell("a"))  # type: ignore[arg-type]
