"""The tokenizer's stream: any frames give the codes of the whole, as written out here; cost, batches,
revisions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from innervoice.checkpoint.speech_tokenizer import SpeechTokenizerConfig
from innervoice.codec.audio import read_audio, resample
from innervoice.codec.glm_voice import tokenizer_stream
from innervoice.codec.glm_voice.speech_tokenizer import SpeechTokenizer
from innervoice.codec.glm_voice.tokenizer_stream import TokenizerStream
from innervoice.codec.glm_voice.whisper_encoder import AudioBlock, encode_blocks
from innervoice_kernels.speech_codec.mel import log_mel, mel_filters

LEVELS = (0.0, 1e-6, 1e-4, 0.01, 1.0)
few = settings(
    deadline=None,
    max_examples=20,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def tiny(tiny_dir: Path) -> SpeechTokenizer:
    return SpeechTokenizer.from_pretrained(tiny_dir / "glm-4-voice-tokenizer")


@pytest.fixture(scope="module")
def small(tiny: SpeechTokenizer) -> dict[str, SpeechTokenizer]:
    """The tiny weights with short blocks and pieces: whole tokens a block, and not; a piece that is no whole
    number of tokens.
    """
    sizes = {"even": (20, 76800), "odd": (10, 70001), "short": (3, 20000)}
    return {
        name: SpeechTokenizer(
            replace(tiny.config, block_len=block_len, piece_len=piece_len), tiny._network.weights
        )
        for name, (block_len, piece_len) in sizes.items()
    }


@pytest.fixture(scope="module")
def reading(assets_dir: Path) -> np.ndarray:
    return read_audio(assets_dir / "reading.wav")[0]


def whole_codes(tokenizer: SpeechTokenizer, samples: np.ndarray, rate: int) -> list[int]:
    """The definition: pieces padded to a common length, features of all of each, one masked pass, nearest
    code.
    """
    config, weights = tokenizer.config, tokenizer._network.weights
    wave = torch.from_numpy(resample(samples, rate, config.sample_rate))
    pieces = wave.split(config.piece_len)
    lens = [math.ceil(len(piece) / config.token_len) * config.token_len for piece in pieces]
    codes = []
    for piece, own_len in zip(pieces, lens, strict=True):
        filters = mel_filters(config.num_mel_bins, config.n_fft, config.sample_rate)
        features = log_mel(F.pad(piece, (0, max(lens) - len(piece)))[None], filters, config.hop)[
            ..., : own_len // config.hop
        ]
        states = masked_states(weights, config, features[0].T, math.ceil(len(piece) / config.position_len))
        distances = torch.cdist(
            states.unflatten(0, (-1, config.pooling)).mean(1).double(), weights["codebook.weight"].double()
        )
        codes += distances.argmin(-1).tolist()
    return codes


def masked_states(
    weights: Mapping[str, Any], config: SpeechTokenizerConfig, x: torch.Tensor, num_real: int
) -> torch.Tensor:
    for name, stride in (("conv1", 1), ("conv2", 2)):
        y = F.conv1d(
            F.pad(x.T, (2, 0))[None], weights[f"{name}.weight"], weights[f"{name}.bias"], stride=stride
        )
        x = F.gelu(y)[0].T
    x = x + weights["embed_positions.weight"][: len(x)]
    i = torch.arange(len(x))
    mask = (i[None] < ((i // config.block_len + 1) * config.block_len)[:, None]) & (i[None] < num_real)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    for layer in range(config.num_layers):
        name = f"layers.{layer}"
        h = norm(x, f"{name}.self_attn_layer_norm")
        q, k, v = (
            linear(h, f"{name}.self_attn.{part}_proj").unflatten(1, (config.num_heads, -1)).transpose(0, 1)
            for part in "qkv"
        )
        scores = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).masked_fill(~mask, -math.inf)
        x = x + linear((scores.softmax(-1) @ v).transpose(0, 1).flatten(1), f"{name}.self_attn.out_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{name}.final_layer_norm"), f"{name}.fc1")), f"{name}.fc2")
    return x


def sound(seed: int, levels: Sequence[float], num: int) -> np.ndarray:
    """Noise in `levels` equal parts."""
    noise = np.random.default_rng(seed).standard_normal(num).astype(np.float32)
    return noise * np.repeat(np.float32(levels), -(-num // len(levels)))[:num] * np.float32(0.3)


def frames(wave: np.ndarray, seed: int, max_len: int) -> Iterator[np.ndarray]:
    generator, start = np.random.default_rng(seed), 0
    while start < len(wave):
        stop = start + int(generator.integers(0, max_len + 1))
        yield wave[start:stop]
        start = stop


def listen(stream: TokenizerStream, parts: Iterator[np.ndarray]) -> list[int]:
    """Push all and take after each push, as a listener that keeps what is still valid; then finish."""
    kept: list[int] = []
    for part in parts:
        stream.push(part)
        start, codes = stream.take()
        assert not stream.ready() and start <= len(kept) and (codes or start == len(kept))
        kept[start:] = codes
    stream.end()
    start, codes = stream.take()
    kept[start:] = codes
    assert stream.finish() == kept and stream.take() == (len(kept), [])
    return kept


@few
@given(
    name=st.sampled_from(["even", "odd", "short"]), rate=st.sampled_from([8000, 16000, 44100]), seconds=st.floats(0.0001, 6.0),
    levels=st.lists(st.sampled_from(LEVELS), min_size=1, max_size=6), seed=st.integers(0, 99), max_len=st.integers(2000, 60000),
)  # fmt: skip
def test_any_frames_give_the_codes_of_the_whole(
    small: dict[str, SpeechTokenizer],
    name: str,
    rate: int,
    seconds: float,
    levels: list[float],
    seed: int,
    max_len: int,
) -> None:
    wave = sound(seed, levels, max(1, int(seconds * rate)))
    codes = small[name].encode(wave, rate)
    assert codes == whole_codes(small[name], wave, rate)
    assert len(codes) == small[name].config.num_tokens(-(-len(wave) * 16000 // rate))
    assert listen(small[name].stream(rate), frames(wave, seed, max_len)) == codes


@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_pieces_of_the_shipped_length(tiny: SpeechTokenizer, reading: np.ndarray, rate: int) -> None:
    wave = (
        np.resize(reading, 37 * rate + 123) * np.repeat(np.float32([1e-5, 1.0]), 20 * rate)[: 37 * rate + 123]
    )
    stream = tiny.stream(rate)
    codes = listen(stream, frames(wave, 0, rate))
    assert codes == tiny.encode(wave, rate) == whole_codes(tiny, wave, rate)
    assert stream.num_recomputed > 0


@pytest.mark.parametrize("num", [1, 1280, 76799, 76800, 76801, 76800 + 75521, 2 * 76800])
def test_ends_of_pieces(small: dict[str, SpeechTokenizer], num: int) -> None:
    wave = sound(1, [0.1], num)
    codes = whole_codes(small["even"], wave, 16000)
    assert small["even"].encode(wave, 16000) == codes
    assert listen(small["even"].stream(16000), frames(wave, 1, 20000)) == codes


def test_a_sample_at_a_time(small: dict[str, SpeechTokenizer]) -> None:
    wave = sound(2, [0.1, 0.5], 8001)
    stream = small["short"].stream(8000)
    for sample in wave:
        stream.push(sample[None])
    assert stream.finish() == small["short"].encode(wave, 8000)


def test_a_block_is_complete_with_the_right_half_of_its_last_frame(tiny: SpeechTokenizer) -> None:
    stream, wave = tiny.stream(16000), sound(3, [1.0], 64040)
    stream.push(wave[:-1])
    assert not stream.ready() and stream.take() == (0, [])
    stream.push(wave[-1:])
    assert stream.ready()
    start, codes = stream.take()
    assert (start, len(codes)) == (0, 50)
    assert codes == tiny.encode(sound(3, [1.0], 80000)[:64040], 16000)[:50]


def count_positions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts = []

    def counted(
        weights: Any, config: SpeechTokenizerConfig, blocks: Sequence[AudioBlock]
    ) -> list[torch.Tensor]:
        states = encode_blocks(weights, config, blocks)
        counts.append(sum(map(len, states)))
        return states

    monkeypatch.setattr(tokenizer_stream, "encode_blocks", counted)
    return counts


def test_each_position_is_encoded_once(tiny: SpeechTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = count_positions(monkeypatch)
    wave = sound(4, [1.0], 16000 * 34)
    stream = tiny.stream(16000)
    codes = listen(stream, frames(wave, 4, 16000))
    assert stream.num_recomputed == 0
    assert counts == [200] * 7 + [100, 200] and 4 * len(codes) == sum(counts)


def test_a_louder_frame_encodes_again_from_the_first_block_that_changes(
    tiny: SpeechTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steady noise, two blocks of near silence, then a shout that raises the floor over them."""
    counts = count_positions(monkeypatch)
    wave = sound(5, [1.0, 1e-4, 1e-4, 3.0, 3.0], 5 * 64000)
    stream = tiny.stream(16000)
    stream.push(wave[: 3 * 64000 + 40])
    start, codes = stream.take()
    assert (start, len(codes), stream.num_recomputed) == (0, 150, 0)
    stream.push(wave[3 * 64000 + 40 :])
    start, revised = stream.take()
    assert 50 <= start < 150 and len(revised) == 200 - start
    assert stream.num_recomputed == 100 and counts == [200] * 6
    codes[start:] = revised
    stream.finish()
    assert stream.take() == (200, stream.finish()[200:])
    assert (
        stream.finish() == tiny.encode(wave, 16000) == whole_codes(tiny, wave, 16000)
        and stream.finish()[:200] == codes
    )


def test_streams_in_one_batch_equal_single_ones(
    small: dict[str, SpeechTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different rates, lengths, places and revisions share calls; streams that leave and an idle one do not
    matter.
    """
    tokenizer = small["even"]
    rates, nums = (16000, 8000, 44100, 16000), (100000, 50000, 200000, 33333)
    waves = [sound(row, [LEVELS[row], 1.0, 0.01], num) for row, num in enumerate(nums)]
    expected = [tokenizer.encode(wave, rate) for wave, rate in zip(waves, rates, strict=True)]
    singles = [tokenizer.stream(rate) for rate in rates]
    streams = [tokenizer.stream(rate) for rate in rates]
    idle = tokenizer.stream(16000)
    counts = count_positions(monkeypatch)
    for tick in range(5):
        for group in (singles, streams):
            for stream, wave in zip(group, waves, strict=True):
                stream.push(np.array_split(wave, 5)[tick])
                if tick == 4:
                    stream.end()
        for stream in singles:
            stream.take()
    num_single_calls = len(counts)
    tokenizer.step([*streams, idle])
    assert not any(stream.ready() for stream in streams)
    assert len(counts) - num_single_calls < num_single_calls / 2
    assert [stream.finish() for stream in streams] == [stream.finish() for stream in singles] == expected
    tokenizer.step([*streams, streams[0]])
    tokenizer.step([])


def test_a_stream_twice_in_a_batch_is_one(small: dict[str, SpeechTokenizer]) -> None:
    stream, wave = small["even"].stream(16000), sound(6, [1.0], 50000)
    stream.push(wave)
    small["even"].step([stream, stream])
    assert stream.finish() == small["even"].encode(wave, 16000)


@pytest.mark.parametrize(("name", "nth"), [("scaled_dot_product_attention", 4), ("gelu", 7)])
def test_a_call_that_failed_can_be_repeated(
    small: dict[str, SpeechTokenizer], monkeypatch: pytest.MonkeyPatch, name: str, nth: int
) -> None:
    """The second block fails in its second or first layer, when keys of it are written already."""
    stream, wave = small["even"].stream(16000), sound(8, [1.0], 30000)
    stream.push(wave)
    original, calls = getattr(F, name), iter(range(nth))

    def failing(*args: Any) -> torch.Tensor:
        if next(calls, None) == nth - 1:
            raise RuntimeError("out of memory")
        result: torch.Tensor = original(*args)
        return result

    monkeypatch.setattr(F, name, failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        stream.take()
    assert stream.ready()
    assert stream.finish() == small["even"].encode(wave, 16000)


def test_bad_pushes_are_refused_and_change_nothing(small: dict[str, SpeechTokenizer]) -> None:
    tokenizer, wave = small["even"], sound(7, [1.0], 30000)
    stream = tokenizer.stream(16000)
    with pytest.raises(ValueError, match="the stream holds 0 samples: push some sound"):
        stream.finish()
    stream.push(np.zeros(0, np.float32))
    stream.push(wave[:20000])
    for bad, rate, message in (
        (np.float32([0, np.nan]), None, "frame: sample 1 is nan"),
        (np.float32([np.inf]), None, "frame: sample 0 is inf"),
        (np.zeros((9, 2), np.float32), None, r"shape \[9, 2\]"),
        (wave, 8000, "the rate changed from 16000 to 8000 Hz within a stream: finish it and open another"),
    ):
        with pytest.raises(ValueError, match=message):
            stream.push(bad, rate)
    stream.push(wave[20000:], 16000)
    assert stream.finish() == tokenizer.encode(wave, 16000)
    with pytest.raises(ValueError, match="push after the stream's end: open another stream"):
        stream.push(wave)
    stream.end()
    assert stream.finish() == tokenizer.encode(wave, 16000)


def test_bad_rates_and_foreign_streams_are_refused(
    tiny: SpeechTokenizer, small: dict[str, SpeechTokenizer]
) -> None:
    for rate in (0, -1, 16000.0, True):
        with pytest.raises(ValueError, match=r"stream: rate is .* expected a whole number of Hz"):
            tiny.stream(rate)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a stream of another tokenizer was given"):
        tiny.step([small["even"].stream(16000)])


@few
@given(
    name=st.sampled_from(["even", "odd", "short"]), rate=st.sampled_from([8000, 16000, 44100]), seconds=st.floats(0.01, 11.0),
    share=st.floats(0.01, 1.0), levels=st.lists(st.sampled_from(LEVELS), min_size=1, max_size=6), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_shortened_stream_gives_the_codes_of_what_it_kept(
    small: dict[str, SpeechTokenizer], name: str, rate: int, seconds: float, share: float, levels: list[float], seed: int
) -> None:  # fmt: skip
    wave = sound(seed, levels, max(1, int(seconds * rate)))
    kept = wave[: max(1, int(share * len(wave)))]
    stream = small[name].stream(rate)
    for frame in frames(wave, seed, rate):
        stream.push(frame)
        stream.take()
    stream = stream.shortened(kept)
    more = sound(seed + 1, levels, seed % 2 * rate // 3)
    stream.push(more)
    assert stream.finish() == small[name].encode(np.concatenate([kept, more]), rate)


@pytest.mark.parametrize("rate", [16000, 24000])
def test_blocks_before_the_cut_are_not_encoded_again(
    tiny: SpeechTokenizer, rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12.3 s of which the last 0.7 s are dropped: of three blocks of 4 s the third alone is encoded again."""
    counts = count_positions(monkeypatch)
    wave = sound(6, [1.0], int(12.3 * rate))
    stream = tiny.stream(rate)
    stream.push(wave)
    stream.take()
    assert counts == [200] * 3
    shorter = stream.shortened(wave[: int(11.6 * rate)])
    assert shorter.num_encoded == 100
    codes = shorter.finish()
    assert counts == [200] * 3 + [180]
    assert codes == tiny.encode(wave[: int(11.6 * rate)], rate)


def test_whole_pieces_before_the_cut_are_not_encoded_again(
    small: dict[str, SpeechTokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    wave = sound(7, [1.0], 3 * 76800 - 5000)
    stream = small["even"].stream(16000)
    stream.push(wave)
    stream.take()
    kept = wave[:-20000]
    counts = count_positions(monkeypatch)
    shorter = stream.shortened(kept)
    assert shorter.num_encoded >= 120
    assert shorter.finish() == whole_codes(small["even"], kept, 16000)
    assert sum(counts) < 200
