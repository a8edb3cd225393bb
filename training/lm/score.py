"""Whether a reply fits: the feeling and the situation are named, and what is outside the world is not
answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from training.lm.speak import Said
from training.text import smalltalk
from training.text.emotions import EMOTIONS
from training.text.grammar import outside_sentences, user_sentences
from training.text.situations import SITUATIONS, Situation

FollowUp = tuple[str, Sequence[str], Sequence[str], tuple[str, str, str]]


@cache
def situation_of() -> dict[str, Situation]:
    """Return the situation of everything that a user may tell."""
    return {text: situation for situation in SITUATIONS for text in user_sentences(situation)}


@cache
def outside() -> frozenset[str]:
    """Return the held-out sentences that the listener should not understand."""
    return frozenset(outside_sentences(held_out=True))


def names_feeling(said: Said, situation: Situation) -> bool:
    """Say whether the reflection names the situation's feeling."""
    return situation.emotion in said.reflection.lower().replace(".", " ").split()


def names_situation(said: Said, situation: Situation) -> bool:
    """Say whether the reply or the reflection speaks of this situation and of no other that shares its
    topic.
    """
    reply = said.text.lower()
    own = (situation.clause, situation.question, situation.advice)
    if any(part.lower() in reply for part in own) or situation.third_person in said.reflection.lower():
        return True
    theirs = situation.topic.replace("your ", "their ")
    return names_feeling(said, situation) and (situation.topic in reply or theirs in said.reflection.lower())


def is_not_understood(said: Said) -> bool:
    """Say whether the reply is one of those for what is outside the listener's world."""
    return said.text.strip() in smalltalk.OUTSIDE_REPLIES or said.reflection.startswith(
        smalltalk.OUTSIDE_REFLECTION[0]
    )


def follow_up_of(question: str, situation: Situation) -> FollowUp | None:
    """Return the kind of second turn that a question is, if it fits the feeling of the first turn's situation."""
    pleasant = EMOTIONS[situation.emotion].is_pleasant
    fitting = [
        entry
        for entry in smalltalk.FOLLOW_UPS
        if question in entry[1] and (entry[0] in smalltalk.PLEASANT_FOLLOW_UPS) == pleasant
    ]
    return fitting[0] if fitting else None


def follows_up(said: Said, entry: FollowUp) -> bool:
    """Say whether a reply is one for this kind of second turn, whatever topic it names; else its reflection is."""
    _, _, answers, reflection = entry
    heads = [text.split("{topic}") for text in (*answers, reflection[0])]
    return any(
        candidate.startswith(parts[0]) and candidate.endswith(parts[-1])
        for parts, candidate in zip(
            heads, [said.text.strip()] * len(answers) + [_first_sentence(said)], strict=True
        )
    )


def keeps_topic(said: Said, situation: Situation) -> bool:
    """Say whether a second turn still names the topic of the first one, in its reflection or its reply."""
    theirs = situation.topic.replace("your ", "their ")
    return theirs in said.reflection or situation.topic in said.text


def _first_sentence(said: Said) -> str:
    return said.reflection.split(". ")[0].rstrip(".") + "."


@dataclass
class Share:
    """How many of how many."""

    good: int = 0
    of: int = 0

    def add(self, is_good: bool) -> None:
        """Count one more."""
        self.good += is_good
        self.of += 1

    @property
    def value(self) -> float | None:
        """Return the share, None of nothing."""
        return round(self.good / self.of, 4) if self.of else None
