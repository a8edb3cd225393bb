"""The protocol of text tokenizers, and decoding piece by piece."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

_MARK = re.compile(r"<.*>|\[.*\]", re.DOTALL)


def is_word(content: str, *, is_special: bool) -> bool:
    """Whether an added token is a word of the language rather than a mark between parts of a prompt.

    A mark is special, or is written as one: <think>, <|im_end|>, [INST]. A word stands for its letters: it is
    found in what a user writes, is drawn, and is part of a transcript.
    """
    return not is_special and not _MARK.fullmatch(content.strip())


def runs(ids: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """Ids, in any order, as half-open ranges that ascend."""
    found: list[tuple[int, int]] = []
    for i in sorted(ids):
        if found and found[-1][1] == i:
            found[-1] = (found[-1][0], i + 1)
        else:
            found.append((i, i + 1))
    return tuple(found)


class TextTokenizer(Protocol):
    """Text to ids and back.

    Text from outside never becomes an added token: "<|user|>" in it is encoded as the plain characters that
    it is, so a prompt cannot forge a turn. Added tokens are had by name only, through special(). Words that
    were added to a tokenizer are no such tokens but text; see `is_word`.
    """

    @property
    def text_range(self) -> tuple[int, int]:
        """The half-open range of the ids that are no added tokens."""
        ...

    @property
    def words(self) -> tuple[tuple[int, int], ...]:
        """The half-open ranges of the ids of added words, beside `text_range`."""
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


@contextmanager
def library_errors(what: str, remedy: str) -> Iterator[None]:
    """Raise ValueError for whatever a tokenizer library raises inside the block.

    A panic of a library in Rust arrives as a BaseException that is no Exception.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise ValueError(f"{what} ({reason}): {remedy}") from None


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
