"""Mimi, EnCodec and DAC against transformers, SNAC against its own package's vectors; refusals."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from codec_models import ENCODEC_CHUNKS, KINDS, make_module, save, snac_directory
from torch import nn

from innervoice.codec.residual_vq.codec import Codec
from innervoice.codec.residual_vq.codes import Codes

BOUND = 1e-4
SNACS = ("plain", "attention", "grouped off")


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[nn.Module, Codec]]:
    folder = tmp_path_factory.mktemp("codecs")
    made = {kind: make_module(kind) for kind in KINDS}
    return {
        kind: (module, Codec.from_pretrained(save(module, folder / kind))) for kind, module in made.items()
    }


def sound(codec: Codec, num: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    shape = num if codec.channels == 1 else (num, codec.channels)
    return (0.3 * generator.standard_normal(shape)).astype(np.float32)


def batched(samples: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(samples.reshape(1, len(samples), -1)).mT


def ids_of(codes: Codes) -> torch.Tensor:
    return torch.from_numpy(np.stack(codes.ids))


@torch.inference_mode()
def check(module: nn.Module, codec: Codec, num: int) -> None:
    samples = sound(codec, num)
    ours = codec.encode((samples, codec.sample_rate))
    if codec.kind == "encodec":
        told = module.encode(batched(samples), bandwidth=module.config.target_bandwidths[-1])
        theirs = torch.cat([*told.audio_codes], -1)[0]
        theirs = theirs[:, : theirs.shape[1] - told.last_frame_pad_length]
        decoded = module.decode(
            told.audio_codes, told.audio_scales, last_frame_pad_length=told.last_frame_pad_length
        ).audio_values
    elif codec.kind == "dac":
        padded = np.pad(samples, (0, -num % codec.frame_len))
        theirs = module.encode(batched(padded)).audio_codes[0]
        decoded = module.decode(audio_codes=theirs[None]).audio_values[None]
    else:
        theirs = module.encode(batched(samples)).audio_codes[0]
        decoded = module.decode(theirs[None]).audio_values
    assert torch.equal(ids_of(ours), theirs)
    made = codec.decode(ours).samples
    wanted = decoded[0].mT.numpy()[:num].reshape(-1, codec.channels)
    assert made.reshape(-1, codec.channels).shape == wanted.shape
    assert np.abs(made.reshape(wanted.shape) - wanted).max() <= BOUND
    assert num < codec.frame_len or np.abs(wanted).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_small_codec_is_that_of_transformers(kind: str, modules: dict[str, tuple[nn.Module, Codec]]) -> None:
    module, codec = modules[kind]
    chunk = int(ENCODEC_CHUNKS["sampling_rate"] * ENCODEC_CHUNKS["chunk_length_s"])
    for num in (
        1,
        codec.frame_len - 1,
        3 * codec.frame_len,
        7 * codec.frame_len,
        41 * codec.frame_len + 5,
        2 * chunk + 100,
    ):
        if kind.startswith("encodec chunks") and num == 41 * codec.frame_len + 5:
            num = chunk  # transformers fails when its last chunk is shorter than the overlap
        check(module, codec, num)


@pytest.mark.parametrize("name", SNACS)
def test_small_snac_is_that_of_its_package(name: str, data_dir: Path, tmp_path: Path) -> None:
    directory, told = snac_directory(data_dir, tmp_path / "snac", name)
    codec = Codec.from_pretrained(directory)
    codes = codec.encode((told["samples"].numpy(), codec.sample_rate))
    for index, row in enumerate(codes.ids):
        assert np.array_equal(row, told[f"ids.{index}"].numpy())
    whole = codec.decode(Codes("snac", codes.ids)).samples
    assert whole.shape == told["sound"].shape and np.abs(whole - told["sound"].numpy()).max() <= BOUND
    assert len(codec.decode(codes).samples) == len(told["samples"])


@pytest.mark.parametrize("num", [1, 3])
def test_fewer_codebooks_are_the_first(num: int, modules: dict[str, tuple[nn.Module, Codec]]) -> None:
    for kind in ("mimi", "encodec", "dac"):
        module, codec = modules[kind]
        samples = sound(codec, 9 * codec.frame_len)
        fewer = codec.encode((samples, codec.sample_rate), num_codebooks=num)
        every = codec.encode((samples, codec.sample_rate))
        assert np.array_equal(np.stack(fewer.ids), np.stack(every.ids[:num]))
        ids = ids_of(fewer)[None]
        with torch.inference_mode():
            theirs = module.decode(audio_codes=ids).audio_values if kind == "dac" else (
                module.decode(ids).audio_values if kind == "mimi" else module.decode(ids[None], [None]).audio_values)  # fmt: skip
        assert np.abs(codec.decode(fewer).samples - theirs.flatten().numpy()).max() <= BOUND


def test_bandwidths_are_those_of_transformers(modules: dict[str, tuple[nn.Module, Codec]]) -> None:
    for kind in ("encodec", "encodec chunks"):
        module, codec = modules[kind]
        for kbps in module.config.target_bandwidths:
            assert codec.codebooks_of(kbps) == module.quantizer.get_num_quantizers_for_bandwidth(kbps)
        assert codec.num_codebooks == module.config.num_quantizers
    with pytest.raises(ValueError, match=r"bandwidth of 3\.0 kbit/s is none of"):
        codec.codebooks_of(3.0)
    with pytest.raises(ValueError, match="mimi has no bandwidths"):
        modules["mimi"][1].codebooks_of(3.0)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_near(kind: str, modules: dict[str, tuple[nn.Module, Codec]], tmp_path: Path) -> None:
    module, codec = modules[kind]
    narrow = Codec.from_pretrained(save(module, tmp_path), dtype=torch.bfloat16)
    codes = codec.encode((sound(codec, 40 * codec.frame_len), codec.sample_rate))
    wide, near = codec.decode(codes).samples, narrow.decode(codes).samples
    assert near.dtype == np.float32 and wide.shape == near.shape
    assert np.linalg.norm(wide - near) <= 0.05 * np.linalg.norm(wide)
    same = np.mean(
        np.stack(narrow.encode((sound(codec, 40 * codec.frame_len), codec.sample_rate)).ids[:1])
        == codes.ids[0]
    )
    assert same >= 0.7


def test_many_at_once_are_each_by_itself(modules: dict[str, tuple[nn.Module, Codec]]) -> None:
    for _, codec in modules.values():
        sounds = [
            (sound(codec, num * codec.frame_len + num, seed=num), codec.sample_rate)
            for num in (11, 3, 29, 11)
        ]
        together, alone = codec.encode(sounds), [codec.encode(one) for one in sounds]
        for one, other in zip(together, alone, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(one.ids, other.ids, strict=True))
        for one, codes in zip(codec.decode(together), alone, strict=True):
            assert np.abs(one.samples - codec.decode(codes).samples).max() <= 1e-5


def test_codes_survive_a_file(modules: dict[str, tuple[nn.Module, Codec]], tmp_path: Path) -> None:
    codec = modules["encodec chunks"][1]
    codes = codec.encode((sound(codec, 1000), codec.sample_rate))
    codes.save(tmp_path / "one.codes")
    read = Codes.load(tmp_path / "one.codes")
    assert (read.kind, read.num_samples) == ("encodec", 1000)
    assert read.scales is not None and codes.scales is not None and np.array_equal(read.scales, codes.scales)
    assert all(np.array_equal(a, b) for a, b in zip(read.ids, codes.ids, strict=True))
    (tmp_path / "bad").write_bytes(b"no codes")
    with pytest.raises(ValueError, match="is no file of codes"):
        Codes.load(tmp_path / "bad")
    with pytest.raises(FileNotFoundError, match="does not exist: name a file of codes"):
        Codes.load(tmp_path / "none")


def test_bad_codes_are_refused(modules: dict[str, tuple[nn.Module, Codec]]) -> None:
    codec = modules["mimi"][1]
    row = np.zeros(4, np.int64)
    with pytest.raises(ValueError, match="codebook 1: id 2 is 32, expected 0 to 31"):
        codec.decode(Codes("mimi", (row, np.array([0, 1, 32, 0]))))
    with pytest.raises(ValueError, match="the codes have 6 codebooks, mimi has 1 to 5"):
        codec.decode(Codes("mimi", (row,) * 6))
    with pytest.raises(ValueError, match="the codes have 0 codebooks"):
        codec.decode(Codes("mimi", ()))
    with pytest.raises(ValueError, match="the codes are of dac and this is mimi"):
        codec.decode(Codes("dac", (row,)))
    with pytest.raises(ValueError, match="rows have 4, 3 ids"):
        codec.decode(Codes("mimi", (row, row[:3])))
    with pytest.raises(ValueError, match=r"ids are float64 of shape \[4\]"):
        codec.decode(Codes("mimi", (np.zeros(4),)))
    with pytest.raises(ValueError, match="0 scales for 1 chunks"):
        modules["encodec chunks"][1].decode(Codes("encodec", (row,)))
    with pytest.raises(ValueError, match="num_codebooks is 6, mimi has 1 to 5"):
        codec.encode((np.zeros(10, np.float32), codec.sample_rate), num_codebooks=6)


def test_bad_sounds_are_refused(
    modules: dict[str, tuple[nn.Module, Codec]], caplog: pytest.LogCaptureFixture
) -> None:
    codec = modules["mimi"][1]
    with pytest.raises(ValueError, match="holds 0 samples"):
        codec.encode((np.zeros(0, np.float32), codec.sample_rate))
    with pytest.raises(ValueError, match="the sound has 2 channels and mimi at 1200 Hz is mono"):
        codec.encode((np.zeros((9, 2), np.float32), codec.sample_rate))
    with pytest.raises(ValueError, match="the sound has 3 channels, encodec takes 1 or 2"):
        modules["encodec chunks"][1].encode((np.zeros((9, 3), np.float32), 4800))
    with caplog.at_level(logging.INFO, "innervoice"):
        codec.encode((np.zeros(8000, np.float32), 8000))
    assert [r.getMessage() for r in caplog.records].count(
        "sound of 8000 Hz is resampled to the 1200 Hz of mimi"
    ) == 1


def test_bad_checkpoints_are_refused(modules: dict[str, tuple[nn.Module, Codec]], tmp_path: Path) -> None:
    save(modules["mimi"][0], tmp_path)
    config = tmp_path / "config.json"
    good = json.loads(config.read_text(encoding="utf-8"))

    def refused(match: str, **changes: object) -> None:
        config.write_text(json.dumps(good | changes), encoding="utf-8")
        with pytest.raises(ValueError, match=match):
            Codec.from_pretrained(tmp_path)

    refused("model_type is 'llama', expected a codec: mimi, encodec, dac, snac", model_type="llama")
    refused("use_causal_conv is False, only True is supported", use_causal_conv=False)
    refused("num_filters is 0, expected a whole number above 0", num_filters=0)
    refused("has shape .* is it the file of this config", num_filters=8)
    refused("is missing", num_hidden_layers=3)
    refused(r"upsampling_ratios is \[\], expected whole numbers", upsampling_ratios=[])
    config.write_text(
        json.dumps(json.loads((save(modules["dac"][0], tmp_path / "dac") / "config.json").read_text()))
    )
    with pytest.raises(ValueError, match=r"tensor encoder.conv1.weight is missing"):
        Codec.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist"):
        Codec.from_pretrained(tmp_path / "none")


def test_half_a_checkpoint_does_its_half(modules: dict[str, tuple[nn.Module, Codec]], tmp_path: Path) -> None:
    module, codec = modules["mimi"]
    save(module, tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | {"encoder_config": None}))
    half = Codec.from_pretrained(tmp_path)
    codes = codec.encode((sound(codec, 500), codec.sample_rate))
    assert np.array_equal(half.decode(codes).samples, codec.decode(codes).samples)
    with pytest.raises(ValueError, match="the checkpoint has no encoder"):
        half.encode((sound(codec, 500), codec.sample_rate))
