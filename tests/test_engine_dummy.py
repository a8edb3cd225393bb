"""Engines with random weights: config files alone, and GLM-4-Voice's real shapes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from innervoice import Engine, Sampling, Schedule, Text


def greedy(num: int) -> Sampling:
    return Sampling(temperature=0, max_new_tokens=num)


def test_dummy_weights_need_config_files_alone(tiny_dir: Path, tmp_path: Path) -> None:
    for file in tiny_dir.rglob("*"):
        if file.suffix in (".json", ".yaml") and "index" not in file.name:
            target = tmp_path / file.relative_to(tiny_dir)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)
    with Engine.from_pretrained(tmp_path, device="cpu", load_format="dummy") as dummy:
        reply = dummy.generate(Text("hello"), sampling=greedy(45))
        assert len(reply.ids) == 45
        assert reply.usage.speech_tokens == 26
        assert reply.audio.duration_s > 2


@pytest.mark.slow
def test_real_shapes_in_bfloat16(tmp_path: Path, tiny_dir: Path, assets_dir: Path) -> None:
    """Four layers at full width and vocabulary; speech tokenizer, flow and vocoder uncut; a question and a reply by voice."""
    write_shipped_configs(tmp_path, tiny_dir, num_layers=4)
    with Engine.from_pretrained(
        tmp_path, device="cpu", load_format="dummy", dtype="bfloat16", codec_dtype="bfloat16", max_sessions=1, max_model_len=512
    ) as full:
        schedule = Schedule.preset("stitch_s", transcript_budget=4, speech_budget=10, reflection_budget=4)
        reply = full.generate(assets_dir / "question.wav", schedule=schedule, sampling=greedy(30))
    assert full.plan().weight_bytes > 4e9
    assert len(reply.ids) == 30
    assert reply.usage.speech_tokens >= 10
    assert len(reply.audio.samples) == 256 * (441 * reply.usage.speech_tokens // 64)
    assert np.isfinite(reply.audio.samples).all()


def write_shipped_configs(target: Path, tiny_dir: Path, num_layers: int) -> None:
    """The tiny checkpoint's config files with the sizes that GLM-4-Voice ships."""

    def change(path: str, **values: Any) -> None:
        data = json.loads((tiny_dir / path).read_text()) | values
        (target / path).parent.mkdir(exist_ok=True)
        (target / path).write_text(json.dumps(data))

    change(
        "glm-4-voice-9b/config.json",
        num_layers=num_layers, num_hidden_layers=num_layers, hidden_size=4096, ffn_hidden_size=13696, num_attention_heads=32,
        kv_channels=128, padded_vocab_size=168960, vocab_size=168960, torch_dtype="bfloat16",
        eos_token_id=[151329, 151336, 151338], pad_token_id=151329,
    )  # fmt: skip
    change("glm-4-voice-9b/generation_config.json", eos_token_id=[151329, 151336, 151338], pad_token_id=151329)
    change(
        "glm-4-voice-tokenizer/config.json",
        d_model=1280, encoder_attention_heads=20, encoder_ffn_dim=5120, encoder_layers=32, pooling_position=16,
        quantize_position=16, quantize_vocab_size=16384,
    )  # fmt: skip
    yaml = (tiny_dir / "glm-4-voice-decoder" / "config.yaml").read_text()
    for small, full in (
        ("input_size: 64", "input_size: 512"), ("vocab_size: 64", "vocab_size: 16384"), ("output_size: 64", "output_size: 512"),
        ("attention_heads: 4", "attention_heads: 8"), ("linear_units: 96", "linear_units: 2048"),
        ("num_blocks: 2", "num_blocks: 6"),
        ("channels: [32, 32]", "channels: [256, 256]"), ("attention_head_dim: 16", "attention_head_dim: 64"),
        ("n_blocks: 2", "n_blocks: 4"), ("num_mid_blocks: 3", "num_mid_blocks: 12"), ("num_heads: 2", "num_heads: 8"),
        ("base_channels: 32", "base_channels: 512"), ("cond_channels: 48", "cond_channels: 512"),
    ):  # fmt: skip
        assert small in yaml
        yaml = yaml.replace(small, full)
    (target / "glm-4-voice-decoder").mkdir()
    (target / "glm-4-voice-decoder" / "config.yaml").write_text(yaml)
