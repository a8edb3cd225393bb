"""The stage `synth`: says every utterance of the plan, shard by shard, until nothing is left or it is
stopped.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import soxr

from training.features.mel import SAMPLE_RATE as TARGET_RATE
from training.speech.espeak import espeak
from training.speech.kokoro import SAMPLE_RATE as KOKORO_RATE
from training.speech.kokoro import kokoro, trimmed
from training.speech.plan import Shard, Utterance
from training.workdir import Log, save_arrays, stage_dir, wait_while_paused

USER_RATE = 16000
PEAK = 0.7
WORDS_A_MINUTE = 160  # eSpeak NG's rate at speed 1
ESPEAK_PITCH = 50  # and its pitch, of 100


def say(utterance: Utterance, sample_rate: int) -> np.ndarray:
    """Return an utterance as int16, its peak at `PEAK`.

    A higher pitch: said more slowly by the factor, then squeezed by it; a lower one the other way round.
    """
    if utterance.voice.startswith("en"):
        rate = espeak().sample_rate
        audio = espeak().speak(
            utterance.text,
            utterance.voice,
            rate=round(WORDS_A_MINUTE * utterance.speed),
            pitch=round(min(99.0, ESPEAK_PITCH * utterance.pitch**2)),
        )
        audio = trimmed(audio, rate)
    else:
        rate = KOKORO_RATE
        audio = kokoro().speak(utterance.text, utterance.voice, utterance.speed / utterance.pitch)
        if utterance.pitch != 1.0:
            audio = soxr.resample(audio, KOKORO_RATE, KOKORO_RATE / utterance.pitch, "HQ")
    audio = soxr.resample(audio, rate, sample_rate, "HQ")
    return np.round(audio * (PEAK * 32767 / max(1e-6, float(np.abs(audio).max())))).astype(np.int16)


def say_shard(shard: Shard, path: Path) -> dict[str, float]:
    """Say a shard and write it as one file; return its seconds of audio and of CPU time."""
    rate = USER_RATE if shard.kind.startswith("user") else TARGET_RATE
    started = time.process_time()
    audio = []
    for utterance in shard.utterances:
        wait_while_paused()
        audio.append(say(utterance, rate))
    save_arrays(
        path,
        audio=np.concatenate(audio),
        lengths=np.array([len(piece) for piece in audio]),
        rate=np.array(rate),
        texts=np.array([entry.text for entry in shard.utterances]),
        voices=np.array([entry.voice for entry in shard.utterances]),
        speeds=np.array([entry.speed for entry in shard.utterances]),
        pitches=np.array([entry.pitch for entry in shard.utterances]),
        tones=np.array([entry.tone for entry in shard.utterances]),
    )
    audio_s = sum(len(piece) for piece in audio) / rate
    return {"audio_s": round(audio_s, 1), "rtf": round((time.process_time() - started) / audio_s, 3)}


def synthesise(queue: list[Shard], max_shards: int | None = None) -> None:
    """Say the shards of a queue that have no file yet, in its order."""
    folder = stage_dir("audio")
    log = Log("synth")
    todo = [shard for shard in queue if not (folder / f"{shard.name}.npz").exists()]
    log.write(event="start", shards=len(queue), left=len(todo))
    for shard in todo[:max_shards]:
        measured = say_shard(shard, folder / f"{shard.name}.npz")
        log.write(event="shard", shard=shard.name, **measured)
