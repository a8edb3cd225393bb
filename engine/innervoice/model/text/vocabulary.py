"""The vocabulary of a checkpoint: the ids of text, speech codes, end of turn, reflection."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from innervoice.checkpoint.files import read_json, refuse_unknown, require
from innervoice.checkpoint.model_config import read_generation_config
from innervoice.model.text.tiktoken_file import TiktokenTokenizer
from innervoice.model.text.tokenizer import TextTokenizer
from innervoice.types import Vocabulary

_STAND_IN_TOKENS = (
    "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|begin_of_audio|>", "<|end_of_audio|>",
    "<|open|>", "<|close|>", "<|done|>",
)  # fmt: skip


def load_vocabulary(
    directory: str | PathLike[str],
    num_codes: int | None,
    *,
    tokenizer: TextTokenizer | None = None,
    end_of_turn: int | None = None,
) -> Vocabulary:
    """Read the meaning of all ids: text by the tokenizer, speech from <|audio_0|> on, the rest by name and
    by an optional schedule.json.

    tokenizer None: the one of tokenizer.model. end_of_turn None: <|user|>, where there is one; schedule.json
    goes before both. num_codes: size of the speech codebook, None without one. Codes go by arithmetic, the
    last ones may lack a token string. Raises ValueError for a token that is named and absent, and for codes
    beyond the padded vocabulary.
    """
    folder = Path(directory)
    tokenizer = tokenizer or TiktokenTokenizer.from_pretrained(folder)
    size = _vocabulary_size(folder)
    names = _token_names(folder / "schedule.json", tokenizer)
    vocabulary = Vocabulary(
        size=size,
        text=tokenizer.text_range,
        speech=None if num_codes is None else _speech_range(tokenizer, num_codes, size, folder),
        end_of_turn=names.get(
            "end_of_turn", tokenizer.special("<|user|>") if end_of_turn is None else end_of_turn
        ),
        open=names.get("open"),
        close=names.get("close"),
        done=names.get("done"),
        eos=eos_ids(folder, tokenizer),
        words=tokenizer.words,
        **_tool_names(folder / "schedule.json", tokenizer),
    )
    marks = ("end_of_turn", "open", "close", "done", "tool_open", "tool_close", "tool_between")
    named = [getattr(vocabulary, name) for name in marks]
    last = [high - 1 for _, high in (vocabulary.text, *vocabulary.words)]
    beyond = [i for i in (*last, *named, *vocabulary.eos) if i is not None and i >= size]
    if beyond:
        raise ValueError(
            f"{folder}: token id {beyond[0]} lies beyond the vocabulary of {size}; tokenizer and config.json differ"
        )
    return vocabulary


def eos_ids(directory: str | PathLike[str], tokenizer: TextTokenizer) -> tuple[int, ...]:
    """The ids that end a reply: those of generation_config.json, or else of config.json; where neither names
    one, the tokenizer's eos_token.
    """
    found, path = read_generation_config(directory).eos, Path(directory) / "tokenizer_config.json"
    if found or not path.exists():
        return found
    name = read_json(path).get("eos_token")
    token = name.get("content") if isinstance(name, dict) else name
    end = tokenizer.special(token) if isinstance(token, str) else None
    return () if end is None else (end,)


def stand_in(directory: str | PathLike[str], num_codes: int | None) -> tuple[TextTokenizer, Vocabulary]:
    """A tokenizer and vocabulary of the right size from config.json alone, for runs with random weights.

    Text ids 0 to 255 are bytes and the others made-up words; reflection tokens are there; speech codes take
    the last ids. Raises ValueError where the vocabulary is too small.
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
    return TiktokenTokenizer(ranks, special), vocabulary


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
    if "thinker_config" in config:
        config = require(require(config, "thinker_config", path, dict), "text_config", path, dict)
    return int(
        require(config, "padded_vocab_size" if "padded_vocab_size" in config else "vocab_size", path, int)
    )


def _speech_range(tokenizer: TextTokenizer, num_codes: int, size: int, folder: Path) -> tuple[int, int]:
    low = tokenizer.special("<|audio_0|>")
    if low is None:
        raise ValueError(
            f"{folder}: the tokenizer has no token '<|audio_0|>', so this model takes and makes no speech"
        )
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
    refuse_unknown(data, ("reflection", "end_of_turn", "tool"), path)
    reflection = require(data, "reflection", path, dict) if "reflection" in data else {}
    refuse_unknown(reflection, ("open", "close", "done"), f"{path}, reflection")
    names: dict[str, Any] = dict(reflection)
    if "end_of_turn" in data:
        names["end_of_turn"] = require(data, "end_of_turn", path, str)
    for key, token in names.items():
        if token is not None and (not isinstance(token, str) or tokenizer.special(token) is None):
            raise ValueError(
                f"{path}: {key} is {token!r}, which is no added token of the checkpoint's tokenizer"
            )
    return {key: None if token is None else tokenizer.special(token) for key, token in names.items()}


def _tool_names(path: Path, tokenizer: TextTokenizer) -> dict[str, Any]:
    """The fields of a Vocabulary for tool calls, as schedule.json names them."""
    data = read_json(path) if path.exists() else {}
    if "tool" not in data:
        return {}
    tool = require(data, "tool", path, dict)
    where = f"{path}, tool"
    refuse_unknown(tool, ("open", "close", "between", "begin"), where)
    made: dict[str, Any] = {}
    for key in ("open", "close"):
        token = require(tool, key, where, str)
        made[f"tool_{key}"] = tokenizer.special(token)
        if made[f"tool_{key}"] is None:
            raise ValueError(
                f"{where}: {key} is {token!r}, which is no added token of the checkpoint's tokenizer"
            )
    if made["tool_open"] == made["tool_close"]:
        raise ValueError(f"{where}: open and close are both {tool['open']!r}: they must differ")
    if tool.get("between") is not None:
        text = require(tool, "between", where, str)
        ids = tokenizer.encode(text)
        if len(ids) != 1:
            raise ValueError(f"{where}: between is {text!r}, {len(ids)} tokens: it must be a single one")
        made["tool_between"] = ids[0]
    if "begin" in tool:
        made["tool_begin"] = require(tool, "begin", where, str)
        if "{name}" not in made["tool_begin"]:
            raise ValueError(f"{where}: begin is {made['tool_begin']!r}: it must hold {{name}}")
    return made
