"""Engines with random weights: config files alone, and GLM-4-Voice's real shapes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from benches import bench

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
    bench("shapes").write_shipped_configs(tmp_path, tiny_dir, num_layers=4)
    with Engine.from_pretrained(
        tmp_path,
        device="cpu",
        load_format="dummy",
        dtype="bfloat16",
        codec_dtype="bfloat16",
        max_sessions=1,
        max_model_len=512,
    ) as full:
        schedule = Schedule.preset("stitch_s", transcript_budget=4, speech_budget=10, reflection_budget=4)
        reply = full.generate(assets_dir / "question.wav", schedule=schedule, sampling=greedy(30))
    assert full.plan().weight_bytes > 4e9
    assert len(reply.ids) == 30
    assert reply.usage.speech_tokens >= 10
    assert len(reply.audio.samples) == 256 * (441 * reply.usage.speech_tokens // 64)
    assert np.isfinite(reply.audio.samples).all()
