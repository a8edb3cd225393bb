"""The packaged model: its files, its replies as they were when it was packaged, and what it hears in a question."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from packaged_replies import CASES, PATH, replies
from safetensors.torch import load_file

from innervoice.checkpoint.files import read_json
from innervoice.files import packaged_model, packaged_questions

MOST_BYTES = 30_000_000


@pytest.fixture(scope="module")
def made() -> dict[str, np.ndarray]:
    return replies()


def test_the_package_carries_a_trained_model_with_its_card_and_notice() -> None:
    folder = packaged_model()
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= MOST_BYTES
    for source in ("Whisper", "Kokoro", "Apache-2.0", "MIT"):
        assert source in (folder / "NOTICE.md").read_text(encoding="utf-8")
    assert "word_error" in (folder / "README.md").read_text(encoding="utf-8")
    tones = [one.tone for one in packaged_questions()]
    assert len(tones) == 3 and "low" in tones


def test_weights_are_float16_in_the_shipped_formats() -> None:
    folder = packaged_model()
    for name in ("glm-4-voice-9b", "glm-4-voice-tokenizer"):
        weights = load_file(folder / name / "model.safetensors")
        assert {value.dtype for value in weights.values()} == {torch.float16}
        assert all(value.isfinite().all() for value in weights.values())
        assert read_json(folder / name / "config.json")
    for name in ("flow.pt", "hift.pt"):
        weights = torch.load(folder / "glm-4-voice-decoder" / name, weights_only=True)
        assert {value.dtype for value in weights.values()} == {torch.float16}
        assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("number", range(len(CASES)))
def test_replies_are_those_of_the_day_it_was_packaged(made: dict[str, np.ndarray], number: int) -> None:
    with np.load(PATH) as noted:
        assert made[f"{number}.ids"].tolist() == noted[f"{number}.ids"].tolist()
        ours, theirs = (np.asarray(found[f"{number}.samples"], np.float32) for found in (made, noted))
    assert ours.shape == theirs.shape
    assert np.abs(theirs).max() > 0.1  # it speaks
    assert np.abs(ours - theirs).max() < 5e-3
