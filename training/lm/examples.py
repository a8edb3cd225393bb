"""Training dialogues: recordings, reflections and replies that go together, drawn anew for every step."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from training.features.codebook import VOCAB_SIZE as NUM_CODES
from training.lm.layout import MODES, Mode, fits, prompt, reply
from training.lm.vocabulary import FIRST_CODE, encode
from training.text import grammar, smalltalk
from training.text.emotions import EMOTIONS
from training.text.situations import SITUATIONS, Situation
from training.workdir import work_dir

Codes = tuple[int, ...]
Reflection = tuple[str, str, str]

TWO_TURNS = 0.2  # share of the situations that go on
# Chances of the kinds of dialogues.
KINDS = {"situation": 0.72, "tone": 0.05, "greeting": 0.04, "thanks": 0.04, "goodbye": 0.04, "outside": 0.11}
MODE_CHANCES = {"off": 0.15, "first": 0.4, "after": 0.3, "before": 0.15}
CORRUPT_RECORDINGS = 0.5
CORRUPT_CODES = 0.03


@dataclass
class Speech:
    """What was said: codes by text, of replies, and of users by text and tone."""

    replies: dict[str, list[Codes]] = field(default_factory=lambda: defaultdict(list))
    users: dict[tuple[str, str], list[Codes]] = field(default_factory=lambda: defaultdict(list))


def read_speech(path: Path | None = None, held_out: bool = False) -> Speech:
    """Return the speech of the compact file of tokens: of training, or of the held-out sets."""
    found = Speech()
    with np.load(path or work_dir() / "tokens.npz") as file:
        bounds = np.cumsum(file["num_tokens"].astype(np.int64))[:-1]
        rows = zip(file["kinds"], file["texts"], file["tones"], np.split(file["codes"], bounds), strict=True)
    for kind, text, tone, codes in rows:
        if str(kind).endswith("-test") != held_out:
            continue
        said = tuple(int(code) for code in codes)
        if kind.startswith("reply"):
            found.replies[str(text)].append(said)
        elif kind.startswith("user"):
            found.users[str(text), str(tone)].append(said)
    return found


@dataclass(frozen=True)
class Topic:
    """Questions and answers that fit one another: any of the one with any of the other."""

    questions: tuple[tuple[Codes, ...], ...]
    reflections: tuple[Reflection, ...]
    answers: tuple[tuple[str, tuple[Codes, ...]], ...]


@dataclass(frozen=True)
class Example:
    """Ids of a dialogue, and which of them the model says."""

    ids: list[int]
    is_said: list[bool]


class Dialogues:
    """Draws dialogues from what has been said so far; kinds of which nothing has been said are left out."""

    def __init__(self, speech: Speech) -> None:
        self._speech = speech
        self._situations: list[tuple[Topic, list[Topic]]] = []
        for situation in SITUATIONS:
            topic = self._situation(situation)
            if topic.questions and topic.answers:
                self._situations.append((topic, self._follow_ups(situation)))
        topics = {
            "tone": [
                self._tone(*neutral, tone) for neutral in smalltalk.NEUTRAL for tone in smalltalk.TONE_REPLIES
            ],
            "greeting": [
                self._talk(smalltalk.GREETINGS, smalltalk.GREETING_REFLECTION, smalltalk.GREETING_REPLIES)
            ],
            "thanks": [self._talk(smalltalk.THANKS, smalltalk.THANKS_REFLECTION, smalltalk.THANKS_REPLIES)],
            "goodbye": [
                self._talk(smalltalk.GOODBYES, smalltalk.GOODBYE_REFLECTION, smalltalk.GOODBYE_REPLIES)
            ],
            "outside": [self._outside()],
        }
        self._topics = {
            kind: [topic for topic in entries if topic.questions and topic.answers]
            for kind, entries in topics.items()
        }
        self._kinds = [
            kind for kind in KINDS if (self._situations if kind == "situation" else self._topics[kind])
        ]

    def draw(self, rng: random.Random) -> Example:
        """Return a random dialogue of one or two turns, in a random order of reflection and reply.

        Raises:
            ValueError: Nothing has been said yet of which a dialogue could be made.
        """
        if not self._kinds:
            raise ValueError(
                "no question and no reply have codes yet: run the stages synth-users and tokens first"
            )
        (kind,) = rng.choices(self._kinds, [KINDS[kind] for kind in self._kinds])
        mode = rng.choices(MODES, [MODE_CHANCES[mode] for mode in MODES])[0]
        if kind != "situation":
            return joined([turn(rng.choice(self._topics[kind]), mode, True, rng)])
        topic, follow_ups = rng.choice(self._situations)
        turns = [turn(topic, mode, True, rng)]
        if follow_ups and rng.random() < TWO_TURNS:
            turns.append(turn(rng.choice(follow_ups), mode, False, rng))
        return joined(turns)

    def _questions(self, texts: list[str], tones: tuple[str, ...]) -> tuple[tuple[Codes, ...], ...]:
        users = self._speech.users
        return tuple(tuple(users[text, tone]) for text in texts for tone in tones if (text, tone) in users)

    def _answers(self, texts: list[str]) -> tuple[tuple[str, tuple[Codes, ...]], ...]:
        said = self._speech.replies
        fitting = {
            text: tuple(codes for codes in said[text] if fits(encode(text), codes))
            for text in texts
            if text in said
        }
        return tuple((text, codes) for text, codes in fitting.items() if codes)

    def _situation(self, situation: Situation) -> Topic:
        return Topic(
            self._questions(grammar.user_sentences(situation), ("plain", "low", "high")),
            tuple(grammar.reflections(situation)),
            self._answers(grammar.replies(situation)),
        )

    def _follow_ups(self, situation: Situation) -> list[Topic]:
        pleasant = EMOTIONS[situation.emotion].is_pleasant
        found = [
            Topic(
                self._questions(list(users), ("plain",)),
                (grammar.about(reflection, situation.topic),),
                self._answers([text.format(topic=situation.topic) for text in answers]),
            )
            for kind, users, answers, reflection in smalltalk.FOLLOW_UPS
            if (kind in smalltalk.PLEASANT_FOLLOW_UPS) == pleasant
        ]
        return [topic for topic in found if topic.questions and topic.answers]

    def _tone(self, text: str, about: str, tone: str) -> Topic:
        answers = [reply.format(topic=about) for reply in smalltalk.TONE_REPLIES[tone]]
        reflection = grammar.about(smalltalk.TONE_REFLECTIONS[tone], about)
        return Topic(self._questions([text], (tone,)), (reflection,), self._answers(answers))

    def _talk(self, users: list[str], reflection: Reflection, answers: list[str]) -> Topic:
        return Topic(self._questions(users, ("plain",)), (reflection,), self._answers(answers))

    def _outside(self) -> Topic:
        texts = grammar.outside_sentences(held_out=False)
        return self._talk(texts, smalltalk.OUTSIDE_REFLECTION, smalltalk.OUTSIDE_REPLIES)


def turn(topic: Topic, mode: Mode, first: bool, rng: random.Random) -> tuple[list[int], list[int]]:
    """Return the ids of a random question of a topic, and those of a random answer to it."""
    question = list(rng.choice(rng.choice(topic.questions)))
    if rng.random() < CORRUPT_RECORDINGS:
        question = [rng.randrange(NUM_CODES) if rng.random() < CORRUPT_CODES else code for code in question]
    text, recordings = rng.choice(topic.answers)
    reflection = rng.choice(topic.reflections)
    segments = [" ".join(reflection)] if mode == "first" else reflection
    hidden = [encode(segment) for segment in segments]
    return prompt(question, first), reply(encode(text), rng.choice(recordings), hidden, mode)


def joined(turns: list[tuple[list[int], list[int]]]) -> Example:
    """Return turns as one dialogue: the end of a turn is the token that begins the next one."""
    ids: list[int] = []
    is_said: list[bool] = []
    for place, (asked, answered) in enumerate(turns):
        if place:
            asked = asked[1:]
        ids += asked + answered
        is_said += [False] * len(asked) + [True] * len(answered)
    return Example(ids, is_said)


def corrupted(ids: list[int], is_said: list[bool], share: float, rng: random.Random) -> list[int]:
    """Return ids with a share of the reply's codes replaced: what the model sees, not what it should say."""
    return [
        FIRST_CODE + rng.randrange(NUM_CODES)
        if said and token >= FIRST_CODE and rng.random() < share
        else token
        for token, said in zip(ids, is_said, strict=True)
    ]
