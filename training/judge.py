"""The judge: Whisper base, greedy, on CTranslate2; hears audio and counts the words that came out wrong."""

from __future__ import annotations

from functools import cache

import ctranslate2
import numpy as np
import soxr
import torch
from tokenizers import Tokenizer

from training.features.mel import whisper_log_mel
from training.sources import judge_dir
from training.wer import edit_distance, words

SAMPLE_RATE = 16000
WINDOW_S = 27.5  # several utterances share one window of 30 s: the judge's cost is per window
GAP_S = 0.4
PROMPT = ("<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>")


class Judge:
    """Whisper base on one thread."""

    def __init__(self) -> None:
        folder = judge_dir()
        self._model = ctranslate2.models.Whisper(
            str(folder), device="cpu", compute_type="int8", intra_threads=1, inter_threads=1
        )
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._prompt = [self._tokenizer.token_to_id(name) for name in PROMPT]

    def transcribe(self, audio: np.ndarray) -> str:
        """Return what is heard in at most 30 s of audio at 16 kHz."""
        features = ctranslate2.StorageView.from_array(np.ascontiguousarray(log_mel(audio)[None]))
        result = self._model.generate(features, [self._prompt], beam_size=1, max_length=448)
        return self._tokenizer.decode(result[0].sequences_ids[0], skip_special_tokens=True)


@cache
def judge() -> Judge:
    """Return the one instance of this process."""
    return Judge()


def log_mel(audio: np.ndarray) -> np.ndarray:
    """Return Whisper's features of audio at 16 kHz, padded to 30 s. [80, 3000], float32"""
    padded = torch.zeros(30 * SAMPLE_RATE)
    padded[: len(audio)] = torch.from_numpy(audio[: len(padded)])
    return whisper_log_mel(padded).numpy()


def windows(audios: list[np.ndarray], texts: list[str], sample_rate: int) -> list[tuple[np.ndarray, str]]:
    """Pack utterances into windows of at most `WINDOW_S`, with a gap after each."""
    gap = np.zeros(int(GAP_S * sample_rate), np.float32)
    packed: list[tuple[list[np.ndarray], list[str]]] = [([], [])]
    length = 0
    for audio, text in zip(audios, texts, strict=True):
        if length + len(audio) > WINDOW_S * sample_rate and packed[-1][0]:
            packed.append(([], []))
            length = 0
        packed[-1][0].extend((audio.astype(np.float32), gap))
        packed[-1][1].append(text)
        length += len(audio) + len(gap)
    return [(np.concatenate(pieces), " ".join(said)) for pieces, said in packed if pieces]


def word_error_rate(
    audios: list[np.ndarray], texts: list[str], sample_rate: int, examples: list[dict[str, str]] | None = None
) -> float:
    """Return wrong words over all words of the texts; the first windows are put into `examples` as they
    were heard.
    """
    wrong = total = 0
    for audio, text in windows(audios, texts, sample_rate):
        heard = judge().transcribe(soxr.resample(audio, sample_rate, SAMPLE_RATE, "HQ"))
        reference = words(text)
        wrong += edit_distance(reference, words(heard))
        total += len(reference)
        if examples is not None and len(examples) < 3:
            examples.append({"said": text, "heard": heard.strip()})
    return wrong / max(1, total)
