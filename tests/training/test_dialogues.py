"""Dialogues for the language model: drawn from what was said, in the order of a schedule, with the right
parts to learn.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from training.lm.examples import Dialogues, Speech, corrupted, joined, read_speech
from training.lm.model import NUM_LAYERS, LanguageModel
from training.lm.score import is_not_understood, names_feeling, names_situation, situation_of
from training.lm.speak import Said, answer
from training.lm.train import TEXT_WEIGHT, losses, weight_of
from training.lm.vocabulary import CLOSE, END, FIRST_CODE, ID_OF, NUM_TEXT, OPEN, SIZE, decode
from training.speech import plan
from training.speech.plan import FIRST_HOUR, KOKORO_HELD_OUT, KOKORO_USERS, evenly, in_shards, target
from training.speech.plan import user as said_by_user
from training.text import grammar, smalltalk
from training.text.situations import SITUATIONS


@pytest.fixture
def speech() -> Speech:
    """Invented codes for some texts of three situations, greetings and one tone."""
    found = Speech()
    for situation in SITUATIONS[:3]:
        for text in grammar.replies(situation)[:40]:
            found.replies[text].append(tuple(range(6 * len(text.split()))))
        for text in grammar.user_sentences(situation)[:5]:
            found.users[text, "plain"].append((1, 2, 3))
    found.replies[smalltalk.GREETING_REPLIES[0]].append(tuple(range(90)))
    found.users[smalltalk.GREETINGS[0], "plain"].append((4, 5))
    found.replies[smalltalk.TONE_REPLIES["low"][0].format(topic="your brother")].append(tuple(range(80)))
    found.users[smalltalk.NEUTRAL[0][0], "low"].append((6, 7))
    return found


def test_drawn_dialogues(speech: Speech) -> None:
    dialogues = Dialogues(speech)
    drawn = [dialogues.draw(random.Random(seed)) for seed in range(60)]
    assert drawn == [dialogues.draw(random.Random(seed)) for seed in range(60)]
    assert any(OPEN in example.ids for example in drawn) and any(OPEN not in example.ids for example in drawn)
    for example in drawn:
        assert len(example.ids) == len(example.is_said)
        assert example.ids[0] == ID_OF["[gMASK]"] and example.ids[-1] == END
        assert not example.is_said[0] and example.is_said[-1]


def test_nothing_said_names_the_stages() -> None:
    with pytest.raises(ValueError, match="synth-users and tokens"):
        Dialogues(Speech()).draw(random.Random(0))


def test_the_end_of_a_turn_begins_the_next() -> None:
    example = joined([([1, 2], [3, END]), ([END, 4], [5, END])])
    assert example.ids == [1, 2, 3, END, 4, 5, END]
    assert example.is_said == [False, False, True, True, False, True, True]


def test_weights_and_losses(speech: Speech) -> None:
    example = Dialogues(speech).draw(random.Random(1))
    weights = weight_of(example)
    for token, said, weight in zip(example.ids, example.is_said, weights, strict=True):
        assert (weight > 0) == said
        assert not said or token >= FIRST_CODE or weight == TEXT_WEIGHT
    target_ids = torch.tensor([example.ids])
    perfect = torch.nn.functional.one_hot(target_ids, SIZE).float() * 50
    assert losses(perfect, target_ids, torch.tensor([weights]))["weighted"] < 1e-6


def test_only_codes_of_replies_are_corrupted() -> None:
    ids = [3, FIRST_CODE + 1, 5, FIRST_CODE + 2] * 50
    is_said = [False, False, True, True] * 50
    seen = corrupted(ids, is_said, 1.0, random.Random(0))
    changed = [place for place, pair in enumerate(zip(ids, seen, strict=True)) if pair[0] != pair[1]]
    assert changed and all(place % 4 == 3 for place in changed)
    assert min(seen) < NUM_TEXT and max(seen) < SIZE


def test_speech_of_the_compact_file(work_dir: Path) -> None:
    columns = {
        "kinds": ["reply", "user", "user-test"],
        "texts": ["Hello.", "Hi.", "Bye."],
        "tones": ["plain", "low", "plain"],
    }
    np.savez(
        work_dir / "tokens.npz", codes=np.arange(6), num_tokens=np.array([3, 2, 1], np.uint16), **columns
    )
    found = read_speech()
    assert found.replies == {"Hello.": [(0, 1, 2)]}
    assert found.users == {("Hi.", "low"): [(3, 4)]}
    assert read_speech(held_out=True).users == {("Bye.", "plain"): [(5,)]}


def test_plan_of_what_is_said() -> None:
    texts = [f"Sentence {index}." for index in range(40)]
    shards = in_shards("reply", [target(text) for text in texts])
    assert [len(shard.utterances) for shard in shards] == [16, 16, 8]
    assert len({shard.name for shard in shards}) == 3
    assert in_shards("reply", [target(text) for text in texts[1:]])[0].name != shards[0].name
    assert [shard.index for shard in evenly([shards, shards[:1]])] == [0, 1, 0, 2]
    assert not set(KOKORO_USERS) & set(KOKORO_HELD_OUT) and len(KOKORO_USERS) >= 20 and FIRST_HOUR % 2 == 0
    low, high = (said_by_user("Tomorrow is my birthday.", tone) for tone in ("low", "high"))
    assert low.speed < 0.95 < 1.05 < high.speed and low.pitch < high.pitch


def test_scores_of_replies() -> None:
    exam = next(situation for situation in SITUATIONS if situation.topic == "the exam")
    right = Said(
        "The user feels sad because they failed their exam.", "One exam does not say who you are.", ()
    )
    other = Said("The user feels happy because they got a new job.", "I am glad that you got a new job.", ())
    lost = Said(smalltalk.OUTSIDE_REFLECTION[0], smalltalk.OUTSIDE_REPLIES[0], ())
    assert names_feeling(right, exam) and names_situation(right, exam) and not is_not_understood(right)
    assert not names_feeling(other, exam) and not names_situation(other, exam)
    assert is_not_understood(lost)
    assert all(situation_of()[text] is exam for text in grammar.user_sentences(exam))


def test_answers_are_whole_with_and_without_a_cache() -> None:
    torch.manual_seed(0)
    model = LanguageModel().eval()
    said = answer(model, range(20))
    assert said.reflection and len(said.codes) <= 326
    assert answer(model, range(20), reflect=False).reflection == ""
    ids = torch.randint(SIZE, (1, 40))
    caches: list[list[torch.Tensor]] = [[] for _ in range(NUM_LAYERS)]
    with torch.inference_mode():
        whole = model(ids)
        model(ids[:, :39], 0, caches)
        assert torch.allclose(model(ids[:, 39:], 39, caches)[0, 0], whole[0, -1], atol=1e-5)


def test_no_kind_of_dialogue_waits_for_the_long_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "general_sentences", lambda held_out: [f"Sentence {n}." for n in range(1400)])
    monkeypatch.setattr(plan, "outside_sentences", lambda held_out: [f"Outside {n}." for n in range(900)])
    queues = plan.queues()
    core = {entry.text for shard in queues["core"] for entry in shard.utterances}
    needed = (*smalltalk.OUTSIDE_REPLIES, *smalltalk.GREETING_REPLIES, *smalltalk.THANKS_REPLIES)
    assert {*needed, *smalltalk.GOODBYE_REPLIES} <= core
    for replies in smalltalk.TONE_REPLIES.values():
        assert {reply.format(topic=topic) for reply in replies for _, topic in smalltalk.NEUTRAL} <= core
    said = [entry.text for shards in queues.values() for shard in shards for entry in shard.utterances]
    assert sum(text.startswith("Outside") for text in set(said)) == plan.NUM_OUTSIDE + plan.NUM_OUTSIDE_EARLY
    kinds = [shard.kind for shard in queues["rest"]]
    first_general = kinds.index("general")
    assert set(kinds[:first_general]) == {"reply", "user"}
    assert set(kinds[first_general:]) == {"general"}


def test_a_reflection_before_all_of_the_reply_has_spaces_between_its_sentences(speech: Speech) -> None:
    dialogues = Dialogues(speech)
    whole = {" ".join(parts) for situation in SITUATIONS[:3] for parts in grammar.reflections(situation)}
    found = set()
    for seed in range(200):
        ids = dialogues.draw(random.Random(seed)).ids
        begins = ids.index(OPEN) if OPEN in ids else len(ids)
        found.add(decode(list(ids[begins + 1 : ids.index(CLOSE)])) if CLOSE in ids else "")
    assert found & whole
    assert not any(".The" in text or ".Do" in text for text in found)
