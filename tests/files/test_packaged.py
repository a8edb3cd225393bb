"""What the package carries: a model, and recordings with their words that ask it."""

from __future__ import annotations

import json
from pathlib import Path

import soundfile

from innervoice.files import packaged_model, packaged_questions


def test_questions_are_read_with_their_words_and_tones(tmp_path: Path) -> None:
    noted = [{"file": "questions/dog.flac", "text": "My dog is very sick.", "tone": "low"}]
    (tmp_path / "questions.json").write_text(json.dumps(noted))
    [question] = packaged_questions(tmp_path)
    assert question.path == tmp_path / "questions" / "dog.flac"
    assert (question.text, question.tone) == ("My dog is very sick.", "low")


def test_what_the_package_carries_is_there() -> None:
    assert {path.name for path in packaged_model().iterdir()} >= {"README.md", "NOTICE.md", "questions.json"}
    questions = packaged_questions()
    assert len(questions) == 3
    for question in questions:
        assert question.text and question.tone
        assert soundfile.info(question.path).duration > 0.5
