"""The stages `states`, `codebook` and `tokens`: what every recording is to the speech tokenizer."""

from __future__ import annotations

import zlib

import numpy as np
import soxr
import torch

from training.features.codebook import k_means, nearest, perplexity
from training.features.mel import WHISPER_RATE
from training.features.target import TARGET_KINDS, pieces
from training.features.whisper import Weights, encoder_weights, pooled_states
from training.sources import tiny_en
from training.speech.augment import augmented
from training.workdir import Log, save_arrays, shards, stage_dir, wait_while_paused

USER_COPIES = 3  # of each recording of a user: clean, and in two rooms
MAX_STATES = 250_000  # for k-means


def recordings(shard: dict[str, np.ndarray], copies: int, name: str) -> list[np.ndarray]:
    """Return a shard's utterances at 16 kHz: all clean ones first, then each further copy of all,
    augmented.
    """
    rate = int(shard["rate"])
    clean = []
    for piece in pieces(shard["audio"], shard["lengths"]):
        audio = piece.astype(np.float32) / 32768
        clean.append(audio if rate == WHISPER_RATE else soxr.resample(audio, rate, WHISPER_RATE, "HQ"))
    found = list(clean)
    for copy in range(1, copies):
        found += [
            augmented(audio, zlib.crc32(f"{name} {index} {copy}".encode()))
            for index, audio in enumerate(clean)
        ]
    return found


def make_states() -> None:
    """Make the states of every shard of audio that has none yet; users' also as other rooms would have
    them.
    """
    log = Log("states")
    folder = stage_dir("states")
    weights: Weights = encoder_weights(tiny_en())
    made = 0
    for path in shards(stage_dir("audio")):
        if (folder / path.name).exists():
            continue
        wait_while_paused()
        copies = 1 if path.name.startswith(TARGET_KINDS) else USER_COPIES
        with np.load(path) as shard:
            states = [pooled_states(weights, audio) for audio in recordings(dict(shard), copies, path.stem)]
        save_arrays(
            folder / path.name,
            states=torch.cat(states).half().numpy(),
            num_tokens=np.array([len(entry) for entry in states]),
        )
        made += 1
    log.write(event="states", made=made)


def fit_codebook() -> None:
    """Fit the codebook, once, on the training shards: later stages and their weights depend on it."""
    path = stage_dir("models") / "codebook.npz"
    if path.exists():
        return
    log = Log("codebook")
    files = [shard for shard in shards(stage_dir("states")) if "-test" not in shard.name]
    states = torch.cat([torch.from_numpy(np.load(file)["states"]).float() for file in files])
    order = torch.randperm(len(states), generator=torch.Generator().manual_seed(1))
    codebook = k_means(states[order[:MAX_STATES]]).half()
    save_arrays(path, codebook=codebook.numpy())
    codes = nearest(states, codebook.float())
    log.write(event="codebook", states=len(states), perplexity=round(perplexity(codes)))


def load_codebook() -> torch.Tensor:
    """Return the codebook as it is shipped: float32 of float16's values. [1024, 384]"""
    with np.load(stage_dir("models") / "codebook.npz") as file:
        return torch.from_numpy(file["codebook"]).float()


def make_tokens() -> None:
    """Make the codes of every shard, and the compact file of all of them, which the repository keeps."""
    log = Log("tokens")
    codebook = load_codebook()
    folder = stage_dir("tokens")
    for path in shards(stage_dir("states")):
        if not (folder / path.name).exists():
            with np.load(path) as shard:
                codes = nearest(torch.from_numpy(shard["states"]).float(), codebook)
                save_arrays(
                    folder / path.name,
                    codes=codes.numpy().astype(np.uint16),
                    num_tokens=shard["num_tokens"],
                )
    log.write(event="tokens", **write_manifest())


def write_manifest() -> dict[str, float]:
    """Write codes, texts and voices of all shards into one file of the work directory; return what it
    holds.
    """
    columns: dict[str, list[np.ndarray]] = {
        key: [] for key in ("codes", "num_tokens", "texts", "voices", "tones", "kinds", "copies")
    }
    for path in shards(stage_dir("tokens")):
        with np.load(path) as tokens, np.load(stage_dir("audio") / path.name) as audio:
            copies = len(tokens["num_tokens"]) // len(audio["texts"])
            kind = path.name.split("-0")[0]
            for key in ("texts", "voices", "tones"):
                columns[key] += [audio[key]] * copies
            columns["copies"].append(np.repeat(np.arange(copies), len(audio["texts"])).astype(np.uint8))
            columns["kinds"].append(np.array([kind] * len(tokens["num_tokens"])))
            columns["codes"].append(tokens["codes"])
            columns["num_tokens"].append(tokens["num_tokens"].astype(np.uint16))
    arrays = {key: np.concatenate(values) for key, values in columns.items()}
    arrays["codebook"] = load_codebook().half().numpy()
    path = stage_dir("tokens").parent / "tokens.npz"
    temporary = path.with_name(".tokens.npz")
    np.savez_compressed(temporary, **arrays)
    temporary.replace(path)
    return {
        "utterances": len(arrays["texts"]),
        "hours": round(len(arrays["codes"]) / 12.5 / 3600, 2),
        "megabytes": round(path.stat().st_size / 1e6, 2),
    }
