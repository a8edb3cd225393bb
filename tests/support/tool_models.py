"""Tiny checkpoints that call a tool: real weights in the shipped format, whose next token follows from the one before.

All layers but the first attention add nothing. The embeddings of the tokens in play are unit vectors, and the
output rows map each to its successors. Each head of the first attention looks for one token, and so a step may be
ruled out once that token has been seen.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from innervoice.model.text import TiktokenTokenizer

MODEL = "glm-4-voice-9b"
OPEN, CLOSE = "<|reserved_394|>", "<|reserved_395|>"
OPENING, END, OBSERVATION = "streaming_transcription\n", "<|user|>", "<|observation|>"
CODE = "<|audio_0|>"
FIRST_TEXT = 330  # ids of merges from here on are given other words
CALL = '\n{"name": "weather", "arguments": {"city": "Paris"}}\n'
OTHER_CALL = '\n{"name": "weather", "arguments": {"city": "Rome"}}\n'
NO_CALL = "\nthe weather of Paris\n"
ARGUMENTS = ' {"city": "Oslo"}}\n'  # behind a forced beginning, which ends in a colon
ANSWER = "It is warm."
MOMENT = "One moment."
FIRST_SEEN, FIRST_FLAG, REST = 110, 114, 118  # places in the residual stream
WIDTH, HEADS = 32, 4


@dataclass(frozen=True)
class Step:
    """A token's successor: a text, the name of a token, or a speech code.

    unless: not once this has been seen. weight: against other steps from the same token.
    """

    token: str | int
    successor: str | int
    unless: str | None = None
    weight: float = 1.0


def path(*tokens: str | int, unless: str | None = None) -> tuple[Step, ...]:
    """The steps from token to token; unless: of the first step."""
    pairs = list(pairwise(tokens))
    return tuple(Step(*pair, unless if i == 0 else None) for i, pair in enumerate(pairs))


SPOKEN = (*path(OPENING, ANSWER, 3, 9, 27, 17, 11, 5, 30, END), Step(ANSWER, END, weight=0.5))
FORCED = path(":", ARGUMENTS, CLOSE)
CALLS_ONCE = (
    *path(OPENING, OPEN, unless=OBSERVATION),
    *path(OPEN, CALL, CLOSE, OBSERVATION),
    *SPOKEN,
    *FORCED,
)
SPEAKS_THEN_CALLS = (
    *path(OPENING, MOMENT, 4, 8, 12, 16, 20, unless=OBSERVATION),
    *path(20, OPEN, CALL, CLOSE, OBSERVATION),
    *SPOKEN,
)
CALLS_TWICE = (
    *path(OPENING, OPEN, unless=OBSERVATION),
    *path(OPEN, CALL, CLOSE, unless=CALL),
    *path(OPEN, OTHER_CALL, CLOSE, OBSERVATION),
    *path(CLOSE, OPEN, unless=OTHER_CALL),
    *SPOKEN,
)
CALLS_BADLY = (
    *path(OPENING, OPEN, unless=OBSERVATION),
    *path(OPEN, NO_CALL, CLOSE, OBSERVATION),
    *SPOKEN,
)


def make_tool_model(tiny: Path, folder: Path, steps: tuple[Step, ...], *, greedy: bool = False) -> Path:
    """Write a checkpoint with speech tokenizer and decoder that takes these steps -> its folder.

    greedy: its own sampling takes the likeliest token, for clients that cannot ask for that.
    """
    shutil.copytree(tiny, folder, dirs_exist_ok=True)
    model = folder / MODEL
    if greedy:
        generation = {"eos_token_id": [373, 380, 382], "do_sample": False}
        (model / "generation_config.json").write_text(json.dumps(generation))
    schedule = json.loads((model / "schedule.json").read_text())
    schedule["tool"] = {"open": OPEN, "close": CLOSE}
    (model / "schedule.json").write_text(json.dumps(schedule))
    texts = [step.successor for step in steps if isinstance(step.successor, str)]
    words = [text for text in dict.fromkeys(texts) if not text.startswith("<|")]
    given = {text: FIRST_TEXT + i for i, text in enumerate(words)}
    _rename_words(model / "tokenizer.model", given)
    tokenizer = TiktokenTokenizer.from_pretrained(model)
    first_code = tokenizer.require_special(CODE)

    def token(one: str | int) -> int:
        if isinstance(one, int):
            return first_code + one
        found = given.get(one, tokenizer.special(one))
        return tokenizer.encode(one)[-1] if found is None else found

    ids = [(token(step.token), token(step.successor)) for step in steps]
    seen = [None if step.unless is None else token(step.unless) for step in steps]
    _write_weights(model, ids, seen, [step.weight for step in steps])
    return folder


def _rename_words(path: Path, given: Mapping[str, int]) -> None:
    lines = path.read_bytes().splitlines()
    for text, rank in given.items():
        lines[rank] = base64.b64encode(text.encode()) + b" %d" % rank
    path.write_bytes(b"\n".join(lines) + b"\n")


def _write_weights(
    model: Path, steps: list[tuple[int, int]], unless: list[int | None], weights: list[float]
) -> None:
    """A step that can be ruled out weighs twice as much: the flag of a token that has been seen takes more away."""
    places = {one: i for i, one in enumerate(dict.fromkeys(one for step in steps for one in step))}
    flags = {one: i for i, one in enumerate(dict.fromkeys(one for one in unless if one is not None))}
    assert len(places) < FIRST_SEEN and len(flags) <= HEADS, "the steps have no room in the residual stream"
    embedding = np.zeros((512, 128), np.float32)
    output = np.zeros((512, 128), np.float32)
    embedding[:, REST] = 1.0
    for one, place in places.items():
        embedding[one, REST], embedding[one, place] = 0.0, 1.0
    for one, flag in flags.items():
        embedding[one, REST], embedding[one, FIRST_SEEN + flag] = 0.0, 1.0
    for (one, successor), seen, weight in zip(steps, unless, weights, strict=True):
        output[successor, places[one]] = weight if seen is None else 2 * weight
        if seen is not None:
            output[successor, FIRST_FLAG + flags[seen]] = -1.0
    for file in sorted(model.glob("*.safetensors")):
        tensors = {name: _layer(name, tensor) for name, tensor in load_file(file).items()}
        for name, made in (("embedding.word_embeddings", embedding), ("output_layer", output)):
            if f"transformer.{name}.weight" in tensors:
                tensors[f"transformer.{name}.weight"] = made
        save_file(tensors, file, {"format": "pt"})


def _layer(name: str, tensor: np.ndarray) -> np.ndarray:
    """Weights by which head h writes flag h where the token of place FIRST_SEEN + h stands before.

    Two heads share a key and a value. The second half of a head is not rotated, so it knows no distance.
    """
    if "norm" in name:
        return np.ones_like(tensor)
    made = np.zeros_like(tensor)
    if ".layers.0.self_attention." not in name:
        return made
    for head in range(HEADS):
        place, group = WIDTH - 1 - head, head // 2
        if name.endswith("query_key_value.bias"):
            made[head * WIDTH + place] = 10.0
        elif name.endswith("query_key_value.weight"):
            made[(HEADS + group) * WIDTH + place, FIRST_SEEN + head] = 1.0
            made[(HEADS + 2 + group) * WIDTH + head, FIRST_SEEN + head] = 1.0
        elif name.endswith("dense.weight"):
            made[FIRST_FLAG + head, head * WIDTH + head] = 1.0
    return made
