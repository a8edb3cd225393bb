"""Ids and their order: 1,024 text tokens (byte-level BPE), 32 special ones, then the speech codes."""

from __future__ import annotations

import base64
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path

import regex

from training.features.codebook import VOCAB_SIZE as NUM_CODES
from training.text.grammar import all_replies, reflections
from training.text.situations import SITUATIONS
from training.text.smalltalk import (
    FOLLOW_UPS,
    GOODBYE_REFLECTION,
    GREETING_REFLECTION,
    NEUTRAL,
    OUTSIDE_REFLECTION,
    THANKS_REFLECTION,
    TONE_REFLECTIONS,
)
from training.workdir import stage_dir, write_atomic

NUM_TEXT = 1024
NUM_SPECIAL = 32
FIRST_CODE = NUM_TEXT + NUM_SPECIAL
SIZE = -(-(FIRST_CODE + NUM_CODES) // 64) * 64

SPECIAL_NAMES = (
    *("<|endoftext|>", "[MASK]", "[gMASK]", "[sMASK]", "<sop>", "<eop>"),
    *("<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|end_of_video|>"),
    *("<|begin_of_audio|>", "<|end_of_audio|>", "<|begin_of_transcription|>", "<|end_of_transcription|>"),
)
NAMES = (
    *SPECIAL_NAMES,
    *(f"<|reserved_{NUM_TEXT + place}|>" for place in range(len(SPECIAL_NAMES), NUM_SPECIAL)),
)
ID_OF = {name: NUM_TEXT + place for place, name in enumerate(NAMES)}
OPEN, CLOSE, DONE = (NUM_TEXT + len(SPECIAL_NAMES) + place for place in range(3))
END = ID_OF["<|user|>"]

# The pattern by which GLM-4 splits text before BPE.
PATTERN = regex.compile(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SYSTEM = (
    "User will provide you with a speech instruction. Do it step by step. First, think about the instruction "
    "and respond in a interleaved manner, with 13 text token followed by 26 audio tokens. "
)
TRANSCRIPTION = "streaming_transcription\n"


def corpus() -> list[str]:
    """Return the texts that the merges are learned from: what the model writes, and the prompt again
    and again.
    """
    texts = all_replies()
    texts += [" ".join(parts) for situation in SITUATIONS for parts in reflections(situation)] * 4
    topics = {situation.topic for situation in SITUATIONS} | {topic for _, topic in NEUTRAL}
    patterns = [*(parts for *_, parts in FOLLOW_UPS), *TONE_REFLECTIONS.values()]
    texts += [" ".join(parts).format(topic=topic) for parts in patterns for topic in sorted(topics)] * 3
    fixed = (GREETING_REFLECTION, THANKS_REFLECTION, GOODBYE_REFLECTION, OUTSIDE_REFLECTION)
    texts += [" ".join(parts) for parts in fixed] * 50
    return texts + ["\n" + SYSTEM, "\n", TRANSCRIPTION] * 2000


def learn_merges(texts: list[str], num_tokens: int = NUM_TEXT) -> dict[bytes, int]:
    """Return ranks of byte-level BPE: the most frequent pair is merged, again and again."""
    counts: Counter[tuple[bytes, ...]] = Counter()
    for text in texts:
        for word in PATTERN.findall(text):
            counts[tuple(bytes([byte]) for byte in word.encode())] += 1
    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < num_tokens:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, count in counts.items():
            for pair in pairwise(word):
                pairs[pair] += count
        if not pairs:
            break
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        ranks.setdefault(best[0] + best[1], len(ranks))
        counts = _merged(counts, best)
    while len(ranks) < num_tokens:  # ids that no text has
        ranks[b"\xff" + str(len(ranks)).encode()] = len(ranks)
    return ranks


def _merged(counts: Counter[tuple[bytes, ...]], pair: tuple[bytes, bytes]) -> Counter[tuple[bytes, ...]]:
    found: Counter[tuple[bytes, ...]] = Counter()
    for word, count in counts.items():
        pieces: list[bytes] = []
        place = 0
        while place < len(word):
            is_pair = word[place : place + 2] == pair
            pieces.append(pair[0] + pair[1] if is_pair else word[place])
            place += 2 if is_pair else 1
        found[tuple(pieces)] += count
    return found


@cache
def ranks() -> dict[bytes, int]:
    """Return the ranks: learned once and kept in the work directory, for trained weights depend on them."""
    path = tokenizer_path()
    if not path.exists():
        found = learn_merges(corpus())
        write_atomic(path, lambda temporary: write_ranks(temporary, found))
    pairs = (line.split() for line in path.read_text().splitlines())
    return {base64.b64decode(piece): int(rank) for piece, rank in pairs}


def write_ranks(path: Path, found: dict[bytes, int]) -> None:
    """Write ranks in tiktoken's format."""
    lines = [f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in found.items()]
    path.write_text("".join(lines))


def tokenizer_path() -> Path:
    """Return where the ranks are kept, in tiktoken's format."""
    return stage_dir("models") / "tokenizer.model"


@cache
def _word_ids(word: str) -> tuple[int, ...]:
    known = ranks()
    pieces = [bytes([byte]) for byte in word.encode()]
    while len(pieces) > 1:
        rank, place = min(
            (known.get(pieces[place] + pieces[place + 1], NUM_TEXT), place)
            for place in range(len(pieces) - 1)
        )
        if rank == NUM_TEXT:
            break
        pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
    return tuple(known[piece] for piece in pieces)


def encode(text: str) -> list[int]:
    """Return the ids of a text."""
    return [token for word in PATTERN.findall(text) for token in _word_ids(word)]


def decode(ids: list[int]) -> str:
    """Return the text of ids."""
    pieces = {rank: piece for piece, rank in ranks().items()}
    return b"".join(pieces[token] for token in ids).decode(errors="replace")
