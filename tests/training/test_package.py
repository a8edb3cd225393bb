"""The package's own model: copied whole, with questions, card and notice, and no larger than allowed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from training import package
from training.speech.plan import KOKORO_HELD_OUT
from training.text import smalltalk
from training.text.split import is_held_out

from innervoice.files import packaged_questions

RECORDS = [
    {
        "name": "reempathy.feeling",
        "shape": "100 questions",
        "ours": 0.91,
        "peer": None,
        "details": {"of": 70},
    },
    {
        "name": "steady, 1 step",
        "shape": "32 questions, Whisper base",
        "ours": 0.08,
        "peer": 0.0139,
        "details": {"log_spectral_distance_db": 1.5, "cpu_s_per_audio_s": 0.2},
    },
]


@pytest.fixture
def exported(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work directory whose export and synthesis are done in no time."""
    for name in (package.TOKENIZER_DIR, package.DECODER_DIR, package.LM_DIR):
        folder = work_dir / "export" / name
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(bytes(1000))
    (work_dir / "logs").mkdir()
    (work_dir / "logs" / package.RECORDS).write_text(json.dumps(RECORDS))
    monkeypatch.setattr(package, "export", lambda: None)
    monkeypatch.setattr(package, "recording", lambda utterance: np.zeros(1600, np.int16))
    return work_dir


def test_the_package_is_written_whole(exported: Path, tmp_path: Path) -> None:
    target = tmp_path / "assets" / "mini"
    (target / "old").mkdir(parents=True)
    package.package(target)
    assert not (target / "old").exists()
    questions = packaged_questions(target)
    assert [(one.text, one.tone) for one in questions] == [
        (entry.text, entry.tone) for entry in package.QUESTIONS.values()
    ]
    assert {soundfile.info(one.path).samplerate for one in questions} == {16000}
    card = (target / "README.md").read_text()
    assert "| reempathy.feeling | 100 questions | 0.910 |  |" in card
    assert (
        "| steady, 1 step (1.5 dB, 0.2 CPU s a second) | 32 questions, Whisper base | 0.080 | 0.014 |" in card
    )
    for source in ("Whisper", "Kokoro-82M", "eSpeak NG", "chitchat-dataset"):
        assert source in (target / "NOTICE.md").read_text()
    assert '"megabytes"' in (exported / "logs" / "package.jsonl").read_text()


def test_a_package_that_is_too_large_is_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "MOST_BYTES", 3000)
    with pytest.raises(RuntimeError, match="more than 3,000"):
        package.package(tmp_path / "mini")


def test_what_was_not_measured_is_not_packaged(exported: Path, tmp_path: Path) -> None:
    (exported / "logs" / package.RECORDS).unlink()
    with pytest.raises(FileNotFoundError, match=r"bench\.mini"):
        package.package(tmp_path / "mini")
    assert not (tmp_path / "mini").exists()


def test_the_questions_are_held_out_and_one_differs_in_voice_and_words() -> None:
    neutral = {text for text, _ in smalltalk.NEUTRAL}
    assert {entry.voice for entry in package.QUESTIONS.values()} <= set(KOKORO_HELD_OUT)
    assert all(is_held_out(entry.text) or entry.text in neutral for entry in package.QUESTIONS.values())
    assert {entry.tone for entry in package.QUESTIONS.values() if entry.text in neutral} == {"low"}
