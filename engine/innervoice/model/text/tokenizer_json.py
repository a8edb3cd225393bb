"""tokenizer.json: byte-pair encoding as Hugging Face's tokenizers library stores it,
byte-level or sentencepiece-like.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from innervoice.checkpoint.files import read_json, require
from innervoice.model.text.chat_template import ChatTemplate, Piece
from innervoice.model.text.tokenizer import is_word, library_errors, runs

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORD_START = "\u2581"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


@dataclass(frozen=True)
class AddedToken:
    """A token that stands beside the pair merges.

    lstrip and rstrip: it swallows the white space before and after it. is_word: it is text; see `is_word`.
    """

    id: int
    lstrip: bool
    rstrip: bool
    is_word: bool = False


class JsonTokenizer:
    """tokenizer.json, and the chat template of the directory, None where there is none. A TextTokenizer.

    Of a sentencepiece-like vocabulary a word's token has the space before it, also at the start of a reply.
    """

    def __init__(self, data: Mapping[str, Any], source: Path, chat: ChatTemplate | None = None) -> None:
        self.source, self.chat = source, chat
        self._added = read_added(data, source)
        marks = {name: token for name, token in self._added.items() if not token.is_word}
        words = {name: token.id for name, token in self._added.items() if token.is_word}
        self._split = re.compile("|".join(map(re.escape, sorted(marks, key=len, reverse=True))) or "(?!)")
        model = _checked_model(data, source)
        plain = _without_marks(data, marks, words)
        self._encoder = _build(plain, source)
        later = plain | {"pre_tokenizer": _without_prefix(data.get("pre_tokenizer"))}
        self._later_encoder = self._encoder if later == plain else _build(later, source)
        ids = {token.id for token in self._added.values()}
        vocab: dict[str, int] = require(model, "vocab", source, dict)
        ordinary = {i: token for token, i in vocab.items() if i not in ids}
        self._range = _text_range(ordinary, self._added, source)
        low, high = self._range
        self._words = runs(i for i in words.values() if not low <= i < high)
        self._ordinary = ordinary
        self._to_bytes = _byte_level if _has(data, "ByteLevel") else _sentencepiece
        self._word_bytes = {i: name.encode() for name, i in words.items()}

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str]) -> JsonTokenizer:
        """tokenizer.json and what chat template lies beside it. Raises FileNotFoundError, ValueError."""
        path = Path(directory) / "tokenizer.json"
        return cls(read_json(path), path, ChatTemplate.read(directory))

    @property
    def text_range(self) -> tuple[int, int]:
        """The half-open range of the ids that are no added tokens."""
        return self._range

    @property
    def words(self) -> tuple[tuple[int, int], ...]:
        """The half-open ranges of the ids of added words, beside `text_range`."""
        return self._words

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it is taken for an added token."""
        return self.encode_pieces([Piece(text, is_template=False)])

    def encode_pieces(self, pieces: Iterable[Piece], *, at_start: bool = True) -> list[int]:
        """Ids of pieces in a row.

        Added tokens are found in those of the template alone; what stands between two is one text.

        at_start: nothing stands before; some tokenizers put a space before the first word of all.
        """
        parts = self._parts(pieces)
        ids: list[int] = []
        for index, part in enumerate(parts):
            if isinstance(part, AddedToken):
                ids.append(part.id)
                continue
            before = parts[index - 1] if index else None
            after = parts[index + 1] if index + 1 < len(parts) else None
            part = part.lstrip() if isinstance(before, AddedToken) and before.rstrip else part
            part = part.rstrip() if isinstance(after, AddedToken) and after.lstrip else part
            encoder = self._encoder if at_start and index == 0 else self._later_encoder
            with library_errors(f"a text of {len(part)} characters cannot be encoded", "shorten it"):
                ids += encoder.encode(_whole_characters(part), add_special_tokens=False).ids
        return ids

    def find_mark(self, text: str) -> str | None:
        """The first added token in a text that is no word, None where there is none."""
        found = self._split.search(text)
        return None if found is None else found[0]

    def special(self, token: str) -> int | None:
        """The id of an added token, None where the checkpoint has none of that name."""
        return self._added[token].id if token in self._added else None

    def require_special(self, token: str) -> int:
        """The id of an added token. Raises ValueError naming it where the checkpoint has none."""
        found = self.special(token)
        if found is None:
            raise ValueError(f"{self.source} has no added token {token!r}")
        return found

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a text token; b"" for added tokens and ids without a string."""
        text = self._ordinary.get(token)
        return self._word_bytes.get(token, b"") if text is None else self._to_bytes(text)

    def _parts(self, pieces: Iterable[Piece]) -> list[str | AddedToken]:
        """Added tokens and the texts between them, neighbouring texts joined."""
        parts: list[str | AddedToken] = []

        def add(text: str) -> None:
            if text and parts and isinstance(parts[-1], str):
                parts[-1] += text
            elif text:
                parts.append(text)

        for piece in pieces:
            end = 0
            for found in self._split.finditer(piece.text) if piece.is_template else ():
                add(piece.text[end : found.start()])
                parts.append(self._added[found[0]])
                end = found.end()
            add(piece.text[end:])
        return parts


def read_added(data: Mapping[str, Any], source: str | PathLike[str]) -> dict[str, AddedToken]:
    """added_tokens of tokenizer.json by their text. Raises ValueError."""
    tokens: dict[str, AddedToken] = {}
    for entry in data.get("added_tokens") or []:
        where = f"{source}, added_tokens"
        if not isinstance(entry, dict) or not require(entry, "content", where, str):
            raise ValueError(f"{where} holds {entry!r}, expected an object with a content")
        word = is_word(entry["content"], is_special=bool(entry.get("special", True)))
        if entry.get("single_word") and not word:
            raise ValueError(f"{where}: {entry['content']!r} has single_word, which is not supported")
        left, right = bool(entry.get("lstrip")), bool(entry.get("rstrip"))
        tokens[entry["content"]] = AddedToken(require(entry, "id", where, int), left, right, word)
    return tokens


def _checked_model(data: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """The pair merges and their vocabulary. Raises ValueError where they are none."""
    model: dict[str, Any] = require(data, "model", source, dict)
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"{source}: a model of type {model['type']!r} is not supported; supported is 'BPE'")
    vocab: dict[str, int] = require(model, "vocab", source, dict)
    wrong = next((token for token, i in vocab.items() if type(i) is not int or i < 0), None)
    if wrong is not None:
        raise ValueError(f"{source}: token {wrong!r} has the id {vocab[wrong]!r}: download it again")
    merges = require({"merges": [], **model}, "merges", source, list)
    wrong = next((merge for merge in merges if not isinstance(merge, str) and not _is_pair(merge)), None)
    if wrong is not None:
        raise ValueError(f"{source}: {wrong!r} among the merges is no pair of tokens: download it again")
    if not isinstance(model.get("unk_token"), str | None):
        raise ValueError(f"{source}: unk_token is {model['unk_token']!r}, expected text: download it again")
    return model


def _is_pair(merge: Any) -> bool:
    return isinstance(merge, list) and len(merge) == 2 and all(isinstance(part, str) for part in merge)


def _without_marks(
    data: Mapping[str, Any], marks: Mapping[str, AddedToken], words: Mapping[str, int]
) -> dict[str, Any]:
    """The same tokenizer, which can make no mark of any text, neither whole nor by merging, but finds words."""
    model, names = dict(data["model"]), set(marks)

    def reaches_added(merge: str | list[str]) -> bool:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        return not names.isdisjoint((*pair, "".join(pair)))

    kept = {model.get("unk_token")}
    model["vocab"] = {
        token: i for token, i in model.get("vocab", {}).items() if token not in marks or token in kept
    }
    model["vocab"] |= words
    model["merges"] = [merge for merge in model.get("merges", []) if not reaches_added(merge)]
    return {
        **data,
        "model": model,
        "added_tokens": [entry for entry in data.get("added_tokens") or [] if entry["content"] in words],
        "post_processor": None,
        "truncation": None,
        "padding": None,
    }


def _without_prefix(part: Any) -> Any:
    """A pre-tokenizer for text that is not the first: a Metaspace that marks the start
    of the first alone marks none.
    """
    if not isinstance(part, dict):
        return part
    if part.get("type") == "Sequence":
        return {**part, "pretokenizers": [_without_prefix(inner) for inner in part["pretokenizers"]]}
    return {**part, "prepend_scheme": "never"} if part.get("prepend_scheme") == "first" else part


def _build(data: Mapping[str, Any], source: Path) -> Tokenizer:
    from tokenizers import Tokenizer

    with library_errors(f"{source} cannot be read as a tokenizer", "download it again"):
        return Tokenizer.from_str(json.dumps(data))


def _text_range(
    ordinary: Mapping[int, str], added: Mapping[str, AddedToken], source: Path
) -> tuple[int, int]:
    if not ordinary:
        raise ValueError(f"{source}: the vocabulary has no text tokens: download it again")
    low, high = min(ordinary), max(ordinary) + 1
    known = set(ordinary) | {token.id for token in added.values() if token.is_word}
    hole = next((i for i in range(low, high) if i not in known), None)
    if hole is not None:
        name = next((repr(text) for text, token in added.items() if token.id == hole), "no token")
        raise ValueError(
            f"{source}: id {hole} is {name} amid the text tokens {low} to {high - 1}, which is not supported"
        )
    return low, high


def _has(data: Mapping[str, Any], kind: str) -> bool:
    """Whether a step of that type stands anywhere in the tokenizer's pipeline."""
    steps = [data.get(name) for name in ("normalizer", "pre_tokenizer", "decoder")]
    while steps:
        step = steps.pop()
        if isinstance(step, dict):
            if step.get("type") == kind:
                return True
            steps += [inner for value in step.values() if isinstance(value, list) for inner in value]
    return False


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's characters for bytes: visible ones of Latin-1 stand for themselves, the
    others are 256 and up in order.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return bytes([_BYTES[character] for character in token])
    except KeyError:
        return token.encode()


def _sentencepiece(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(byte[1], 16)]) if byte else token.replace(_WORD_START, " ").encode()


def _whole_characters(text: str) -> str:
    """Half surrogate pairs, which no UTF-8 has, as U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
