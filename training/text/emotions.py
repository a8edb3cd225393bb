"""Twelve feelings: how a listener opens, and what the hidden reflection notes as the next step and as the
thing to avoid.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Emotion:
    """One feeling and the manner in which a good listener meets it."""

    name: str
    is_pleasant: bool
    openings: tuple[str, ...]
    next_steps: tuple[str, ...]
    avoid: tuple[str, ...]


def _emotion(name: str, openings: str, next_steps: str, avoid: str, is_pleasant: bool = False) -> Emotion:
    return Emotion(name, is_pleasant, *(tuple(part.split("|")) for part in (openings, next_steps, avoid)))


EMOTIONS: dict[str, Emotion] = {
    entry.name: entry
    for entry in (
        _emotion(
            "sad",
            "I am so sorry to hear that.|Oh, that is so sad.|That must hurt a lot.|I am sorry, that is a hard day."
            "|My heart goes out to you.",
            "Name the loss and stay with it.|Be close and ask one question.",
            "Do not cheer them up too fast.|Do not give advice yet.",
        ),
        _emotion(
            "lonely",
            "That sounds very lonely.|I am glad that you told me.|Being alone is hard.|You are not alone right now."
            "|It is hard to be without the people you like.",
            "Be close and ask about people they like.|Show that someone listens.",
            "Do not say that it is nothing.|Do not talk about myself.",
        ),
        _emotion(
            "worried",
            "I can hear that you are worried.|That is a lot to worry about.|Oh, I hope it will be fine."
            "|I understand why you worry.|It is hard not to know.",
            "Stay calm and ask what they know.|Look for one small step.",
            "Do not promise that all will be well.|Do not add new worries.",
        ),
        _emotion(
            "nervous",
            "It is normal to be nervous.|Take a deep breath with me.|I can hear that you are nervous."
            "|That is a big step.|It shows that you care.",
            "Say that it is normal and slow down.|Encourage them in a few words.",
            "Do not add pressure.|Do not call it easy.",
        ),
        _emotion(
            "scared",
            "That sounds scary.|I am right here with you.|Waiting is the hardest part.|It is okay to be scared."
            "|Anyone would be scared.",
            "Make sure that they are safe.|Speak slowly and stay close.",
            "Do not make it sound worse.|Do not laugh at the fear.",
        ),
        _emotion(
            "angry",
            "I can hear how angry you are.|That does not sound fair.|I would be angry too.|Wow, that was not kind."
            "|No wonder that you are angry.",
            "Let them be angry and ask what happened.|Take the anger seriously.",
            "Do not take a side.|Do not tell them to calm down.",
        ),
        _emotion(
            "tired",
            "You sound so tired.|That is too much for one person.|No wonder you are tired."
            "|Please be gentle with yourself.|You need a break.",
            "Keep it short and ask who can help.|Allow them to rest.",
            "Do not ask too much.|Do not give them more to do.",
        ),
        _emotion(
            "sorry",
            "Everyone makes mistakes.|It is good that you care.|I can hear that you are sorry."
            "|Do not be too hard on yourself.|It takes courage to say that.",
            "Accept the mistake and look ahead.|Ask what they want to do now.",
            "Do not judge.|Do not say that it does not matter.",
        ),
        _emotion(
            "confused",
            "It is okay not to know.|That is not an easy choice.|I can hear that you are not sure."
            "|Many people feel lost sometimes.|Let us look at it slowly.",
            "Sort it out with them, one thing at a time.|Ask what matters most.",
            "Do not decide for them.|Do not hurry.",
        ),
        _emotion(
            "happy",
            "Oh, that is wonderful news.|That is great, I am so happy for you.|What a lovely day.|I love to hear that."
            "|You sound so happy.",
            "Share the joy and ask for more.|Celebrate with them.",
            "Do not look for problems.|Do not change the topic.",
            is_pleasant=True,
        ),
        _emotion(
            "proud",
            "You should be very proud.|Wow, that is amazing.|Well done, you worked hard for it."
            "|That is a great thing to hear.|Not everyone can do that.",
            "Praise the work behind it.|Let them tell how they did it.",
            "Do not compare.|Do not make it smaller.",
            is_pleasant=True,
        ),
        _emotion(
            "thankful",
            "How kind.|That is so good to hear.|There are good people in the world.|What a beautiful thing."
            "|That must feel warm.",
            "Enjoy the kindness with them.|Ask about the person.",
            "Do not doubt the kindness.|Do not talk about money.",
            is_pleasant=True,
        ),
    )
}

# The middle of a reply: {clause} and {topic} come from the situation, {emotion} is the feeling's name.
UNPLEASANT_MIDDLES = (
    "It is hard when {clause}.",
    "It makes sense that you feel {emotion} when {clause}.",
    "Of course you feel {emotion} about {topic}.",
    "I understand that {clause}.",
    "Thinking about {topic} must be hard for you.",
    "Anyone would feel {emotion} about {topic}.",
    "So {clause}, and now you feel {emotion}.",
)
PLEASANT_MIDDLES = (
    "It is so nice that {clause}.",
    "I am glad that {clause}.",
    "It is good to feel {emotion} about {topic}.",
    "So {clause}, and you feel {emotion}.",
    "Thinking about {topic} must make you smile.",
    "I can hear how much it means that {clause}.",
)
UNPLEASANT_ENDS = (
    "Do you want to tell me more?",
    "What would help you right now?",
    "How long have you felt this way?",
    "Is there someone you can call?",
    "What is the hardest part?",
    "I am here for you.",
    "We can talk about it slowly.",
    "You can take your time.",
)
PLEASANT_ENDS = (
    "How do you want to celebrate?",
    "Who did you tell first?",
    "Tell me how it felt.",
    "What was the best part?",
    "What will you do next?",
    "I hope you enjoy every minute.",
    "You can tell me everything.",
)
