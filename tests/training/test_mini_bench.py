"""What `bench.mini` counts: held-out questions, fitting replies, the distance between two sounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benches import bench
from training.lm.score import follows_up, keeps_topic
from training.lm.speak import Said
from training.text import grammar, smalltalk
from training.text.situations import SITUATIONS
from training.workdir import save_arrays

mini = bench("mini")


def said(reflection: str = "", text: str = "") -> Said:
    return Said(reflection, text, ())


def question(text: str, tone: str = "plain") -> Any:
    return mini.Question(text, tone, "am_puck", np.zeros(160, np.float32), 16000)


def test_held_out_questions_are_read_from_the_work_directory(work_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="synth-users"):
        mini.held_out_questions(9)
    audio = np.arange(-8, 8, dtype=np.int16) * 2048
    save_arrays(
        work_dir / "audio" / "user-test-0000-0.npz",
        audio=audio,
        lengths=np.array([4, 12]),
        rate=np.array(16000),
        texts=np.array(["Hello.", "Thank you."]),
        tones=np.array(["plain", "low"]),
        voices=np.array(["am_puck", "bf_emma"]),
    )
    first, second = mini.held_out_questions(9)
    assert (first.text, first.tone, first.voice, first.rate) == ("Hello.", "plain", "am_puck", 16000)
    assert first.audio.tolist() == [-0.5, -0.4375, -0.375, -0.3125]
    assert second.tone == "low"
    assert len(second.audio) == 12
    assert len(mini.held_out_questions(1)) == 1


def test_replies_are_counted_by_what_they_should_name() -> None:
    situation = SITUATIONS[0]
    told = grammar.user_sentences(situation)[0]
    felt = grammar.reflections(situation)[0]
    outside = grammar.outside_sentences(held_out=True)[0]
    neutral, about = smalltalk.NEUTRAL[0]
    low = smalltalk.TONE_REFLECTIONS["low"][0].format(topic=about)
    shares = mini.Understanding()
    shares.add(question(told), said(" ".join(felt), grammar.replies(situation)[0]))
    shares.add(question(told), said("The user says hello.", "Hello."))
    shares.add(question(outside), said(text=smalltalk.OUTSIDE_REPLIES[0]))
    shares.add(question(neutral, "low"), said(low))
    shares.add(question(neutral, "high"), said(low))
    counts = [
        (share.good, share.of)
        for share in (shares.feeling, shares.situation, shares.not_understood, shares.tone)
    ]
    assert counts == [(1, 2), (1, 2), (1, 1), (1, 2)]
    named = {record.name: record.ours for record in mini.of_shares("off", "5 questions", shares, "cpu")}
    assert named == {"off.feeling": 0.5, "off.situation": 0.5, "off.not_understood": 1.0, "off.tone": 0.5}


def test_without_reflection_the_reply_itself_follows_the_tone() -> None:
    for tone, replies in smalltalk.TONE_REPLIES.items():
        for reply in replies:
            assert mini.follows_tone(said(text=reply.format(topic="the exam")), tone)
    assert not mini.follows_tone(said(text=smalltalk.TONE_REPLIES["low"][0]), "high")


def test_second_turns_are_paired_by_feeling_and_counted_by_kind_and_topic(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sad, happy = (next(one for one in SITUATIONS if one.emotion == emotion) for emotion in ("sad", "happy"))
    kinds = {entry[0]: entry for entry in smalltalk.FOLLOW_UPS}
    texts = [grammar.user_sentences(one)[0] for one in (sad, happy)]
    texts += [kinds["alone"][1][0], kinds["glad"][1][0]]
    monkeypatch.setattr(mini, "held_out_questions", lambda limit: [question(text) for text in texts][:limit])
    assert [(first.text, second.text) for first, second in mini.pairs(9)] == [
        (texts[0], texts[2]),
        (texts[1], texts[3]),
    ]
    assert len(mini.pairs(1)) == 1
    for kind, (_, _, answers, reflection) in kinds.items():
        others = [entry for name, entry in kinds.items() if name != kind]
        for reply in answers:
            own = said(text=reply.format(topic=sad.topic))
            assert follows_up(own, kinds[kind])
            assert not any(follows_up(own, other) for other in others)
        note = said(" ".join(grammar.about(reflection, sad.topic)))
        assert follows_up(note, kinds[kind]) and keeps_topic(note, sad)
        assert not keeps_topic(note, happy)
        assert not any(follows_up(note, other) for other in others)


def test_the_spectral_distance_is_in_decibels() -> None:
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.1, 22050).astype(np.float32)
    assert mini.log_spectral_distance(noise, noise) == 0
    assert mini.log_spectral_distance(noise[:20000], noise) < 0.5  # only the last frame differs
    assert mini.log_spectral_distance(noise / 2, noise) == pytest.approx(6.02, abs=0.01)
    other = rng.normal(0, 0.1, 22050).astype(np.float32)
    assert 1 < mini.log_spectral_distance(other, noise) < 12


def test_the_synthesisers_own_word_error_is_read_from_the_vocoders_log(work_dir: Path) -> None:
    with pytest.raises(FileNotFoundError, match="run hift"):
        mini.originals()
    lines = [
        {"event": "step"},
        {"kind": "reply-test", "wer_original": [0.2, 0.3]},
        {"kind": "reply-test", "wer_original": [0.01, 0.1]},
    ]
    path = work_dir / "logs" / "hift.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, lines)))
    assert mini.originals() == [0.01, 0.1]
