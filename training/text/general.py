"""General English sentences: the sounds that the grammar's few hundred words leave out."""

from __future__ import annotations

import json
import re

from training.sources import unpacked
from training.text.split import is_held_out, shuffled

# Plain sentences of 6 to 16 words, without digits or anything else that is not read as it is written.
SENTENCE = re.compile(r"[A-Z][a-z ,']+[.!?]")
MIN_WORDS = 6
MAX_WORDS = 16


def general_sentences(held_out: bool) -> list[str]:
    """Return the sentences of one side of the split, in a fixed random order."""
    path = unpacked("chitchat-dataset") / "chitchat_dataset" / "dataset.json"
    conversations = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, None] = {}
    for conversation in conversations.values():
        for messages in conversation["messages"]:
            for message in messages:
                text = message["text"].strip()
                if SENTENCE.fullmatch(text) and MIN_WORDS <= len(text.split()) <= MAX_WORDS:
                    found[text] = None
    return shuffled([text for text in found if is_held_out(text) == held_out], "general")
