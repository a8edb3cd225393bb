"""The grammar of an empathic listener: dialogues of one or two turns with a hidden reflection, over a small
vocabulary.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass

from training.text import smalltalk
from training.text.emotions import (
    EMOTIONS,
    PLEASANT_ENDS,
    PLEASANT_MIDDLES,
    UNPLEASANT_ENDS,
    UNPLEASANT_MIDDLES,
    Emotion,
)
from training.text.general import general_sentences
from training.text.situations import SITUATIONS, Situation
from training.text.split import is_held_out, shuffled

BEFORE = ("", "", "", "Hello, ", "Hi, ", "You know, ", "Well, ", "I want to tell you something, ", "Listen, ")
AFTER_UNPLEASANT = (
    "",
    "",
    "",
    " and I feel {emotion}",
    " and I do not know what to do",
    " so I feel {emotion}",
)
AFTER_PLEASANT = ("", "", "", " and I feel {emotion}", " and I had to tell someone", " so I feel {emotion}")

# How the voice of a feeling tends to sound; a part of the users' recordings follows it.
TONES = {"sad": "low", "lonely": "low", "tired": "low", "angry": "high", "happy": "high", "proud": "high"}


@dataclass(frozen=True)
class Turn:
    """One question and its answer; the reflection has three sentences: what is felt and why, what to
    do, what to avoid.
    """

    user: str
    tone: str
    reflection: tuple[str, str, str]
    reply: str


@dataclass(frozen=True)
class Dialogue:
    """One or two turns about one thing; `kind` is `situation` or a kind of small talk."""

    kind: str
    emotion: str
    topic: str
    turns: tuple[Turn, ...]


def sentence(text: str) -> str:
    """Return a text with a capital and a full stop."""
    return text[0].upper() + text[1:] + ("" if text[-1] in ".?!" else ".")


def user_sentences(situation: Situation) -> list[str]:
    """Return all the ways in which a user may tell of a situation."""
    after = AFTER_PLEASANT if EMOTIONS[situation.emotion].is_pleasant else AFTER_UNPLEASANT
    found = {
        sentence(before + told + tail.format(emotion=situation.emotion))
        for before in BEFORE
        for told in situation.told
        for tail in after
    }
    return sorted(found)


def replies(situation: Situation) -> list[str]:
    """Return every reply to a situation: opening, middle and end, or an opening with one of the two."""
    emotion = EMOTIONS[situation.emotion]
    fields = {"clause": situation.clause, "topic": situation.topic, "emotion": situation.emotion}
    middles = [
        text.format(**fields) for text in (PLEASANT_MIDDLES if emotion.is_pleasant else UNPLEASANT_MIDDLES)
    ]
    own = [situation.question, situation.advice]
    ends = [*(PLEASANT_ENDS if emotion.is_pleasant else UNPLEASANT_ENDS), *own]
    whole = [
        f"{opening} {middle} {end}" for opening in emotion.openings for middle in middles for end in ends
    ]
    short = [f"{opening} {rest}" for opening in emotion.openings for rest in (*middles, *own)]
    return whole + short


def reflections(situation: Situation) -> list[tuple[str, str, str]]:
    """Return every reflection on a situation."""
    emotion: Emotion = EMOTIONS[situation.emotion]
    felt = (
        f"The user feels {situation.emotion} because {situation.third_person}.",
        f"The user sounds {situation.emotion} about {situation.topic.replace('your ', 'their ')}.",
    )
    return [(first, step, avoid) for first in felt for step in emotion.next_steps for avoid in emotion.avoid]


def short_reflections() -> list[tuple[str, str, str]]:
    """Return the reflections of small talk, tones and second turns, about every topic that they may have."""
    found = [
        smalltalk.GREETING_REFLECTION,
        smalltalk.THANKS_REFLECTION,
        smalltalk.GOODBYE_REFLECTION,
        smalltalk.OUTSIDE_REFLECTION,
    ]
    found += [
        about(reflection, topic)
        for reflection in smalltalk.TONE_REFLECTIONS.values()
        for _, topic in smalltalk.NEUTRAL
    ]
    return found + [
        about(reflection, situation.topic)
        for *_, reflection in smalltalk.FOLLOW_UPS
        for situation in SITUATIONS
    ]


def about(reflection: tuple[str, str, str], topic: str) -> tuple[str, str, str]:
    """Return a reflection with its topic, as a note about the user."""
    theirs = topic.replace("your ", "their ")
    felt, step, avoid = (part.format(topic=theirs) for part in reflection)
    return felt, step, avoid


def _second_turn(situation: Situation, rng: random.Random) -> Turn:
    pleasant = EMOTIONS[situation.emotion].is_pleasant
    kinds = [
        entry for entry in smalltalk.FOLLOW_UPS if (entry[0] in smalltalk.PLEASANT_FOLLOW_UPS) == pleasant
    ]
    _, users, answers, reflection = rng.choice(kinds)
    reply = rng.choice(answers).format(topic=situation.topic)
    return Turn(rng.choice(users), "plain", about(reflection, situation.topic), reply)


def situation_dialogue(situation: Situation, rng: random.Random, two_turns: bool) -> Dialogue:
    """Return one dialogue about a situation."""
    tone = TONES.get(situation.emotion, "plain") if rng.random() < 0.3 else "plain"
    first = Turn(
        rng.choice(user_sentences(situation)),
        tone,
        rng.choice(reflections(situation)),
        rng.choice(replies(situation)),
    )
    turns = (first, _second_turn(situation, rng)) if two_turns else (first,)
    return Dialogue("situation", situation.emotion, situation.topic, turns)


def small_talk_dialogue(kind: str, rng: random.Random) -> Dialogue:
    """Return a greeting, a thanks, a goodbye or something that is not understood."""
    users, answers, reflection = {
        "greeting": (smalltalk.GREETINGS, smalltalk.GREETING_REPLIES, smalltalk.GREETING_REFLECTION),
        "thanks": (smalltalk.THANKS, smalltalk.THANKS_REPLIES, smalltalk.THANKS_REFLECTION),
        "goodbye": (smalltalk.GOODBYES, smalltalk.GOODBYE_REPLIES, smalltalk.GOODBYE_REFLECTION),
        "outside": (smalltalk.OUTSIDE, smalltalk.OUTSIDE_REPLIES, smalltalk.OUTSIDE_REFLECTION),
    }[kind]
    turn = Turn(rng.choice(users), "plain", reflection, rng.choice(answers))
    return Dialogue(kind, "", "", (turn,))


def tone_dialogue(rng: random.Random) -> Dialogue:
    """Return a dialogue in which the words say nothing and the voice everything."""
    text, topic = rng.choice(smalltalk.NEUTRAL)
    tone = rng.choice(sorted(smalltalk.TONE_REPLIES))
    answer = rng.choice(smalltalk.TONE_REPLIES[tone]).format(topic=topic)
    reflection = about(smalltalk.TONE_REFLECTIONS[tone], topic)
    return Dialogue("tone", "", topic, (Turn(text, tone, reflection, answer),))


def small_replies() -> list[str]:
    """Return the replies of small talk, second turns and tones: too few to hold any out, training sees
    them all.
    """
    found = dict.fromkeys(
        (
            *smalltalk.GREETING_REPLIES,
            *smalltalk.THANKS_REPLIES,
            *smalltalk.GOODBYE_REPLIES,
            *smalltalk.OUTSIDE_REPLIES,
        )
    )
    for answers in smalltalk.TONE_REPLIES.values():
        found.update(
            dict.fromkeys(text.format(topic=topic) for text in answers for _, topic in smalltalk.NEUTRAL)
        )
    for situation in SITUATIONS:
        for kind, _, answers, _ in smalltalk.FOLLOW_UPS:
            if (kind in smalltalk.PLEASANT_FOLLOW_UPS) == EMOTIONS[situation.emotion].is_pleasant:
                found.update(dict.fromkeys(text.format(topic=situation.topic) for text in answers))
    return list(found)


def all_replies() -> list[str]:
    """Return every reply that the grammar can make, without repetition, in a fixed order."""
    found = dict.fromkeys(text for situation in SITUATIONS for text in replies(situation))
    found.update(dict.fromkeys(small_replies()))
    return list(found)


def chosen_replies(held_out: bool, per_situation: int) -> list[str]:
    """Return replies of one side of the split, equally many for each situation, in a random order."""
    found: dict[str, None] = {}
    for situation in SITUATIONS:
        own = [text for text in replies(situation) if is_held_out(text) == held_out]
        found.update(dict.fromkeys(shuffled(own, "replies")[:per_situation]))
    return shuffled(list(found), "order")


def outside_sentences(held_out: bool) -> list[str]:
    """Return sentences from outside the listener's world: requests, and chat about anything."""
    chat = [text for text in general_sentences(held_out) if not about_feelings(text)]
    return [*(text for text in smalltalk.OUTSIDE if is_held_out(text) == held_out), *chat]


def about_feelings(text: str) -> bool:
    """Say whether a sentence has a word of feeling, so that the listener should rather answer it."""
    return bool(re.search(r"\b(feel|love|hate|sorry|happy|sad|thank|hello|hi|bye|good)", text.lower()))


def vocabulary(texts: list[str]) -> set[str]:
    """Return the words of texts."""
    return {word for text in texts for word in re.findall(r"[a-z']+", text.lower())}


def dialogues(seed: int, num: int) -> Iterator[Dialogue]:
    """Yield random dialogues: three quarters situations, the rest small talk, tones and what is not
    understood.
    """
    rng = random.Random(seed)
    for _ in range(num):
        draw = rng.random()
        if draw < 0.75:
            yield situation_dialogue(rng.choice(SITUATIONS), rng, two_turns=rng.random() < 0.25)
        elif draw < 0.85:
            yield tone_dialogue(rng)
        else:
            yield small_talk_dialogue(
                rng.choice(("greeting", "thanks", "goodbye", "outside", "outside")), rng
            )
