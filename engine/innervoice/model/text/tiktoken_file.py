"""tokenizer.model in tiktoken's format: a token and its rank a line."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path

from innervoice.checkpoint.files import read_json, require
from innervoice.files import read_bytes
from innervoice.model.text.tokenizer import is_word, library_errors, runs

# Alternatives in order: English contractions; letters after at most one other character; one to three digits;
# symbols after at most one space, with the line ends that follow; line ends; spaces before the last one;
# spaces. (tiktoken's cl100k_base)
_SPLIT = "|".join((
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+",
    r"\s+(?!\S)", r"\s+",
))  # fmt: skip


_MOST_WHITE_SPACE = 900_000  # characters in a row; tiktoken's regular expressions give up below a million


class TiktokenTokenizer:
    """Byte-pair encoding by tokenizer.model, with the added tokens of tokenizer_config.json beside it.

    A TextTokenizer.
    """

    def __init__(
        self, ranks: Mapping[bytes, int], special: Mapping[str, int], words: Mapping[str, int] | None = None
    ) -> None:
        self.num_ranks = len(ranks)
        self._special = dict(special)
        self._bytes = {rank: token for token, rank in ranks.items()}
        self._words = dict(words or {})
        self._bytes |= {i: word.encode() for word, i in self._words.items()}
        import tiktoken

        self._encoding = tiktoken.Encoding(
            "checkpoint", pat_str=_SPLIT, mergeable_ranks=dict(ranks), special_tokens=self._words
        )

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str]) -> TiktokenTokenizer:
        """tokenizer.model and tokenizer_config.json.

        Raises FileNotFoundError, or ValueError naming file and line.
        """
        folder = Path(directory)
        config = folder / "tokenizer_config.json"
        return cls(read_ranks(folder / "tokenizer.model"), read_added_tokens(config), read_words(config))

    @property
    def text_range(self) -> tuple[int, int]:
        """The half-open range of the ids that are no added tokens."""
        return 0, self.num_ranks

    @property
    def words(self) -> tuple[tuple[int, int], ...]:
        """The half-open ranges of the ids of added words, beside `text_range`."""
        return runs(self._words.values())

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it is taken for an added token.

        Raises ValueError for more white space in a row, other than line ends, than the library takes.
        """
        longest = 0
        if len(text) > _MOST_WHITE_SPACE:
            longest = max((len(run[0]) for run in re.finditer(r"[^\S\r\n]+", text)), default=0)
        if longest > _MOST_WHITE_SPACE:
            raise ValueError(
                f"the text has {longest} characters of white space in a row, and the tokenizer takes "
                f"{_MOST_WHITE_SPACE}: shorten it"
            )
        with library_errors(f"a text of {len(text)} characters cannot be encoded", "shorten it"):
            return self._encoding.encode(text, allowed_special=set(self._words), disallowed_special=())

    def special(self, token: str) -> int | None:
        """The id of an added token, None where the checkpoint has none of that name."""
        return self._special.get(token)

    def require_special(self, token: str) -> int:
        """The id of an added token. Raises ValueError naming it where the checkpoint has none."""
        found = self._special.get(token)
        if found is None:
            raise ValueError(f"the checkpoint's tokenizer_config.json has no token {token!r}")
        return found

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a text token; b"" for added tokens, speech codes and ids without a string."""
        return self._bytes.get(token, b"")


def read_ranks(path: Path) -> dict[bytes, int]:
    """tokenizer.model: a line a token, base64 of its bytes and its rank.

    Ranks are 0 to n - 1; all single bytes are there.
    """
    lines = read_bytes(path, f"is {path.parent} a checkpoint directory?").splitlines()
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(
                f"{path}, line {number}: expected base64 and a rank, found {line[:40]!r}"
            ) from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"{path}: the ranks of {len(ranks)} tokens are not 0 to {len(ranks) - 1}: download it again"
        )
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise ValueError(f"{path}: {len(missing)} of the 256 single bytes have no token: download it again")
    return ranks


def read_added_tokens(path: Path) -> dict[str, int]:
    """added_tokens_decoder of tokenizer_config.json as token -> id. Raises FileNotFoundError, ValueError."""
    tokens: dict[str, int] = {}
    for key, entry in require(read_json(path), "added_tokens_decoder", path, dict).items():
        content = entry.get("content") if isinstance(entry, dict) else None
        if not key.isdecimal() or not isinstance(content, str):
            raise ValueError(
                f"{path}: added token {key!r} is {entry!r}, expected an id and an object with a content string"
            )
        tokens[content] = int(key)
    return tokens


def read_words(path: Path) -> dict[str, int]:
    """The added tokens that are words; see `is_word`. Raises as `read_added_tokens`."""
    entries = require(read_json(path), "added_tokens_decoder", path, dict)
    return {
        content: i
        for content, i in read_added_tokens(path).items()
        if is_word(content, is_special=bool(entries[str(i)].get("special", True)))
    }
