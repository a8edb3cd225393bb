"""What training reads: the target voice's mel, pitch, samples and codes, of the finished shards."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import torch

from training.features.frames import first_frame
from training.features.target import TARGET_KINDS, pieces
from training.workdir import shards, stage_dir


@dataclass(frozen=True)
class TargetSpeech:
    """All training utterances one after the other; the mel is normalised.

    mel [80, F], f0 [F] in Hz, audio [256 F] of int16, codes [N],
    frame_of [N]: the frame at which a code's token starts,
    num_codes [U]: how many of the codes each utterance has.
    """

    mel: torch.Tensor
    f0: torch.Tensor
    audio: torch.Tensor
    codes: torch.Tensor
    frame_of: torch.Tensor
    num_codes: torch.Tensor

    @property
    def num_frames(self) -> int:
        """Return the number of mel frames."""
        return len(self.f0)


@dataclass(frozen=True)
class HeldOutUtterance:
    """One held-out utterance; the mel [80, F] is normalised, the codes are empty before the stage
    `tokens`.
    """

    text: str
    mel: torch.Tensor
    audio: torch.Tensor
    codes: torch.Tensor


def mel_stats() -> tuple[float, float]:
    """Return the mean and the standard deviation of all mel values."""
    stats = json.loads((stage_dir("models") / "mel_stats.json").read_text(encoding="utf-8"))
    return stats["mean"], stats["std"]


def training_speech(with_codes: bool = False) -> TargetSpeech:
    """Return the target voice's training shards; with codes, only those that the tokenizer has heard.

    Raises:
        RuntimeError: There is none yet.
    """
    mean, std = mel_stats()
    mels, pitches, audio, codes, starts, counts = [], [], [], [], [], []
    frames = 0
    for path in shards(stage_dir("features")):
        tokens = stage_dir("tokens") / path.name
        if "-test" in path.name or (with_codes and not tokens.exists()):
            continue
        with np.load(path) as shard:
            mels.append(((shard["mel"].astype(np.float32) - mean) / std).astype(np.float16))
            pitches.append(shard["f0"])
            audio.append(shard["audio"])
            counts.append(shard["num_tokens"].astype(np.int64))
            for count, length in zip(shard["num_tokens"], shard["num_frames"], strict=True):
                starts.append(frames + np.array([first_frame(token) for token in range(count)]))
                frames += int(length)
        if with_codes:
            with np.load(tokens) as shard:
                codes.append(shard["codes"].astype(np.int64))
    if not mels:
        raise RuntimeError(
            "no shard of the target voice is finished: run the stages synth-first and features first"
        )
    return TargetSpeech(
        torch.from_numpy(np.concatenate(mels, 1)),
        torch.from_numpy(np.concatenate(pitches)),
        torch.from_numpy(np.concatenate(audio)),
        torch.from_numpy(np.concatenate(codes)) if codes else torch.empty(0, dtype=torch.long),
        torch.from_numpy(np.concatenate(starts)),
        torch.from_numpy(np.concatenate(counts)),
    )


def held_out_speech(kind: str) -> list[HeldOutUtterance]:
    """Return the held-out utterances of the target voice of one kind, `reply-test` or `general-test`."""
    assert kind.removesuffix("-test") in TARGET_KINDS
    mean, std = mel_stats()
    found = []
    for path in shards(stage_dir("features"), f"{kind}-*.npz"):
        tokens = stage_dir("tokens") / path.name
        with np.load(path) as shard, np.load(stage_dir("audio") / path.name) as said:
            columns = np.cumsum(shard["num_frames"])[:-1]
            mels = np.split((shard["mel"].astype(np.float32) - mean) / std, columns, 1)
            audio = pieces(shard["audio"], shard["num_frames"] * 256)
            codes = [np.empty(0, np.int64)] * len(mels)
            if tokens.exists():
                with np.load(tokens) as file:
                    codes = pieces(file["codes"].astype(np.int64), file["num_tokens"])
            found += [
                HeldOutUtterance(str(text), *(torch.from_numpy(value) for value in values))
                for text, *values in zip(said["texts"], mels, audio, codes, strict=True)
            ]
    return found
