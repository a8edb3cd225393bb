"""The grammar: how much of it there is, that its parts fit, and that held-out texts stay out."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from training.text import grammar, smalltalk
from training.text.emotions import EMOTIONS
from training.text.situations import SITUATIONS, Situation
from training.text.split import HELD_OUT_EVERY, is_held_out, shuffled


def test_the_world_is_large_enough() -> None:
    assert len(SITUATIONS) >= 60
    assert len(EMOTIONS) >= 12
    texts = grammar.all_replies()
    assert len(texts) == len(set(texts)) >= 5000
    assert 350 <= len(grammar.vocabulary(texts)) <= 450


def test_every_feeling_has_as_many_situations() -> None:
    assert set(Counter(situation.emotion for situation in SITUATIONS).values()) == {6}
    assert {situation.emotion for situation in SITUATIONS} == set(EMOTIONS)


@pytest.mark.parametrize("situation", SITUATIONS, ids=lambda situation: situation.clause.replace(" ", "-"))
def test_a_situation_has_all_its_parts(situation: Situation) -> None:
    assert situation.question.endswith("?")
    assert situation.advice.endswith(".")
    assert len(situation.told) == 2
    texts = grammar.replies(situation)
    assert all(text.startswith(EMOTIONS[situation.emotion].openings) for text in texts)
    assert any(text.endswith(situation.question) for text in texts)
    assert 0 < sum(map(is_held_out, texts)) < len(texts) / 4


def test_nearly_every_situation_has_questions_that_training_never_hears() -> None:
    asked = [
        situation for situation in SITUATIONS if any(map(is_held_out, grammar.user_sentences(situation)))
    ]
    assert len(asked) >= 60


def test_clauses_are_unique() -> None:
    clauses = [situation.clause for situation in SITUATIONS]
    assert len(set(clauses)) == len(clauses)


def test_third_person() -> None:
    by_clause = {situation.clause: situation.third_person for situation in SITUATIONS}
    assert by_clause["your dog is sick"] == "their dog is sick"
    assert by_clause["your teacher believed in you"] == "their teacher believed in them"
    assert by_clause["you lost someone you love"] == "they lost someone they love"


def test_no_field_stays_unfilled() -> None:
    for dialogue in grammar.dialogues(seed=1, num=2000):
        for turn in dialogue.turns:
            for text in (turn.user, turn.reply, *turn.reflection):
                assert re.fullmatch(r"[A-Z][A-Za-z ,'.?!]*[.?!]", text), text


def test_dialogues_are_of_every_kind_and_repeat_with_the_seed() -> None:
    drawn = list(grammar.dialogues(seed=3, num=600))
    assert drawn == list(grammar.dialogues(seed=3, num=600))
    assert {dialogue.kind for dialogue in drawn} == {
        "situation",
        "tone",
        "greeting",
        "thanks",
        "goodbye",
        "outside",
    }
    assert {len(dialogue.turns) for dialogue in drawn} == {1, 2}
    assert {turn.tone for dialogue in drawn for turn in dialogue.turns} == {"plain", "low", "high"}


def test_what_is_outside_is_not_taken_for_a_situation() -> None:
    told = {text for situation in SITUATIONS for text in grammar.user_sentences(situation)}
    assert not told & set(smalltalk.OUTSIDE)
    assert not any(grammar.about_feelings(text) for text in smalltalk.OUTSIDE)


def test_the_split_is_the_same_everywhere() -> None:
    texts = grammar.all_replies()
    share = sum(map(is_held_out, texts)) / len(texts)
    assert abs(share - 1 / HELD_OUT_EVERY) < 0.01
    assert is_held_out("I am here for you.") == is_held_out("i am here, for you")
    assert not set(grammar.chosen_replies(True, 2)) & set(grammar.chosen_replies(False, 30))
    assert shuffled(texts[:50], "a") == shuffled(texts[:50][::-1], "a") != shuffled(texts[:50], "b")
