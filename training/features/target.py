"""The stage `features`: mel, pitch and aligned samples of what the target voice says, one file for each
shard of audio.
"""

from __future__ import annotations

import numpy as np
import torch

from training.features.f0 import f0_track
from training.features.frames import first_frame, num_tokens, padded_samples
from training.features.mel import SAMPLE_RATE, log_mel
from training.workdir import Log, save_arrays, save_json, shards, stage_dir, wait_while_paused

TARGET_KINDS = ("reply", "general")  # and their `-test` sets


def pieces(values: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Cut values that lie one after the other into pieces of the given lengths."""
    return np.split(values, np.cumsum(lengths)[:-1])


def shard_features(audio: np.ndarray, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """Return mel [80, F], pitch [F] and samples [256 F] of a shard's utterances one after the other,
    and their counts.
    """
    mels, pitches, samples, tokens = [], [], [], []
    for piece in pieces(audio, lengths):
        count = num_tokens(len(piece), SAMPLE_RATE)
        padded = np.zeros(padded_samples(count), np.float32)
        kept = piece[: len(padded)]
        padded[: len(kept)] = kept.astype(np.float32) / 32768
        mels.append(log_mel(torch.from_numpy(padded)[None])[0].numpy().astype(np.float16))
        pitches.append(f0_track(padded))
        samples.append(np.round(padded * 32767).astype(np.int16))
        tokens.append(count)
    return {
        "mel": np.concatenate(mels, 1),
        "f0": np.concatenate(pitches),
        "audio": np.concatenate(samples),
        "num_tokens": np.array(tokens),
        "num_frames": np.array([first_frame(count) for count in tokens]),
    }


def make_features() -> None:
    """Make the features of every shard of the target voice that has none yet."""
    log = Log("features")
    folder = stage_dir("features")
    made = 0
    for path in shards(stage_dir("audio")):
        if not path.name.startswith(TARGET_KINDS) or (folder / path.name).exists():
            continue
        wait_while_paused()
        with np.load(path) as shard:
            save_arrays(folder / path.name, **shard_features(shard["audio"], shard["lengths"]))
        made += 1
    write_stats()
    frames = sum(len(np.load(path)["f0"]) for path in shards(folder))
    log.write(event="features", made=made, hours=round(frames * 256 / SAMPLE_RATE / 3600, 3))


def write_stats() -> None:
    """Write the mean and the standard deviation of the mel, once: every later stage uses the same."""
    path = stage_dir("models") / "mel_stats.json"
    if path.exists():
        return
    mel = np.concatenate(
        [
            np.load(shard)["mel"].astype(np.float32)
            for shard in shards(stage_dir("features"))
            if "-test" not in shard.name
        ],
        1,
    )
    save_json(path, {"mean": float(mel.mean()), "std": float(mel.std())})
