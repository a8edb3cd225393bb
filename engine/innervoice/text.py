"""Text in and out of ids: the tiktoken file and added tokens of a checkpoint, its vocabulary, and GLM-4-Voice's prompt."""

from __future__ import annotations

import base64
import binascii
import codecs
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import tiktoken

from innervoice.config.files import read_json, refuse_unknown, require
from innervoice.config.model import read_generation_config
from innervoice.types import Vocabulary

# Alternatives in order: English contractions; letters after at most one other character; one to three digits; symbols after
# at most one space, with the line ends that follow; line ends; spaces before the last one; spaces. (tiktoken's cl100k_base)
_SPLIT = "|".join((
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r"\s*[\r\n]+",
    r"\s+(?!\S)", r"\s+",
))  # fmt: skip
_SYSTEM = (
    "User will provide you with a {} instruction. Do it step by step. First, think about the instruction and respond "
    "in a interleaved manner, with 13 text token followed by 26 audio tokens."
)
_STAND_IN_TOKENS = (
    "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|end_of_audio|>",
    "<|open|>", "<|close|>", "<|done|>",
)  # fmt: skip
SPEECH_SYSTEM = _SYSTEM.format("speech") + " "
TEXT_SYSTEM = _SYSTEM.format("text")


class TextTokenizer:
    """Byte-pair encoding by tokenizer.model, with the added tokens of tokenizer_config.json beside it.

    Text from outside never becomes an added token: "<|user|>" in it is encoded as the plain characters that it is, so a
    prompt cannot forge a turn. Added tokens are had by name only, through special().
    """

    def __init__(self, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> None:
        self.num_ranks = len(ranks)
        self._special = dict(special)
        self._bytes = {rank: token for token, rank in ranks.items()}
        self._encoding = tiktoken.Encoding("checkpoint", pat_str=_SPLIT, mergeable_ranks=dict(ranks), special_tokens={})

    @classmethod
    def from_pretrained(cls, directory: str | PathLike[str]) -> TextTokenizer:
        """tokenizer.model and tokenizer_config.json. Raises FileNotFoundError, or ValueError naming file and line."""
        folder = Path(directory)
        return cls(read_ranks(folder / "tokenizer.model"), read_added_tokens(folder / "tokenizer_config.json"))

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; nothing in it is taken for an added token."""
        return self._encoding.encode_ordinary(text)

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


class TextStream:
    """Decodes ids piece by piece: bytes of a character that is not whole yet wait for the next piece."""

    def __init__(self, tokenizer: TextTokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, ids: Iterable[int]) -> str:
        """The text that these ids complete."""
        return self._decoder.decode(b"".join(map(self._tokenizer.token_bytes, ids)))

    def flush(self) -> str:
        """What still waits, as U+FFFD; the stream may be used again."""
        rest = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return rest


def read_ranks(path: Path) -> dict[bytes, int]:
    """tokenizer.model: a line a token, base64 of its bytes and its rank. Ranks are 0 to n - 1; all single bytes are there."""
    try:
        lines = path.read_bytes().splitlines()
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(f"{path} does not exist: is {path.parent} a checkpoint directory?") from None
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise ValueError(f"{path}, line {number}: expected base64 and a rank, found {line[:40]!r}") from None
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(f"{path}: the ranks of {len(ranks)} tokens are not 0 to {len(ranks) - 1}: download it again")
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
            raise ValueError(f"{path}: added token {key!r} is {entry!r}, expected an id and an object with a content string")
        tokens[content] = int(key)
    return tokens


def load_vocabulary(
    directory: str | PathLike[str], num_codes: int | None, *, tokenizer: TextTokenizer | None = None
) -> Vocabulary:
    """Which ids mean what: text by the ranks, speech from <|audio_0|> on, the rest by name, an optional schedule.json included.

    num_codes: size of the speech codebook, None without one. Codes go by arithmetic, the last ones may lack a token string.
    Raises ValueError for a token that is named and absent, and for codes beyond the padded vocabulary.
    """
    folder = Path(directory)
    tokenizer = tokenizer or TextTokenizer.from_pretrained(folder)
    size = _vocabulary_size(folder)
    names = _token_names(folder / "schedule.json", tokenizer)
    vocabulary = Vocabulary(
        size=size,
        text=(0, tokenizer.num_ranks),
        speech=None if num_codes is None else _speech_range(tokenizer, num_codes, size, folder),
        end_of_turn=names.get("end_of_turn", tokenizer.special("<|user|>")),
        open=names.get("open"),
        close=names.get("close"),
        done=names.get("done"),
        eos=read_generation_config(folder).eos,
    )
    ids = (tokenizer.num_ranks - 1, vocabulary.end_of_turn, vocabulary.open, vocabulary.close, vocabulary.done, *vocabulary.eos)
    beyond = [i for i in ids if i is not None and i >= size]
    if beyond:
        raise ValueError(f"{folder}: token id {beyond[0]} lies beyond the vocabulary of {size}; tokenizer and config.json differ")
    return vocabulary


def stand_in(directory: str | PathLike[str], num_codes: int | None) -> tuple[TextTokenizer, Vocabulary]:
    """A tokenizer and vocabulary of the right size from config.json alone, for runs with random weights.

    Text ids 0 to 255 are bytes and the others made-up words; reflection tokens are there; speech codes take the last ids.
    Raises ValueError where the vocabulary is too small.
    """
    folder = Path(directory)
    size = _vocabulary_size(folder)
    first_code = size - (num_codes or 0)
    num_ranks = first_code - len(_STAND_IN_TOKENS)
    if num_ranks < 256:
        raise ValueError(
            f"{folder}: a vocabulary of {size} holds no 256 bytes beside {num_codes or 0} speech codes; is it the right one?"
        )
    ranks = {bytes([i]) if i < 256 else b" w%d" % i: i for i in range(num_ranks)}
    special = {token: num_ranks + i for i, token in enumerate(_STAND_IN_TOKENS)}
    vocabulary = Vocabulary(
        size=size,
        text=(0, num_ranks),
        speech=None if num_codes is None else (first_code, size),
        end_of_turn=special["<|user|>"],
        open=special["<|open|>"],
        close=special["<|close|>"],
        done=special["<|done|>"],
        eos=(special["<|user|>"],),
    )
    return TextTokenizer(ranks, special), vocabulary


def prompt_ids(
    tokenizer: TextTokenizer, vocabulary: Vocabulary, user: str | Sequence[int], system: str | None = None
) -> list[int]:
    """GLM-4-Voice's prompt for one turn: typed text, or the codes of a recording; system None: the model's own sentence.

    [gMASK] <sop> <|system|> \\n SYSTEM <|user|> \\n USER <|assistant|> streaming_transcription \\n
    Raises ValueError for a code outside the codebook, or a checkpoint without the template's tokens.
    """
    special, encode = tokenizer.require_special, tokenizer.encode
    if isinstance(user, str):
        system = TEXT_SYSTEM if system is None else system
        turn = encode("\n" + user)
    else:
        system = SPEECH_SYSTEM if system is None else system
        turn = [*encode("\n"), special("<|begin_of_audio|>"), *speech_ids(vocabulary, user), special("<|end_of_audio|>")]
    return [
        special("[gMASK]"), special("<sop>"), special("<|system|>"), *encode("\n" + system),
        special("<|user|>"), *turn, special("<|assistant|>"), *encode("streaming_transcription\n"),
    ]  # fmt: skip


def speech_ids(vocabulary: Vocabulary, codes: Sequence[int]) -> list[int]:
    """Speech codes as token ids. Raises ValueError for a code outside the codebook."""
    if vocabulary.speech is None:
        raise ValueError("this checkpoint is loaded without a speech codebook and takes no speech: give text")
    low, high = vocabulary.speech
    wrong = [code for code in codes if not 0 <= code < high - low]
    if wrong:
        raise ValueError(f"speech code {wrong[0]} is outside the codebook of {high - low}")
    return [low + int(code) for code in codes]


def _vocabulary_size(folder: Path) -> int:
    path = folder / "config.json"
    config = read_json(path)
    return int(require(config, "padded_vocab_size" if "padded_vocab_size" in config else "vocab_size", path, int))


def _speech_range(tokenizer: TextTokenizer, num_codes: int, size: int, folder: Path) -> tuple[int, int]:
    low = tokenizer.special("<|audio_0|>")
    if low is None:
        raise ValueError(f"{folder / 'tokenizer_config.json'}: no token '<|audio_0|>', so this model takes and makes no speech")
    if low + num_codes > size:
        raise ValueError(
            f"{folder}: {num_codes} speech codes from id {low} on need a vocabulary of {low + num_codes}, but it has {size}: "
            "speech tokenizer and language model do not belong together"
        )
    return low, low + num_codes


def _token_names(path: Path, tokenizer: TextTokenizer) -> dict[str, int | None]:
    """open, close, done and end_of_turn as schedule.json names them; a null stands for no such token."""
    if not path.exists():
        return {}
    data = read_json(path)
    refuse_unknown(data, ("reflection", "end_of_turn"), path)
    reflection = require(data, "reflection", path, dict) if "reflection" in data else {}
    refuse_unknown(reflection, ("open", "close", "done"), f"{path}, reflection")
    names: dict[str, Any] = dict(reflection)
    if "end_of_turn" in data:
        names["end_of_turn"] = require(data, "end_of_turn", path, str)
    for key, token in names.items():
        if token is not None and (not isinstance(token, str) or tokenizer.special(token) is None):
            raise ValueError(f"{path}: {key} is {token!r}, which is no added token of the checkpoint's tokenizer_config.json")
    return {key: None if token is None else tokenizer.special(token) for key, token in names.items()}
