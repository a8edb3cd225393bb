"""What is to be said, by which voice and how: lists of utterances in shards, the same in every run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from training.text import smalltalk
from training.text.general import general_sentences
from training.text.grammar import TONES, chosen_replies, outside_sentences, small_replies, user_sentences
from training.text.situations import SITUATIONS
from training.text.split import digest, is_held_out, shuffled

TARGET_VOICE = "af_heart"
SHARD_SIZE = 16

# Voices of users; those held out are heard in evaluation only.
KOKORO_USERS = (
    *(
        "af_alloy",
        "af_aoede",
        "af_bella",
        "af_jessica",
        "af_kore",
        "af_nicole",
        "af_nova",
        "af_sarah",
        "af_sky",
    ),
    *("am_adam", "am_echo", "am_eric", "am_liam", "am_michael", "am_onyx", "am_santa"),
    *("bf_alice", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_lewis"),
)
KOKORO_HELD_OUT = ("af_river", "am_fenrir", "am_puck", "bf_emma", "bm_george")
ESPEAK_USERS = ("en-us+m1", "en-us+f2", "en+m3", "en+f4", "en-us+m7", "en+f1")
ESPEAK_HELD_OUT = ("en-us+m4", "en+f3")
ESPEAK_SHARE = 8  # one user utterance in this many

# How a tone sounds: factors of speed and pitch.
TONE_FACTORS = {"plain": (1.0, 1.0), "low": (0.82, 0.93), "high": (1.2, 1.1)}

REPLIES_PER_SITUATION = 56
USERS_PER_SITUATION = 20
NUM_GENERAL = 1200
NUM_GENERAL_TEST = 32
NUM_OUTSIDE = 240
NUM_OUTSIDE_TEST = 24
FIRST_HOUR = 56  # shards, half of them replies, before users are said
FIRST_USERS = 40  # shards
NUM_OUTSIDE_EARLY = 160


@dataclass(frozen=True)
class Utterance:
    """One text, its voice and the manner of speaking: speed and pitch as factors, 1 as the voice is."""

    text: str
    voice: str
    speed: float = 1.0
    pitch: float = 1.0
    tone: str = "plain"


@dataclass(frozen=True)
class Shard:
    """A few utterances of one set; the name changes with the content, so that a changed text is said anew."""

    kind: str
    index: int
    utterances: tuple[Utterance, ...]

    @property
    def name(self) -> str:
        """Return the file name without its ending."""
        content = json.dumps([asdict(entry) for entry in self.utterances])
        return f"{self.kind}-{self.index:04d}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def target(text: str) -> Utterance:
    """Return a text in the voice that the model learns to speak with."""
    return Utterance(text, TARGET_VOICE)


def in_shards(kind: str, utterances: list[Utterance]) -> list[Shard]:
    """Cut a list of utterances into shards."""
    return [
        Shard(kind, index, tuple(utterances[start : start + SHARD_SIZE]))
        for index, start in enumerate(range(0, len(utterances), SHARD_SIZE))
    ]


def random_voice(text: str, salt: str, kokoro: tuple[str, ...], espeak: tuple[str, ...]) -> str:
    """Return the voice of a user, drawn by a hash of the text."""
    draw = digest(text, f"voice {salt}")
    if draw % ESPEAK_SHARE == 0:
        return espeak[draw // ESPEAK_SHARE % len(espeak)]
    return kokoro[draw // ESPEAK_SHARE % len(kokoro)]


def user(text: str, tone: str = "plain", salt: str = "", held_out: bool = False) -> Utterance:
    """Return a text as a user says it: voice, speed and pitch are drawn by a hash around what the tone
    asks for.
    """
    voices = (KOKORO_HELD_OUT, ESPEAK_HELD_OUT) if held_out else (KOKORO_USERS, ESPEAK_USERS)
    voice = random_voice(text, f"{salt} {tone}", *voices)
    speed, pitch = TONE_FACTORS[tone]
    spread = digest(text, f"spread {salt} {tone}")
    speed *= 0.92 + 0.16 * (spread % 1000) / 999
    pitch *= 0.97 + 0.06 * (spread // 1000 % 1000) / 999
    return Utterance(text, voice, round(speed, 3), round(pitch, 3), tone)


def situation_users(num: int, held_out: bool) -> list[Utterance]:
    """Return what users tell of every situation, `num` sentences each, a third of them in the feeling's
    tone.
    """
    found = []
    for situation in SITUATIONS:
        told = [text for text in user_sentences(situation) if is_held_out(text) == held_out]
        for text in shuffled(told, "users")[:num]:
            toned = digest(text, "tone") % 3 == 0
            tone = TONES.get(situation.emotion, "plain") if toned else "plain"
            found.append(user(text, tone, held_out=held_out))
    return found


def small_users(copies: int, held_out: bool) -> list[Utterance]:
    """Return small talk, second turns and sentences of all tones, each by `copies` voices."""
    plain = [*smalltalk.GREETINGS, *smalltalk.THANKS, *smalltalk.GOODBYES]
    plain += [text for _, users, _, _ in smalltalk.FOLLOW_UPS for text in users]
    found = [user(text, salt=str(copy), held_out=held_out) for text in plain for copy in range(copies)]
    return found + [
        user(text, tone, str(copy), held_out)
        for text, _ in smalltalk.NEUTRAL
        for tone in TONE_FACTORS
        for copy in range(2 * copies)
    ]


def core_replies() -> list[str]:
    """Return the replies without which a whole kind of dialogue could not be learned: small talk and tones."""
    texts = [
        *smalltalk.OUTSIDE_REPLIES,
        *smalltalk.GREETING_REPLIES,
        *smalltalk.THANKS_REPLIES,
        *smalltalk.GOODBYE_REPLIES,
    ]
    texts += [
        text.format(topic=topic)
        for answers in smalltalk.TONE_REPLIES.values()
        for text in answers
        for _, topic in smalltalk.NEUTRAL
    ]
    return list(dict.fromkeys(texts))


def mixed(utterances: list[Utterance]) -> list[Utterance]:
    """Return utterances in a fixed random order, so that every shard has something of everything."""
    return sorted(utterances, key=lambda entry: digest(json.dumps(asdict(entry)), "mixed"))


def sets() -> dict[str, list[Shard]]:
    """Return every set of the plan as shards: those for evaluation end in `-test`."""
    foreign = [user(text) for text in outside_sentences(held_out=False)[: NUM_OUTSIDE + NUM_OUTSIDE_EARLY]]
    outside, outside_early = foreign[:NUM_OUTSIDE], foreign[NUM_OUTSIDE:]
    outside_test = [user(text, held_out=True) for text in outside_sentences(held_out=True)[:NUM_OUTSIDE_TEST]]
    texts = {
        "reply-test": [target(text) for text in chosen_replies(True, 1)],
        "general-test": [target(text) for text in general_sentences(True)[:NUM_GENERAL_TEST]],
        "general": [target(text) for text in general_sentences(False)[:NUM_GENERAL]],
        "reply": mixed(
            [target(text) for text in (*small_replies(), *chosen_replies(False, REPLIES_PER_SITUATION))]
        ),
        "reply-core": [target(text) for text in core_replies()],
        "user-core": outside_early,
        "user-test": mixed(situation_users(1, held_out=True) + small_users(1, held_out=True) + outside_test),
        "user": mixed(situation_users(USERS_PER_SITUATION, held_out=False) + small_users(4, False) + outside),
    }
    return {kind: in_shards(kind, utterances) for kind, utterances in texts.items()}


def queues() -> dict[str, list[Shard]]:
    """Return all shards in the order in which they are of use.

    `first` is an hour of the target voice for the vocoder, `users` enough users to fit the codebook and the
    questions of the evaluation, `core` what small talk and sentences from outside need, `rest` everything else.
    """
    plan = sets()
    half = FIRST_HOUR // 2
    first = [*plan["reply-test"], *plan["general-test"]]
    for pair in zip(plan["reply"][:half], plan["general"][:half], strict=True):
        first += pair
    users = plan["user"]
    dialogues = evenly([plan["reply"][half:], users[FIRST_USERS:]])
    return {
        "first": first,
        "users": [*plan["user-test"], *users[:FIRST_USERS]],
        "core": evenly([plan["reply-core"], plan["user-core"]]),
        "rest": [*dialogues, *plan["general"][half:]],
    }


def evenly(lists: list[list[Shard]]) -> list[Shard]:
    """Return the members of all lists, each list spread evenly over the whole."""
    placed = [((index + 0.5) / len(shards), shard) for shards in lists for index, shard in enumerate(shards)]
    return [shard for _, shard in sorted(placed, key=lambda pair: pair[0])]
