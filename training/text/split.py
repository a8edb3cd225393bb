"""The split into training and held-out texts, and a random order: both from hashes, the same on every
machine.
"""

from __future__ import annotations

import hashlib
import re

# One text in this many is held out.
HELD_OUT_EVERY = 16


def digest(text: str, salt: str) -> int:
    """Return a number that depends on the text and the salt alone."""
    return int.from_bytes(hashlib.sha256(f"{salt}\n{text}".encode()).digest()[:8], "big")


def is_held_out(text: str) -> bool:
    """Say whether a text is for evaluation only; case and punctuation make no difference."""
    plain = " ".join(re.findall(r"[a-z']+", text.lower()))
    return digest(plain, "held-out") % HELD_OUT_EVERY == 0


def shuffled(texts: list[str], salt: str) -> list[str]:
    """Return the texts in a random order that does not depend on the order they come in."""
    return sorted(texts, key=lambda text: digest(text, salt))
