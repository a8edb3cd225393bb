"""What the package carries: the trained model and its questions where they are, or else the random one."""

from __future__ import annotations

import json
from pathlib import Path

from innervoice.files import is_trained, packaged_model, packaged_questions


def test_without_a_trained_model_the_random_one_answers_the_readings(tmp_path: Path) -> None:
    assert not is_trained(tmp_path)
    assert packaged_model(tmp_path) == tmp_path / "tiny"
    questions = packaged_questions(tmp_path)
    assert [one.path.name for one in questions] == ["question.wav", "reading.wav"]
    assert {one.text for one in questions} == {""}


def test_a_trained_model_comes_with_its_own_questions(tmp_path: Path) -> None:
    (tmp_path / "mini").mkdir()
    assert packaged_model(tmp_path) == tmp_path / "tiny"  # the questions are written last
    noted = [{"file": "questions/dog.flac", "text": "My dog is very sick.", "tone": "low"}]
    (tmp_path / "mini" / "questions.json").write_text(json.dumps(noted))
    assert is_trained(tmp_path)
    assert packaged_model(tmp_path) == tmp_path / "mini"
    [question] = packaged_questions(tmp_path)
    assert question.path == tmp_path / "mini" / "questions" / "dog.flac"
    assert (question.text, question.tone) == ("My dog is very sick.", "low")


def test_what_the_package_carries_is_there() -> None:
    assert packaged_model().is_dir()
    for question in packaged_questions():
        assert question.path.is_file()
