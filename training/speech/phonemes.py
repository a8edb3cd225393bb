"""Text to the phonemes that Kokoro was trained on: eSpeak NG's IPA in the alphabet of Kokoro's own front
end.
"""

from __future__ import annotations

import re
from functools import cache

from training.speech.espeak import espeak

# Longest first: pairs that one letter of Kokoro's alphabet stands for, then single replacements.
COMMON = (
    ("ʔˌn\u0329", "tᵊn"),
    ("ʔn\u0329", "tᵊn"),
    ("ə^l", "ᵊl"),
    ("a^ɪ", "I"),
    ("a^ʊ", "W"),
    ("d^ʒ", "ʤ"),
    ("e^ɪ", "A"),
    ("t^ʃ", "ʧ"),
    ("ɔ^ɪ", "Y"),
    ("ʔn", "tᵊn"),
    ("ʲo", "jo"),
    ("ʲə", "jə"),
    ("ʔ", "t"),
    ("ʲ", ""),
    ("ɚ", "əɹ"),
    ("r", "ɹ"),
    ("x", "k"),
    ("ç", "k"),
    ("ɐ", "ə"),
    ("ɬ", "l"),
    ("\u0303", ""),
)
AMERICAN = (("o^ʊ", "O"), ("ɜːɹ", "ɜɹ"), ("ɜː", "ɜɹ"), ("ɪə", "iə"), ("ː", ""))
BRITISH = (("e^ə", "ɛː"), ("iə", "ɪə"), ("ə^ʊ", "Q"))


@cache
def clause_phonemes(clause: str, british: bool) -> str:
    """Return one clause, without punctuation, in Kokoro's alphabet."""
    text = espeak().phonemes(clause, "en" if british else "en-us")
    for old, new in COMMON:
        text = text.replace(old, new)
    text = re.sub(r"(\S)\u0329", r"ᵊ\1", text).replace("\u0329", "")
    for old, new in BRITISH if british else AMERICAN:
        text = text.replace(old, new)
    return text.replace("^", "").replace("_", "").strip()


def phonemes(text: str, british: bool = False) -> str:
    """Return a text in Kokoro's alphabet; commas, full stops, question and exclamation marks stay."""
    clauses = re.findall(r"([^,.!?;:]+)([,.!?;:]*)", text)
    spoken = [
        (clause_phonemes(clause.strip(), british), mark[:1]) for clause, mark in clauses if clause.strip()
    ]
    return " ".join(
        sounds + (mark or ("." if index == len(spoken) - 1 else ""))
        for index, (sounds, mark) in enumerate(spoken)
    )
