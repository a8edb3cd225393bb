"""The protocol of text tokenizers, and decoding piece by piece."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from typing import Protocol


class TextTokenizer(Protocol):
    """Text to ids and back.

    Text from outside never becomes an added token: "<|user|>" in it is encoded as the plain characters that
    it is, so a prompt cannot forge a turn. Added tokens are had by name only, through special().
    """

    @property
    def text_range(self) -> tuple[int, int]:
        """The half-open range of the ids that are no added tokens."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it is taken for an added token."""
        ...

    def special(self, token: str) -> int | None:
        """The id of an added token, None where the checkpoint has none of that name."""
        ...

    def require_special(self, token: str) -> int:
        """The id of an added token. Raises ValueError naming it where the checkpoint has none."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a text token; b"" for added tokens, speech codes and ids without a string."""
        ...


class TextStream:
    """Decodes ids piece by piece: bytes of a character that is not whole yet wait for the next piece."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def flush(self) -> str:
        """Return the bytes that still wait, as U+FFFD; the stream may be used again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest
