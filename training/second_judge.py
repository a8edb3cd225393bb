"""A second judge of another family: PocketSphinx with the US English model that its package carries.

Whisper made the speech tokenizer and is the first judge, so it may forgive what it caused itself. This one is a hidden
Markov model of 2015 and makes many more mistakes of its own: only its distance from the original recordings counts.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pocketsphinx
import soxr

from training.wer import edit_distance, words

SAMPLE_RATE = 16000
SILENCE_S = 0.25  # around each utterance


@cache
def decoder() -> pocketsphinx.Decoder:
    """Return the one recogniser of this process."""
    return pocketsphinx.Decoder(samprate=SAMPLE_RATE, loglevel="FATAL")


def transcribe(audio: np.ndarray) -> str:
    """Return what is heard in one utterance at 16 kHz."""
    padded = np.pad(audio, int(SILENCE_S * SAMPLE_RATE))
    recogniser = decoder()
    recogniser.start_utt()
    recogniser.process_raw((np.clip(padded, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
    recogniser.end_utt()
    found = recogniser.hyp()
    return found.hypstr if found else ""


def second_word_error_rate(audios: list[np.ndarray], texts: list[str], sample_rate: int) -> float:
    """Return wrong words over all words of the texts, utterance by utterance."""
    wrong = total = 0
    for audio, text in zip(audios, texts, strict=True):
        reference = words(text)
        wrong += edit_distance(
            reference, words(transcribe(soxr.resample(audio, sample_rate, SAMPLE_RATE, "HQ")))
        )
        total += len(reference)
    return wrong / max(1, total)
