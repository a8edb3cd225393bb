"""The published sizes of every codec with random weights, against transformers and SNAC's own package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from codec_models import make_module, save

from innervoice.codec.residual_vq.codec import Codec
from innervoice.codec.residual_vq.codes import Codes
from innervoice.codec.residual_vq.families import read_codec
from innervoice_kernels.speech_codec.noise import CODEC_STREAM, normals

BOUND = 1e-4
ENCODEC_48 = {
    "sampling_rate": 48000, "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01,
    "norm_type": "time_group_norm", "use_causal_conv": False, "target_bandwidths": [3.0, 6.0, 12.0, 24.0],
}  # fmt: skip
DAC_44 = {"sampling_rate": 44100, "downsampling_ratios": [2, 4, 8, 8], "n_codebooks": 9}
DAC_24 = {"sampling_rate": 24000, "downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 32}
DAC_16 = {"sampling_rate": 16000, "downsampling_ratios": [2, 4, 5, 8], "n_codebooks": 12}
PUBLISHED: dict[str, tuple[str, dict[str, Any]]] = {
    "mimi": ("mimi", {}), "encodec 24 kHz": ("encodec", {}), "encodec 48 kHz": ("encodec", ENCODEC_48),
    "dac 44 kHz": ("dac", DAC_44), "dac 24 kHz": ("dac", DAC_24), "dac 16 kHz": ("dac", DAC_16),
}  # fmt: skip
SNAC = {"codebook_size": 4096, "codebook_dim": 8, "noise": True, "depthwise": True}
SNACS = {
    "24 kHz": SNAC | {"sampling_rate": 24000, "encoder_dim": 48, "encoder_rates": [2, 4, 8, 8], "decoder_dim": 1024,
                      "decoder_rates": [8, 8, 4, 2], "attn_window_size": None, "vq_strides": [4, 2, 1]},
    "32 kHz": SNAC | {"sampling_rate": 32000, "encoder_dim": 64, "encoder_rates": [2, 3, 8, 8], "decoder_dim": 1536,
                      "decoder_rates": [8, 8, 3, 2], "attn_window_size": 32, "vq_strides": [8, 4, 2, 1]},
    "44 kHz": SNAC | {"sampling_rate": 44100, "encoder_dim": 64, "encoder_rates": [3, 3, 7, 7], "decoder_dim": 1536,
                      "decoder_rates": [7, 7, 3, 3], "attn_window_size": 32, "vq_strides": [8, 4, 2, 1]},
}  # fmt: skip
pytestmark = pytest.mark.long


@pytest.mark.parametrize("name", PUBLISHED)
@torch.inference_mode()
def test_published_size_is_that_of_transformers(name: str, tmp_path: Path) -> None:
    kind, sizes = PUBLISHED[name]
    module = make_module(kind, sizes)
    codec = Codec.from_pretrained(save(module, tmp_path))
    num = 12 * codec.frame_len if kind == "dac" else 12 * codec.frame_len + 77
    samples = 0.3 * np.random.default_rng(0).standard_normal((num, codec.channels)).astype(np.float32)
    codes, x = codec.encode((samples, codec.sample_rate)), torch.from_numpy(samples).T[None]
    if kind == "encodec":
        told = module.encode(x, bandwidth=module.config.target_bandwidths[-1])
        theirs = told.audio_codes[0, 0]
        sound = module.decode(told.audio_codes, told.audio_scales).audio_values[0]
    else:
        theirs = module.encode(x).audio_codes[0]
        sound = module.decode(audio_codes=theirs[None]).audio_values.reshape(codec.channels, -1)
    assert torch.equal(torch.from_numpy(np.stack(codes.ids)), theirs)
    ours = codec.decode(codes).samples.reshape(-1, codec.channels)
    wanted = sound.T.numpy()[:num]
    assert ours.shape == wanted.shape
    assert np.abs(ours - wanted).max() <= BOUND * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("name", SNACS)
def test_published_snac_is_that_of_its_package(name: str, tmp_path: Path) -> None:
    snac = pytest.importorskip("snac", reason="SNAC's own package: pip install --no-deps snac einops")
    torch.manual_seed(0)
    module = snac.SNAC(**SNACS[name]).eval()
    torch.save(module.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(SNACS[name]), encoding="utf-8")
    config = read_codec(tmp_path)[1]
    codec = Codec.from_pretrained(tmp_path)
    samples = 0.3 * torch.randn(1, 1, config.frame_len * config.block_frames)  # type: ignore[union-attr]
    stages, zero = iter(range(4)), torch.zeros(1, dtype=torch.int64)

    def noise(shape: tuple[int, ...], **_: object) -> torch.Tensor:
        return normals(zero, CODEC_STREAM, torch.arange(shape[-1] // 4 + 1), zero + next(stages)).flatten()[
            None, None, : shape[-1]
        ]

    with torch.inference_mode(), mock.patch("torch.randn", noise):
        theirs = module.encode(samples)
        sound = module.decode(theirs)[0, 0].numpy()
    codes = codec.encode((samples[0, 0].numpy(), codec.sample_rate))
    assert all(np.array_equal(ours, row[0].numpy()) for ours, row in zip(codes.ids, theirs, strict=True))
    assert np.abs(codec.decode(Codes("snac", codes.ids)).samples - sound).max() <= BOUND


def test_real_sound_streams_as_it_decodes(tmp_path: Path, assets_dir: Path) -> None:
    """Mimi at its published size, a recording of a person, pushed frame by frame."""
    codec = Codec.from_pretrained(save(make_module("mimi", {}), tmp_path))
    codes = codec.encode(assets_dir / "question.wav", num_codebooks=8)
    whole, stream = codec.decode(codes).samples, codec.stream_decode(2, chunk_s=0.08)
    slot, made = stream.open(), []
    for frame in range(len(codes.ids[0])):
        stream.push(slot, Codes("mimi", tuple(row[frame : frame + 1] for row in codes.ids)))
        made += [piece.samples for piece in stream.step()]
    joined = np.concatenate(made)[: len(whole)]
    assert np.linalg.norm(joined - whole) <= 1e-6 * np.linalg.norm(whole)
